"""Written rules: their keys, defaults, limits and error texts."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from kit.rules import make_configured, make_given, make_rule
from tokentrace.errors import ConfigError
from tokentrace.metrics import ALIASES, METRICS
from tokentrace.units import DAY, HOUR, MINUTE, SECOND
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.rules import (
    parse_rule,
)


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


def test_optional_keys_have_the_values_that_are_written() -> None:
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
def test_an_invalid_or_missing_value_is_refused_with_the_name_of_its_key(key: str, value: Any) -> None:
    written = make_given()
    if value is None:
        del written[key]
    else:
        written[key] = value
    with pytest.raises(ConfigError, match=rf"^alerts\[7\]\.{key}: "):
        parse_rule(written, "alerts[7]")


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
def test_an_invalid_rule_in_the_configuration_is_refused_with_its_index_and_key(key: str, value: Any) -> None:
    value = {".nan": math.nan, ".inf": math.inf}.get(value, value)
    with pytest.raises(ConfigError, match=rf"alerts\[1\].*\b{key}"):
        make_configured(make_given(name="fine"), make_given(**{key: value}))


@pytest.mark.parametrize("key", ["name", "metric", "op", "threshold", "window"])
def test_a_required_key_that_is_missing_in_the_configuration_is_named(key: str) -> None:
    written = make_given()
    del written[key]
    with pytest.raises(ConfigError, match=rf"alerts\[0\].*\b{key}"):
        make_configured(written)


def test_an_invalid_common_cooldown_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="alert_cooldown"):
        make_configured(make_given(), alert_cooldown="five minutes")


def test_an_invalid_common_cooldown_is_refused_even_if_no_rule_uses_it() -> None:
    with pytest.raises(ConfigError, match="alert_cooldown"):
        make_configured(make_given(cooldown="1m"), alert_cooldown="five minutes")


def test_two_rules_with_the_same_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="hourly-cost-spike"):
        make_configured(make_given(), make_given(metric="error_rate"))


def test_the_shortest_and_longest_window_and_the_longest_name_are_accepted() -> None:
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
def test_the_width_of_buckets_follows_from_window_and_interval(window: str, interval: str, bucket_s: int) -> None:
    """The width is their greatest common divisor or a hundredth of the window, and at least a second."""
    assert make_rule(window=window, eval_interval=interval).bucket_s == bucket_s


@pytest.mark.parametrize("window", ["1s", "3s", "99s", "100s", "250s", "1h", "31d"])
def test_with_the_default_interval_a_rule_has_ten_buckets_or_buckets_of_a_second(window: str) -> None:
    rule = make_rule(window=window)
    assert rule.bucket_s == 1 or rule.window_ns == 10 * rule.bucket_s * SECOND


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"op": "!="}, "op: '!=' is none of gt, gte, lt, lte, >, >=, <, <="),
        ({"threshold": "ten"}, "threshold: 'ten' is not a finite number"),
        ({"min_spans": -1}, "min_spans: '-1' is not a whole number >= 0"),
        ({"cooldown": 5}, "cooldown: '5' is not a duration such as 90s"),
        ({"filter": {"model": 1}}, "filter.model: is not text"),
        (
            {"delivery": {"url": "http://a"}},
            "delivery.type: required, one of stdout, http, webhook, alertmanager, custom",
        ),
        ({"delivery": {"type": "stdout", "url": "http://a"}}, "delivery.url: unknown key for stdout; allowed are "),
        (
            {"delivery": {"type": "http", "url": "http://a", "format": "v4"}},
            "delivery.format: 'v4' is none of tokentrace, alertmanager",
        ),
    ],
)
def test_an_error_text_has_the_path_of_the_key_and_what_is_wrong(overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"alerts[7].{text}")):
        parse_rule({**make_given(), **overrides}, "alerts[7]")


@pytest.mark.parametrize("key", ["cooldown", "for"])
def test_a_duration_of_zero_may_be_written_as_a_number(key: str) -> None:
    assert make_rule(**{key: 0}) == make_rule(**{key: "0s"})
