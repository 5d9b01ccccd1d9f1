"""An unknown cost is never shown as 0, and numbers that stand beside each other cover the same spans."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kit.recount_services import MetricsServices, opened
from kit.recount_world import NOON_S, make_template, make_world

MYSTERY = {"model": "mystery", "provider": "", "prompt_tokens": 4000, "completion_tokens": 0, "cost_nusd": None}
USD = 10**9


def serving(
    services: MetricsServices, templates: Sequence[dict[str, Any]], customs: Sequence[dict[str, Any]] = ()
) -> Any:
    dice = random.Random(5)
    return opened(services, make_world(list(templates), NOON_S, 2, dice), customs, dice)


def left_out(body: Mapping[str, Any]) -> tuple[int, int]:
    return body["unpriced_span_count"], body["partly_priced_span_count"]


def test_a_sum_without_any_known_cost_is_null_and_counts_what_it_leaves_out(services: MetricsServices) -> None:
    with serving(services, [make_template(times=3, **MYSTERY)]):
        for name in ("total_cost", "cost_per_call"):
            body = services.get(f"/metrics/{name}", {"model": "mystery", "groupby": "caller"})
            assert (body["value"], body["by_caller"], left_out(body)) == (None, {"a": None}, (3, 0)), name
            assert body["unpriced_by_caller"] == {"a": {"unpriced_span_count": 3, "partly_priced_span_count": 0}}
        for name in ("cost_by_model", "cost_by_caller", "cost_by_provider"):
            body = services.get(f"/metrics/{name}", {})
            assert (list(body["value"].values()), left_out(body), body["span_count"]) == ([None], (3, 0), 3), name
        cost = services.get("/metrics/cost", {})
        assert (cost["total_usd"], cost["per_call_usd"], cost["by_model"]) == (None, None, {"mystery": None})
        assert (left_out(cost), cost["span_count"], cost["per_call_span_count"]) == ((3, 0), 3, 0)
        points = services.get("/metrics/total_cost/series", {"window": "1m", "step": "1m"})["points"]
        assert [point["value"] for point in points if point["span_count"]] == [None]
        assert sum(point["unpriced_span_count"] for point in points) == 3


def test_a_cost_per_call_covers_the_calls_with_a_known_cost_and_says_how_many(services: MetricsServices) -> None:
    templates = [
        make_template(cost_nusd=USD // 100),
        make_template(times=9, **MYSTERY),
        make_template(kind="embedding", cost_nusd=2 * USD),
        make_template(kind="tool", model="", cost_nusd=4 * USD),
        make_template(kind="agent", model="", cost_nusd=90 * USD),
    ]
    with serving(services, templates):
        body = services.get("/metrics/cost_per_call", {})
        assert (body["value"], body["per_call_span_count"], left_out(body)) == (0.01, 1, (9, 0))
        body = services.get("/metrics/total_cost", {})
        assert (body["value"], body["span_count"], left_out(body)) == (6.01, 12, (9, 0))
        cost = services.get("/metrics/cost", {})
        assert (cost["span_count"], cost["per_call_usd"], cost["per_call_span_count"]) == (12, 0.01, 1)
        body = services.get("/metrics/cost_per_call", {"kind": "all"})
        assert (body["value"], body["per_call_span_count"]) == (pytest.approx(6.01 / 3), 3)


def test_a_known_cost_of_0_is_0_and_not_null(services: MetricsServices) -> None:
    with serving(services, [make_template(times=2, cost_nusd=0, cost_source="reported")]):
        body = services.get("/metrics/total_cost", {})
        assert (body["value"], left_out(body)) == (0.0, (0, 0))


def test_tokens_of_roll_up_kinds_are_added_nowhere(services: MetricsServices) -> None:
    numbers = {"prompt_tokens": 4000, "completion_tokens": 1000}
    with serving(services, [make_template(**numbers), make_template(kind="agent", model="", **numbers)]):
        for kind in ("", "all", "llm"):
            assert services.get("/metrics/total_tokens", {"kind": kind} if kind else {})["value"] == 5000
        assert services.get("/metrics/prompt_token_p50", {"kind": "all"})["span_count"] == 1
        assert services.get("/metrics/total_tokens", {"kind": "agent"})["value"] is None
        assert services.get("/metrics/total_tokens", {"kind": "all", "groupby": "kind"})["by_kind"]["llm"] == 5000


def test_tokens_of_which_only_the_total_is_known_count_in_the_total_alone(services: MetricsServices) -> None:
    of_all = {"attributes": {"of": "all"}}
    total_only = make_template(times=3, prompt_tokens=0, completion_tokens=0, only_total=77, **of_all)
    with serving(services, [make_template(prompt_tokens=10, completion_tokens=8, **of_all), total_only]):
        for parameters in ({}, {"attr.of": "all"}):
            tokens = services.get("/metrics/tokens", parameters)
            assert (tokens["total"], tokens["prompt_total"], tokens["completion_total"]) == (249, 10, 8)
            assert (tokens["unclassified_total"], tokens["prompt_p50"]) == (231, 10.0)
        assert services.get("/metrics/prompt_token_p50", {})["span_count"] == 1


CUSTOMS = [
    {"name": "own_calls", "type": "count"},
    {"name": "own_tokens", "type": "sum", "field": "total_tokens"},
    {"name": "own_latency", "type": "p95", "field": "latency_ms"},
    {"name": "own_cost", "type": "sum", "field": "cost"},
    {"name": "own_agents", "type": "count", "filter_key": "kind", "filter_val": "agent"},
]


def test_a_custom_metric_counts_the_kinds_of_the_built_in_metric_beside_it(services: MetricsServices) -> None:
    templates = [
        make_template(times=2),
        make_template(kind="tool", model="", latency_ns=9 * 10**9, cost_nusd=USD),
        make_template(kind="agent", model="", latency_ns=99 * 10**9, cost_nusd=USD),
    ]
    pairs = {
        "own_calls": "span_count",
        "own_tokens": "total_tokens",
        "own_latency": "latency_p95",
        "own_cost": "total_cost",
    }
    with serving(services, templates, CUSTOMS):
        for kind in ("", "all", "llm", "tool"):
            asked = {"kind": kind} if kind else {}
            for own, built_in in pairs.items():
                mine, theirs = services.get(f"/metrics/{own}", asked), services.get(f"/metrics/{built_in}", asked)
                assert mine["value"] == pytest.approx(theirs["value"]), (own, kind)
                assert mine["span_count"] == theirs["span_count"], (own, kind)
        assert services.get("/metrics/own_agents", {})["value"] == 1


def test_a_custom_sum_of_costs_counts_what_it_leaves_out(services: MetricsServices) -> None:
    templates = [make_template(times=3, **MYSTERY), make_template(cost_nusd=USD, cost_source="partly_priced")]
    with serving(services, templates, CUSTOMS):
        body = services.get("/metrics/own_cost", {})
        assert (body["value"], body["span_count"], left_out(body)) == (1.0, 1, (3, 1))
        overview = services.get("/metrics", {})
        counts = {"unpriced_span_count": 3, "partly_priced_span_count": 1}
        assert overview["unpriced_custom"] == {"own_cost": counts}
        body = services.get("/metrics/own_cost", {"model": "mystery"})
        assert (body["value"], left_out(body)) == (None, (3, 0))


def test_points_that_cover_only_a_part_of_their_step_say_so(services: MetricsServices) -> None:
    with serving(services, [make_template(times=2)]):
        points = services.get("/metrics/span_count/series", {"window": "5m", "step": "1m"})["points"]
        # NOON_S is a whole minute, so the window begins with a whole step and ends with the first second of one.
        assert [point.get("partial", False) for point in points] == [False] * 5 + [True]
        assert {point["value"] for point in points} == {0, 2}
        points = services.get("/metrics/span_count/series", {"window": "4m30s", "step": "1m"})["points"]
        assert [point.get("partial", False) for point in points] == [True, *[False] * 4, True]


@pytest.mark.parametrize(
    ("name", "fields", "want"),
    [
        ("quality_p10", {"score": 10**9}, 1.0),
        ("quality_p50", {"score": 500_000_000}, 0.5),
        ("latency_p50", {"latency_ns": 10**9}, 1000),
        ("ttft_p95", {"ttft_ns": 1_312_500_000}, 1312.5),
        ("prompt_token_p95", {"prompt_tokens": 3 * 10**9}, 3 * 10**9),
    ],
)
def test_a_quantile_of_150_equal_values_is_exactly_that_value(
    services: MetricsServices, name: str, fields: dict[str, Any], want: float
) -> None:
    unscored = make_template(times=30, latency_ns=0, prompt_tokens=0, completion_tokens=0)
    with serving(services, [make_template(times=150, **fields), unscored]):
        body = services.get(f"/metrics/{name}", {})
        assert (body["value"], body["span_count"]) == (want, 150)
        assert body["quantile_error"] > 0


def test_180_scored_spans_of_312_are_the_scored_ones(services: MetricsServices) -> None:
    with serving(services, [make_template(times=132), make_template(times=180, score=900_000_000)]):
        quality = services.get("/metrics/quality", {})
        assert (quality["scored_span_count"], quality["span_count"]) == (180, 312)
        assert (quality["score_avg"], quality["score_p10"], quality["score_p50"]) == (0.9, 0.9, 0.9)
