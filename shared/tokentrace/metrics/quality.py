"""Quality: ``eval.score`` of the spans that have one, whatever their kind."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.units import SCORE_ONE

FIELDS = ("score",)


def scored(figures: Aggregates) -> int:
    """How many spans are scored; below 0 only where a shard that counted them is missing, which shows as none."""
    return max(figures.sums.score_n, 0)


def score_avg(figures: Aggregates) -> float | None:
    """Mean score, 0 to 1; None when nothing is scored."""
    sums = figures.sums
    return sums.score / (sums.score_n * SCORE_ONE) if sums.score_n > 0 else None


def score_quantile(figures: Aggregates, q: float) -> float | None:
    """A quantile of the scores; None when nothing is scored."""
    value = figures.summary("score").quantile(q)
    return None if value is None else value / SCORE_ONE


def render_quality(figures: Aggregates) -> dict[str, Any]:
    """The group ``quality`` of ``GET /metrics``."""
    return {
        "score_avg": score_avg(figures),
        "score_p10": score_quantile(figures, 0.10),
        "score_p50": score_quantile(figures, 0.50),
        "scored_span_count": scored(figures),
    }
