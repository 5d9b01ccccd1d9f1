"""Series by attribute, distributions, evals and explanations of costs, as a real ``tokentrace serve`` answers them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from kit.compared_calls import HOUR, Call, Traffic, cost, groups, instant, send_calls
from kit.json_spans import fresh
from kit.metrics_http import ask, make, refused, send, serve_metrics
from kit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> Traffic:
    return send_calls(pipeline)


def last_hour(traffic: Traffic) -> dict[str, str]:
    return {"from": instant(traffic.now_s - HOUR), "to": instant(traffic.now_s), "caller": traffic.caller}


def assert_line(points: list[dict[str, Any]], calls: list[Call], to_s: int) -> None:
    starts = [int(datetime.fromisoformat(point["at"]).timestamp()) for point in points]
    for point, start, end in zip(points, starts, [*starts[1:], to_s], strict=True):
        within = [call for call in calls if start <= call.at_s < end]
        total = cost(within)
        assert point["value"] == (None if total is None else float(total))
        assert point["span_count"] == len(within)
        assert point["unpriced_span_count"] == sum(call.nusd is None for call in within)


# --- series that the store answers


@pytest.mark.parametrize(("key", "field"), [("user_id", "user"), ("attr.user_id", "user"), ("user", "user")])
def test_a_series_by_user_equals_a_recount(pipeline: Pipeline, traffic: Traffic, key: str, field: str) -> None:
    calls = traffic.within(traffic.now_s - HOUR, traffic.now_s)
    by = groups(calls, field)
    order = sorted(by, key=lambda name: (-(cost(by[name]) or 0), name))
    shown = ask(pipeline, "/total_cost/series", **last_hour(traffic), groupby=key, step="10m", top="3")
    assert shown["order"] == order[:3] == list(shown["by_user_id"])
    assert_line(shown["points"], calls, traffic.now_s)
    for name in order[:3]:
        assert_line(shown["by_user_id"][name], by[name], traffic.now_s)
    assert shown["other"]["groups"] == len(order) - 3
    assert_line(shown["other"]["points"], [call for name in order[3:] for call in by[name]], traffic.now_s)
    whole = ask(pipeline, "/total_cost/series", **last_hour(traffic), groupby=key, step="10m")
    assert set(whole["by_user_id"]) == set(by)
    assert "other" not in whole


def test_a_series_is_filtered_by_attribute_user_and_model_together(pipeline: Pipeline, traffic: Traffic) -> None:
    calls = traffic.within(traffic.now_s - HOUR, traffic.now_s)
    red = [call for call in calls if call.user < "u-4"]
    filtered = {**last_hour(traffic), "attr.team": "red"}
    shown = ask(pipeline, "/total_cost/series", **filtered, step="7m", groupby="model", compare="before")
    assert_line(shown["points"], red, traffic.now_s)
    assert set(shown["by_model"]) == set(groups(red, "model"))
    for name, part in groups(red, "model").items():
        assert_line(shown["by_model"][name], part, traffic.now_s)
    earlier = [call for call in traffic.within(traffic.now_s - 2 * HOUR, traffic.now_s - HOUR) if call.user < "u-4"]
    assert_line(shown["previous"]["points"], earlier, traffic.now_s - HOUR)
    one = ask(pipeline, "/total_cost/series", **filtered, user_id="u-2", model="a")
    mine = [call for call in red if (call.user, call.model) == ("u-2", "a")]
    assert_line(one["points"], mine, traffic.now_s)
    assert 30 <= len(one["points"]) <= 61


def test_a_series_of_two_users_has_one_on_each_side(pipeline: Pipeline, traffic: Traffic) -> None:
    asked = {**last_hour(traffic), "user_id": "u-1", "compare.user_id": "u-2", "step": "5m"}
    shown = ask(pipeline, "/total_cost/series", **asked)
    calls = groups(traffic.within(traffic.now_s - HOUR, traffic.now_s), "user")
    assert_line(shown["points"], calls["u-1"], traffic.now_s)
    assert_line(shown["previous"]["points"], calls["u-2"], traffic.now_s)


def test_too_many_points_or_lines_are_400_with_the_limit(pipeline: Pipeline, traffic: Traffic) -> None:
    text = "&".join(f"{key}={value}" for key, value in last_hour(traffic).items())
    error = refused(pipeline.get(f"/metrics/total_cost/series?{text}&groupby=user_id&step=1s"), 400)
    assert error == "step: '1s' makes over 500 points; the finest for this window is 8s"
    error = refused(pipeline.get(f"/metrics/total_cost/series?{text}&groupby=user_id&top=51"), 400)
    assert error == "top: 51 is over 50, the most groups of a series with these filters"
    caller = fresh("many")
    send(pipeline, [make(caller=caller, user_id=f"u-{number}") for number in range(51)])
    error = refused(pipeline.get(f"/metrics/total_cost/series?caller={caller}&groupby=user_id"), 400)
    assert error.startswith("groupby: user_id has 51 values here, and a series with these filters shows at most 50;")
    assert len(ask(pipeline, "/total_cost/series", caller=caller, groupby="user_id", top="50")["by_user_id"]) == 50


# --- distributions


@pytest.mark.parametrize("name", ["latency", "tokens", "cost", "prompt_tokens"])
def test_a_histogram_equals_a_count_of_the_values(pipeline: Pipeline, traffic: Traffic, name: str) -> None:
    def values(calls: list[Call]) -> list[float]:
        if name == "cost":
            return [call.nusd / 1e9 for call in calls if call.nusd is not None]
        return [float(call.latency_ms if name == "latency" else call.tokens) for call in calls]

    now_s = traffic.now_s
    now, before = traffic.within(now_s - HOUR, now_s), traffic.within(now_s - 2 * HOUR, now_s - HOUR)
    shown = ask(
        pipeline, f"/{name}/histogram", **last_hour(traffic), compare="before", groupby="model", buckets="20", top="2"
    )
    edges = shown["edges"]
    assert len(edges) == len(shown["counts"]) + 1 <= 21
    order = sorted(groups(now, "model").items(), key=lambda item: (-len(values(item[1])), item[0]))
    assert shown["order"] == [model for model, _ in order[:2]]
    parts = [(shown, now), (shown["previous"], before)]
    parts += [(shown["by_model"][model], part) for model, part in order[:2]]
    parts += [(shown["other"]["value"], [call for _, part in order[2:] for call in part])]
    for found, calls in parts:
        expected = np.sort(values(calls))
        assert (found["count"], found["zero"]) == (len(expected), 0)
        ends = np.searchsorted(expected, np.array(edges) * (1 + 1e-9), side="right")
        assert found["counts"] == np.diff(ends).tolist()
        allowed = (shown["quantile_error"] or 1e-9) * 1.01
        assert found["p50"] == pytest.approx(float(np.quantile(expected, 0.5)), rel=max(allowed, 0.006))
    assert shown["min"] == pytest.approx(min(values(now)), rel=0.011)
    assert shown["max"] == pytest.approx(max(values(now)), rel=0.011)
    heat = ask(pipeline, f"/{name}/histogram/series", **last_hour(traffic), buckets="20", step="10m")
    columns = [point["counts"] for point in heat["points"]]
    assert [sum(column) for column in zip(*columns, strict=True)] == (
        ask(pipeline, f"/{name}/histogram", **last_hour(traffic), buckets="20")["counts"]
    )
    assert sum(point["count"] for point in heat["points"]) == len(values(now))


def test_a_histogram_without_values_has_no_edges(pipeline: Pipeline) -> None:
    shown = ask(pipeline, "/latency/histogram", model="never-called")
    assert (shown["edges"], shown["counts"], shown["count"], shown["zero"]) == ([], [], 0, 0)
    assert [shown[name] for name in ("min", "max", "p50", "p95", "p99")] == [None] * 5


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("error_rate/histogram", 404, "'error_rate' has no histogram; latency, ttft, cost, tokens"),
        ("latency/histogram?buckets=1", 400, "buckets: 1 is not from 2 to 200"),
        ("latency/histogram?buckets=201", 400, "buckets: 201 is not from 2 to 200"),
        ("latency/histogram?top=3", 400, "top: needs groupby"),
        ("latency/histogram/series?groupby=model", 400, "groupby: distributions in steps"),
        ("latency/histogram/series?compare=before", 400, "compare: distributions in steps"),
        ("latency/histogram/series?step=1s", 400, "step: '1s' is no multiple of 10s"),
        ("explain", 400, "compare: is missing"),
        ("explain?compare=before&groupby=model", 400, "groupby: an explanation is by model"),
        ("evals?groupby=model", 400, "groupby: the list of evals"),
        ("evals?compare=before", 400, "compare: the list of evals"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    pipeline: Pipeline, path: str, status: int, error: str
) -> None:
    assert refused(pipeline.get(f"/metrics/{path}"), status).startswith(error)


# --- evals


def test_evals_are_listed_and_each_is_a_metric_with_a_series(pipeline: Pipeline, traffic: Traffic) -> None:
    calls = traffic.within(traffic.now_s - HOUR, traffic.now_s)
    scores = [call.helpful for call in calls if call.helpful is not None]
    listed = ask(pipeline, "/evals", **last_hour(traffic))["evals"]
    newest = max(call.at_s for call in calls if call.helpful is not None)
    assert listed == [
        {"name": "helpful", "metric": "eval.helpful", "count": len(scores), "last_at": instant(newest)[:19] + ".000Z"}
    ]
    shown = ask(pipeline, "/eval.helpful", **last_hour(traffic), groupby="model", compare="before", top="1")
    assert shown["count"] == len(scores)
    assert shown["avg"] == pytest.approx(np.mean(scores))
    assert shown["p50"] == pytest.approx(np.quantile(scores, 0.5))
    assert shown["metric"] == "eval.helpful"
    assert ask(pipeline, "/attr.eval.helpful", **last_hour(traffic))["avg"] == shown["avg"]
    before = [
        call.helpful
        for call in traffic.within(traffic.now_s - 2 * HOUR, traffic.now_s - HOUR)
        if call.helpful is not None
    ]
    assert shown["change"]["count"]["absolute"] == len(scores) - len(before)
    assert shown["change"]["avg"]["absolute"] == pytest.approx(np.mean(scores) - np.mean(before), abs=1e-9)
    series = ask(pipeline, "/eval.helpful/series", **last_hour(traffic), step="20m", groupby="model")
    assert sum(point["value"]["count"] for point in series["points"]) == len(scores)
    for model, part in groups(calls, "model").items():
        held = [call.helpful for call in part if call.helpful is not None]
        assert sum(point["span_count"] for point in series["by_model"].get(model, [])) == len(held)


# --- why a cost changed


@pytest.mark.parametrize(
    "sides",
    [
        {"compare": "before"},
        {"compare": "yesterday"},
        {"model": "a", "compare.model": "b"},
        {"attr.team": "red", "compare.attr.team": "blue"},
    ],
)
def test_the_parts_of_an_explanation_add_up_to_the_change(
    pipeline: Pipeline, traffic: Traffic, sides: dict[str, str]
) -> None:
    shown = ask(pipeline, "/explain", **last_hour(traffic), **sides)
    parts = {part["part"]: round(part["usd"] * 1e9) for part in shown["parts"]}
    assert sum(parts.values()) == round(shown["change"]["cost_usd"]["absolute"] * 1e9)
    cost_of_both = ask(pipeline, "/total_cost", **last_hour(traffic), **sides)
    assert shown["cost_usd"] == cost_of_both["value"]
    assert shown["previous"]["cost_usd"] == cost_of_both["previous"]["value"]
    assert shown["change"]["cost_usd"] == cost_of_both["change"]["value"]
    assert parts["other_kinds"] == 0
    more = shown["previous"]["cost_usd"] * (shown["calls"] / shown["previous"]["calls"] - 1)
    assert parts["calls"] / 1e9 == pytest.approx(more, abs=1e-6)
    assert sum(model["cost_usd"]["absolute"] or 0 for model in shown["by_model"].values()) == pytest.approx(
        shown["change"]["cost_usd"]["absolute"], abs=1e-6
    )


def test_a_cost_that_is_not_known_is_not_explained(pipeline: Pipeline, traffic: Traffic) -> None:
    shown = ask(pipeline, "/explain", **last_hour(traffic), **{"model": "a", "compare.model": "never-called"})
    assert shown["previous"]["cost_usd"] is None
    assert {part["part"]: part["usd"] for part in shown["parts"]}["calls"] == shown["cost_usd"]
    shown = ask(pipeline, "/explain", **last_hour(traffic), **{"model": "x", "compare.model": "y"})
    assert shown["parts"] is None
