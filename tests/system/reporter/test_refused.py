"""
Spans that are not valid: the reporter counts them, the pipeline shows them, and both agree; what is long is cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kit.builders import make_span
from kit.dead_letters import await_dead_letters, dead_letter_count
from kit.peers import ignore_ungreeted_connections
from kit.pipeline import Pipeline
from kit.reporting import WAIT_S, accounted, until
from tokentrace import Reporter, Span, Stats
from tokentrace.bus import jetstream, subjects
from tokentrace.records import RefusalNotice, SpanError, encode_notice
from tokentrace.units import DAY

pytestmark = ignore_ungreeted_connections

#: What is wrong -> the fields of a span, and how the reason begins.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "prompt_tokens, comp_tokens or"),
    "no model": ({"model": ""}, "model: "),
    "reserved key": ({"attributes": {"tt.x": 1}}, "attributes: "),
    "not a number": ({"attributes": {"x": float("nan")}}, "attributes: "),
    "cache over prompt": ({"cache_read_tokens": 10_000}, "cache_read_tokens"),
    "odd id": ({"trace_id": "line\nbreak"}, "trace_id: "),
    "negative tokens": ({"prompt_tokens": -1}, "prompt_tokens: "),
    "unknown kind": ({"kind": "rocket"}, "kind: "),
    "an object": ({"attributes": {"x": object()}}, "cannot be encoded: "),
    # The reporter does not compute the end, so only ingest finds this.
    "an end after 2100": ({"started_ns": 4_102_444_799 * 10**9, "ended_ns": 0, "latency_ns": 2 * DAY}, "ended_at: "),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Start a pipeline."""
    serving = Pipeline(tmp_path_factory.mktemp("serve"))
    serving.start()
    yield serving
    serving.stop()


def address(pipeline: Pipeline, way: str) -> str:
    """Return the URL of *pipeline* for a reporter."""
    return pipeline.nats_url if way == "nats" else pipeline.url


@pytest.mark.parametrize("way", ["nats", "http"])
def test_the_reporter_and_the_pipeline_count_the_same_invalid_spans(
    pipeline: Pipeline, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, spans_before = dead_letter_count(pipeline), pipeline.metrics()["span_count"] or 0
    now = time.time_ns()
    with caplog.at_level(logging.WARNING, "tokentrace.reporter"), Reporter("shop", address(pipeline, way)) as reporter:
        for index in range(1000):
            reporter.report(make_span(trace_id="", span_id="", started_ns=0, ended_ns=now))
            if index % 10 == 0:
                fields, _ = BAD[list(BAD)[index // 10 % 10]]
                reporter.report(make_span(**{"trace_id": "", "span_id": "", **fields}))
        assert reporter.flush(WAIT_S)
        letters = await_dead_letters(pipeline, before, 100)
        until(lambda: reporter.stats().rejected == 100, "100 rejected spans")
        assert reporter.stats() == Stats(1100, 1000, 0, 0, 0, rejected=100)
        assert accounted(reporter.stats()) == 1100
    for name, (_, reason) in BAD.items():
        assert sum(letter["reason"].startswith(reason) for letter in letters) >= 10, name
    assert {letter["source"] for letter in letters} == {"shop"}
    assert len({(letter["batch"], letter["index"], letter["reason"]) for letter in letters}) == 100
    pipeline.until(lambda: pipeline.metrics()["span_count"] == spans_before + 1000, "1000 more spans", WAIT_S)
    # One line for each of ten reasons, none for each span; and the sum at the end.
    lines = [record.getMessage() for record in caplog.records if record.name == "tokentrace.reporter"]
    assert 10 <= len([line for line in lines if "is not valid" in line]) <= 30
    assert sum("spans lost: 100 (" in line for line in lines) == 1


@pytest.mark.parametrize("way", ["nats", "http"])
def test_a_prompt_of_200_kb_keeps_its_cost(pipeline: Pipeline, way: str) -> None:
    trace_id = f"long-{way}"
    with Reporter("long", address(pipeline, way)) as reporter:
        reporter.report(
            make_span(trace_id=trace_id, attributes={"prompt": "lorem ipsum " * 17_000}, error_stack="at x " * 20_000)
        )
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(1, 1, 0, 0, 0, truncated=1)
    pipeline.until(lambda: pipeline.get(f"/traces/{trace_id}").status == 200, "the trace", WAIT_S)
    (span,) = pipeline.get(f"/traces/{trace_id}").json()["spans"]
    assert span["cost_usd"] == pytest.approx(0.00256)
    assert span["attributes"]["prompt"].endswith("…[cut, 204000 bytes]")
    assert span["adjusted"] == ["error_stack: cut, 100000 bytes", "attributes.prompt: cut, 204000 bytes"]


@pytest.mark.parametrize("way", ["nats", "http"])
def test_secrets_of_an_invalid_span_reach_no_dead_letter(pipeline: Pipeline, way: str) -> None:
    before = dead_letter_count(pipeline)
    attributes = {"password": "hunter2", "note": "write to jane@example.com", "raw": b"jane@example.com", "x": {1: 2}}
    with Reporter("secret", address(pipeline, way)) as reporter:
        reporter.report(make_span(trace_id="jane@example.com\n", attributes=attributes, model=""))
        assert reporter.flush(WAIT_S)
        assert reporter.stats().rejected == 1
    (letter,) = await_dead_letters(pipeline, before, 1)
    assert "jane@example.com" not in str(letter)
    assert "hunter2" not in str(letter)
    assert letter["span"]["prompt_tokens"] == make_span().prompt_tokens


def test_a_notice_counts_once_and_only_for_spans_that_were_sent(url: str) -> None:
    """A message that is delivered twice makes two notices, and anybody may publish on the subject."""
    with Reporter("noticed", url) as reporter:
        for _ in range(3):
            reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        assert reporter.stats().acked == 3

        async def publish() -> None:
            async with jetstream.connect(url, name="ingest") as bus:
                subject = subjects.refused("default", reporter.id)
                for id, sequence, rejected in ((reporter.id, 7, 5), ("other", 1, 1), *[(reporter.id, 1, 2)] * 3):
                    notice = RefusalNotice(
                        id=id, sequence=sequence, rejected=rejected, errors=[SpanError(0, "model: required")]
                    )
                    await bus.notify(subject, b"rubbish")
                    await bus.notify(subject, encode_notice(notice))

        asyncio.run(publish())
        until(lambda: reporter.stats().rejected > 0, "a notice taken")
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(4, 2, 0, 0, 0, rejected=2)


def test_what_only_ingest_finds_moves_from_acked_to_rejected(pipeline: Pipeline) -> None:
    with Reporter("told", pipeline.nats_url) as reporter:
        fields, _ = BAD["an end after 2100"]
        for _ in range(3):
            reporter.report(make_span(**fields))
        reporter.report(Span(name="good", kind="tool"))
        assert reporter.flush(WAIT_S)
        until(lambda: reporter.stats() == Stats(4, 1, 0, 0, 0, rejected=3), "three rejected spans")
        reporter.report(Span(name="good", kind="tool"))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(5, 2, 0, 0, 0, rejected=3)
