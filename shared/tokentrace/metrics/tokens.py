"""Token metrics: prompt and completion tokens, and the cached and reasoning tokens among them."""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates

FIELDS = ("prompt", "completion")


def token_quantile(aggregates: Aggregates, field: str, q: float) -> float | None:
    """Return the *q* quantile of the tokens per span; *field* is ``prompt`` or ``completion``; None without spans."""
    value = aggregates.summary(field).quantile(q)
    return None if value is None else round(value, 6)


def render_tokens(aggregates: Aggregates) -> dict[str, Any]:
    """Return the metric group ``tokens`` of ``GET /metrics``."""
    sums = aggregates.sums
    return {
        "prompt_total": sums.prompt,
        "completion_total": sums.completion,
        "total": sums.total,
        "cache_read_total": sums.cache_read,
        "cache_write_total": sums.cache_write,
        "cache_write_1h_total": sums.cache_write_1h,
        "reasoning_total": sums.reasoning,
        "prompt_p50": token_quantile(aggregates, "prompt", 0.50),
        "prompt_p95": token_quantile(aggregates, "prompt", 0.95),
        "completion_p50": token_quantile(aggregates, "completion", 0.50),
        "completion_p95": token_quantile(aggregates, "completion", 0.95),
    }


def render_split(aggregates: Aggregates) -> dict[str, int] | None:
    """Return the value of a model in ``tokens_by_model``; None without spans."""
    sums = aggregates.sums
    return {"prompt": sums.prompt, "completion": sums.completion, "total": sums.total} if sums.spans else None
