"""Refused spans come back to the reporter, and every view shows the same number with the same reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from kit.builders import make_span
from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline
from tokentrace import Reporter, Span

GOOD, EACH = 1000, 10
#: Reason -> the fields that make a valid span a bad one.
BAD: dict[str, list[dict[str, Any]]] = {
    "model": [{"model": ""}],
    "prompt_tokens": [
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -1},
    ],
    "trace_id": [{"trace_id": "a line\nand another"}],
    "attributes": [{"attributes": {"tt.own": 1}}, {"attributes": {"x": float("nan")}}],
    "cache_read_tokens": [{"cache_read_tokens": 600}],
    "reasoning_tokens": [{"reasoning_tokens": 600}],
    "ended_at": [{"ended_ns": 5}],
    "total_tokens": [{"total_tokens": 3}],
}
KINDS = [(reason, fields) for reason, several in BAD.items() for fields in several]
BY_REASON = {reason: len(several) * EACH for reason, several in BAD.items()}


@pytest.fixture(params=["nats", "http"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[tuple[Pipeline, str]]:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        yield serving, serving.nats_url if request.param == "nats" else serving.url
    finally:
        assert serving.stop() == 0


def call(number: int, **fields: Any) -> Span:
    return make_span(
        **{
            "trace_id": fresh("trace"),
            "span_id": fresh("span"),
            "started_ns": 0,
            "ended_ns": 0,
            "arrived_ns": 0,
            "source": "",
            "prompt_tokens": 500,
            "completion_tokens": 100,
            "name": f"call {number}",
            **fields,
        }
    )


def all_rejected(serving: Pipeline) -> list[dict[str, Any]]:
    """Return the records of every page of ``GET /rejected``."""
    records: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = serving.get(f"/rejected?limit=30{cursor}").json()
        records += page["rejected"]
        if page["next_cursor"] is None:
            return records
        cursor = f"&cursor={page['next_cursor']}"


def test_a_hundred_bad_spans_are_a_hundred_in_every_view(pipeline: tuple[Pipeline, str]) -> None:
    serving, url = pipeline
    assert len(KINDS) == 10
    with Reporter("the shop", url) as reporter:
        for number in range(GOOD):
            reporter.report(call(number))
            if number < len(KINDS) * EACH:
                reporter.report(call(number, **KINDS[number % len(KINDS)][1]))
    stats = reporter.stats()
    assert (stats.acked, stats.rejected, stats.failed, stats.dropped) == (GOOD, len(KINDS) * EACH, 0, 0)

    total = stats.rejected
    serving.until(lambda: serving.get("/health").json()["rejected"]["spans"] >= total, "counted")
    serving.until(lambda: serving.metrics()["span_count"] >= GOOD, "counted as well")
    shown = serving.get("/health")
    assert shown.status == 200
    assert shown.json()["rejected"]["spans"] == total
    assert shown.json()["rejected"]["by_reason"] == BY_REASON
    metrics = serving.metrics()
    assert metrics["rejected"] == {"spans": total, "by_reason": BY_REASON}
    assert metrics["span_count"] == GOOD
    one = serving.get("/metrics/rejected_spans").json()
    assert one == {"metric": "rejected_spans", "value": total, "by_reason": BY_REASON}
    page = serving.get("/metrics/prometheus").body.decode()
    series = dict(re.findall(r'tokentrace_rejected_spans_total{reason="(\w+)"} (\S+)', page))
    assert {reason: int(float(count)) for reason, count in series.items() if float(count)} == BY_REASON
    assert len(series) > len(BY_REASON)

    def reporters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = serving.get("/reporters").json()["reporters"]
        return found

    # The api follows the batches by itself, later than the aggregator that was waited for.
    serving.until(lambda: reporters()[0]["sent"] == stats.sent, "told by the last batch")
    [row] = reporters()
    assert (row["source"], row["processes"], row["rejected"]) == ("the shop", 1, total)
    assert (row["sent"], row["failed"], row["dropped"]) == (stats.sent, 0, 0)

    counts = serving.get("/rejected?limit=1").json()
    assert (counts["spans"], counts["by_reason"]) == (total, BY_REASON)
    records = all_rejected(serving)
    assert len(records) == total
    assert {record["reporter"] for record in records} == {"the shop"}
    assert [record["at"] for record in records] == sorted((record["at"] for record in records), reverse=True)
    for reason, count in BY_REASON.items():
        listed = serving.get(f"/rejected?limit=200&reason={reason}").json()["rejected"]
        assert len(listed) == count
        assert all(reason in record["error"] for record in listed)


def test_the_counts_of_refused_spans_survive_a_restart(pipeline: tuple[Pipeline, str]) -> None:
    serving, url = pipeline
    with Reporter("shop", url) as reporter:
        for number in range(5):
            reporter.report(call(number, model=""))
    serving.until(lambda: serving.get("/health").json()["rejected"]["spans"] == 5, "counted")
    assert serving.stop() == 0
    serving.start()
    serving.until(lambda: serving.get("/health").json()["rejected"]["spans"] == 5, "counted again")
    assert len(serving.get("/rejected").json()["rejected"]) == 5


def test_spans_that_a_request_may_lose_are_listed_and_those_of_a_refused_request_are_not(
    pipeline: tuple[Pipeline, str],
) -> None:
    serving, _ = pipeline
    spans = [json_call(), json_call(model=""), json_call(prompt_tokens=-1)]
    assert serving.post("/spans", spans).status == 400
    answer = serving.post("/spans?partial=true", spans)
    assert answer.status == 202, answer.body
    assert [refused["index"] for refused in answer.json()["rejected"]] == [1, 2]
    serving.until(lambda: serving.get("/health").json()["rejected"]["spans"] == 2, "counted")
    records = serving.get("/rejected").json()["rejected"]
    assert {(record["index"], record["reason"]) for record in records} == {(1, "model"), (2, "prompt_tokens")}
    assert all("reporter" not in record for record in records)


def test_a_long_prompt_keeps_its_cost(pipeline: tuple[Pipeline, str]) -> None:
    serving, url = pipeline
    prompt = "tell me " * 25_600
    with Reporter("shop", url) as reporter:
        reporter.report(call(0, prompt_tokens=51_200, attributes={"prompt": prompt, "team": "search"}))
    stats = reporter.stats()
    assert (stats.acked, stats.rejected, stats.failed) == (1, 0, 0)
    serving.until(lambda: serving.get("/traces").json()["count"] == 1, "stored")
    serving.until(lambda: serving.metrics()["span_count"] == 1, "counted")
    # 51,200 tokens at 2.50 USD and 100 at 10 USD a million.
    assert serving.metrics()["cost"]["total_usd"] == 0.129
    [shown] = serving.get("/traces?limit=1").json()["traces"]
    [span] = serving.get(f"/traces/{shown['trace_id']}").json()["spans"]
    assert span["attributes"]["team"] == "search"
    assert span["attributes"]["prompt"].endswith(f"…[cut, {len(prompt)} bytes]")
    assert span["cost_usd"] == 0.129
