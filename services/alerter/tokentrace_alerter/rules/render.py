"""What ``GET /alerts`` shows of a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokentrace.units import MINUTE, render_duration, render_instant
from tokentrace_alerter.rules.rule import State

if TYPE_CHECKING:
    from tokentrace_alerter.rules.evaluator import RuleEvaluator

#: As long as this a rule that has recovered is called resolved.
_RESOLVED_NS = 15 * MINUTE
_MAX_INSTANCES = 100


def render_watch(watch: RuleEvaluator, now_ns: int) -> dict[str, Any]:
    """The documented keys, and why it did not fire; a grouped rule shows the instance that is worst off."""
    rule = watch.rule
    instances = watch.states
    states = instances or {"": State()}
    state = max(states.values(), key=lambda one: (one.firing, one.pending_ns > 0, one.fired_ns, one.span_count))
    until_ns = watch.silenced_until_ns if watch.silenced_until_ns > now_ns else 0
    shown: dict[str, Any] = {
        "name": rule.name,
        "metric": rule.metric,
        "op": rule.op,
        "threshold": rule.threshold,
        "window": rule.window,
        "last_evaluated": _instant(state.evaluated_ns),
        "last_fired": _instant(max(one.fired_ns for one in states.values())),
        "current_value": state.value,
        "firing": any(one.breached for one in states.values()),
        "silenced": rule.silenced or until_ns > 0,
        "silenced_until": _instant(until_ns),
        "rule_id": rule.rule_id,
        "level": rule.level,
        "filter": rule.filter,
        "min_spans": rule.min_spans,
        "cooldown": render_duration(rule.cooldown_ns),
        "eval_interval": render_duration(rule.eval_interval_ns),
        "for": render_duration(rule.for_ns),
        "recovery_threshold": rule.recovery_threshold,
        "no_data": rule.no_data,
        "group_by": rule.group_by or None,
        "change": rule.change or None,
        "delivery": rule.delivery.type if rule.delivery else None,
        "next_evaluation": _instant(watch.next_ns),
        "span_count": state.span_count,
        "spans_considered": watch.spans,
        "late_spans": watch.late,
        "state": state_of(watch, state, now_ns),
        "starts_at": _instant(state.starts_ns) if state.firing else None,
        "why_not_fired": ("warming" if watch.backfilling else state.why) or None,
    }
    if rule.group_by:
        ordered = sorted(instances.items(), key=lambda item: (-item[1].firing, -item[1].span_count, item[0]))
        shown["instance_count"] = len(instances)
        shown["instances"] = [
            {
                "group": name,
                "state": state_of(watch, one, now_ns),
                "current_value": one.value,
                "span_count": one.span_count,
                "last_fired": _instant(one.fired_ns),
                "why_not_fired": one.why or None,
            }
            for name, one in ordered[:_MAX_INSTANCES]
        ]
    return shown


def state_of(watch: RuleEvaluator, state: State, now_ns: int) -> str:
    """inactive, pending, firing, resolved, no_data or warming."""
    if state.firing:
        return "firing"
    if state.pending_ns:
        return "pending"
    if watch.backfilling or watch.warming(now_ns):
        return "warming"
    if state.event_ns and now_ns < state.event_ns + _RESOLVED_NS:
        return "resolved"
    return "no_data" if state.why == "no_data" else "inactive"


def _instant(ns: int) -> str | None:
    return render_instant(ns) if ns else None
