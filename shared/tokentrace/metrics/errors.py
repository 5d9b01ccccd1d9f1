"""Error metrics: number and rate of spans with status error or timeout."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates


def error_count(aggregates: Aggregates) -> int:
    """Return the number of spans with status error or timeout."""
    return aggregates.sums.errors + aggregates.sums.timeouts


def error_rate(aggregates: Aggregates) -> float | None:
    """Return the fraction of spans with status error or timeout; None without spans."""
    return error_count(aggregates) / aggregates.sums.spans if aggregates.sums.spans else None


def timeout_rate(aggregates: Aggregates) -> float | None:
    """Return the fraction of spans with status timeout; None without spans."""
    return aggregates.sums.timeouts / aggregates.sums.spans if aggregates.sums.spans else None


def render_errors(aggregates: Aggregates) -> dict[str, Any]:
    """Return the metric group ``errors`` of ``GET /metrics``."""
    return {
        "rate": error_rate(aggregates),
        "count": error_count(aggregates),
        "timeout_rate": timeout_rate(aggregates),
        "timeout_count": aggregates.sums.timeouts,
    }
