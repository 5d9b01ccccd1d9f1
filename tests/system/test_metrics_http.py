"""``GET /metrics``, its groups, breakdowns and single metrics, as a real ``tokentrace serve`` returns them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kit.metrics_http import (
    CUSTOM,
    DIMENSIONS,
    FIRINGS,
    TRANSPORT,
    UNPRICED,
    Expected,
    ask,
    assert_coverage,
    close_to,
    expected_groups,
    grouped,
    send_traffic,
    serve_metrics,
)
from kit.pipeline import Pipeline
from tokentrace.metrics import ALIASES, BREAKDOWNS, GROUPS, METRICS

#: Keys of an answer about money that say what it leaves out.
MONEY_KEYS = {"unpriced_span_count", "partly_priced_span_count"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    return send_traffic(pipeline)


# --- one number


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_by_name_equals_a_recount(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, spans = traffic
    for kind in ("", "llm", "tool", "agent", "embedding", "retrieval", "all"):
        shown = ask(pipeline, f"/{name}", caller=caller, **({"kind": kind} if kind else {}))
        value, count = Expected(spans, kind).metric(name)
        assert shown["value"] == (None if value is None else pytest.approx(value, rel=1e-9)), kind
        assert (shown["window"], shown["metric"], shown["span_count"]) == ("1h", name, count), kind
        assert_coverage(shown)
        assert set(shown) - {"quantile_error", "exemplars"} == {
            *("window", "metric", "value", "span_count"),
            *("from", "to", "since"),
            *(MONEY_KEYS if METRICS[name].not_priced else ()),
            *(("per_call_span_count",) if name == "cost_per_call" else ()),
        }
        assert ("quantile_error" in shown) == bool(METRICS[name].fields)
        assert shown.get("quantile_error", 0) == 0, "quantiles of fewer than 100 values are exact"
        family = name.partition("_")[0]
        assert ("exemplars" in shown) == (family in ("latency", "ttft", "cost") or name == "total_cost")


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_metric_by_dimension_equals_a_recount_of_each_group(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], dimension: str
) -> None:
    caller, spans = traffic
    for name in ("total_cost", "latency_p95", "error_rate", "quality_score", "span_count", "prompt_token_p50"):
        shown = ask(pipeline, f"/{name}", caller=caller, groupby=dimension)
        parts = {value: Expected(part).metric(name)[0] for value, part in grouped(spans, dimension).items()}
        found = shown[f"by_{dimension}"]
        assert list(found) == sorted(found)
        for value, want in parts.items():
            assert found.get(value) == (None if want is None else pytest.approx(want, rel=1e-9)), (name, value)
        assert set(found) <= set(parts)
        assert shown["value"] == pytest.approx(Expected(spans).metric(name)[0])


@pytest.mark.parametrize(("alias", "name"), [(alias, name) for alias, name in ALIASES.items() if alias not in GROUPS])
def test_an_alias_is_answered_under_the_name_of_the_metric(pipeline: Pipeline, alias: str, name: str) -> None:
    shown = ask(pipeline, f"/{alias}")
    assert shown["metric"] == name
    assert shown["value"] == ask(pipeline, f"/{name}")["value"]


@pytest.mark.parametrize("name", TRANSPORT)
def test_a_total_of_reporters_is_a_number(pipeline: Pipeline, name: str) -> None:
    assert ask(pipeline, f"/{name}") == {"metric": name, "value": 0}
    assert ask(pipeline, "")["transport"][name.removeprefix("transport_")] == 0


@pytest.mark.parametrize("name", FIRINGS)
def test_firings_are_a_number_and_a_map_by_rule(pipeline: Pipeline, name: str) -> None:
    assert ask(pipeline, f"/{name}") == {"metric": name, "value": 0, "by_rule": {}}
    assert ask(pipeline, "")["alerts"] == {"firings": {}, "delivery_failed": {}}


# --- groups and breakdowns


@pytest.mark.parametrize("kind", ["", "llm", "tool", "all"])
def test_every_group_of_metrics_equals_a_recount(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], kind: str
) -> None:
    caller, spans = traffic
    asked = {"caller": caller, **({"kind": kind} if kind else {})}
    whole = ask(pipeline, "", **asked)
    of = Expected(spans, kind)
    assert whole["span_count"] == len(of.calls)
    assert_coverage(whole)
    by_model = {model: Expected(part, kind) for model, part in grouped(spans, "model").items()}
    for group, wanted in expected_groups(spans, kind).items():
        shown = dict(whole[group])
        if group == "cost":
            assert shown.pop("by_model") == pytest.approx(
                {model: part.cost for model, part in by_model.items() if part.paid}
            )
            assert shown.pop("unpriced_by_model") == ({} if kind == "tool" else UNPRICED)
        assert shown == close_to(wanted)
        alone = ask(pipeline, f"/{group}", **asked)
        assert {key: alone.pop(key) for key in whole[group]} == whole[group]
        extra = {"quantile_error"} if GROUPS[group].fields else set()
        extra |= {"exemplars"} if group in ("cost", "latency") else set()
        # The group cost has the number of its spans among its numbers.
        extra |= set() if group == "cost" else {"span_count"}
        assert set(alone) == {"window", "from", "to", "since"} | extra
        assert alone.get("span_count", whole["span_count"]) == (len(of.spent) if group == "tokens" else len(of.calls))
    known = {
        *GROUPS,
        *CUSTOM,
        "unpriced_custom",
        "window",
        "span_count",
        "transport",
        "rejected",
        "saved_from_double_count",
        "alerts",
        "quantile_error",
        "from",
        "to",
        "since",
    }
    assert set(whole) == known


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_group_of_metrics_by_dimension_equals_a_recount_of_each_group(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], dimension: str
) -> None:
    caller, spans = traffic
    parts = {value: expected_groups(part) for value, part in grouped(spans, dimension).items()}
    key = f"by_{dimension}"
    for group in GROUPS:
        shown = ask(pipeline, f"/{group}", caller=caller, groupby=dimension)
        for value, found in shown[key].items():
            wanted = parts[value][group]
            if group == "cost":
                assert found == pytest.approx(wanted["total_usd"])
            else:
                assert found == close_to(wanted), (group, value)
        if group != "cost":
            assert not set(shown) & set(parts[value][group]), "numbers over all spans are not shown beside a grouping"
    whole = ask(pipeline, "", caller=caller, groupby=dimension)
    for value, found in whole[key].items():
        assert found["span_count"] == len(Expected(grouped(spans, dimension)[value]).calls)
        for group in GROUPS:
            assert found[group] == close_to(parts[value][group]), (group, value)


def test_breakdowns_by_dimension_equal_a_recount(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    for name, split in BREAKDOWNS.items():
        if not split.dimension:
            continue
        shown = ask(pipeline, f"/{name}", caller=caller)
        assert set(shown) - {"quantile_error"} == {
            *("window", "metric", "value", f"by_{split.dimension}"),
            *("span_count", "from", "to", "since"),
            *(MONEY_KEYS | {f"unpriced_by_{split.dimension}"} if split.not_priced else ()),
        }
        assert shown["value"] == shown[f"by_{split.dimension}"]
        assert_coverage(shown)
    for dimension in ("model", "caller", "provider"):
        shown = ask(pipeline, f"/cost_by_{dimension}", caller=caller)["value"]
        wanted = {value: Expected(part).cost for value, part in grouped(spans, dimension).items()}
        assert {value: usd for value, usd in shown.items() if usd} == pytest.approx(
            {value: usd for value, usd in wanted.items() if usd}
        )
        assert sum(round((usd or 0) * 1e9) for usd in shown.values()) == round((Expected(spans).cost or 0) * 1e9)
        assert {value for value, usd in shown.items() if usd is None} == {
            value for value, usd in wanted.items() if usd is None
        }
    tokens = ask(pipeline, "/tokens_by_model", caller=caller)["value"]
    assert all(set(part) == {"prompt", "completion", "total"} for part in tokens.values())
    assert sum(part["total"] for part in tokens.values()) == Expected(spans).metric("total_tokens")[0]
    for model, found in ask(pipeline, "/latency_by_model", caller=caller)["value"].items():
        part = Expected(grouped(spans, "model")[model])
        assert found == close_to({f"p{p}_ms": part.metric(f"latency_p{p}")[0] for p in (50, 95, 99)})
    scored = ask(pipeline, "/quality_by_model", caller=caller)["value"]
    assert "no-such-model" not in scored, "no span of this model has a score"
    assert scored == pytest.approx(
        {
            model: Expected(part).metric("quality_score")[0]
            for model, part in grouped(spans, "model").items()
            if Expected(part).scores
        }
    )
