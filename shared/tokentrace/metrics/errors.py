"""Outcomes: how many calls ended with status error or timeout."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates


def error_count(figures: Aggregates) -> int:
    """Spans with status error or timeout."""
    return figures.sums.errors + figures.sums.timeouts


def error_rate(figures: Aggregates) -> float | None:
    """Their fraction of all spans; None without spans."""
    return error_count(figures) / figures.sums.spans if figures.sums.spans else None


def timeout_rate(figures: Aggregates) -> float | None:
    """The fraction of all spans that timed out; None without spans."""
    return figures.sums.timeouts / figures.sums.spans if figures.sums.spans else None


def render_errors(figures: Aggregates) -> dict[str, Any]:
    """The group ``errors`` of ``GET /metrics``."""
    return {
        "rate": error_rate(figures),
        "count": error_count(figures),
        "timeout_rate": timeout_rate(figures),
        "timeout_count": figures.sums.timeouts,
    }
