"""Rules on money, and spans of unknown cost in their windows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kit.alert_story import Story, call, make_rule
from kit.builders import make_span
from tokentrace.errors import ConfigError
from tokentrace.metrics import parse_custom_metric
from tokentrace.records import AlertEvent
from tokentrace_alerter.delivery.payload import alertmanager_alert
from tokentrace_alerter.rules import State, decide, parse_rule
from tokentrace_alerter.rules.render import render_status

MONEY = {"metric": "total_cost", "op": "gt", "threshold": 5.0, "window": "10s"}


def told(story: Story, *spans: Any) -> list[AlertEvent]:
    story.send(1, *spans)
    return story.tick(3)


def unpriced(**fields: Any) -> Any:
    return call(1, cost_nusd=None, cost_source="unpriced", unpriced_reason="unknown_model", **fields)


@pytest.mark.parametrize("metric", ["total_cost", "cost_per_call", "spent_on_o3"])
@pytest.mark.parametrize("op", ["gt", "lt", "lte"])
def test_a_window_of_unknown_costs_breaches_nothing(metric: str, op: str) -> None:
    rule = make_rule(**{**MONEY, "metric": metric, "op": op, "no_data": "fire"})
    story = Story(rule)
    events = told(story, unpriced(model="o3"), unpriced(model="o3"))
    assert [event.status for event in events if event.span_count or event.unpriced_span_count] == []


@pytest.mark.parametrize("metric", ["total_cost", "cost_per_call", "spent_on_o3"])
def test_a_rule_may_fire_on_unknown_costs_and_its_event_counts_them(metric: str) -> None:
    story = Story(make_rule(**{**MONEY, "metric": metric, "unpriced": "fire"}))
    (event,) = told(story, unpriced(model="o3"), unpriced(model="o3"))
    assert (event.status, event.value, event.unpriced_span_count) == ("firing", None, 2)
    assert event.message.endswith("; the cost of 2 spans is unknown")
    assert alertmanager_alert(event, 0)["annotations"]["unpriced_span_count"] == "2"
    (state,) = [render_status(evaluator, 0) for evaluator in story.alerter.evaluators.values()]
    assert (state["unpriced"], state["unpriced_span_count"]) == ("fire", 2)


def test_an_event_of_a_rule_on_money_counts_unknown_costs_and_other_events_do_not() -> None:
    story = Story(make_rule(**MONEY), make_rule(name="slow", threshold=1, window="10s"))
    events = {event.alert: event for event in told(story, unpriced(), call(1, cost_nusd=6 * 10**9))}
    assert events["any"].unpriced_span_count == 1
    assert "unpriced_span_count" not in msgspec.json.decode(msgspec.json.encode(events["slow"]))


def test_an_episode_of_unknown_costs_ends_when_the_window_has_none() -> None:
    rule = make_rule(**MONEY, unpriced="fire")
    assert decide(rule, State(), 10, 1.0, 3, unpriced=1).event is not None
    ended = decide(rule, State(firing=True, starts_ns=10, event_ns=10), 20, 1.0, 3, unpriced=0)
    assert ended.event is not None
    assert ended.event.status == "resolved"


def test_min_spans_counts_the_spans_of_unknown_cost_too() -> None:
    rule = make_rule(**MONEY, unpriced="fire", min_spans=3)
    assert decide(rule, State(), 10, None, 0, unpriced=2).event is None
    assert decide(rule, State(), 10, None, 0, unpriced=3).event is not None


def test_only_a_rule_on_money_may_name_unpriced() -> None:
    with pytest.raises(ConfigError, match=r"rule\.unpriced: 'latency_avg' is not about money"):
        make_rule(unpriced="fire")
    with pytest.raises(ConfigError, match=r"rule\.unpriced: 'warn' is none of ignore, fire"):
        make_rule(**MONEY, unpriced="warn")


def test_a_rule_on_a_custom_metric_counts_the_kinds_of_the_metric() -> None:
    calls = parse_custom_metric({"name": "calls", "type": "count"}, "custom_metrics[0]")
    written = {"name": "many", "metric": "calls", "op": "gt", "threshold": 1, "window": "10s", "eval_interval": "1s"}
    for chosen, fires in (({}, False), ({"filter": {"kind": "tool"}}, True)):
        story = Story(parse_rule({**written, **chosen}, "rule", None, {"calls": calls}))
        tools = [msgspec.structs.replace(call(1), kind="tool", span_id=make_span().span_id) for _ in range(2)]
        assert bool(told(story, call(1), *tools)) == fires
