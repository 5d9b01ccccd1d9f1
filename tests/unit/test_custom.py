"""Custom metrics: their values, their rollup and a rule on one; and the constructors of rules."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokentrace
from kit.builders import make_span
from kit.examples import examples
from tokentrace.bus import Message
from tokentrace.errors import ConfigError
from tokentrace.metrics import CustomRollup, Query, parse_custom_metric
from tokentrace.records import AlertEvent, Batch, encode_batches
from tokentrace.rollup import RELATIVE_ERROR, Resolution, Stretch
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import parse_rule

SECOND = 10**9
START = 1_790_000_000


def metric(**fields: Any) -> Any:
    return parse_custom_metric({"name": "mine", "type": "sum", "field": "cost", **fields}, "custom_metrics[0]")


@pytest.mark.parametrize(
    ("field", "span", "value"),
    [
        ("cost", {"cost_nusd": 1_500_000_000}, 1.5),
        ("prompt_tokens", {"prompt_tokens": 7}, 7),
        ("comp_tokens", {"completion_tokens": 3}, 3),
        ("latency_ms", {"latency_ns": 2_500_000}, 2.5),
        ("ttft_ms", {"ttft_ns": 1_000_000}, 1.0),
        ("attr.eval.score", {"attributes": {"eval.score": 0.25}}, 0.25),
        ("attr.delta", {"attributes": {"delta": -3}}, -3),
    ],
)
@pytest.mark.parametrize("kind", ["sum", "avg", "p95"])
def test_a_value_is_shown_in_the_unit_of_its_field(field: str, span: dict[str, Any], value: float, kind: str) -> None:
    custom = metric(field=field, type=kind)
    rollup = CustomRollup(custom, (Resolution(1, 60),))
    made_span = make_span(**{"total_tokens": 99, "prompt_tokens": 0, "completion_tokens": 0, **span})
    rollup.fold([made_span], made_span.arrived_ns)
    at = made_span.ended_ns // SECOND
    assert custom.value(rollup.read([[Stretch(0, at, at + 1)]], Query())[0][0]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("fields", "span"),
    [
        ({"field": "latency_ms"}, {"latency_ns": 0}),
        ({"field": "cost"}, {"cost_nusd": None}),
        ({"field": "cost"}, {"cost_nusd": 5, "kind": "agent"}),
        ({"field": "attr.step"}, {"attributes": {"step": "three"}}),
        ({"field": "attr.step"}, {"attributes": {"step": True}}),
        ({"filter_key": "document_type"}, {}),
        ({"filter_key": "document_type", "filter_val": "legal"}, {"attributes": {"document_type": "news"}}),
        ({"filter_key": "model", "filter_val": "o3"}, {"model": "gpt-4o"}),
    ],
)
def test_a_span_that_does_not_match_or_has_no_value_adds_nothing(fields: dict[str, Any], span: dict[str, Any]) -> None:
    assert metric(**fields).measure(make_span(**span)) is None


def test_a_count_counts_spans_that_have_the_key() -> None:
    steps = metric(type="count", field="", filter_key="step_name")
    assert steps.measure(make_span(attributes={"step_name": "plan"})) == 0
    assert steps.measure(make_span()) is None


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"name": "no good"}, "name"),
        ({"name": "total_cost"}, "name"),
        ({"field": "costs"}, "field"),
        ({"field": "attr."}, "field"),
        ({"field": ""}, "field"),
    ],
)
def test_an_invalid_custom_metric_is_refused_with_the_key_that_is_wrong(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"custom_metrics\[0\].{key}"):
        metric(**fields)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(-(10**15), 10**15)), max_size=700), st.integers(0, 2**32))
def test_custom_values_equal_a_recount_before_and_after_a_restart(values: list[tuple[int, int]], seed: int) -> None:
    dice = random.Random(seed)
    resolutions = (Resolution(1, 30), Resolution(10, 200))
    custom = metric(type="p95", field="attr.size")
    rollup = CustomRollup(custom, resolutions)
    now = START + 100
    for age, value in values:
        span = make_span(
            ended_ns=(now - age) * SECOND,
            arrived_ns=now * SECOND,
            model=f"m{value % 3}",
            attributes={"size": value / 10**9},
        )
        rollup.fold([span], now * SECOND)
        if dice.random() < 0.01:
            state, parts = rollup.snapshot({})
            encoded = {name: part.encode() for name, part in parts.items() if part.encode}
            state, encoded = msgspec.msgpack.decode(msgspec.msgpack.encode((state, encoded)))
            rollup = CustomRollup(custom, resolutions)
            assert rollup.restore(state, encoded)
    rollup.tick(now * SECOND)
    stretches = [Stretch(1, now - 60, now - 20), Stretch(0, now - 20, now + 1)]
    [(total, groups)] = rollup.read([stretches], Query(groupby="model"))
    inside = [value for age, value in values if ((now - age) // 10 * 10 >= now - 60 and age > 20) or age <= 20]
    assert (total.size, total.total) == (len(inside), sum(inside))
    assert rollup.cumulative().total == sum(value for _, value in values)
    for model, value_of_model in groups.items():
        mine = [value for value in inside if f"m{value % 3}" == model]
        assert (value_of_model.size, value_of_model.total) == (len(mine), sum(mine))
    if inside:
        error = 1e-9 if len(inside) <= 100 else RELATIVE_ERROR + 1e-9
        assert total.summary.quantile(1.0) == pytest.approx(float(np.max(inside)), rel=error)


def test_a_sum_beyond_int64_is_exact_after_each_tick() -> None:
    # The three values of 9.1e18 are in one bucket, and the largest int64 is 9.2e18.
    rollup = CustomRollup(metric(field="attr.size"), (Resolution(1, 60),))
    span = make_span(attributes={"size": 9_100_000_000})
    at = span.ended_ns // SECOND
    for count in range(1, 4):
        rollup.fold([span], span.arrived_ns)
        rollup.tick(span.arrived_ns)
        total = rollup.read([[Stretch(0, at, at + 1)]], Query())[0][0].total
        assert total == rollup.cumulative().total == count * 9_100_000_000 * 10**9


def test_a_rule_on_a_custom_metric_fires() -> None:
    custom = metric(name="legal_doc_cost", filter_key="document_type", filter_val="legal")
    fields = tokentrace.cost_spike("legal", 1.0, "10s")
    fields["metric"] = "legal_doc_cost"
    rule = parse_rule({**fields, "eval_interval": "1s"}, "alerts[0]", None, {"legal_doc_cost": custom})
    alerter = AlerterMachine([rule], "default")
    alerter.caught_up = True
    alerter.tick(START * SECOND)
    for number, kind in enumerate(["legal", "news", "legal"]):
        span = make_span(
            ended_ns=(START + 1) * SECOND,
            arrived_ns=(START + 1) * SECOND,
            cost_nusd=600_000_000,
            attributes={"document_type": kind},
        )
        payload = encode_batches([Batch(id=f"b{number}", spans=[span])])
        alerter.fold(Message("tokentrace.spans.default.0", payload, number + 1, (START + 1) * SECOND + number, {}), 7)
    (effect,) = alerter.tick((START + 3) * SECOND)
    event = msgspec.json.decode(effect.payload, type=AlertEvent)
    assert (event.metric, event.value, event.span_count) == ("legal_doc_cost", 1.2, 2)


def test_rule_constructors_set_the_metric_and_the_operator() -> None:
    definitions = [
        tokentrace.cost_spike("a", 10.0, "1h", cooldown="30m"),
        tokentrace.latency_regression("b", 3000, "30m"),
        tokentrace.latency_regression("c", 3000, "30m", percentile=99),
        tokentrace.quality_drop("d", 0.75, "1h", min_spans=20),
        tokentrace.error_rate_spike("e", 0.05, "15m", min_spans=10),
    ]
    rules = [parse_rule(fields, f"alerts[{n}]") for n, fields in enumerate(definitions)]
    assert [(rule.metric, rule.op) for rule in rules] == [
        ("total_cost", "gt"),
        ("latency_p95", "gt"),
        ("latency_p99", "gt"),
        ("quality_score", "lt"),
        ("error_rate", "gt"),
    ]
    with pytest.raises(ValueError, match="percentile"):
        tokentrace.latency_regression("f", 1, "1h", percentile=42)
