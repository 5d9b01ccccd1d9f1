"""``GET /stats`` counts every span since the first start, and ``max_spans`` limits what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.http_errors import refused
from kit.http_spans import assert_accepted, await_trace, mist_message, mist_span
from kit.json_spans import json_call
from kit.pipeline import Pipeline


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Start a pipeline that has received no span."""
    started: list[Pipeline] = []

    def start(*flags: str) -> Pipeline:
        serving = Pipeline(tmp_path / f"empty-{len(started)}", *flags)
        started.append(serving)
        serving.start()
        return serving

    yield start
    for serving in started:
        serving.stop()


def post_span(pipeline: Pipeline, operation: str = "infer", ms: int = 50, status: str = "ok", **attrs: Any) -> None:
    """Post a span of *ms* milliseconds in the form of MIST."""
    start_ns = time.time_ns() - 10**9
    end_ns = start_ns + ms * 1_000_000
    span = mist_span(operation=operation, start_ns=start_ns, end_ns=end_ns, status=status, attrs=attrs)
    assert pipeline.post("/mist", mist_message(span)).status == 202


def await_stats(pipeline: Pipeline, spans: int) -> Any:
    """Wait until *spans* spans are counted, and return the stats."""
    pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] >= spans, "counted")
    return pipeline.get("/stats").json()


def test_stats_begin_at_zero_and_add_up_counts_latencies_tokens_and_costs(start: Callable[..., Pipeline]) -> None:
    serving = start()
    zero = {
        "total_spans": 0,
        "error_count": 0,
        "error_rate": 0,
        "latency_p50_ms": 0,
        "latency_p99_ms": 0,
        "latency_avg_ms": 0,
        "total_tokens_in": 0,
        "total_tokens_out": 0,
        "total_cost_usd": 0,
    }
    assert serving.get("/stats").json() == zero
    empty = serving.get("/traces").json()
    assert (empty["trace_ids"], empty["count"], empty["total"], empty["traces"]) == ([], 0, 0, [])
    assert serving.get("/traces/recent").json() == {"spans": [], "count": 0}
    refused(serving.get("/traces/absent"), 404)

    post_span(serving, tokens_in=100)
    assert await_stats(serving, 1) == {
        **zero,
        "total_spans": 1,
        "latency_p50_ms": 37.5,
        "latency_p99_ms": 49.75,
        "latency_avg_ms": 50,
        "total_tokens_in": 100,
        "by_operation": {"infer": {"count": 1, "errors": 0}},
    }

    for ms in (10, 20, 30, 40, 60, 70, 80, 90, 100):
        post_span(serving, ms=ms)
    shown = await_stats(serving, 10)
    # Quantiles are interpolated within the documented buckets.
    assert shown["latency_p50_ms"] == pytest.approx(50)
    assert shown["latency_p99_ms"] == pytest.approx(99)
    assert shown["latency_avg_ms"] == pytest.approx(55)

    post_span(serving, "ask", tokens_in=10, tokens_out=1, cost_usd=0.5)
    post_span(serving, "ask", status="error", tokens_in=10.9)
    post_span(serving, "eval", tokens_in="10")
    post_span(serving, "late", status="timeout", ms=0)
    shown = await_stats(serving, 14)
    # A timeout is not an error of these stats, and its latency of 0 counts in the average.
    assert shown["by_operation"] == {
        "infer": {"count": 10, "errors": 0},
        "ask": {"count": 2, "errors": 1},
        "eval": {"count": 1, "errors": 0},
        "late": {"count": 1, "errors": 0},
    }
    assert (shown["total_spans"], shown["error_count"]) == (14, 1)
    assert shown["error_rate"] == pytest.approx(1 / 14)
    assert (shown["total_tokens_in"], shown["total_tokens_out"], shown["total_cost_usd"]) == (120, 1, 0.5)
    assert shown["latency_avg_ms"] == pytest.approx((10 * 55 + 3 * 50 + 0) / 14)


def test_only_the_newest_spans_are_kept_and_the_stats_count_all_of_them(start: Callable[..., Pipeline]) -> None:
    """A restart changes neither."""
    serving = start("--max-spans", "5")
    seen = 0
    for number in range(10):
        assert_accepted(serving.post("/spans", json_call(trace_id=f"t{number}", span_id="1", name=f"n{number}")))
        total = serving.get("/stats").json()["total_spans"]
        assert total >= seen
        seen = total
    assert await_stats(serving, 10)["total_spans"] == 10
    await_trace(serving, "t9")
    recent = serving.get("/traces/recent").json()
    assert recent["count"] == 5
    assert [span["trace_id"] for span in recent["spans"]] == ["t9", "t8", "t7", "t6", "t5"]
    assert serving.get("/traces/recent?limit=100").json()["count"] == 5
    assert serving.get("/traces").json()["total"] == 5
    assert serving.get("/traces").json()["trace_ids"] == ["t9", "t8", "t7", "t6", "t5"]
    for number in range(5):
        refused(serving.get(f"/traces/t{number}"), 404)
    for number in range(5, 10):
        assert serving.get(f"/traces/t{number}").json()["span_count"] == 1
    assert serving.get("/metrics").json()["span_count"] == 10
    assert serving.stop() == 0
    serving.start()
    assert serving.get("/traces").json()["trace_ids"] == ["t9", "t8", "t7", "t6", "t5"]
    assert serving.get("/stats").json()["total_spans"] == 10
