"""Snapshots of a real pipeline; most tests remove from its log the messages whose data a snapshot holds."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats
import pytest

from kit.pipeline import Pipeline
from kit.snapshots import (
    PIECES,
    PREFIX,
    Manifest,
    manifests,
    pieces,
    read_state,
)
from tokentrace.bus import Objects, jetstream, subjects
from tokentrace.errors import Rejected
from tokentrace.service.snapshots import KEEP_SNAPSHOTS

pytestmark = pytest.mark.story

T = TypeVar("T")
#: Time after which an acknowledged snapshot is also on disk, seconds.
SETTLES_S = 1.0


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "200ms"})
    made.start()
    yield made
    made.stop()


def make(**fields: Any) -> dict[str, Any]:
    made = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
    return {"trace_id": uuid.uuid4().hex, "span_id": uuid.uuid4().hex, **made}


def send(serving: Pipeline, *spans: Mapping[str, Any]) -> None:
    answer = serving.post("/spans", list(spans))
    assert answer.status == 202, answer.body


def with_objects(serving: Pipeline, work: Callable[[Objects], Awaitable[T]]) -> T:
    """Run *work* on the object store of a running pipeline and return its result."""

    async def run() -> T:
        async with jetstream.connect(serving.nats_url, name="test") as bus:
            return await work(bus.objects(subjects.SNAPSHOTS))

    return asyncio.run(run())


def listed(serving: Pipeline) -> list[Manifest]:
    return with_objects(serving, manifests)


def positions(serving: Pipeline) -> list[int]:
    """Return the position of each snapshot, the oldest first; -1 = damaged."""

    async def position(objects: Objects, manifest: Manifest) -> int:
        try:
            return int(read_state(await objects.get(manifest.state))["position"][1])
        except (AssertionError, TypeError, Rejected, zlib.error, msgspec.DecodeError):
            return -1

    async def work(objects: Objects) -> list[int]:
        return [await position(objects, manifest) for manifest in await manifests(objects)]

    return with_objects(serving, work)


def generation(serving: Pipeline, *spans: Mapping[str, Any]) -> list[Manifest]:
    """Send *spans*, wait for a snapshot that contains them, and return all snapshots."""
    before = [one.name for one in listed(serving)]
    counted = serving.get("/stats").json()["total_spans"]
    send(serving, *spans)
    serving.until(lambda: serving.get("/stats").json()["total_spans"] == counted + len(spans), "counted")
    last = cut_log(serving, None)
    serving.until(lambda: positions(serving)[-1:] == [last], "saved")
    # A snapshot is saved before an older one is removed.
    serving.until(lambda: len(listed(serving)) <= KEEP_SNAPSHOTS, "the oldest removed")
    found = listed(serving)
    assert found[-1].name not in before
    return found


def cut_log(serving: Pipeline, keep_from: int | None) -> int:
    """Remove the messages before *keep_from* from the log, none if it is None, and return the last sequence."""

    async def run() -> int:
        client = await nats.connect(serving.nats_url)
        try:
            context = client.jetstream()
            if keep_from is not None:
                await context.purge_stream(subjects.SPANS, seq=keep_from)
            return (await context.stream_info(subjects.SPANS)).state.last_seq
        finally:
            await client.close()

    return asyncio.run(run())


def three_generations(serving: Pipeline) -> tuple[list[Manifest], list[float]]:
    """Make three snapshots, each with three more spans than the one before; return them and the costs of the spans."""
    costs = [0.001 * (number + 1) for number in range(9)]
    found: list[Manifest] = []
    for at in (0, 3, 6):
        found = generation(serving, *(make(cost_usd=cost, model=f"m{n}") for n, cost in enumerate(costs[at : at + 3])))
    assert len(found) == 3
    return found, costs


def assert_totals(serving: Pipeline, costs: Sequence[float]) -> None:
    """Check that the counts, costs and prompt tokens that the aggregator returns are exact."""
    serving.until(lambda: serving.get("/readyz").status == 200, "ready")
    nusd = sum(round(cost * 1e9) for cost in costs)
    shown, stats = serving.metrics(), serving.get("/stats").json()
    assert (shown["span_count"], stats["total_spans"]) == (len(costs), len(costs))
    assert round(shown["cost"]["total_usd"] * 1e9) == round(stats["total_cost_usd"] * 1e9) == nusd
    assert shown["tokens"]["prompt_total"] == stats["total_tokens_in"] == 512 * len(costs)
    assert sum(round(usd * 1e9) for usd in shown["cost"]["by_model"].values()) == nusd
    assert shown["since"] is None
    page = serving.get("/metrics/prometheus").body.decode()
    counted = [
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("tokentrace_spans_total")
    ]
    assert sum(counted) == len(costs)


def restart(serving: Pipeline) -> None:
    """Stop and start the pipeline, so that everything is saved and changes to the objects are on disk."""
    assert serving.stop() == 0
    serving.start()


def log_of(serving: Pipeline) -> list[str]:
    lines = serving.log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["message"] for line in lines if line.startswith("{")]


def test_a_snapshot_restores_exact_totals_after_a_kill_without_the_log(serving: Pipeline) -> None:
    found, costs = three_generations(serving)
    last = positions(serving)[-1]
    cut_log(serving, last + 1)
    time.sleep(SETTLES_S)
    serving.kill()
    serving.start()
    assert_totals(serving, costs)
    assert not any("snapshot" in line for line in log_of(serving))
    assert "trouble" not in serving.get("/readyz").json()
    after = generation(serving, make(cost_usd=1))
    assert [one.name for one in after[:2]] == [one.name for one in found[1:]]
    assert_totals(serving, [*costs, 1])


def test_kills_while_snapshots_are_saved_leave_exact_totals(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "50ms"})
    serving.start()
    costs: list[float] = []
    try:
        for turn in range(5):
            for _ in range(10):
                costs.append(0.001 * (len(costs) + 1))
                send(serving, make(cost_usd=costs[-1], model=f"m{len(costs) % 3}"))
            time.sleep(0.07 * turn)
            serving.kill()
            serving.start()
            assert_totals(serving, costs)
    finally:
        serving.stop()


#: Damages the object *name* of the newest snapshot: (objects, JetStream context of nats-py, newest, name).
Damage = Callable[[Objects, Any, Manifest, str], Awaitable[None]]


async def remove(objects: Objects, context: Any, newest: Manifest, name: str) -> None:
    await objects.delete(name)


async def overwrite(objects: Objects, context: Any, newest: Manifest, name: str) -> None:
    await objects.put(name, b"\xc1 this was a snapshot" * 20)


async def cut_short(objects: Objects, context: Any, newest: Manifest, name: str) -> None:
    data = await objects.get(name)
    assert data is not None
    await objects.put(name, data[: len(data) // 2])


async def lose_the_bytes(objects: Objects, context: Any, newest: Manifest, name: str) -> None:
    """Remove the chunks and keep the description, as a broken disk may do."""
    info = await (await context.object_store(subjects.SNAPSHOTS)).get_info(name)
    await context.purge_stream(f"OBJ_{subjects.SNAPSHOTS}", subject=f"$O.{subjects.SNAPSHOTS}.C.{info.nuid}")


async def take_for_another(objects: Objects, context: Any, newest: Manifest, name: str) -> None:
    """Replace the object by a part of the same snapshot: it can be decompressed, but has the wrong content."""
    data = await objects.get(next(iter(newest.parts.values())))
    assert data is not None
    await objects.put(name, data)


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("state", remove),
        ("state", lose_the_bytes),
        ("state", take_for_another),
        ("part", remove),
        ("part", cut_short),
        ("manifest", overwrite),
        ("manifest", lose_the_bytes),
    ],
)
def test_a_damaged_snapshot_falls_back_to_the_one_before(serving: Pipeline, what: str, damage: Damage) -> None:
    found, costs = three_generations(serving)
    newest = found[-1]
    hurt(serving, found, what, damage)
    restart(serving)
    assert_totals(serving, costs)
    assert any("falling back to the one before" in line for line in log_of(serving))
    (trouble,) = serving.get("/readyz").json()["trouble"]
    assert newest.name in trouble


def hurt(serving: Pipeline, found: Sequence[Manifest], what: str, damage: Damage) -> None:
    """Damage an object of the newest snapshot, and remove from the log the messages that the one before holds."""
    newest, before = found[-1], found[-2]
    own = sorted(newest.pieces - before.pieces - {newest.state})
    name = {"state": newest.state, "part": own[0], "manifest": newest.name}[what]
    cut_log(serving, positions(serving)[-2] + 1)

    async def work(objects: Objects) -> None:
        client = await nats.connect(serving.nats_url)
        try:
            await damage(objects, client.jetstream(), newest, name)
        finally:
            await client.close()

    with_objects(serving, work)


def test_after_falling_back_new_snapshots_can_be_read(serving: Pipeline) -> None:
    found, costs = three_generations(serving)
    hurt(serving, found, "part", remove)
    restart(serving)
    generation(serving, make(cost_usd=1))
    cut_log(serving, positions(serving)[-1] + 1)
    restart(serving)
    assert_totals(serving, [*costs, 1])
    assert "trouble" not in serving.get("/readyz").json()


def test_an_object_that_is_not_a_snapshot_is_set_aside(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    cut_log(serving, positions(serving)[-1] + 1)
    now_ns = time.time_ns()
    strange = [
        zlib.compress(msgspec.msgpack.encode({"version": 2, "shard": 0, "shards": 1, "cells": []})),
        msgspec.msgpack.encode({"version": 2, "shard": 0}),
        bytes(range(256)) * 40,
        b"",
        msgspec.msgpack.encode({"state": PIECES + "1.0", "parts": {}}),
    ]

    async def work(objects: Objects) -> None:
        for number, data in enumerate(strange):
            await objects.put(f"{PREFIX}{now_ns + number:020d}", data)
            await objects.put(f"{PREFIX}latest{number}", data)

    with_objects(serving, work)
    restart(serving)
    assert_totals(serving, costs)
    lines = log_of(serving)
    for number in range(len(strange)):
        fallback, note = [line for line in lines if f"{PREFIX}{now_ns + number:020d}" in line]
        assert fallback.endswith("falling back to the one before")
        assert "was set aside: " in note
    assert not any("latest" in line for line in lines)
    # The unreadable snapshots are removed when new ones are saved.
    for _ in range(KEEP_SNAPSHOTS):
        generation(serving, make(cost_usd=1))
        costs.append(1)
    assert len(listed(serving)) == KEEP_SNAPSHOTS
    restart(serving)
    assert_totals(serving, costs)
    assert "trouble" not in serving.get("/readyz").json()


def break_all(serving: Pipeline) -> None:
    """Remove the state piece of every snapshot."""

    async def work(objects: Objects) -> None:
        for one in await manifests(objects):
            await objects.delete(one.state)

    with_objects(serving, work)


def test_without_any_snapshot_the_whole_log_is_read_again(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    break_all(serving)
    restart(serving)
    assert_totals(serving, costs)
    assert serving.get("/readyz").json()["trouble"]


def test_since_is_later_if_neither_a_snapshot_nor_the_log_has_the_data(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    first = positions(serving)[-1]
    cut_log(serving, first)
    break_all(serving)
    restart(serving)
    for path in ("/metrics", "/metrics/cost", "/metrics/error_rate", "/metrics/cost_by_model", "/metrics/cost/series"):
        shown = serving.get(path).json()
        since = datetime.fromisoformat(shown["since"])
        assert datetime.now(UTC) - timedelta(minutes=1) < since <= datetime.now(UTC), path
    shown = serving.metrics()
    assert shown["span_count"] == 3
    assert round(shown["cost"]["total_usd"] * 1e9) == sum(round(cost * 1e9) for cost in costs[6:])
    ready = serving.get("/readyz").json()
    assert ready["trouble"]
    assert ready["lost"] == {"0": [[1, first - 1]]}


def test_health_names_the_lost_messages(serving: Pipeline) -> None:
    three_generations(serving)
    cut_log(serving, positions(serving)[-1])
    break_all(serving)
    restart(serving)
    shown = serving.get("/health").json()
    assert "lost" in shown, shown


def test_three_snapshots_of_the_aggregator_and_of_the_alerter_are_kept(serving: Pipeline) -> None:
    names: set[str] = set()
    for _ in range(5):
        found = generation(serving, make())
        assert len(found) <= KEEP_SNAPSHOTS
        names |= {one.name for one in found}
    assert len(names) >= 5

    async def work(objects: Objects) -> tuple[int, list[Manifest], set[str]]:
        return len(await manifests(objects, "alerter.0.")), await manifests(objects), await pieces(objects)

    alerters, aggregators, held = with_objects(serving, work)
    assert (alerters, len(aggregators)) == (KEEP_SNAPSHOTS, KEEP_SNAPSHOTS)
    assert all(one.pieces <= held for one in aggregators)


def test_an_unchanged_piece_is_not_written_again_even_after_a_restart(serving: Pipeline) -> None:
    ended = (datetime.now(UTC) - timedelta(days=6)).isoformat()
    costs = [0.5] * 3
    old = generation(serving, *(make(ended_at=ended, model=f"old{n}", cost_usd=0.5) for n in range(3)))[-1]
    # Every new call changes the newest part of the memory of calls.
    unchanged = {name: piece for name, piece in old.parts.items() if not name.startswith("@calls.")}
    assert len(unchanged) >= 3
    for turn in range(4):
        newer = generation(serving, make())[-1]
        costs.append(0.00256)
        kept = {name: piece for name, piece in newer.parts.items() if name in unchanged}
        assert kept == unchanged
        assert len(newer.parts) > len(kept)
        if turn == 1:
            time.sleep(SETTLES_S)
            serving.kill()
            serving.start()
        if turn == 2:
            restart(serving)
    assert_totals(serving, costs)
