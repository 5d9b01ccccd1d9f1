"""A reporter and a whole pipeline, over NATS and over HTTP: the metrics count each span once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nats
import pytest

from kit.builders import make_span
from kit.peers import CuttingProxy, ignore_ungreeted_connections
from kit.pipeline import Pipeline, http
from kit.reporting import WAIT_S
from tokentrace import Reporter, Stats
from tokentrace.records import Batch

pytestmark = ignore_ungreeted_connections


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Start a pipeline that requires the bearer token ``s3cret`` over HTTP."""
    serving = Pipeline(tmp_path_factory.mktemp("serve"), env={"TOKENTRACE_AUTH_TOKEN": "s3cret"})
    serving.start()
    yield serving
    serving.stop()


def counted(pipeline: Pipeline) -> dict[str, int]:
    """Return the numbers of spans and prompt tokens in ``/metrics``."""
    body = http("GET", f"{pipeline.url}/metrics?window=30d", headers={"Authorization": "Bearer s3cret"}).json()
    return {"spans": body["span_count"], "prompt": body["tokens"]["prompt_total"]}


@pytest.mark.parametrize("way", ["nats", "http"])
def test_the_totals_are_the_same_over_nats_and_over_http(pipeline: Pipeline, way: str) -> None:
    before = counted(pipeline)
    now = time.time_ns()
    with Reporter("totals", pipeline.nats_url if way == "nats" else pipeline.url, token="s3cret") as reporter:
        for index in range(1500):
            reporter.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now, prompt_tokens=index + 1))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(1500, 1500, 0, 0, 0)
    wanted = {"spans": before["spans"] + 1500, "prompt": (before["prompt"] or 0) + 1500 * 1501 // 2}
    pipeline.until(lambda: counted(pipeline) == wanted, f"{wanted}", WAIT_S)


@pytest.mark.parametrize("way", ["nats", "http"])
def test_an_invalid_span_does_not_affect_the_others_of_its_batch(pipeline: Pipeline, way: str) -> None:
    before = counted(pipeline)
    now = time.time_ns()
    with Reporter("bad", pipeline.nats_url if way == "nats" else pipeline.url, token="s3cret") as reporter:
        for tokens in (1, -1, 2, 2**50, 4):
            reporter.report(
                make_span(trace_id="", span_id="", started_ns=0, ended_ns=now, prompt_tokens=tokens, total_tokens=0)
            )
        reporter.report(make_span(trace_id="", span_id="", ended_ns=now, model="", prompt_tokens=8))
        assert reporter.flush(15)
    wanted = {"spans": before["spans"] + 3, "prompt": (before["prompt"] or 0) + 7}
    pipeline.until(lambda: counted(pipeline) == wanted, f"{wanted}", 15)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_spans_sent_with_a_wrong_token_count_as_failed(pipeline: Pipeline, token: str) -> None:
    before = counted(pipeline)
    with Reporter("intruder", pipeline.url, token=token) as reporter:
        for _ in range(5):
            reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        stats = reporter.stats()
        assert (stats.acked, stats.failed, reporter.dropped) == (0, 5, 5)
    assert counted(pipeline) == before


@pytest.mark.parametrize("way", ["nats", "http"])
def test_batches_sent_again_after_a_restart_of_the_pipeline_count_once(pipeline: Pipeline, way: str) -> None:
    """The replies to the reporter are lost, the pipeline is killed, and the reporter sends the same batches again."""
    before = counted(pipeline)
    now = time.time_ns()
    cutting = True
    reply = b'"stream":"TT_RAW"' if way == "nats" else b"202 Accepted"
    wanted = {"spans": before["spans"] + 300, "prompt": (before["prompt"] or 0) + 300 * 512}
    with CuttingProxy(pipeline.nats_port if way == "nats" else pipeline.port) as proxy:
        proxy.cut = lambda data: cutting and reply in data
        with Reporter("again", f"{way}://127.0.0.1:{proxy.port}", token="s3cret") as reporter:
            for _ in range(300):
                reporter.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now))
            pipeline.until(lambda: counted(pipeline) == wanted and proxy.cuts > 0, "counted, with a reply lost")
            assert reporter.stats().queue_depth > 0
            pipeline.kill()
            pipeline.start()
            cutting = False
            assert reporter.flush(WAIT_S)
            assert reporter.stats() == Stats(300, 300, 0, 0, 0)
        # When this further span is counted, all repeated batches have been read.
        with Reporter("last", pipeline.nats_url) as last:
            last.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now))
        wanted = {"spans": wanted["spans"] + 1, "prompt": wanted["prompt"] + 512}
        pipeline.until(lambda: counted(pipeline)["spans"] >= wanted["spans"], "the last span counted", WAIT_S)
        assert counted(pipeline) == wanted


def test_an_undecodable_span_does_not_stop_the_pipeline(tmp_path: Path) -> None:
    """The other span of the same batch is counted, and the pipeline stays ready."""
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        now = time.time_ns()
        undecodable = {"odd": {1: "integer key", "b": b"bytes"}}
        batch = Batch(
            id="foreign", sequence=1, spans=[make_span(attributes=undecodable), make_span(ended_ns=now, started_ns=0)]
        )

        async def publish() -> None:
            client = await nats.connect(serving.nats_url)
            await client.jetstream().publish("tokentrace.raw.default.0", msgspec.msgpack.encode([batch]))
            await client.close()

        asyncio.run(publish())
        serving.until(lambda: serving.metrics()["span_count"] == 1, "the other span counted", 20)
        assert serving.get("/readyz").status == 200
    finally:
        serving.stop()
