"""
A rule: what it watches, when it is looked at, and what its state makes of a value. Pure: time is an argument.

A rule's state is what its events say. ``decide`` looks at one instant; what it wants published becomes the state once
the stream has taken it, so any number of alerters that decide the same come to the same state.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import msgspec

from tokentrace.errors import ConfigError, Rejected, shorten
from tokentrace.metric.custom import CustomMetric
from tokentrace.metric.registry import METRICS, Metric, find_metric
from tokentrace.records import AlertEvent
from tokentrace.units import HOUR, MINUTE, SECOND, is_number, parse_duration, render_duration, render_instant

_OPERATORS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_SYMBOLS = {name: symbol for symbol, name in _OPERATORS.items()}
LEVELS = ("warning", "critical")
MAX_WINDOW_NS = 31 * 24 * HOUR
#: A falling value is judged this much later: spans that are still on their way would have kept it up.
LAGGING_NS = 5 * SECOND

Op = Literal["gt", "gte", "lt", "lte"]
Why = Literal["", "ok", "cooldown", "min_spans", "no_data", "silenced", "warming"]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is watched (SPEC D.1).

    Attributes:
        metric: A name of ``metric.registry.METRICS``, or of *custom*.
        custom: The metric of one's own that it watches; None = everybody's.
        window: As written; window_ns the same in nanoseconds.
        filter: Dimension or attribute -> value, all of which a span must have.
    """

    name: str
    metric: str
    op: Op
    threshold: float
    window: str
    window_ns: int
    eval_interval_ns: int
    cooldown_ns: int
    min_spans: int = 0
    filter: dict[str, str] = {}
    level: str = "warning"
    silenced: bool = False
    stdout: bool = False
    custom: CustomMetric | None = None

    @property
    def rule_id(self) -> str:
        """``alert_`` and 8 hex digits of the name."""
        return f"alert_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def fingerprint(self) -> str:
        """The same as long as what it watches and keeps is the same."""
        parts = [self.name, self.metric, self.custom, self.window_ns, self.lag_ns, sorted(self.filter.items())]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]

    @property
    def bucket_s(self) -> int:
        """Width of its ring's buckets: a hundredth of the window, at least a second."""
        return max(1, self.window_ns // SECOND // 100)

    @property
    def window_s(self) -> int:
        """The window in whole seconds, never shorter than asked."""
        return -(-self.window_ns // SECOND)

    @property
    def lag_ns(self) -> int:
        """How far behind the broker's clock it is judged."""
        return LAGGING_NS if self.op in ("lt", "lte") else 0

    def of(self) -> Metric:
        """The metric it watches."""
        return METRICS[self.metric]


def parse_rule(
    given: Mapping[str, Any],
    where: str,
    default_cooldown_ns: int | None = None,
    customs: Mapping[str, CustomMetric] = {},
) -> Rule:
    """
    A rule from its documented form, checked.

    Args:
        given: The keys of SPEC D.1.
        where: For the error, such as ``alerts[2]``.
        customs: Metrics of one's own, by name.
        default_cooldown_ns: For a rule that names none; None = its window.

    Raises:
        ConfigError: Names the key and what is allowed.
    """

    def duration(key: str, default: int) -> int:
        text = given.get(key)
        if text is None:
            return default
        try:
            return parse_duration(str(text))
        except Rejected as exc:
            raise ConfigError(f"{where}.{key}: {exc}") from exc

    name = str(given.get("name") or "")
    if not name:
        raise ConfigError(f"{where}.name: required")
    if len(name) > 128:
        raise ConfigError(f"{where}.name: longer than 128 characters")
    metric = str(given.get("metric") or "")
    custom = customs.get(metric)
    found = find_metric(metric)
    if found is None and custom is None:
        raise ConfigError(f"{where}.metric: {shorten(metric)!r} is none of {', '.join([*METRICS, *customs])}")
    written = str(given.get("op"))
    op = _OPERATORS.get(written, written)
    if op not in _COMPARE:
        raise ConfigError(f"{where}.op: {shorten(written)!r} is none of {', '.join([*_COMPARE, *_OPERATORS])}")
    threshold = given.get("threshold")
    if not is_number(threshold):
        raise ConfigError(f"{where}.threshold: {shorten(threshold)!r} is not a finite number")
    level = given.get("level") or "warning"
    if level not in LEVELS:
        raise ConfigError(f"{where}.level: {shorten(level)!r} is none of {', '.join(LEVELS)}")
    window_ns = duration("window", HOUR)
    if not SECOND <= window_ns <= MAX_WINDOW_NS:
        raise ConfigError(f"{where}.window: must be between 1s and 31d")
    interval = duration("eval_interval", default_interval(window_ns))
    if interval < SECOND:
        raise ConfigError(f"{where}.eval_interval: must be 1s or more")
    cooldown = duration("cooldown", window_ns if default_cooldown_ns is None else default_cooldown_ns)
    if int(given.get("min_spans") or 0) < 0:
        raise ConfigError(f"{where}.min_spans: must be 0 or more")
    return Rule(
        name=name,
        metric=metric if found is None else found[0],
        custom=custom,
        op=cast(Op, op),
        threshold=float(threshold),
        window=str(given.get("window") or render_duration(window_ns)),
        window_ns=window_ns,
        eval_interval_ns=interval,
        cooldown_ns=cooldown,
        min_spans=int(given.get("min_spans") or 0),
        filter=dict(given.get("filter") or {}),
        level=level,
        silenced=bool(given.get("silenced")),
        stdout=(given.get("delivery") or {}).get("type") == "stdout",
    )


def default_interval(window_ns: int) -> int:
    """A tenth of the window, at least 30 s; for windows under five minutes at least a second."""
    least = 30 * SECOND if window_ns >= 5 * MINUTE else SECOND
    return max(window_ns // 10, least)


class State(msgspec.Struct):
    """
    What a rule's events say, and what was seen last.

    Attributes:
        firing: The last event was a firing.
        fired_ns, starts_ns: Of the last firing and its episode; 0 = never.
        event_ns: Instant of the last event of any kind; what lies before it has been decided.
        evaluated_ns: Last instant looked at; 0 = none.
        value, span_count: At that instant.
        breached: The condition held then, whatever was published.
        why: Why nothing was published then.
    """

    firing: bool = False
    fired_ns: int = 0
    starts_ns: int = 0
    event_ns: int = 0
    evaluated_ns: int = 0
    value: float | None = None
    span_count: int = 0
    breached: bool = False
    why: Why = ""


class Decision(NamedTuple):
    """What is to be published, or why nothing is."""

    event: AlertEvent | None
    why: Why


def decide(rule: Rule, state: State, instant_ns: int, value: float | None, span_count: int) -> Decision:
    """
    What *rule* does at *instant_ns*.

    A breach fires unless the last firing is less than a cooldown ago; while it lasts it fires again after each cooldown
    with the same start; once it is over, or there is nothing left to judge, what fired is resolved.
    """
    if instant_ns <= state.event_ns:
        return Decision(None, "ok")
    if value is None or span_count == 0:
        return _quiet(rule, state, instant_ns, None, span_count, "no_data")
    if span_count < rule.min_spans:
        return Decision(None, "min_spans")
    if not _COMPARE[rule.op](value, rule.threshold):
        return _quiet(rule, state, instant_ns, value, span_count, "ok")
    if rule.silenced:
        return Decision(None, "silenced")
    if state.fired_ns and instant_ns < state.fired_ns + rule.cooldown_ns:
        return Decision(None, "cooldown")
    starts = state.starts_ns if state.firing else instant_ns
    return Decision(_event(rule, "firing", instant_ns, value, span_count, starts), "")


def breaches(rule: Rule, value: float | None, span_count: int) -> bool:
    """The condition holds."""
    return (
        value is not None
        and span_count > 0
        and span_count >= rule.min_spans
        and _COMPARE[rule.op](value, rule.threshold)
    )


def _quiet(rule: Rule, state: State, instant_ns: int, value: float | None, span_count: int, why: Why) -> Decision:
    if not state.firing or rule.silenced:
        return Decision(None, why)
    return Decision(_event(rule, "resolved", instant_ns, value, span_count, state.starts_ns), "")


def _event(
    rule: Rule,
    status: Literal["firing", "resolved"],
    instant_ns: int,
    value: float | None,
    span_count: int,
    starts_ns: int,
) -> AlertEvent:
    shown = "no data" if value is None else f"{value:.4g}"
    return AlertEvent(
        alert=rule.name,
        fired_at=render_instant(instant_ns),
        metric=rule.metric,
        op=rule.op,
        value=value,
        threshold=rule.threshold,
        window=rule.window,
        span_count=span_count,
        filter=rule.filter,
        rule_id=rule.rule_id,
        level=rule.level,
        message=f"{rule.metric} {_SYMBOLS[rule.op]} {shown} (threshold: {rule.threshold:.4g})",
        status=status,
        starts_at=render_instant(starts_ns),
        ends_at=render_instant(instant_ns) if status == "resolved" else None,
    )
