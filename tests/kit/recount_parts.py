"""What contributes to a metric, and what a sum of money leaves out, counted from the spans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from kit.recount_numbers import GROUP_RECOUNTS, SCALARS, Spans, custom_spans, measured, priced, unpriced, usd
from tokentrace.records import Span


def is_shown(of: Spans) -> bool:
    """Return True if a group has calls, scores, cost or unpriced spans."""
    return bool(of.calls or of.scored or usd(of.paid) or unpriced(of))


def has_calls(of: Spans) -> bool:
    """Return True if a group has calls."""
    return bool(of.calls)


def has_scores(of: Spans) -> bool:
    """Return True if a group has scores."""
    return bool(of.scored)


#: Group of metrics -> function that says whether a group of spans must be shown; the default is ``has_calls``.
SHOWN_BY = {
    "cost": lambda of: bool(of.paid),
    "quality": has_scores,
    "tokens": lambda of: bool(of.spent),
}


#: Metric of money -> function that returns the spans that count for it.
MONEY: Mapping[str, Callable[[Spans], list[Span]]] = {
    "total_cost": lambda of: of.paid,
    "cost_per_call": lambda of: of.spent,
}
#: First word of a breakdown -> function that returns what contributes to a value.
CONTRIBUTING: Mapping[str, Callable[[Spans], Sequence[object]]] = {
    "cost": lambda of: of.paid,
    "tokens": lambda of: of.spent,
    "latency": lambda of: [span for span in of.calls if span.latency_ns],
    "quality": lambda of: of.scored,
}


def contributing(name: str, of: Spans, customs: Mapping[str, Mapping[str, Any]]) -> Sequence[object]:
    """Return what contributes to the group, number or custom metric *name*."""
    if name in GROUP_RECOUNTS:
        return {"cost": of.paid, "tokens": of.spent}.get(name, of.calls)
    return custom_values(customs[name], of) if name in customs else SCALARS[name](of)[1]


def left_out(spans: Sequence[Span]) -> dict[str, int]:
    return {
        "unpriced_span_count": len(spans) - len(priced(spans)),
        "partly_priced_span_count": sum(span.cost_source == "partly_priced" for span in spans),
    }


def assert_not_priced(got: Mapping[str, Any], spans: Sequence[Span], where: object) -> None:
    assert {key: got[key] for key in left_out([])} == left_out(spans), where


def custom_values(custom: Mapping[str, Any], of: Spans) -> list[int]:
    """Return what the spans of *of* contribute to a custom metric."""
    values = (measured(span, custom) for span in custom_spans(custom, of))
    return [value for value in values if value is not None]


def assert_groups(
    got: Mapping[str, Any],
    groups: Mapping[str, Spans],
    shown: Callable[[Spans], bool],
    check: Callable[[Any, Spans, object], None],
    where: object,
) -> None:
    """Check that *got* has every group that *shown* demands and no unknown group, and *check* each group in it."""
    missing = {value for value, of in groups.items() if shown(of)} - set(got)
    assert not missing, (where, missing)
    assert not set(got) - set(groups), (where, got)
    for value, shown_value in got.items():
        check(shown_value, groups[value], (where, value))


def shown_groups(
    groups: Mapping[str, Spans], got: Collection[str], body: Mapping[str, Any], dimension: str
) -> dict[str, Spans]:
    """
    Return *groups* as an answer must show them.

    If *body* says that values of *dimension* are folded, ``other`` has the spans of all values that *got* does not
    name. A value that is named must have all of its spans.
    """
    if dimension not in body.get("folded", ()):
        return dict(groups)
    named = set(got) - {"other"}
    shown = {value: of for value, of in groups.items() if value in named}
    rest = [of for value, of in groups.items() if value not in named]
    if rest:
        shown["other"] = Spans(*([span for part in parts for span in part] for parts in zip(*rest, strict=True)))
    return shown
