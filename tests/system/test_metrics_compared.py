"""Intervals in the past, comparisons, and the order of groups, as a real ``tokentrace serve`` answers them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction

import numpy as np
import pytest

from kit.compared_calls import HOUR, Traffic, assert_change, cost, groups, instant, send_calls
from kit.metrics_http import ask, refused, serve_metrics
from kit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> Traffic:
    return send_calls(pipeline)


def test_an_interval_in_the_past_equals_a_recount(pipeline: Pipeline, traffic: Traffic) -> None:
    for ago_h in (0, 1, 24, 240):
        to_s = traffic.now_s - ago_h * HOUR
        # Not on the edges of buckets: a minute of ten days ago is in no bucket.
        for from_s, until_s in ((to_s - HOUR, to_s), (to_s - 1801, to_s - 601)):
            calls = traffic.within(from_s, until_s)
            shown = ask(
                pipeline, "", caller=traffic.caller, **{"from": instant(from_s)}, to=instant(until_s), groupby="model"
            )
            widened = [datetime.fromisoformat(shown[name]).timestamp() for name in ("from", "to")]
            assert widened[0] <= from_s
            assert until_s <= widened[1]
            assert widened[1] - widened[0] - (until_s - from_s) <= (until_s - from_s) / 100
            assert shown["window"] is None
            calls = traffic.within(int(widened[0]), int(widened[1]))
            total = cost(calls)
            assert shown["cost"]["total_usd"] == (None if total is None else float(total))
            assert shown["span_count"] == len(calls) == shown["cost"]["span_count"]
            assert {name: part["span_count"] for name, part in shown["by_model"].items()} == {
                name: len(part) for name, part in groups(calls, "model").items()
            }
            assert shown["transport"]["queue_depth"] == 0


def test_a_span_counts_from_its_second_on(pipeline: Pipeline, traffic: Traffic) -> None:
    first = min(call.at_s for call in traffic.calls)
    for from_s, to_s in ((first, first + 1), (first - 1, first), (first + 1, first + 2)):
        shown = ask(pipeline, "/span_count", caller=traffic.caller, **{"from": instant(from_s)}, to=instant(to_s))
        assert shown["value"] == len(traffic.within(from_s, to_s))
        assert (shown["from"][:19], shown["to"][:19]) == (instant(from_s)[:19], instant(to_s)[:19])


def test_both_sides_of_a_comparison_equal_a_recount(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    asked = {"from": instant(now_s - HOUR), "to": instant(now_s), "caller": traffic.caller, "groupby": "model"}
    for compare, earlier in (
        ({"compare": "before"}, HOUR),
        ({"compare": "yesterday"}, 24 * HOUR),
        ({"compare_from": instant(now_s - 241 * HOUR), "compare_to": instant(now_s - 240 * HOUR)}, 240 * HOUR),
    ):
        now, before = traffic.within(now_s - HOUR, now_s), traffic.within(now_s - HOUR - earlier, now_s - earlier)
        # The requests about whole hours are answered from buckets, and no call is near their edges.
        by = groups(now, "model"), groups(before, "model")
        shown = ask(pipeline, "/total_cost", **asked, **compare)
        assert shown["value"] == float(cost(now) or 0)
        assert shown["previous"]["value"] == float(cost(before) or 0)
        assert_change(shown["change"]["value"], cost(now), cost(before))
        assert shown["change"]["span_count"]["absolute"] == len(now) - len(before)
        assert set(shown["change"]["by_model"]) == set(by[0]) | set(by[1])
        for model, change in shown["change"]["by_model"].items():
            assert_change(change, *(cost(side[model]) if model in side else Fraction(0) for side in by))
        whole = ask(pipeline, "", **asked, **compare)
        assert whole["previous"]["span_count"] == len(before)
        assert whole["change"]["span_count"]["absolute"] == len(now) - len(before)
        assert whole["change"]["cost"]["total_usd"] == shown["change"]["value"]
        assert whole["change"]["cost"]["by_model"] == shown["change"]["by_model"]
        p95 = [float(np.quantile([call.latency_ms for call in side], 0.95)) for side in (now, before)]
        allowed = (whole["quantile_error"] * p95[0] + whole["previous"]["quantile_error"] * p95[1]) * 1.01 + 1e-6
        assert whole["change"]["latency"]["p95_ms"]["absolute"] == pytest.approx(p95[0] - p95[1], abs=allowed)
        errors = [Fraction(sum(call.status == "error" for call in side), len(side)) for side in (now, before)]
        assert whole["change"]["errors"]["rate"]["absolute"] == float(errors[0] - errors[1])
        for model, part in whole["change"]["by_model"].items():
            assert part["cost"]["total_usd"] == shown["change"]["by_model"][model]
            has_both = model in by[0] and model in by[1]
            assert (part["latency"]["p95_ms"]["absolute"] is not None) == has_both


def test_without_calls_on_a_side_sums_are_new_and_means_have_no_data(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    asked = {"from": instant(now_s - HOUR), "to": instant(now_s), "caller": traffic.caller}
    nothing = {"compare_from": instant(now_s - 30 * HOUR), "compare_to": instant(now_s - 29 * HOUR)}
    now = traffic.within(now_s - HOUR, now_s)
    shown = ask(pipeline, "", **asked, **nothing)
    assert shown["previous"]["cost"]["total_usd"] is None
    assert shown["change"]["cost"]["total_usd"] == {"absolute": float(cost(now) or 0), "ratio": None}
    assert shown["change"]["span_count"] == {"absolute": len(now), "ratio": None}
    assert shown["change"]["tokens"]["total"] == {"absolute": sum(call.tokens for call in now), "ratio": None}
    for group, key in (("latency", "p95_ms"), ("errors", "rate"), ("cost", "per_call_usd"), ("quality", "score_avg")):
        assert shown["change"][group][key] == {"absolute": None, "ratio": None}


def test_a_comparison_of_two_values_has_their_numbers_on_its_sides(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    asked = {"from": instant(now_s - 2 * HOUR), "to": instant(now_s), "caller": traffic.caller}
    for key, a, b in (("model", "a", "b"), ("user_id", "u-1", "u-2"), ("attr.team", "red", "blue")):
        shown = ask(pipeline, "/cost", **asked, **{key: a, f"compare.{key}": b})
        for side, value in ((shown, a), (shown["previous"], b)):
            alone = ask(pipeline, "/cost", **asked, **{key: value})
            assert side["total_usd"] == alone["total_usd"]
            assert side["span_count"] == alone["span_count"] > 0
        change = shown["change"]["total_usd"]["absolute"]
        assert change == pytest.approx(shown["total_usd"] - shown["previous"]["total_usd"], abs=1e-9)


def test_the_groups_that_top_leaves_out_are_added_up_exactly(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    calls = traffic.within(now_s - HOUR, now_s)
    asked = {"from": instant(now_s - HOUR), "to": instant(now_s), "caller": traffic.caller}
    for key, field in (("model", "model"), ("user_id", "user"), ("attr.user_id", "user")):
        by = groups(calls, field)
        by_cost = sorted(by, key=lambda name: (-(cost(by[name]) or 0), name))
        for top in (1, 2, 3, len(by), 1000):
            shown = ask(pipeline, "/total_cost", **asked, groupby=key, top=str(top))
            assert shown["order"] == by_cost[:top] == list(shown[f"by_{key.removeprefix('attr.')}"])
            rest = [call for name in by_cost[top:] for call in by[name]]
            if not rest:
                assert shown["other"] is None
                continue
            assert shown["other"]["groups"] == len(by_cost[top:])
            assert shown["other"]["value"] == float(cost(rest) or 0)
            assert shown["other"]["unpriced_span_count"] == sum(call.nusd is None for call in rest)
    assert "other" in groups(calls, "model"), "a model may have this name"


def test_groups_are_ordered_by_any_number_and_by_its_change(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    asked = {"from": instant(now_s - HOUR), "to": instant(now_s), "caller": traffic.caller, "groupby": "user_id"}
    now, before = traffic.within(now_s - HOUR, now_s), traffic.within(now_s - 2 * HOUR, now_s - HOUR)
    by, earlier = groups(now, "user"), groups(before, "user")
    numbers = {
        "spans": {name: len(part) for name, part in by.items()},
        "tokens": {name: sum(call.tokens for call in part) for name, part in by.items()},
        "errors": {name: sum(call.status == "error" for call in part) for name, part in by.items()},
        "p95": {name: np.quantile([call.latency_ms for call in part], 0.95) for name, part in by.items()},
        "cost": {name: cost(part) for name, part in by.items()},
    }
    for order, values in numbers.items():
        for path in ("", "/total_cost", "/latency", "/errors"):
            shown = ask(pipeline, path, **asked, order=order)
            assert shown["order"] == sorted(values, key=lambda name: (-(values[name] or 0), name)), (path, order)
            assert "other" not in shown
    assert ask(pipeline, "/total_cost", **asked, order="name")["order"] == sorted(by)
    changed = {name: abs((cost(by[name]) or 0) - (cost(earlier.get(name, [])) or 0)) for name in by}
    shown = ask(pipeline, "/total_cost", **asked, order="change", compare="before", top="3")
    by_change = sorted(changed, key=lambda name: (-changed[name], name))
    assert shown["order"] == by_change[:3] == list(shown["change"]["by_user_id"])
    rest = [[call for name in by_change[3:] for call in side.get(name, [])] for side in (by, earlier)]
    assert_change(shown["change"]["other"], cost(rest[0]), cost(rest[1]))
    assert shown["previous"]["other"]["value"] == float(cost(rest[1]) or 0)


def test_a_series_has_both_sides_and_the_other_groups(pipeline: Pipeline, traffic: Traffic) -> None:
    now_s = traffic.now_s
    asked = {"from": instant(now_s - HOUR), "to": instant(now_s), "caller": traffic.caller, "groupby": "model"}
    calls, earlier = traffic.within(now_s - HOUR, now_s), traffic.within(now_s - 2 * HOUR, now_s - HOUR)
    for step in ("10m", "7m", "10s"):
        shown = ask(pipeline, "/total_cost/series", **asked, step=step, top="2", compare="before")
        by = groups(calls, "model")
        order = sorted(by, key=lambda name: (-(cost(by[name]) or 0), name))
        assert shown["order"] == order[:2]
        assert shown["other"]["groups"] == len(order) - 2
        for lines, part in (
            (shown["points"], calls),
            (shown["by_model"][order[0]], by[order[0]]),
            (shown["other"]["points"], [call for name in order[2:] for call in by[name]]),
            (shown["previous"]["points"], earlier),
        ):
            assert sum(point["span_count"] for point in lines) == len(part)
            assert sum(round((point["value"] or 0) * 1e9) for point in lines) == (cost(part) or 0) * 10**9
        for point in shown["points"]:
            assert datetime.fromisoformat(point["at"]).timestamp() >= now_s - HOUR - 60


def test_a_series_of_a_past_interval_takes_steps_that_no_bucket_has(pipeline: Pipeline, traffic: Traffic) -> None:
    to_s = traffic.now_s - 240 * HOUR
    asked = {"from": instant(to_s - HOUR), "to": instant(to_s), "caller": traffic.caller}
    calls = traffic.within(to_s - HOUR, to_s)
    for step in ("2s", "90s", None):
        shown = ask(pipeline, "/span_count/series", **asked, **({"step": step} if step else {}))
        starts = [datetime.fromisoformat(point["at"]).timestamp() for point in shown["points"]]
        ends = [*starts[1:], to_s]
        assert [point["value"] for point in shown["points"]] == [
            len(traffic.within(int(start), int(end))) for start, end in zip(starts, ends, strict=True)
        ]
        assert sum(point["value"] for point in shown["points"]) == len(calls)
        assert 30 <= len(shown["points"]) <= 1801


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("from=2026-01-01T00:00:00Z&window=1h", "window: excludes"),
        ("to=2026-01-01T00:00:00Z", "to: needs from"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to: is not after from"),
        ("from=2199-01-01T00:00:00Z", "from: is in the future"),
        ("from=1969-01-01T00:00:00Z", "from: is before 1970"),
        ("from=yesterday", "from: "),
        ("compare=banana", "compare: 'banana' is none of before, yesterday, last_week"),
        ("compare=before&compare_from=2026-01-01T00:00:00Z", "compare: excludes"),
        ("compare_from=2026-01-01T00:00:00Z", "compare_from: needs compare_to"),
        ("compare_to=2026-01-01T00:00:00Z", "compare_to: needs compare_from"),
        ("compare.banana=1", "compare.banana: is no filter"),
        ("compare.attr.=1", "compare.attr.: is no filter"),
        ("compare.kind=banana", "compare.kind: 'banana'"),
        ("compare.user=a&compare.user_id=b", "compare.user_id: 'b' differs from user"),
        ("top=3", "top: needs groupby"),
        ("order=cost", "order: needs groupby"),
        ("groupby=model&top=0", "top: 0 is not from 1"),
        ("groupby=model&top=1001", "top: 1001 is not from 1"),
        ("groupby=model&order=change", "order: change needs compare"),
        ("groupby=model&order=banana", "order: 'banana' is none of"),
        ("groupby=model&order=", "order: is empty"),
    ],
)
def test_a_wrong_interval_comparison_or_order_is_400_and_named(pipeline: Pipeline, query: str, error: str) -> None:
    for path in ("", "/cost", "/total_cost", "/latency_p95/series"):
        assert refused(pipeline.get(f"/metrics{path}?{query}"), 400).startswith(error)


def test_a_count_since_the_start_is_not_compared(pipeline: Pipeline) -> None:
    for name in ("transport_sent", "alert_firings", "rejected_spans"):
        for query in ("compare=before", "from=2026-01-01T00:00:00Z", "groupby=model&top=3", "groupby=model&order=name"):
            error = refused(pipeline.get(f"/metrics/{name}?{query}"), 400)
            assert error.endswith(f"{name} is one count since the stream began")
