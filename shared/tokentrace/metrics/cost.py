"""
Cost metrics: total cost, cost per call, and the numbers of spans without a complete cost.

A sum of costs is None if no span has a known cost: the cost is unknown, or there are no spans. Otherwise it is the sum
of the known costs, and the spans that it leaves out are counted beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokentrace.metrics.result import Aggregates
from tokentrace.rollup import UNKNOWN
from tokentrace.units import NUSD_PER_USD, nusd_to_usd


class NotPriced(NamedTuple):
    """
    What a number of money leaves out.

    Attributes:
        unpriced: Number of spans whose cost is unknown.
        partly_priced: Number of spans whose cost lacks a part.
    """

    unpriced: int
    partly_priced: int

    def render(self) -> dict[str, int]:
        """Return the counts under the names that answers use."""
        return {"unpriced_span_count": self.unpriced, "partly_priced_span_count": self.partly_priced}


def total_cost(aggregates: Aggregates) -> float | None:
    """Return the total cost in US dollars, without roll-up kinds such as http and agent; None without known costs."""
    known = aggregates.paid - aggregates.sums.unpriced
    return nusd_to_usd(aggregates.sums.cost) if known > 0 else None


def not_priced(aggregates: Aggregates) -> NotPriced:
    """Return what ``total_cost`` leaves out."""
    return NotPriced(aggregates.sums.unpriced, aggregates.sums.partly_priced)


def cost_per_call(aggregates: Aggregates) -> float | None:
    """Return the mean cost of the spans of the queried kind that have a known cost, US dollars; None without these."""
    spans = priced_calls(aggregates)
    return aggregates.calls.cost / (spans * NUSD_PER_USD) if spans else None


def priced_calls(aggregates: Aggregates) -> int:
    """Return the number of spans that ``cost_per_call`` covers."""
    return max(aggregates.calls.spans - aggregates.calls.unpriced, 0)


def calls_not_priced(aggregates: Aggregates) -> NotPriced:
    """Return what ``cost_per_call`` leaves out."""
    return NotPriced(aggregates.calls.unpriced, aggregates.calls.partly_priced)


def render_cost(aggregates: Aggregates, by_model: Mapping[str, Aggregates] | None) -> dict[str, Any]:
    """
    Return the metric group ``cost`` of ``GET /metrics``.

    Args:
        by_model: Model -> aggregates, for the values by model; None = totals only.
    """
    shown: dict[str, Any] = {"total_usd": total_cost(aggregates), "per_call_usd": cost_per_call(aggregates)}
    if by_model is not None:
        shown["by_model"] = {name: total_cost(model) for name, model in by_model.items() if has_costs(name, model)}
        shown["unpriced_by_model"] = render_not_priced({name: not_priced(model) for name, model in by_model.items()})
    shown |= not_priced(aggregates).render()
    return shown | {"span_count": aggregates.paid, "per_call_span_count": priced_calls(aggregates)}


def has_costs(name: str, model: Aggregates) -> bool:
    """Return whether a model is listed; tools without a model and without a cost do not make ``unknown`` one."""
    return model.paid > 0 and (name != UNKNOWN or any((model.sums.spans, model.sums.cost, model.sums.unpriced)))


def render_not_priced(by_group: Mapping[str, NotPriced]) -> dict[str, dict[str, int]]:
    """Return group -> its counts, for the groups whose cost leaves something out."""
    return {name: counts.render() for name, counts in by_group.items() if any(counts)}
