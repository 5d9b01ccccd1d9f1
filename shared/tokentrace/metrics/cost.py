"""Money: totals, per call, and what could not be priced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.units import NUSD_PER_USD, nusd_to_usd


def total_cost(figures: Aggregates) -> float:
    """US dollars over every kind that costs (DESIGN 3)."""
    return nusd_to_usd(figures.sums.cost)


def cost_per_call(figures: Aggregates) -> float | None:
    """US dollars for each span; None without spans."""
    spans = figures.sums.spans
    return figures.sums.cost / (spans * NUSD_PER_USD) if spans else None


def render_cost(figures: Aggregates, by_model: Mapping[str, Aggregates] | None) -> dict[str, Any]:
    """The group ``cost`` of ``GET /metrics``; *by_model* only where models that cost nothing are left out."""
    shown: dict[str, Any] = {"total_usd": total_cost(figures), "per_call_usd": cost_per_call(figures)}
    if by_model is not None:
        shown["by_model"] = {
            name: total_cost(part) for name, part in by_model.items() if part.sums.cost or part.sums.spans
        }
        shown["unpriced_by_model"] = {
            name: {"unpriced_span_count": part.sums.unpriced, "partly_priced_span_count": part.sums.partly_priced}
            for name, part in by_model.items()
            if part.sums.unpriced or part.sums.partly_priced
        }
    shown["unpriced_span_count"] = figures.sums.unpriced
    shown["partly_priced_span_count"] = figures.sums.partly_priced
    return shown
