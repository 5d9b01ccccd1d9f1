"""Cost metrics: total cost, cost per call, and the numbers of spans without a complete cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.units import NUSD_PER_USD, nusd_to_usd


def total_cost(aggregates: Aggregates) -> float:
    """Return the total cost in US dollars; roll-up kinds such as http and agent are not counted."""
    return nusd_to_usd(aggregates.sums.cost)


def cost_per_call(aggregates: Aggregates) -> float | None:
    """Return the total cost per span of the queried kind, US dollars; None without such spans."""
    spans = aggregates.sums.spans
    return aggregates.sums.cost / (spans * NUSD_PER_USD) if spans else None


def render_cost(aggregates: Aggregates, by_model: Mapping[str, Aggregates] | None) -> dict[str, Any]:
    """
    Return the metric group ``cost`` of ``GET /metrics``.

    Args:
        by_model: Model -> aggregates, for the values by model; None = totals only.
    """
    shown: dict[str, Any] = {"total_usd": total_cost(aggregates), "per_call_usd": cost_per_call(aggregates)}
    if by_model is not None:
        shown["by_model"] = {
            name: total_cost(model) for name, model in by_model.items() if model.sums.cost or model.sums.spans
        }
        shown["unpriced_by_model"] = {
            name: {"unpriced_span_count": model.sums.unpriced, "partly_priced_span_count": model.sums.partly_priced}
            for name, model in by_model.items()
            if model.sums.unpriced or model.sums.partly_priced
        }
    shown["unpriced_span_count"] = aggregates.sums.unpriced
    shown["partly_priced_span_count"] = aggregates.sums.partly_priced
    return shown
