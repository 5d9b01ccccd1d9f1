"""Parsing of rules and the decision at one instant, with the time as an argument."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest

from kit.builders import make_span
from tokentrace.config import build
from tokentrace.errors import ConfigError
from tokentrace.metrics import ALIASES, METRICS
from tokentrace.records import AlertEvent
from tokentrace.rollup import SeriesTable, rows_of
from tokentrace.units import DAY, HOUR, MINUTE, SECOND, render_instant
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.rules import (
    Decision,
    FilterIndex,
    Rule,
    RuleEvaluator,
    State,
    breaches,
    decide,
    parse_rule,
    select,
)
from tokentrace_alerter.service import Config

#: 2026-09-21T14:00:00Z, a whole hour.
START_NS = 497_222 * HOUR
TEN_KEYS = {
    "alert",
    "fired_at",
    "metric",
    "op",
    "value",
    "threshold",
    "window",
    "span_count",
    "filter",
    "rule_id",
}


def make_given(**overrides: Any) -> dict[str, Any]:
    """The documented example rule as people write it; None removes a key."""
    given = {"name": "hourly-cost-spike", "metric": "total_cost", "op": "gt", "threshold": 10.0, "window": "1h"}
    return {key: value for key, value in {**given, **overrides}.items() if value is not None}


def make_rule(**overrides: Any) -> Rule:
    return parse_rule(make_given(**overrides), "alerts[0]")


def make_configured(*rules: dict[str, Any], **settings: Any) -> tuple[Rule, ...]:
    """Return the rules of the alerter for a ``tokentrace.yml`` with these rules."""
    return Config.of(build({"alerts": list(rules), **settings}, "tokentrace.yml")).rules


def play(rule: Rule, seen: str, count: int = 10) -> str:
    """
    Evaluate one instant a second and return what is published, one character a second.

    ``#`` the condition holds, ``.`` it does not, ``-`` no data; ``F`` firing, ``R`` resolved, ``.`` nothing.
    """
    inside = {"gt": 1, "gte": 0, "lt": -1, "lte": 0}[rule.op]
    outside = -1 if rule.op in ("gt", "gte") else 1
    watch, said = RuleEvaluator(rule, SeriesTable()), ""
    for second, mark in enumerate(seen):
        value = None if mark == "-" else rule.threshold + (inside if mark == "#" else outside)
        decision = decide(rule, watch.state, START_NS + second * SECOND, value, 0 if mark == "-" else count)
        if decision.event is not None:
            watch.apply_event(decision.event)
        said += {"firing": "F", "resolved": "R"}[decision.event.status] if decision.event else "."
    return said


def fire(rule: Rule, value: float, count: int = 312) -> AlertEvent:
    event = decide(rule, State(), START_NS, value, count).event
    assert event is not None
    return event


# --- written rules and defaults


def test_a_rule_with_nothing_but_the_required_keys_has_the_documented_defaults() -> None:
    rule = make_rule()
    assert (rule.window, rule.window_ns) == ("1h", HOUR)
    assert rule.eval_interval_ns == 6 * MINUTE
    assert rule.cooldown_ns == HOUR
    assert (rule.min_spans, rule.filter, rule.level, rule.silenced, rule.delivery) == (0, {}, "warning", False, None)


@pytest.mark.parametrize(
    ("window", "interval_ns"),
    [
        ("31d", 31 * DAY // 10),
        ("24h", 144 * MINUTE),
        ("30m", 3 * MINUTE),
        ("5m1s", 30_100 * SECOND // 1000),
        ("5m", 30 * SECOND),
        ("4m59s", 29_900 * SECOND // 1000),
        ("1m", 6 * SECOND),
        ("11s", 1_100 * SECOND // 1000),
        ("10s", SECOND),
        ("3s", SECOND),
        ("1s", SECOND),
    ],
)
def test_the_default_interval_is_a_tenth_of_the_window_within_limits(window: str, interval_ns: int) -> None:
    assert make_rule(window=window).eval_interval_ns == interval_ns


def test_the_cooldown_is_that_of_the_rule_then_the_common_one_then_the_window() -> None:
    assert parse_rule(make_given(cooldown="7m"), "alerts[0]", 5 * MINUTE).cooldown_ns == 7 * MINUTE
    assert parse_rule(make_given(), "alerts[0]", 5 * MINUTE).cooldown_ns == 5 * MINUTE
    assert parse_rule(make_given(), "alerts[0]").cooldown_ns == HOUR
    (rule,) = make_configured(make_given(), alert_cooldown="90s")
    assert rule.cooldown_ns == 90 * SECOND


def test_every_documented_key_is_accepted() -> None:
    rule = make_rule(
        window="15m",
        eval_interval="10s",
        cooldown="1h30m",
        min_spans=20,
        filter={"model": "gpt-4o", "step_name": "synthesize"},
        level="critical",
        silenced=True,
        delivery={"type": "stdout"},
    )
    assert (rule.window, rule.window_ns, rule.eval_interval_ns) == ("15m", 15 * MINUTE, 10 * SECOND)
    assert (rule.cooldown_ns, rule.min_spans, rule.level) == (90 * MINUTE, 20, "critical")
    assert rule.filter == {"model": "gpt-4o", "step_name": "synthesize"}
    assert (rule.silenced, rule.delivery) == (True, Channel(type="stdout"))


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_may_be_watched(metric: str) -> None:
    assert make_rule(metric=metric).metric == metric


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("total_cost_usd", "total_cost"),
        ("cost_hourly", "total_cost"),
        ("latency_p50_ms", "latency_p50"),
        ("latency_p99_ms", "latency_p99"),
        ("latency_avg", "latency_avg"),
        ("total_spans", "span_count"),
        ("total_tokens_in", "prompt_tokens"),
        ("total_tokens_out", "completion_tokens"),
        ("quality", "quality_score"),
    ],
)
def test_an_alias_of_a_metric_means_the_metric(written: str, meant: str) -> None:
    assert make_rule(metric=written).metric == meant


def test_every_alias_leads_to_a_metric_that_exists() -> None:
    assert {make_rule(metric=name).metric for name in ALIASES} <= set(METRICS)


@pytest.mark.parametrize(("symbol", "name"), [(">", "gt"), (">=", "gte"), ("<", "lt"), ("<=", "lte")])
def test_a_symbol_means_its_operator(symbol: str, name: str) -> None:
    assert make_rule(op=symbol) == make_rule(op=name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", None),
        ("name", "n" * 129),
        *(("name", f"a{control}b") for control in ("\n", "\r", "\t", "\x00", "\x7f", "\x85", "\u2028")),
        ("metric", "latency_p42"),
        ("metric", "LATENCY_P99"),
        ("metric", ""),
        ("metric", None),
        ("op", "!="),
        ("op", "=="),
        ("op", "GT"),
        ("op", "greater"),
        ("op", None),
        ("level", "info"),
        ("level", "CRITICAL"),
        ("threshold", None),
        ("threshold", math.nan),
        ("threshold", math.inf),
        ("threshold", -math.inf),
        ("window", None),
        ("window", "0s"),
        ("window", "999ms"),
        ("window", "999999999ns"),
        ("window", "31d1ns"),
        ("window", "-1h"),
        ("window", "an hour"),
        ("window", ""),
        ("eval_interval", "999ms"),
        ("eval_interval", "0"),
        ("eval_interval", "soon"),
        ("cooldown", "-5m"),
        ("cooldown", "5"),
        ("min_spans", -1),
    ],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_key(key: str, value: Any) -> None:
    given = make_given()
    if value is None:
        del given[key]
    else:
        given[key] = value
    with pytest.raises(ConfigError, match=rf"^alerts\[7\]\.{key}: "):
        parse_rule(given, "alerts[7]")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metric", "latency_p42"),
        ("op", "!="),
        ("level", "info"),
        ("level", ""),
        ("threshold", "ten"),
        ("threshold", ".nan"),
        ("threshold", ".inf"),
        ("threshold", "nan"),
        ("window", "999ms"),
        ("eval_interval", "1ms"),
        ("min_spans", -1),
        ("colour", "red"),
    ],
)
def test_an_invalid_rule_in_the_file_is_refused_with_its_index_and_key(key: str, value: Any) -> None:
    value = {".nan": math.nan, ".inf": math.inf}.get(value, value)
    with pytest.raises(ConfigError, match=rf"alerts\[1\].*\b{key}"):
        make_configured(make_given(name="fine"), make_given(**{key: value}))


@pytest.mark.parametrize("key", ["name", "metric", "op", "threshold", "window"])
def test_a_required_key_that_is_missing_in_the_file_is_named(key: str) -> None:
    given = make_given()
    del given[key]
    with pytest.raises(ConfigError, match=rf"alerts\[0\].*\b{key}"):
        make_configured(given)


def test_an_invalid_common_cooldown_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="alert_cooldown"):
        make_configured(make_given(), alert_cooldown="five minutes")


def test_an_invalid_common_cooldown_is_refused_even_if_no_rule_uses_it() -> None:
    with pytest.raises(ConfigError, match="alert_cooldown"):
        make_configured(make_given(cooldown="1m"), alert_cooldown="five minutes")


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="hourly-cost-spike"):
        make_configured(make_given(), make_given(metric="error_rate"))


def test_the_shortest_and_the_longest_window_and_name_are_accepted() -> None:
    assert make_rule(window="1s").window_ns == SECOND
    assert make_rule(window="31d").window_ns == 31 * DAY
    assert make_rule(window="744h").window_ns == 31 * DAY
    assert make_rule(name="n" * 128).name == "n" * 128


def test_the_id_of_a_rule_depends_on_its_name_only() -> None:
    one = make_rule().rule_id
    assert re.fullmatch(r"alert_[0-9a-f]{8}", one)
    assert make_rule(threshold=11, metric="error_rate", window="5m").rule_id == one
    assert make_rule(name="hourly-cost-spike2").rule_id != one


@pytest.mark.parametrize("change", [{"metric": "error_rate"}, {"window": "2h"}, {"filter": {"model": "o3"}}])
def test_a_rule_on_other_data_has_another_fingerprint(change: dict[str, Any]) -> None:
    assert make_rule(**change).fingerprint != make_rule().fingerprint


@pytest.mark.parametrize(
    ("window", "interval", "bucket_s"),
    [
        ("10s", "1s", 1),
        ("1m", "6s", 6),
        ("1m", "7s", 1),
        ("5m", "15s", 15),
        ("250s", "60s", 10),
        ("1h", "1m", 60),
        ("1h", "7m", 60),
        ("1h", "50s", 50),
        ("1h", "7s", 36),
        ("24h", "1m", 864),
        ("1500ms", "1s", 1),
        ("31d", "3d", 86400),
    ],
)
def test_buckets_divide_the_window_unless_that_makes_over_a_hundred_of_them(
    window: str, interval: str, bucket_s: int
) -> None:
    assert make_rule(window=window, eval_interval=interval).bucket_s == bucket_s


@pytest.mark.parametrize("window", ["1s", "3s", "99s", "100s", "250s", "1h", "31d"])
def test_with_the_default_interval_a_rule_has_ten_buckets_or_buckets_of_a_second(window: str) -> None:
    rule = make_rule(window=window)
    assert rule.bucket_s == 1 or rule.window_ns == 10 * rule.bucket_s * SECOND


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
    watch, starts = RuleEvaluator(rule, SeriesTable()), []
    for second, value in enumerate([11, 11, 11, 9, 9, 11, 11, 11]):
        event = decide(rule, watch.state, START_NS + second * SECOND, value, 1).event
        if event is not None:
            watch.apply_event(event)
            starts.append((second, event.status, event.starts_at, event.ends_at))
    first, second_ = render_instant(START_NS), render_instant(START_NS + 5 * SECOND)
    assert starts == [
        (0, "firing", first, None),
        (2, "firing", first, None),
        (3, "resolved", first, render_instant(START_NS + 3 * SECOND)),
        (5, "firing", second_, None),
        (7, "firing", second_, None),
    ]


def test_the_cooldown_of_one_rule_does_not_affect_another() -> None:
    one, other = make_rule(name="one", cooldown="1h"), make_rule(name="other", cooldown="2s")
    assert play(one, "######") == "F....."
    assert play(other, "######") == "F.F.F."
    assert play(one, ".#####") == ".F...."


def test_without_a_cooldown_every_instant_fires() -> None:
    assert play(make_rule(cooldown="0s"), "###..#") == "FFFR.F"


def test_an_episode_is_resolved_once_when_no_data_is_left() -> None:
    assert play(make_rule(cooldown="2s"), "##------#") == "F.R.....F"


def test_a_rule_that_never_fired_is_never_resolved() -> None:
    assert play(make_rule(), "...---...") == "........."


def test_too_few_spans_neither_fire_nor_resolve() -> None:
    rule = make_rule(min_spans=5)
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    assert decide(rule, state, START_NS + SECOND, 1.0, 4) == Decision(None, "min_spans")


def test_an_instant_is_decided_once() -> None:
    rule = make_rule(cooldown="0s")
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    for instant in (START_NS - SECOND, START_NS):
        assert decide(rule, state, instant, 99.0, 10).event is None
        assert decide(rule, state, instant, None, 0).event is None


def test_deciding_changes_nothing_until_the_event_is_applied() -> None:
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
def test_the_message_shows_four_digits(value: float, threshold: float, text: str) -> None:
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


# --- which spans count


def counted(filter_: dict[str, str], *spans: dict[str, Any], metric: str = "span_count") -> int:
    """Return how many of *spans* a rule with *filter_* counts."""
    table = SeriesTable()
    watch = RuleEvaluator(make_rule(metric=metric, window="10s", threshold=1e9, filter=filter_), table)
    at = START_NS - SECOND
    made = [make_span(ended_ns=at, arrived_ns=at, **fields) for fields in spans]
    for _, indices in FilterIndex({"rule": filter_}).match(made):
        watch.fold(*select(made, rows_of(made, table, at), indices), at)
    watch.start_at(at)
    watch.evaluate()
    return watch.state.span_count


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, 4),
        ({"model": "gpt-4o"}, 2),
        ({"model": "gpt"}, 0),
        ({"model": "unknown"}, 1),
        ({"provider": "openai"}, 4),
        ({"caller": "chat"}, 1),
        ({"caller": "unknown"}, 3),
        ({"name": "summarize-document"}, 3),
        ({"status": "error"}, 1),
        ({"status": "error", "model": "gpt-4o"}, 1),
        ({"status": "error", "model": "o3"}, 0),
        ({"model": "GPT-4o"}, 0),
    ],
)
def test_only_spans_with_the_dimensions_of_the_filter_count(filter_: dict[str, str], expected: int) -> None:
    spans = [{"model": "gpt-4o"}, {"model": "gpt-4o", "status": "error"}, {"model": "o3", "caller": "chat"}]
    assert counted(filter_, *spans, {"model": "", "name": "other"}) == expected


@pytest.mark.parametrize(
    ("value", "text", "matches"),
    [
        ("synthesize", "synthesize", True),
        ("synthesize", "synth", False),
        ("", "", True),
        (True, "true", True),
        (True, "True", False),
        (True, "1", False),
        (False, "false", True),
        (False, "", False),
        (3, "3", True),
        (3, "3.0", False),
        (0, "0", True),
        (0.5, "0.5", True),
        (1e-7, "1e-7", True),
        (2**63, "9223372036854775808", True),
        ("true", "true", True),
        ("3", "3", True),
        (None, "None", False),
        (None, "null", False),
        (None, "", False),
    ],
)
def test_an_attribute_matches_by_its_text(value: Any, text: str, matches: bool) -> None:
    assert counted({"step_name": text}, {"attributes": {"step_name": value}}) == matches


def test_a_span_without_the_attribute_does_not_match() -> None:
    assert counted({"step_name": "unknown"}, {}, {"attributes": {"step": "unknown"}}) == 0
    assert counted({"step_name": ""}, {}) == 0


def test_dimensions_and_attributes_of_a_filter_must_all_match() -> None:
    both = {"model": "gpt-4o", "step_name": "synthesize", "final": "true"}
    full = {"model": "gpt-4o", "attributes": {"step_name": "synthesize", "final": True}}
    assert counted(both, full, full) == 2
    assert counted(both, {**full, "model": "o3"}, {**full, "attributes": {"step_name": "synthesize"}}) == 0


def test_a_filter_on_the_kind_counts_that_kind_alone() -> None:
    spans = [{}, {"kind": "tool"}, {"kind": "tool"}, {"kind": "agent"}]
    assert counted({}, *spans) == 1
    assert counted({"kind": "tool"}, *spans) == 2
    assert counted({"kind": "agent"}, *spans) == 1
    assert counted({"kind": "tool"}, *spans, metric="total_cost") == 2


def test_a_quality_rule_counts_scored_spans_of_every_kind() -> None:
    spans = [{"score": 1}, {}, {"kind": "agent", "score": 5}, {"kind": "tool", "score": 0}]
    assert counted({}, *spans, metric="quality_score") == 3


def test_a_latency_rule_counts_spans_with_a_latency() -> None:
    assert counted({}, {"latency_ns": 0}, {}, {}, metric="latency_p95") == 2
    assert counted({}, {"ttft_ns": 0}, {"ttft_ns": 5}, metric="ttft_p50") == 1


def test_a_cost_rule_counts_spans_of_kinds_that_cost() -> None:
    spans = [{"cost_nusd": 1}, {"kind": "tool", "cost_nusd": 2}, {"kind": "workflow", "cost_nusd": 4}, {}]
    assert counted({}, *spans, metric="total_cost") == 3
