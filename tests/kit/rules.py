"""Builders of rules, and functions that evaluate a rule without a machine."""

from __future__ import annotations

from typing import Any

from tokentrace.config import build
from tokentrace.records import AlertEvent
from tokentrace.rollup import SeriesTable
from tokentrace.units import HOUR, SECOND
from tokentrace_alerter.rules import (
    Rule,
    RuleEvaluator,
    State,
    decide,
    parse_rule,
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
    """Return the documented example rule in its written form; None removes a key."""
    written = {"name": "hourly-cost-spike", "metric": "total_cost", "op": "gt", "threshold": 10.0, "window": "1h"}
    return {key: value for key, value in {**written, **overrides}.items() if value is not None}


def make_rule(**overrides: Any) -> Rule:
    return parse_rule(make_given(**overrides), "alerts[0]")


def make_configured(*rules: dict[str, Any], **settings: Any) -> tuple[Rule, ...]:
    """Return the alerter's rules for a ``tokentrace.yml`` with *rules* and *settings*."""
    return Config.of(build({"alerts": list(rules), **settings}, "tokentrace.yml")).rules


def play(rule: Rule, seen: str, count: int = 10) -> str:
    """
    Evaluate *rule* once per second and return what is published, one character per second.

    Args:
        seen: What is measured: ``#`` = the condition holds, ``.`` = it does not hold, ``-`` = no data.
        count: How many spans contribute.

    Returns:
        ``F`` = firing, ``R`` = resolved, ``.`` = nothing.
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
