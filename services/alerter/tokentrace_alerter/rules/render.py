"""What ``GET /alerts`` shows of a rule."""

from __future__ import annotations

from typing import Any

from tokentrace.units import MINUTE, render_duration, render_instant
from tokentrace_alerter.rules.decide import State
from tokentrace_alerter.rules.evaluator import RuleEvaluator

#: For this long after its resolution a rule is shown as resolved, nanoseconds.
_RESOLVED_NS = 15 * MINUTE
_MAX_INSTANCES = 100


def render_status(evaluator: RuleEvaluator, now_ns: int) -> dict[str, Any]:
    """
    Return what ``GET /alerts`` shows of a rule: its configuration, its state, and why it did not fire.

    For a grouped rule these are the values of its worst instance: a firing one before a pending one, then the one that
    fired last, then the one with the most spans. Up to 100 instances are listed as well.
    """
    rule = evaluator.rule
    instances = evaluator.states
    states = instances or {"": State()}
    worst_group, worst = max(
        states.items(), key=lambda item: (item[1].firing, item[1].pending_ns > 0, item[1].fired_ns, item[1].span_count)
    )
    until_ns = evaluator.silenced_until_ns if evaluator.silenced_until_ns > now_ns else 0
    status: dict[str, Any] = {
        "name": rule.name,
        "metric": rule.metric,
        "op": rule.op,
        "threshold": rule.threshold,
        "window": rule.window,
        "last_evaluated": _instant(worst.evaluated_ns),
        "last_fired": _instant(max(state.fired_ns for state in states.values())),
        "current_value": worst.value,
        "firing": any(_is_firing(state) for state in states.values()),
        "silenced": rule.silenced or until_ns > 0,
        "silenced_until": _instant(until_ns),
        "held_back": evaluator.held_back,
        "rule_id": rule.rule_id,
        "level": rule.level,
        "filter": rule.filter,
        "min_spans": rule.min_spans,
        "cooldown": render_duration(rule.cooldown_ns),
        "eval_interval": render_duration(rule.eval_interval_ns),
        "for": render_duration(rule.for_ns),
        "recovery_threshold": rule.recovery_threshold,
        "no_data": rule.no_data,
        "unpriced": rule.unpriced,
        "group_by": rule.group_by or None,
        "change": rule.change or None,
        "delivery": rule.delivery.type if rule.delivery else None,
        "destination": rule.delivery.shown_destination if rule.delivery else None,
        "send_resolved": rule.delivery.sends_resolved if rule.delivery else None,
        "next_evaluation": _instant(evaluator.next_ns),
        "span_count": worst.span_count,
        **({"unpriced_span_count": worst.unpriced} if rule.money else {}),
        "spans_considered": evaluator.spans,
        "late_spans": evaluator.late,
        "state": _state_name(evaluator, worst, now_ns),
        "starts_at": _instant(worst.starts_ns) if worst.firing else None,
        "why_not_fired": _why(evaluator, worst, now_ns),
        "recent_values": list(evaluator.recent),
        "breached": any(state.breached for state in states.values()),
        "misses_late_scores": rule.misses_late_scores,
    }
    if rule.group_by:
        ordered = sorted(instances.items(), key=lambda item: (-item[1].firing, -item[1].span_count, item[0]))
        status["instance_count"] = len(instances)
        status["firing_instance_count"] = sum(state.firing for state in instances.values())
        if instances:
            status["worst_group"] = worst_group
        overflow = evaluator.overflow
        if overflow.span_count:
            status["overflow"] = {"current_value": overflow.value, "span_count": overflow.span_count}
        status["instances"] = [
            {
                "group": name,
                "state": _state_name(evaluator, state, now_ns),
                "current_value": state.value,
                "span_count": state.span_count,
                **({"unpriced_span_count": state.unpriced} if rule.money else {}),
                "starts_at": _instant(state.starts_ns) if state.firing else None,
                "last_fired": _instant(state.fired_ns),
                "why_not_fired": _why(evaluator, state, now_ns),
            }
            for name, state in ordered[:_MAX_INSTANCES]
        ]
    return status


def _state_name(evaluator: RuleEvaluator, state: State, now_ns: int) -> str:
    """Return the state of an instance: inactive, pending, firing, resolved, no_data or warming."""
    if state.firing:
        return "firing"
    if state.pending_ns:
        return "pending"
    if state.reason == "silenced":
        # The condition holds: the rule is not warming, and what was resolved would fire again.
        return "inactive"
    if evaluator.backfilling or evaluator.warming(now_ns):
        return "warming"
    if state.event_ns and now_ns < state.event_ns + _RESOLVED_NS:
        return "resolved"
    return "no_data" if state.reason == "no_data" else "inactive"


def _is_firing(state: State) -> bool:
    """Return whether an episode lasts, or would have begun if the rule were not silenced."""
    return state.firing or (state.reason == "silenced" and not state.pending_ns)


def _why(evaluator: RuleEvaluator, state: State, now_ns: int) -> str | None:
    """Return why the last evaluation published nothing; while the rule is warming, that is the reason."""
    return "warming" if _state_name(evaluator, state, now_ns) == "warming" else state.reason or None


def _instant(ns: int) -> str | None:
    return render_instant(ns) if ns else None
