"""Outcomes: how many calls ended with status error or timeout."""

from __future__ import annotations

from typing import Any

from tokentrace.metric.query import Figures


def error_count(figures: Figures) -> int:
    """Spans with status error or timeout."""
    return figures.sums.errors + figures.sums.timeouts


def error_rate(figures: Figures) -> float | None:
    """Their fraction of all spans; None without spans."""
    return error_count(figures) / figures.sums.spans if figures.sums.spans else None


def timeout_rate(figures: Figures) -> float | None:
    """The fraction of all spans that timed out; None without spans."""
    return figures.sums.timeouts / figures.sums.spans if figures.sums.spans else None


def render_errors(figures: Figures) -> dict[str, Any]:
    """The group ``errors`` of ``GET /metrics``."""
    return {
        "rate": error_rate(figures),
        "count": error_count(figures),
        "timeout_rate": timeout_rate(figures),
        "timeout_count": figures.sums.timeouts,
    }
