"""Totals of an hour of real traffic stay exact through kills, repeated batches and lost or damaged files."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import numpy as np
import pytest
from nats.aio.msg import Msg

from kit.examples import examples
from kit.pipeline import TRACE, Pipeline, SeparateServices, assert_exact, finish, replay, sum_of_pages

pytestmark = pytest.mark.story


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path)
    serving.start()
    yield serving
    serving.stop()


def test_an_hour_of_real_traffic_gives_exact_totals(pipeline: Pipeline) -> None:
    sending = replay(pipeline, "--speed", "max")
    finish(sending)
    assert_exact(pipeline)
    assert sum_of_pages(pipeline) == (19366, 96791325000)
    with TRACE.open() as file:
        rows = list(csv.reader(file))[1:]
    latencies = np.array([int(row[1]) * 0.25 + int(row[2]) * 20 for row in rows])
    shown = pipeline.metrics()["latency"]
    for name, q in (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert shown[name] == pytest.approx(np.quantile(latencies, q), rel=0.01)


def test_kills_of_everything_leave_exact_totals(pipeline: Pipeline) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    sending = replay(pipeline, "--speed", "600")
    for _ in range(examples(20)):
        time.sleep(dice.uniform(0.05, 0.6))
        pipeline.kill()
        pipeline.start(wait=dice.random() < 0.5)
    finish(sending)
    assert_exact(pipeline)


def has_broker(pipeline: Pipeline) -> bool:
    """Return True if the nats-server of *pipeline* runs; after a kill, it restarts a moment later."""
    with contextlib.suppress(subprocess.CalledProcessError):
        return pipeline.nats_pid() > 0
    return False


def test_kills_of_the_broker_alone_leave_exact_totals(pipeline: Pipeline) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    sending = replay(pipeline, "--speed", "600")
    for _ in range(6):
        time.sleep(dice.uniform(0.3, 1.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pipeline.nats_pid(), signal.SIGKILL)
        pipeline.until(lambda: has_broker(pipeline), "nats-server restarted")
    finish(sending)
    assert_exact(pipeline)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[SeparateServices]:
    services = SeparateServices(tmp_path)
    services.start()
    yield services
    services.stop()


def test_an_ingest_outage_longer_than_the_duplicate_window_leaves_exact_totals(apart: SeparateServices) -> None:
    sending = replay(apart, "--speed", "600")
    for _ in range(3):
        time.sleep(0.7)
        apart.kill_one("ingest")
        time.sleep(2.0)
        apart.start_one("ingest")
    finish(sending)
    assert_exact(apart)


def test_kills_of_single_services_leave_exact_totals(apart: SeparateServices) -> None:
    sending = replay(apart, "--speed", "600")
    for name in ("aggregator", "api", "ingest", "aggregator", "api"):
        time.sleep(0.8)
        apart.kill_one(name)
        apart.start_one(name)
    finish(sending)
    assert_exact(apart)


async def test_every_batch_that_is_sent_again_counts_once(pipeline: Pipeline) -> None:
    """The duplicate window is 1 s here, so the broker stores the batches again and the readers must recognise them."""
    batches: list[tuple[str, bytes, dict[str, str]]] = []
    client = await nats.connect(pipeline.nats_url)

    async def record(message: Msg) -> None:
        batches.append((message.subject, message.data, dict(message.headers or {})))

    await client.subscribe("tokentrace.raw.>", cb=record)
    await client.flush()
    sending = replay(pipeline, "--speed", "max")
    await asyncio.to_thread(finish, sending)
    await asyncio.to_thread(assert_exact, pipeline)
    await asyncio.sleep(3)
    await client.close()
    again = await nats.connect(pipeline.nats_url)
    repeated = list(batches)
    assert len(repeated) >= 76
    for subject, payload, headers in repeated:
        ack = await again.jetstream().publish(subject, payload, headers=headers)
        assert not ack.duplicate
    await again.close()

    def known() -> bool:
        lines = pipeline.get("/internal/metrics").body.decode().splitlines()
        counters = [line for line in lines if line.startswith("tokentrace_aggregator_duplicate_batches_total")]
        return float(counters[0].rpartition(" ")[2]) >= len(repeated)

    await asyncio.to_thread(pipeline.until, known, "all repetitions read")
    await asyncio.to_thread(assert_exact, pipeline)


async def test_a_corrupt_newest_snapshot_falls_back_to_the_one_before(pipeline: Pipeline) -> None:
    await asyncio.to_thread(finish, replay(pipeline, "--speed", "1200"))
    await asyncio.to_thread(assert_exact, pipeline)
    await asyncio.sleep(2)
    client = await nats.connect(pipeline.nats_url)
    store = await client.jetstream().object_store("tt_snapshots")
    stored = sorted(info.name for info in await store.list() if info.name.startswith("aggregator.0."))
    names = [name for name in stored if name.removeprefix("aggregator.0.").isdigit()]
    assert 2 <= len(names) <= 3
    newest = await store.get_info(names[-1])
    # A reader tries the snapshot with the highest name first.
    await store.put(f"aggregator.0.{'9' * 20}", b"rubbish" * 100)
    await store.delete(newest.name)
    await client.close()
    pipeline.kill()
    pipeline.start()
    await asyncio.to_thread(assert_exact, pipeline)
    assert "aggregator.0.9999" in pipeline.get("/readyz").body.decode()


def test_a_lost_database_file_is_rebuilt_from_the_stream(pipeline: Pipeline) -> None:
    finish(replay(pipeline, "--speed", "max"))
    assert_exact(pipeline)
    pipeline.kill()
    files = sorted((pipeline.data / "spans").glob("spans-*.duckdb*"))
    assert files
    for file in files:
        file.unlink()
    pipeline.start()
    assert_exact(pipeline)


async def test_messages_that_the_stream_lost_are_named_in_health(pipeline: Pipeline) -> None:
    await asyncio.to_thread(finish, replay(pipeline, "--speed", "max"))
    await asyncio.to_thread(assert_exact, pipeline)
    client = await nats.connect(pipeline.nats_url)
    await client.jetstream().purge_stream("TT_SPANS", keep=1)
    await client.close()
    pipeline.kill()
    for file in (pipeline.data / "spans").glob("spans-*.duckdb*"):
        file.unlink()
    pipeline.start()
    health = pipeline.get("/health").json()
    assert health["lost"][0]["first"] == 1
    assert pipeline.metrics()["span_count"] == 19366


def test_a_damaged_database_file_is_set_aside_and_rebuilt(pipeline: Pipeline) -> None:
    finish(replay(pipeline, "--speed", "max"))
    assert_exact(pipeline)
    pipeline.kill()
    (newest,) = (pipeline.data / "spans").glob("spans-*.duckdb")
    newest.write_bytes(b"not a database" * 1000)
    pipeline.start()
    assert_exact(pipeline)
    assert pipeline.get("/health").json()["damaged"]
