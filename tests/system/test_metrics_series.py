"""Refused requests for metrics, series, and windows, with a real ``tokentrace serve``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from kit.json_spans import fresh
from kit.metrics_http import (
    CUSTOM,
    FIRINGS,
    TRANSPORT,
    ask,
    assert_coverage,
    make,
    moment,
    refused,
    send,
    send_traffic,
    serve_metrics,
)
from kit.pipeline import Pipeline, http
from tokentrace.metrics import BREAKDOWNS, GROUPS, METRICS
from tokentrace.units import parse_duration


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    return send_traffic(pipeline)


# --- refusals

EVERYWHERE = (
    *("", "/cost", "/tokens", "/latency", "/errors", "/quality", "/error_rate", "/total_cost_usd", "/legal_doc_cost"),
    *("/cost_by_model", "/cost_by_attribute?key=x", "/attr.depth", "/transport_sent", "/alert_firings"),
    *("/cost/series", "/latency_p95/series", "/agent_steps/series"),
)


def with_query(path: str, query: str) -> str:
    return f"/metrics{path}{'&' if '?' in path else '?'}{query}"


@pytest.mark.parametrize("path", EVERYWHERE)
def test_an_unknown_or_invalid_parameter_is_400_and_named(pipeline: Pipeline, path: str) -> None:
    queries = [
        *("windw=1h", "Window=1h", "limit=5", "since=2026-01-01T00:00:00Z", "attr=x", "attr.=x", "=x", "%F0=1"),
        *("window=1h&window=1h", "kind=llm&kind=tool", "model=a&model=a", "caller=&caller=", "attr.a=1&attr.a=2"),
        *("window=", "window=abc", "window=5", "window=-1h", "window=0s", "window=999ms", "window=1h%20"),
        *("window=292y", "window=NaNs", "window=1e9s", "window=%00", "window=99999999d"),
        *("kind=banana", "kind=LLM", "kind=llm,tool", "kind=%00", "groupby=attr."),
        *(() if path.endswith("/series") else ("step=1m",)),
    ]
    for query in queries:
        if path.startswith("/cost_by_") and query.startswith("groupby"):
            continue
        error = refused(pipeline.get(with_query(path, query)), 400)
        name = query.partition("=")[0].replace("%F0", "\\ufffd")
        assert error.startswith(name), (query, error)


@pytest.mark.parametrize(
    "name",
    [
        *("banana", "COST", "cost%20", "latency_p42", "attr.", "attr", "by_model", "tokentrace_cost_total", "x" * 300),
        *("%00", "'", "error_rate%27", "serie", "prometheus2", "日本", "__class__"),
    ],
)
def test_an_unknown_metric_is_404_and_names_the_known(pipeline: Pipeline, name: str) -> None:
    for path in (quote(name, safe="%"), quote(name, safe="%") + "/series"):
        error = refused(pipeline.get(f"/metrics/{path}"), 404)
        assert error.startswith("unknown metric ")
        assert len(error) < 2000
        for known in (*GROUPS, *METRICS, *BREAKDOWNS, *TRANSPORT, *CUSTOM):
            assert known in error


def test_the_known_metrics_are_named_with_the_firings(pipeline: Pipeline) -> None:
    error = refused(pipeline.get("/metrics/banana"), 404)
    assert [name for name in FIRINGS if name not in error] == []


@pytest.mark.parametrize("name", ["cost_by_model", "transport_sent"])
def test_a_metric_without_a_series_is_404_and_the_error_says_so(pipeline: Pipeline, name: str) -> None:
    assert "unknown metric" not in refused(pipeline.get(f"/metrics/{name}/series"), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_metrics_can_only_be_read(pipeline: Pipeline, method: str) -> None:
    for path in ("", "/cost", "/cost/series", "/prometheus"):
        assert http(method, f"{pipeline.url}/metrics{path}", b"{}").status == 405


# --- series


@pytest.mark.parametrize("name", [*GROUPS, *METRICS, *CUSTOM])
def test_a_series_covers_its_window_in_steps(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, _ = traffic
    shown = ask(pipeline, f"/{name}/series", caller=caller, step="10m")
    assert set(shown) - {"quantile_error"} == {"window", "metric", "step", "points", "from", "to", "since"}
    assert (shown["window"], shown["metric"], shown["step"]) == ("1h", name, "10m")
    assert_coverage(shown)
    times = [moment(point["at"]) for point in shown["points"]]
    assert times[0] == moment(shown["from"])
    assert times == sorted(times)
    assert times[-1] < moment(shown["to"])
    assert all(at.minute % 10 == at.second == 0 for at in times[1:])
    assert {after - before for before, after in itertools.pairwise(times[1:])} <= {timedelta(minutes=10)}
    whole, alone = ask(pipeline, "", caller=caller), ask(pipeline, f"/{name}", caller=caller)
    filled = [point for point in shown["points"] if point["span_count"]]
    assert sum(point["span_count"] for point in filled) == alone["span_count"]
    if len(filled) == 1:
        found = filled[0]["value"]
        if name in GROUPS:
            wanted = {key: value for key, value in whole[name].items() if not key.endswith("by_model")}
            assert found == wanted
        elif name in METRICS:
            assert found == ask(pipeline, f"/{name}", caller=caller)["value"]
        else:
            assert found == whole[name]


@pytest.mark.parametrize(
    ("window", "steps"), [("20m", ("1s", "7s")), ("1h", ("10s", "30s", "2h")), ("24h", ("1m",)), ("7d", ("10m",))]
)
def test_the_steps_add_up_to_the_window(pipeline: Pipeline, window: str, steps: Sequence[str]) -> None:
    caller = fresh("caller")
    now = datetime.now(UTC)
    length = timedelta(microseconds=parse_duration(window) / 1000)
    ends = [now - length * fraction / 997 for fraction in range(1, 900, 41)]
    spans = [
        make(caller=caller, ended_at=end.isoformat(), cost_usd=0.000001 * (n + 1), model=f"m{n % 3}", latency_ms=n)
        for n, end in enumerate(ends)
    ]
    send(pipeline, spans)
    for step in ("", *steps):
        query = {"window": window, "caller": caller, "groupby": "model", **({"step": step} if step else {})}
        shown = ask(pipeline, "/total_cost/series", **query)
        whole = ask(pipeline, "/total_cost", window=window, caller=caller, groupby="model")
        points = shown["points"]
        assert len(points) <= 2002
        assert sum(point["span_count"] for point in points) == len(spans)
        assert sum(round((point["value"] or 0) * 1e9) for point in points) == round(whole["value"] * 1e9)
        assert sorted(shown["by_model"]) == ["m0", "m1", "m2"]
        for model, own in shown["by_model"].items():
            assert [point["at"] for point in own] == [point["at"] for point in points]
            added = sum(round((point["value"] or 0) * 1e9) for point in own)
            assert added == round(whole["by_model"][model] * 1e9)
        for at, model in ((0, "m0"), (len(points) - 1, "m1")):
            parts = [shown["by_model"][name][at]["span_count"] for name in shown["by_model"]]
            assert sum(parts) == points[at]["span_count"], model
        width = timedelta(microseconds=parse_duration(shown["step"]) / 1000)
        for point in points:
            begins = moment(point["at"])
            ends_at = min(
                begins + width - timedelta(seconds=begins.timestamp() % width.total_seconds()), moment(shown["to"])
            )
            inside = sum(begins <= datetime.fromisoformat(span["ended_at"]) < ends_at for span in spans)
            assert point["span_count"] == inside, point
        if not step:
            assert 2 <= len(points) <= 200


@pytest.mark.parametrize(
    ("window", "step", "finest"),
    [
        ("1h", "1s", "10s"),
        ("1h", "15s", "10s"),
        ("1h", "10.5s", "10s"),
        ("1h", "500ms", "10s"),
        ("1h", "0s", "10s"),
        ("20m", "1500ms", "1s"),
        ("24h", "10s", "1m"),
        ("7d", "1m", "10m"),
        ("30d", "10m", "1h"),
        ("1000d", "10m", "1h"),
        ("36h", "1m", "2m"),
        ("3h", "1s", "10s"),
    ],
)
def test_a_step_finer_than_the_buckets_is_400_and_names_the_finest_possible(
    pipeline: Pipeline, window: str, step: str, finest: str
) -> None:
    error = refused(pipeline.get(f"/metrics/span_count/series?window={window}&step={step}"), 400)
    assert error.startswith("step: ")
    assert re.search(rf"\b{finest}\b", error), error


def test_a_step_of_over_2000_points_is_400_and_the_step_it_names_is_accepted(pipeline: Pipeline) -> None:
    for window, step in (("36h", "1m"), ("35h", "1m"), ("6h", "10s")):
        answer = pipeline.get(f"/metrics/span_count/series?window={window}&step={step}")
        if answer.status == 200:
            assert len(answer.json()["points"]) <= 2001
            continue
        error = refused(answer, 400)
        finest = re.findall(r"\b[\d]+[a-z]+\b", error)[-1]
        shown = ask(pipeline, "/span_count/series", window=window, step=finest)
        assert len(shown["points"]) <= 2002


@pytest.mark.parametrize(("window", "step"), [("100d", "1h"), ("99999d", "1d")])
def test_the_limit_of_points_applies_to_the_data_that_is_kept(pipeline: Pipeline, window: str, step: str) -> None:
    shown = ask(pipeline, "/span_count/series", window=window, step=step)
    assert len(shown["points"]) < 800


@pytest.mark.parametrize("step", ["", "abc", "60", "-1m", "1x", "1m%20", "%00", "1h2", "9999999999h"])
def test_a_bad_step_is_400(pipeline: Pipeline, step: str) -> None:
    assert refused(pipeline.get(f"/metrics/cost/series?step={step}"), 400).startswith("step: ")


def test_a_step_given_twice_is_400(pipeline: Pipeline) -> None:
    assert refused(pipeline.get("/metrics/cost/series?step=1m&step=1m"), 400) == "step: given twice"


@pytest.mark.parametrize("name", [*BREAKDOWNS, *TRANSPORT, *FIRINGS])
def test_a_name_without_a_series_is_404(pipeline: Pipeline, name: str) -> None:
    refused(pipeline.get(f"/metrics/{name}/series"), 404)


# --- windows


@pytest.mark.parametrize("path", ["", "/cost", "/latency", "/error_rate", "/cost_by_model", "/cost/series"])
@pytest.mark.parametrize("window", ["1h", "6h", "24h", "7d", "30d", "2h30m", "90m", "5400s", "1h0m30.5s", "1s"])
def test_an_answer_names_the_interval_it_covers(pipeline: Pipeline, path: str, window: str) -> None:
    shown = ask(pipeline, path, window=window)
    assert shown["window"] == window
    if window != "1s":
        assert_coverage(shown, window)


@pytest.mark.parametrize("path", ["", "/cost", "/error_rate", "/cost_by_model", "/latency/series", "/legal_doc_cost"])
def test_a_window_longer_than_the_kept_data_states_since_when_it_is_complete(pipeline: Pipeline, path: str) -> None:
    shown = ask(pipeline, path, window="400d")
    since = moment(shown["since"])
    assert abs(datetime.now(UTC) - timedelta(days=31) - since) < timedelta(minutes=1)
    assert moment(shown["from"]) <= since


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/cost", {"groupby": "workflow"}),
        ("", {"groupby": "attr.workflow"}),
        ("/error_rate", {"attr__workflow": "plan"}),
        ("/cost_by_attribute", {"key": "workflow"}),
        ("/attr.depth", {}),
    ],
)
def test_queries_by_attribute_cover_what_the_store_keeps(pipeline: Pipeline, path: str, query: dict[str, str]) -> None:
    assert ask(pipeline, path, window="6d", **query)["since"] is None
    since = moment(ask(pipeline, path, window="30d", **query)["since"])
    assert abs(datetime.now(UTC) - timedelta(days=7) - since) < timedelta(minutes=1)
