"""Functions that return common alert rules in the form that ``tokentrace.yml`` and ``POST /alerts`` accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cost_spike(name: str, threshold: float, window: str, **more: Any) -> dict[str, Any]:
    """
    Return a rule that fires when more than *threshold* US dollars were spent within *window*.

    Args:
        window: A duration such as ``1h``.
        more: Other keys of a rule, such as cooldown, min_spans, filter, level and delivery.
    """
    return _rule(name, "total_cost", "gt", threshold, window, more)


def latency_regression(
    name: str, threshold: float, window: str, *, percentile: int = 95, **more: Any
) -> dict[str, Any]:
    """
    Return a rule that fires when a percentile of latency is over *threshold* milliseconds.

    Raises:
        ValueError: *percentile* is not 50, 95 or 99.
    """
    if percentile not in (50, 95, 99):
        raise ValueError(f"percentile: {percentile} is none of 50, 95, 99")
    return _rule(name, f"latency_p{percentile}", "gt", threshold, window, more)


def quality_drop(name: str, threshold: float, window: str, **more: Any) -> dict[str, Any]:
    """Return a rule that fires when the mean ``eval.score`` is below *threshold*; min_spans counts scored spans."""
    return _rule(name, "quality_score", "lt", threshold, window, more)


def error_rate_spike(name: str, threshold: float, window: str, **more: Any) -> dict[str, Any]:
    """Return a rule that fires when more than the fraction *threshold* of calls end with an error or timeout."""
    return _rule(name, "error_rate", "gt", threshold, window, more)


def _rule(name: str, metric: str, op: str, threshold: float, window: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "metric": metric, "op": op, "threshold": threshold, "window": window, **more}
