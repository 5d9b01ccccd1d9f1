"""What a rule decides at one instant, and the events that it publishes."""

from __future__ import annotations

import math
import re

import msgspec
import pytest

from kit.builders import make_span
from kit.rules import START_NS, TEN_KEYS, fire, make_rule, play
from tokentrace.records import AlertEvent
from tokentrace.rollup import SeriesTable, rows_of
from tokentrace.units import SECOND, render_instant
from tokentrace_alerter.rules import (
    Decision,
    RuleEvaluator,
    State,
    breaches,
    decide,
)

# --- the condition


@pytest.mark.parametrize("threshold", [0.5, 10.0, 0.0, -3.0, 1e-9, 1e15])
@pytest.mark.parametrize(
    ("op", "below", "at", "above"),
    [
        ("gt", False, False, True),
        ("gte", False, True, True),
        ("lt", True, False, False),
        ("lte", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
        ("<", True, False, False),
        ("<=", True, True, False),
    ],
)
def test_an_operator_is_exact_at_its_threshold(op: str, below: bool, at: bool, above: bool, threshold: float) -> None:
    rule = make_rule(op=op, threshold=threshold)
    values = (math.nextafter(threshold, -math.inf), threshold, math.nextafter(threshold, math.inf))
    for value, fires in zip(values, (below, at, above), strict=True):
        decision = decide(rule, State(), START_NS, value, 10)
        assert (decision.event is not None) == fires
        assert breaches(rule, value, 10) == fires
        assert decision.reason == ("" if fires else "ok")


def test_half_is_not_more_than_half() -> None:
    assert decide(make_rule(metric="error_rate", threshold=0.5), State(), START_NS, 0.5, 10) == Decision(None, "ok")


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte"])
def test_no_data_fires_nothing_whatever_the_operator(op: str) -> None:
    rule = make_rule(metric="quality_score", op=op, threshold=0.75)
    assert decide(rule, State(), START_NS, None, 0) == Decision(None, "no_data")
    assert not breaches(rule, None, 0)


@pytest.mark.parametrize("op", ["lt", "lte"])
def test_a_value_without_contributing_spans_fires_nothing(op: str) -> None:
    rule = make_rule(metric="quality_score", op=op, threshold=0.75)
    assert decide(rule, State(), START_NS, 0.0, 0) == Decision(None, "no_data")


def test_a_quality_rule_without_data_is_quiet_and_fires_when_data_comes() -> None:
    rule = make_rule(metric="quality_score", op="lt", threshold=0.75, cooldown="5s")
    assert play(rule, "-----..---#") == "..........F"


@pytest.mark.parametrize(("count", "fires"), [(0, False), (4, False), (5, True), (6, True)])
def test_with_fewer_than_min_spans_nothing_is_published(count: int, fires: bool) -> None:
    decision = decide(make_rule(min_spans=5), State(), START_NS, 99.0, count)
    assert (decision.event is not None) == fires
    if count == 4:
        assert decision.reason == "min_spans"


# --- one rule over time


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte"])
def test_a_breach_fires_again_after_each_cooldown_and_ends_once(op: str) -> None:
    rule = make_rule(op=op, cooldown="3s")
    #                  0 2  5  8  11
    assert play(rule, "..#########...") == "..F..F..F..R.."


def test_a_rule_may_fire_exactly_at_the_end_of_its_cooldown() -> None:
    rule = make_rule(cooldown="5s")
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    assert decide(rule, state, START_NS + 5 * SECOND - 1, 11, 1) == Decision(None, "cooldown")
    again = decide(rule, state, START_NS + 5 * SECOND, 11, 1).event
    assert again is not None
    assert again.status == "firing"


def test_a_breach_that_comes_back_within_the_cooldown_waits_for_its_end() -> None:
    rule = make_rule(cooldown="6s")
    #                  0     6
    assert play(rule, "#.#.##########") == "FR....F.....F."


def test_a_breach_that_comes_back_is_a_new_episode() -> None:
    rule = make_rule(cooldown="2s")
    watch, episodes = RuleEvaluator(rule, SeriesTable()), []
    for second, value in enumerate([11, 11, 11, 9, 9, 11, 11, 11]):
        event = decide(rule, watch.state, START_NS + second * SECOND, value, 1).event
        if event is not None:
            watch.apply_event(event)
            episodes.append((second, event.status, event.starts_at, event.ends_at))
    first_start, second_start = render_instant(START_NS), render_instant(START_NS + 5 * SECOND)
    assert episodes == [
        (0, "firing", first_start, None),
        (2, "firing", first_start, None),
        (3, "resolved", first_start, render_instant(START_NS + 3 * SECOND)),
        (5, "firing", second_start, None),
        (7, "firing", second_start, None),
    ]


def test_the_cooldown_of_one_rule_does_not_affect_another() -> None:
    one, other = make_rule(name="one", cooldown="1h"), make_rule(name="other", cooldown="2s")
    assert play(one, "######") == "F....."
    assert play(other, "######") == "F.F.F."
    assert play(one, ".#####") == ".F...."


def test_without_a_cooldown_every_instant_in_breach_fires() -> None:
    assert play(make_rule(cooldown="0s"), "###..#") == "FFFR.F"


def test_an_episode_is_resolved_once_when_no_data_is_left() -> None:
    assert play(make_rule(cooldown="2s"), "##------#") == "F.R.....F"


def test_a_rule_that_never_fired_is_never_resolved() -> None:
    assert play(make_rule(), "...---...") == "........."


def test_too_few_spans_do_not_resolve() -> None:
    rule = make_rule(min_spans=5)
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    assert decide(rule, state, START_NS + SECOND, 1.0, 4) == Decision(None, "min_spans")


def test_nothing_is_published_up_to_the_instant_of_the_last_event() -> None:
    rule = make_rule(cooldown="0s")
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    for instant in (START_NS - SECOND, START_NS):
        assert decide(rule, state, instant, 99.0, 10).event is None
        assert decide(rule, state, instant, None, 0).event is None


def test_deciding_does_not_change_the_state() -> None:
    rule, state = make_rule(), State()
    assert decide(rule, state, START_NS, 11, 1) == decide(rule, state, START_NS, 11, 1)
    assert state == State()


def test_a_silenced_rule_publishes_nothing() -> None:
    rule = make_rule(silenced=True, cooldown="1s")
    assert play(rule, "..####..--##") == "............"
    assert decide(rule, State(), START_NS, 11, 1) == Decision(None, "silenced")


def test_a_silenced_rule_is_evaluated() -> None:
    table = SeriesTable()
    watch = RuleEvaluator(make_rule(silenced=True, window="10s"), table)
    spans = [make_span(cost_nusd=11 * 10**9, ended_ns=START_NS - SECOND, arrived_ns=START_NS - SECOND)]
    watch.fold(spans, rows_of(spans, table, START_NS - SECOND), START_NS - SECOND)
    watch.start_at(START_NS - SECOND)
    assert watch.evaluate() == []
    assert (watch.state.value, watch.state.span_count, watch.state.breached) == (11.0, 1, True)
    assert (watch.state.firing, watch.state.fired_ns, watch.state.reason) == (False, 0, "silenced")


# --- events


def test_the_event_has_the_documented_keys_and_values() -> None:
    event = fire(make_rule(), 12.47)
    shown = msgspec.json.decode(msgspec.json.encode(event))
    assert set(shown) >= TEN_KEYS | {"level", "message", "status"}
    assert {key: shown[key] for key in TEN_KEYS} == {
        "alert": "hourly-cost-spike",
        "fired_at": render_instant(START_NS),
        "metric": "total_cost",
        "op": "gt",
        "value": 12.47,
        "threshold": 10.0,
        "window": "1h",
        "span_count": 312,
        "filter": {},
        "rule_id": make_rule().rule_id,
    }
    assert (shown["level"], shown["status"]) == ("warning", "firing")
    assert shown["message"] == "total_cost > 12.47 (threshold: 10)"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["fired_at"])


def test_an_event_has_the_window_as_written_and_the_metric_without_alias() -> None:
    event = fire(make_rule(metric="latency_p99_ms", op=">", window="60m", filter={"model": "o3"}, level="critical"), 11)
    assert (event.metric, event.op, event.window) == ("latency_p99", "gt", "60m")
    assert (event.filter, event.level) == ({"model": "o3"}, "critical")


@pytest.mark.parametrize(
    ("value", "threshold", "text"),
    [
        (750, 500, "latency_p99 > 750 (threshold: 500)"),
        (750.04, 500.0, "latency_p99 > 750 (threshold: 500)"),
        (0.051234, 0.05, "latency_p99 > 0.05123 (threshold: 0.05)"),
        (12345.6, 9999.6, "latency_p99 > 1.235e+04 (threshold: 1e+04)"),
        (1e6, 1e5, "latency_p99 > 1e+06 (threshold: 1e+05)"),
        (0.0000123456, 0.00001, "latency_p99 > 1.235e-05 (threshold: 1e-05)"),
        (0, -1, "latency_p99 > 0 (threshold: -1)"),
    ],
)
def test_the_message_shows_four_significant_digits(value: float, threshold: float, text: str) -> None:
    assert fire(make_rule(metric="latency_p99", threshold=threshold), value).message == text


@pytest.mark.parametrize(("op", "symbol"), [("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<=")])
def test_the_message_shows_the_operator_as_a_symbol(op: str, symbol: str) -> None:
    value = 2 if op.startswith("g") else 0
    assert fire(make_rule(op=op, threshold=1), value).message == f"total_cost {symbol} {value} (threshold: 1)"


def test_a_resolution_has_the_start_of_the_episode_and_the_current_value() -> None:
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    fine = decide(make_rule(), state, START_NS + SECOND, 9.5, 3).event
    gone = decide(make_rule(), state, START_NS + SECOND, None, 0).event
    for event in (fine, gone):
        assert event is not None
        assert event.status == "resolved"
        assert (event.starts_at, event.ends_at) == (render_instant(START_NS), render_instant(START_NS + SECOND))
        assert event.fired_at == render_instant(START_NS + SECOND)
    assert fine is not None
    assert (fine.value, fine.span_count) == (9.5, 3)
    assert gone is not None
    assert (gone.value, gone.span_count) == (None, 0)
    assert msgspec.json.decode(msgspec.json.encode(gone), type=AlertEvent) == gone
