"""
What a rule decides at one instant; the time is an argument.

``decide`` changes no state: it returns the event to publish, and the state of an instance is updated from its events,
whichever alerter published them. So several alerters that read the same events reach the same state.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec

from tokentrace.errors import quoted
from tokentrace.records import AlertEvent
from tokentrace.units import render_instant
from tokentrace_alerter.rules.schema import Rule

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_SYMBOLS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

#: Why no event is published at an instant; "" = one is published.
Reason = Literal["", "ok", "cooldown", "min_spans", "no_data", "silenced", "pending", "warming"]
#: What may end an episode besides its condition, and how the message says it.
Ending = Literal["deleted", "replaced", "changed", "removed"]
_ENDINGS: Mapping[Ending, str] = {
    "deleted": "the rule was deleted",
    "replaced": "the rule was replaced by another one of its name",
    "changed": "the rule has another metric, filter, level or group_by now",
    "removed": "the rule was removed from the configuration",
}


class State(msgspec.Struct):
    """
    The state of one instance of a rule. Times are Unix nanoseconds.

    Attributes:
        firing: True = the last event was a firing.
        fired_ns: Instant of the last firing; 0 = there was none.
        starts_ns: Start of the episode of the last firing; 0 = there was none.
        event_ns: Instant of the last event of any kind. Up to this instant nothing more is published.
        evaluated_ns: Last instant that was evaluated; 0 = none.
        value, span_count, unpriced: The reading at ``evaluated_ns``.
        breached: What ``breaches`` returned at ``evaluated_ns``, whether or not an event was published.
        reason: Why no event was published at ``evaluated_ns``.
        pending_ns: Since when the condition of a rule with ``for`` has held without firing; 0 = it is not pending.
        held_ns: Instant of the last firing that a silence has held back; 0 = there was none.
    """

    firing: bool = False
    fired_ns: int = 0
    starts_ns: int = 0
    event_ns: int = 0
    evaluated_ns: int = 0
    value: float | None = None
    span_count: int = 0
    breached: bool = False
    reason: Reason = ""
    pending_ns: int = 0
    unpriced: int = 0
    held_ns: int = 0


class Decision(NamedTuple):
    """
    The event to publish, or the reason why there is none.

    Attributes:
        pending_ns: The new ``State.pending_ns``.
    """

    event: AlertEvent | None
    reason: Reason
    pending_ns: int = 0


class Reading(NamedTuple):
    """
    A metric at an instant.

    Attributes:
        value: The value; None without data, and for a metric of money if no cost is known.
        span_count: Number of spans that contributed.
        unpriced: Number of spans that a metric of money leaves out because their cost is unknown.
    """

    value: float | None
    span_count: int
    unpriced: int = 0


NO_READING = Reading(None, 0)


def rank(rule: Rule, value: float | None) -> tuple[bool, float]:
    """Return how far *value* is on the side of the threshold of *rule*, to be compared; no value is last."""
    if value is None:
        return False, 0.0
    return True, value if rule.op in ("gt", "gte") else -value


def decide(
    rule: Rule,
    state: State,
    instant_ns: int,
    value: float | None,
    span_count: int,
    *,
    unpriced: int = 0,
    silenced: bool = False,
    warming: bool = False,
    group: str = "",
) -> Decision:
    """
    Return what *rule* does at *instant_ns*.

    A breach fires once it has lasted for ``for``, unless the last firing is less than a cooldown ago. While the breach
    lasts, the rule fires again after each cooldown, with the same start. When it is over, the episode is resolved.
    Nothing is published while the rule is silenced, or while the window has some spans but fewer than ``min_spans``;
    the time for ``for`` continues to run meanwhile.

    Args:
        instant_ns: Unix nanoseconds.
        value, span_count, unpriced: The reading.
        silenced: True = a silence set at run time is in force at this instant.
        warming: True = the window begins before the data that the alerter has read.
        group: The instance of a grouped rule; "" for an ungrouped one.
    """
    if instant_ns <= state.event_ns:
        return Decision(None, "ok")
    quiet = rule.silenced or silenced
    not_priced = fires_on_unpriced(rule, span_count, unpriced)
    no_data = (value is None or span_count == 0) and not not_priced
    if no_data and rule.no_data == "keep":
        return Decision(None, "no_data", state.pending_ns)
    if not no_data and not not_priced and span_count < rule.min_spans:
        return Decision(None, "min_spans", state.pending_ns)
    if not breaches(rule, value, span_count, firing=state.firing, unpriced=unpriced):
        if not state.firing or quiet:
            return Decision(None, "no_data" if no_data else "ok")
        shown = None if no_data else value
        reading = Reading(shown, span_count, unpriced)
        return Decision(_event(rule, "resolved", instant_ns, reading, state.starts_ns, group), "")
    # A span without a known cost is a fact, whatever else has not been read yet.
    if warming and not not_priced and (no_data or not rule.can_fire_while_warming):
        return Decision(None, "warming")
    since = (state.pending_ns or instant_ns) if rule.for_ns and not state.firing else 0
    if quiet:
        return Decision(None, "silenced", since)
    if since and instant_ns < since + rule.for_ns:
        return Decision(None, "pending", since)
    if state.fired_ns and instant_ns < state.fired_ns + rule.cooldown_ns:
        return Decision(None, "cooldown", since)
    starts = state.starts_ns if state.firing else instant_ns
    return Decision(_event(rule, "firing", instant_ns, Reading(value, span_count, unpriced), starts, group), "")


def holds_back(rule: Rule, state: State, instant_ns: int) -> bool:
    """Return whether *rule* would have fired at *instant_ns*, for which *state* is set, if it were not silenced."""
    if state.reason != "silenced" or (state.pending_ns and instant_ns < state.pending_ns + rule.for_ns):
        return False
    before_ns = max(state.fired_ns, state.held_ns)
    return not before_ns or instant_ns >= before_ns + rule.cooldown_ns


def leave(rule: Rule, state: State, instant_ns: int, group: str, ended_by: str, reason: str) -> AlertEvent:
    """Return the resolution of the instance *group*, which is not evaluated any more; *reason* completes its text."""
    event = _event(rule, "resolved", instant_ns, NO_READING, state.starts_ns, group)
    return msgspec.structs.replace(event, ended_by=ended_by, message=f"{rule.group_by} {quoted(group)} {reason}")


def owns(rule: Rule, event: AlertEvent) -> bool:
    """Return whether *event* has the labels of *rule*, by which receivers tell episodes apart."""
    return (event.metric, event.level, event.filter) == (rule.metric, rule.level, rule.filter) and list(
        event.group
    ) == ([rule.group_by] if rule.group_by else [])


def end(last: AlertEvent, instant_ns: int, ended_by: Ending) -> AlertEvent:
    """Return the resolution of the episode whose last event is *last*, and which no rule evaluates any more."""
    at = render_instant(instant_ns)
    return msgspec.structs.replace(
        last,
        status="resolved",
        fired_at=at,
        ends_at=at,
        value=None,
        span_count=0,
        unpriced_span_count=msgspec.UNSET if last.unpriced_span_count is msgspec.UNSET else 0,
        ended_by=ended_by,
        message=f"{last.metric} is not watched any more: {_ENDINGS[ended_by]}",
    )


def fires_on_unpriced(rule: Rule, span_count: int, unpriced: int) -> bool:
    """Return whether *unpriced* spans alone make the condition of *rule* hold; *span_count* may include them."""
    return rule.unpriced == "fire" and unpriced > 0 and max(span_count, unpriced) >= rule.min_spans


def breaches(rule: Rule, value: float | None, span_count: int, *, firing: bool = False, unpriced: int = 0) -> bool:
    """
    Return whether the condition holds; for a *firing* rule, whether it has not recovered yet.

    Without data, ``no_data`` decides. With fewer spans than ``min_spans``, the condition does not hold. With
    ``unpriced: fire`` it also holds while there are spans of unknown cost.
    """
    if fires_on_unpriced(rule, span_count, unpriced):
        return True
    if value is None or span_count == 0:
        # Spans of unknown cost are no missing data, although they have no value.
        return (rule.no_data == "fire" and not unpriced) or (rule.no_data == "keep" and firing)
    limit = rule.threshold if not firing or rule.recovery_threshold is None else rule.recovery_threshold
    return span_count >= rule.min_spans and _COMPARE[rule.op](value, limit)


def _event(
    rule: Rule,
    status: Literal["firing", "resolved"],
    instant_ns: int,
    reading: Reading,
    starts_ns: int,
    group: str,
) -> AlertEvent:
    value, span_count, unpriced = reading
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
        message=_message(rule, status, reading),
        status=status,
        starts_at=render_instant(starts_ns),
        ends_at=render_instant(instant_ns) if status == "resolved" else None,
        group={rule.group_by: group} if rule.group_by else {},
        unpriced_span_count=unpriced if rule.money else msgspec.UNSET,
        ended_by=msgspec.UNSET if status == "firing" else "no_data" if value is None else "recovered",
    )


def _message(rule: Rule, status: str, reading: Reading) -> str:
    """Return the text of an event; that of a breach is ``<metric> <op> <value> (threshold: <threshold>)``."""
    value, span_count, unpriced = reading
    percent = "%" if rule.change == "percent" else ""

    def number(figure: float) -> str:
        return f"{figure:.4g}{percent}"

    metric = f"change of {rule.metric}" if rule.change else rule.metric
    symbol, threshold, recovery = _SYMBOLS[rule.op], number(rule.threshold), rule.recovery_threshold
    more = f"; the cost of {unpriced} spans is unknown" if unpriced else ""
    if value is None:
        what = "is unknown" if unpriced or span_count else "has no data"
        return f"{metric} {what} (threshold: {symbol} {threshold}){more}"
    if status == "resolved":
        over = f"no longer {symbol} {threshold}" if recovery is None else f"back at {number(recovery)}"
        limit = "" if recovery is None else f" (threshold: {symbol} {threshold})"
        return f"{metric} is {number(value)}, {over}{limit}{more}"
    if _COMPARE[rule.op](value, rule.threshold):
        return f"{metric} {symbol} {number(value)} (threshold: {threshold}){more}"
    not_back = f", not back at {number(recovery)} yet" if recovery is not None and not unpriced else ""
    return f"{metric} is {number(value)}{not_back} (threshold: {symbol} {threshold}){more}"
