"""``GET /metrics``, ``GET /traces`` and ``GET /traces/{id}`` answer as documented."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from kit.cases import check_all, numbered
from kit.http_errors import refused
from kit.http_spans import ago, assert_accepted, await_trace, settle
from kit.json_spans import fresh, json_call
from kit.metrics_http import INSTANT
from kit.pipeline import Pipeline
from kit.sessions import instant


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("queries"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> str:
    """The caller of ten calls of two models: one is an error, one a timeout, five have a score."""
    caller = fresh("traffic")
    spans = []
    for number in range(10):
        attributes = {"eval.score": number / 10} if number < 5 else {}
        spans.append(
            json_call(
                caller=caller,
                model="gpt-4o" if number < 6 else "gpt-4o-mini",
                provider="openai" if number % 2 else "",
                prompt_tokens=100,
                comp_tokens=10 * number,
                cost_usd=0.001 * (number + 1),
                latency_ms=(number + 1) * 100,
                status={8: "error", 9: "timeout"}.get(number, "ok"),
                attributes=attributes,
            )
        )
    assert_accepted(pipeline.post("/spans", spans), 10)
    settle(pipeline, caller)
    return caller


def test_the_metrics_have_the_documented_shape_and_values(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics?caller={traffic}").json()
    latencies = np.arange(1, 11) * 100
    assert shown["window"] == "1h"
    assert shown["span_count"] == 10
    cost = shown["cost"]
    assert cost["total_usd"] == 0.055
    assert cost["per_call_usd"] == pytest.approx(0.0055)
    assert cost["by_model"] == {"gpt-4o": 0.021, "gpt-4o-mini": 0.034}
    tokens = shown["tokens"]
    assert (tokens["prompt_total"], tokens["completion_total"], tokens["total"]) == (1000, 450, 1450)
    for name, q in (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert shown["latency"][name] == pytest.approx(np.quantile(latencies, q))
    assert (shown["errors"]["rate"], shown["errors"]["count"]) == (0.2, 2)
    quality = shown["quality"]
    assert quality["score_avg"] == pytest.approx(0.2)
    assert quality["score_p10"] == pytest.approx(0.04)
    assert quality["scored_span_count"] == 5


def test_a_group_alone_is_the_same_as_in_all_metrics(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics?window=24h&caller={traffic}").json()
    for group in ("cost", "tokens", "latency", "errors", "quality"):
        alone = pipeline.get(f"/metrics/{group}?window=24h&caller={traffic}").json()
        assert alone["window"] == "24h", group
        # The sum of costs covers a tool, too.
        assert alone["span_count"] == (11 if group == "cost" else 10), group
        assert {key: alone[key] for key in shown[group]} == shown[group], group


def test_a_window_is_shown_as_it_was_written(pipeline: Pipeline, traffic: str) -> None:
    for window in ("1h", "6h", "24h", "7d", "30d", "2h30m", "90m", "5400s", "1h0m30.5s", "1d12h"):
        for path in ("/metrics", "/metrics/latency"):
            shown = pipeline.get(f"{path}?caller={traffic}&window={window}").json()
            assert (shown["window"], shown["span_count"]) == (window, 10), path


def test_an_invalid_window_is_a_400(pipeline: Pipeline) -> None:
    windows = ("", "abc", "5", "-1h", "1x", "1h2", "h", "1e3s", "0s", "%00", "1h%20", "NaNs")
    paths = [f"{path}?window={window}" for path in ("/metrics", "/metrics/cost") for window in windows]

    def check(path: str) -> None:
        assert "window" in refused(pipeline.get(path))

    check_all(numbered(paths), check)


def test_the_answer_for_a_window_longer_than_the_retention_says_since_when(pipeline: Pipeline, traffic: str) -> None:
    for window in ("1000000h", "99999d"):
        shown = pipeline.get(f"/metrics?caller={traffic}&window={window}").json()
        assert shown["span_count"] == 10, window
        assert INSTANT.fullmatch(shown["since"]), window


def test_a_window_counts_the_spans_that_ended_within_it(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    ends = [ago(minutes=5), ago(hours=3), ago(hours=12), ago(days=3), ago(days=20)]
    assert_accepted(pipeline.post("/spans", [json_call(caller=caller, ended_at=end) for end in ends]), 5)
    settle(pipeline, caller)
    counts = [
        pipeline.get(f"/metrics?caller={caller}&window={window}").json()["span_count"]
        for window in ("1h", "6h", "24h", "7d", "30d")
    ]
    assert counts == [1, 2, 3, 4, 5]


def test_percentiles_can_be_grouped_by_model(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics/latency?caller={traffic}&groupby=model").json()
    assert sorted(shown["by_model"]) == ["gpt-4o", "gpt-4o-mini"]
    assert shown["by_model"]["gpt-4o"]["p50_ms"] == 350
    assert shown["by_model"]["gpt-4o-mini"]["p50_ms"] == 850
    assert set(shown["by_model"]["gpt-4o"]) >= {"p50_ms", "p95_ms", "p99_ms"}
    assert "p50_ms" not in shown


def test_the_groups_add_up_to_the_total(pipeline: Pipeline, traffic: str) -> None:
    shown = pipeline.get(f"/metrics/cost?caller={traffic}&groupby=caller").json()
    assert shown["by_caller"] == {traffic: 0.055}
    shown = pipeline.get(f"/metrics/cost?caller={traffic}&groupby=provider").json()
    assert shown["by_provider"] == {"openai": 0.03, "unknown": 0.025}
    shown = pipeline.get(f"/metrics/tokens?caller={traffic}&groupby=provider").json()
    assert {name: group["total"] for name, group in shown["by_provider"].items()} == {"openai": 750, "unknown": 700}
    shown = pipeline.get(f"/metrics/errors?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o-mini"]["count"] == 2
    shown = pipeline.get(f"/metrics/quality?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o"]["scored_span_count"] == 5
    shown = pipeline.get(f"/metrics?caller={traffic}&groupby=model").json()
    assert shown["by_model"]["gpt-4o"]["cost"]["total_usd"] == 0.021


def test_an_unknown_metric_is_a_404(pipeline: Pipeline) -> None:
    names = ["banana", "cost%20", "../stats", "COST"]
    check_all(numbered(names), lambda name: refused(pipeline.get(f"/metrics/{name}"), 404))


def test_an_invalid_parameter_of_the_metrics_is_a_400(pipeline: Pipeline) -> None:
    queries = ["groupby=", "groupby=attr.", "kind=banana", "windw=1h", "window=1h&window=2h"]
    check_all(numbered(queries), lambda query: refused(pipeline.get(f"/metrics?{query}")))


def test_without_spans_averages_are_null_and_counts_are_zero(pipeline: Pipeline) -> None:
    shown = pipeline.get(f"/metrics?caller={fresh('absent')}").json()
    assert shown["span_count"] == 0
    assert (shown["cost"]["total_usd"], shown["cost"]["per_call_usd"], shown["cost"]["by_model"]) == (None, None, {})
    assert [shown["latency"][name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [None] * 3
    assert (shown["errors"]["rate"], shown["errors"]["count"]) == (None, 0)
    assert (shown["quality"]["score_avg"], shown["quality"]["scored_span_count"]) == (None, 0)


def test_a_latency_of_zero_is_not_counted(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [json_call(caller=caller, latency_ms=ms) for ms in (0, 0, 0, 700)]
    assert_accepted(pipeline.post("/spans", spans), 4)
    settle(pipeline, caller)
    assert pipeline.get(f"/metrics/latency?caller={caller}").json()["p50_ms"] == 700


def test_a_page_has_twenty_traces_and_the_offset_leads_to_the_others(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [json_call(caller=caller, trace_id=f"{caller}-{n:02d}", started_at=ago(minutes=60 - n)) for n in range(25)]
    assert_accepted(pipeline.post("/spans", spans), 25)
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 25, "stored")
    newest_first = [f"{caller}-{n:02d}" for n in reversed(range(25))]
    first = pipeline.get(f"/traces?caller={caller}").json()
    assert (first["count"], first["total"], first["limit"], first["offset"]) == (20, 25, 20, 0)
    assert first["trace_ids"] == [trace["trace_id"] for trace in first["traces"]] == newest_first[:20]
    second = pipeline.get(f"/traces?caller={caller}&offset=20").json()
    assert (second["count"], second["total"], second["offset"]) == (5, 25, 20)
    assert second["trace_ids"] == newest_first[20:]
    few = pipeline.get(f"/traces?caller={caller}&limit=3&offset=1").json()
    assert few["trace_ids"] == newest_first[1:4]
    beyond = pipeline.get(f"/traces?caller={caller}&offset=25").json()
    assert (beyond["traces"], beyond["trace_ids"], beyond["count"], beyond["total"]) == ([], [], 0, 25)


def test_a_page_has_at_most_200_traces(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    assert_accepted(pipeline.post("/spans", [json_call(caller=caller)] * 205), 205)
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 205, "stored")
    page = pipeline.get(f"/traces?caller={caller}&limit=500").json()
    assert (page["count"], page["limit"], page["total"]) == (200, 200, 205)


def test_an_invalid_parameter_of_the_traces_is_a_400_that_names_it(pipeline: Pipeline) -> None:
    def check(query: str) -> None:
        assert query.partition("=")[0] in refused(pipeline.get(f"/traces?{query}"))

    queries = ["limit=-1", "limit=abc", "limit=1.5", "limit=", "offset=-1", "offset=x", "status=x"]
    check_all(numbered(queries), check)


def test_all_filters_apply_to_the_same_span(pipeline: Pipeline) -> None:
    start = fresh("trace")
    chat, batch, big, small = (fresh(name) for name in ("chat", "batch", "big", "small"))
    spans = [
        json_call(trace_id=f"{start}-a", span_id="1", caller=chat, model=big, status="ok"),
        json_call(trace_id=f"{start}-a", span_id="2", caller=batch, model=small, status="error"),
        json_call(trace_id=f"{start}-b", span_id="1", caller=chat, model=small, status="timeout"),
    ]
    assert_accepted(pipeline.post("/spans", spans), 3)
    await_trace(pipeline, f"{start}-b")

    def listed(**filters: str) -> set[str]:
        query = "&".join(f"{key}={value}" for key, value in filters.items())
        page = pipeline.get(f"/traces?{query}").json()
        assert page["total"] == page["count"] == len(page["traces"])
        return {trace.removeprefix(start + "-") for trace in page["trace_ids"]}

    assert listed(model=big) == {"a"}
    assert listed(model=small) == {"a", "b"}
    assert listed(caller=chat) == {"a", "b"}
    assert listed(caller=batch) == {"a"}
    assert listed(caller=chat, status="ok") == {"a"}
    assert listed(caller=chat, status="error") == set()
    assert listed(model=big, caller=batch) == set()
    assert listed(model=small, caller=batch, status="error") == {"a"}
    assert listed(model=small, status="timeout") == {"b"}
    assert listed(model=big, caller=chat, status="timeout") == set()


def test_a_trace_that_a_filter_finds_is_summed_over_all_its_spans(pipeline: Pipeline) -> None:
    trace, caller = fresh("trace"), fresh("caller")
    spans = [
        json_call(
            trace_id=trace, span_id="1", name="root", cost_usd=0.5, started_at=ago(minutes=9), ended_at=ago(minutes=8)
        ),
        json_call(
            trace_id=trace,
            span_id="2",
            parent_span_id="1",
            caller=caller,
            cost_usd=0.25,
            started_at=ago(minutes=7),
            ended_at=ago(minutes=6),
            status="timeout",
        ),
    ]
    assert_accepted(pipeline.post("/spans", spans), 2)
    await_trace(pipeline, trace, 2)
    (row,) = pipeline.get(f"/traces?caller={caller}").json()["traces"]
    assert row == {
        "trace_id": trace,
        "name": "root",
        "started_at": spans[0]["started_at"],
        "ended_at": spans[1]["ended_at"],
        "total_cost_usd": 0.75,
        "total_tokens": 1280,
        "span_count": 2,
        "unpriced_span_count": 0,
        "partly_priced_span_count": 0,
        "status": "timeout",
        "duration_ms": 180_000,
        "error": None,
        "models": ["gpt-4o"],
        "caller": caller,
        "session_id": None,
        "user_id": None,
        "score": None,
    }


def test_recent_shows_the_last_100_spans_in_the_form_of_mist(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    assert_accepted(
        pipeline.post("/spans", [json_call(caller=caller, name=f"n{number}") for number in range(150)]), 150
    )
    pipeline.until(lambda: pipeline.get(f"/traces?caller={caller}").json()["total"] == 150, "stored")
    shown = pipeline.get("/traces/recent").json()
    assert shown["count"] == len(shown["spans"]) == 100
    assert [span["operation"] for span in shown["spans"]] == [f"n{number}" for number in range(149, 49, -1)]
    span = shown["spans"][0]
    assert {"trace_id", "span_id", "operation", "start_ns", "end_ns", "status", "attrs"} == set(span)
    assert type(span["start_ns"]) is int
    assert span["attrs"]["tokens_in"] == 512
    three = pipeline.get("/traces/recent?limit=3").json()
    assert three["count"] == 3
    assert [span["operation"] for span in three["spans"]] == ["n149", "n148", "n147"]
    for limit in ("0", "-1", "abc", "", "1.5", "%00", "9" * 30):
        assert pipeline.get(f"/traces/recent?limit={limit}").json()["count"] >= 100, limit


def test_the_path_of_recent_spans_is_not_a_trace_id(pipeline: Pipeline) -> None:
    assert_accepted(pipeline.post("/spans", json_call(trace_id="recent")))
    assert "spans" in pipeline.get("/traces/recent").json()


def test_a_trace_has_the_sums_of_its_spans_and_orders_them_by_start(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    start = datetime.now(UTC) - timedelta(minutes=30)
    times = [instant(start + timedelta(seconds=seconds)) for seconds in range(6)]
    spans = [
        json_call(
            trace_id=trace, span_id="late", parent_span_id="root", cost_usd=0.2, started_at=times[2], ended_at=times[3]
        ),
        json_call(trace_id=trace, span_id="root", name="answer", cost_usd=0.1, started_at=times[0], ended_at=times[5]),
        json_call(
            trace_id=trace, span_id="mid", parent_span_id="root", cost_usd=0.3, started_at=times[1], ended_at=times[4]
        ),
    ]
    for span in spans:
        assert_accepted(pipeline.post("/spans", span))
    shown = await_trace(pipeline, trace, 3)
    assert {key: value for key, value in shown.items() if key != "spans"} == {
        "trace_id": trace,
        "name": "answer",
        "started_at": times[0],
        "ended_at": times[5],
        "total_cost_usd": 0.6,
        "total_tokens": 1920,
        "span_count": 3,
        "unpriced_span_count": 0,
        "partly_priced_span_count": 0,
    }
    assert [span["span_id"] for span in shown["spans"]] == ["root", "mid", "late"]
    assert [span["parent_span_id"] for span in shown["spans"]] == [None, "root", "root"]
    for span in shown["spans"]:
        assert INSTANT.fullmatch(span["started_at"])
        assert INSTANT.fullmatch(span["ended_at"])


def test_the_form_of_mist_shows_nanoseconds(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    assert_accepted(
        pipeline.post("/spans", json_call(trace_id=trace, span_id="1", started_at="2026-11-20T14:23:01.441Z"))
    )
    await_trace(pipeline, trace)
    shown = pipeline.get(f"/traces/{trace}?format=mist").json()
    assert set(shown) == {"trace_id", "spans"}
    assert shown["spans"][0]["start_ns"] == 1_795_184_581_441_000_000
    assert shown["spans"][0]["span_id"] == "1"
    assert "parent_id" not in shown["spans"][0]
    assert "format" in refused(pipeline.get(f"/traces/{trace}?format=xml"))


def test_an_unknown_trace_is_a_404(pipeline: Pipeline) -> None:
    for query in ("", "?format=mist"):
        assert refused(pipeline.get(f"/traces/{fresh('absent')}{query}"), 404) == "trace not found"


def test_a_trailing_slash_is_allowed(pipeline: Pipeline) -> None:
    trace = fresh("trace")
    assert_accepted(pipeline.post("/spans", json_call(trace_id=trace)))
    await_trace(pipeline, trace)
    assert pipeline.get(f"/traces/{trace}/").json() == pipeline.get(f"/traces/{trace}").json()
    assert refused(pipeline.get("/traces/")) == "trace ID required"


def test_a_trace_is_found_by_any_printable_id(pipeline: Pipeline) -> None:
    ends = ["a b", "a/b", "a?b", "a%b", "a'b", 'a"b', "a;--", "..", "a+b", "{a}"]
    ids = [fresh("odd") + end for end in ends]
    assert_accepted(pipeline.post("/spans", [json_call(trace_id=trace_id) for trace_id in ids]), len(ids))

    def check(trace_id: str) -> None:
        quoted = "".join(f"%{ord(letter):02X}" for letter in trace_id)
        pipeline.until(lambda: pipeline.get(f"/traces/{quoted}").json()["span_count"] == 1, "stored")
        assert pipeline.get(f"/traces/{quoted}").json()["trace_id"] == trace_id

    check_all(numbered(ids), check)
