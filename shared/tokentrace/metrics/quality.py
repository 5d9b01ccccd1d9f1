"""Quality metrics: mean and quantiles of ``eval.score`` over the spans of any kind that have this score."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.units import SCORE_ONE

FIELDS = ("score",)


def scored(aggregates: Aggregates) -> int:
    """Return the number of scored spans; 0 if it is negative because a shard that counted scores has no result."""
    return max(aggregates.sums.score_n, 0)


def score_avg(aggregates: Aggregates) -> float | None:
    """Return the mean score, 0 to 1; None without scored spans."""
    sums = aggregates.sums
    return sums.score / (sums.score_n * SCORE_ONE) if sums.score_n > 0 else None


def score_quantile(aggregates: Aggregates, q: float) -> float | None:
    """Return the *q* quantile of the scores, 0 to 1; None without scored spans."""
    value = aggregates.summary("score").quantile(q)
    return None if value is None else value / SCORE_ONE


def render_quality(aggregates: Aggregates) -> dict[str, Any]:
    """Return the metric group ``quality`` of ``GET /metrics``."""
    return {
        "score_avg": score_avg(aggregates),
        "score_p10": score_quantile(aggregates, 0.10),
        "score_p50": score_quantile(aggregates, 0.50),
        "scored_span_count": scored(aggregates),
    }
