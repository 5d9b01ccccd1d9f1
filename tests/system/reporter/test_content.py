"""Spans with unusual content: values that cannot be encoded, unusual attributes, and secrets."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from kit.broker import Broker
from kit.builders import STARTED_NS, make_span
from kit.peers import ignore_ungreeted_connections
from kit.raw_messages import make_cleaner
from kit.raw_stream import create_streams, read_raw, span_names
from kit.reporting import WAIT_S, accounted
from tokentrace import Reporter, Span, Stats
from tokentrace.redact import REDACTED
from tokentrace.units import SECOND

pytestmark = ignore_ungreeted_connections


@pytest.mark.parametrize(
    "attributes",
    [
        {"x": object()},
        {"x": 2**70},
        {"x": {"y": {"z": lambda: None}}},
        {(1, object()): "x"},
        ["not a mapping", object()],
    ],
)
def test_a_span_that_cannot_be_encoded_counts_as_rejected_and_does_not_raise(url: str, attributes: Any) -> None:
    with Reporter("odd", url) as reporter:
        reporter.report(make_span(attributes=attributes))
        reporter.report(make_span(name="good"))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(2, 1, 0, 0, 0, rejected=1)
    assert span_names(read_raw(url)) == Counter(["good"])


def test_attributes_that_contain_themselves_count_as_rejected(url: str) -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    with Reporter("ring", url) as reporter:
        reporter.report(make_span(attributes=ring))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(1, 0, 0, 0, 0, rejected=1)


def test_half_of_a_surrogate_pair_becomes_a_replacement_character(url: str) -> None:
    with Reporter("half", url) as reporter:
        reporter.report(make_span(name="cut \ud83d", attributes={"a\ud800": ["\udfff", {"b": "\ud83d"}]}))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(1, 1, 0, 0, 0)
    (span,) = (span for message in read_raw(url) for span in message.batch.spans)
    assert (span.name, span.attributes) == ("cut \ufffd", {"a\ufffd": ["\ufffd", {"b": "\ufffd"}]})


def _nested(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({"retries": {1: "timeout", 2: "timeout"}}, id="nested integer keys"),
        pytest.param({1: "timeout"}, id="integer keys"),
        pytest.param({"deep": _nested(300)}, id="300 levels"),
        pytest.param({"deep": _nested(600)}, id="600 levels"),
        pytest.param({"deep": _nested(850)}, id="850 levels"),
        pytest.param({"many": {"when": [b"bytes", {1.5: None}]}}, id="bytes and float keys"),
    ],
)
def test_a_span_with_unusual_attributes_is_counted_and_the_others_arrive(url: str, attributes: Any) -> None:
    """The span may be accepted or refused; either way a counter includes it, and the other spans arrive."""
    with Reporter("odd", url) as reporter:
        reporter.report(make_span(name="before"))
        reporter.report(make_span(name="odd", attributes=attributes))
        reporter.report(make_span(name="after"))
        assert reporter.flush(15)
        reporter.report(make_span(name="later"))
        assert reporter.flush(15)
        stats = reporter.stats()
        assert stats.acked >= 3
        assert accounted(stats) == 4
    payloads = b"".join(message.payload for message in read_raw(url))
    assert all(name in payloads for name in (b"before", b"after", b"later"))


@pytest.mark.parametrize("thing", [None, {"name": "not a span"}, "text", 7])
def test_reporting_something_that_is_not_a_span_does_not_raise(url: str, thing: Any) -> None:
    with Reporter("wrong", url) as reporter:
        reporter.report(thing)
        reporter.report(make_span(name="good"))
        assert reporter.flush(WAIT_S)
        assert reporter.stats().acked == 1


def test_changing_attributes_after_report_changes_nothing_that_is_sent(broker: Broker) -> None:
    create_streams(broker.url)
    broker.kill()
    attributes: dict[str, Any] = {"kept": "yes", "deep": {"list": [1, 2]}}
    with Reporter("copy", broker.url) as reporter:
        reporter.report(make_span(attributes=attributes))
        attributes["deep"]["list"].append("later")
        attributes["later"] = "later"
        del attributes["kept"]
        broker.start()
        assert reporter.flush(WAIT_S)
    (message,) = read_raw(broker.url)
    assert message.batch.spans[0].attributes == {"kept": "yes", "deep": {"list": [1, 2]}}
    assert b"later" not in message.payload


def test_a_span_without_a_time_ends_when_it_is_reported(url: str) -> None:
    before = time.time_ns()
    with Reporter("end", url) as reporter:
        reporter.report(Span(name="now", kind="custom"))
        reporter.report(make_span(ended_ns=1_800_000_000_000_000_000))
        after = time.time_ns()
        assert reporter.flush(WAIT_S)
    ends = [span.ended_ns for message in read_raw(url) for span in message.batch.spans]
    assert before <= ends[0] <= after
    assert ends[1] == 1_800_000_000_000_000_000


def test_a_span_of_an_hour_ago_with_start_and_latency_does_not_end_now(url: str) -> None:
    """Ingest computes the end from both, as for ``POST /spans``."""
    with Reporter("end", url) as reporter:
        reporter.report(make_span(started_ns=STARTED_NS, latency_ns=5 * SECOND, ended_ns=0, total_tokens=0))
        assert reporter.flush(WAIT_S)
    (message,) = read_raw(url)
    (part,) = make_cleaner().clean(message.batch, time.time_ns()).parts
    assert (part.spans[0].started_ns, part.spans[0].ended_ns) == (STARTED_NS, STARTED_NS + 5 * SECOND)


def test_secrets_are_redacted_before_a_batch_reaches_the_raw_stream(url: str) -> None:
    with Reporter("secrets", url) as reporter:
        reporter.report(
            make_span(
                attributes={
                    "password": "hunter2",
                    "deep": {"api_key": "sk-verysecret", "list": ["write to jane@example.com"]},
                    "header": "Authorization: Bearer abcdef123456",
                    "kept": "plain",
                },
                status="error",
                error="no mail for jane@example.com, password=hunter2",
                error_stack="File x.py: token=hunter2",
            )
        )
        assert reporter.flush(WAIT_S)
    (message,) = read_raw(url)
    for secret in (b"hunter2", b"sk-verysecret", b"jane@example.com", b"abcdef123456"):
        assert secret not in message.payload
    (span,) = message.batch.spans
    assert span.attributes["password"] == REDACTED
    assert span.attributes["kept"] == "plain"
    assert "no mail for" in span.error


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"prompt_tokens": -1, "total_tokens": 1, "attributes": {"password": "hunter2"}}, id="bad tokens"),
        pytest.param({"name": "n" * 300, "attributes": {"password": "hunter2"}}, id="long name"),
        pytest.param({"error": "password=hunter2 " + "x" * 40_000, "status": "error"}, id="long error"),
        pytest.param({"attributes": {1: "x", "password": "hunter2"}}, id="a key that is not a string"),
        pytest.param({"attributes": {"password": b"hunter2"}}, id="bytes"),
        pytest.param({"attributes": {"password": ("hunter2", "hunter2")}}, id="tuple"),
    ],
)
def test_secrets_of_an_invalid_span_never_reach_the_raw_stream(url: str, fields: dict[str, Any]) -> None:
    with Reporter("secrets", url) as reporter:
        reporter.report(make_span(**fields))
        assert reporter.flush(15)
        assert accounted(reporter.stats()) == 1
    assert all(b"hunter2" not in message.payload for message in read_raw(url))
