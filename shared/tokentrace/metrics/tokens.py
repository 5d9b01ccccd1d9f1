"""
Token metrics: prompt and completion tokens, and the cached and reasoning tokens among them.

Tokens of roll-up kinds are not counted: they are those of the calls below. A span of which only the total is known
counts in the total and not in the quantiles of prompt and completion tokens.
"""

from __future__ import annotations

from typing import Any

from tokentrace.metrics.result import Aggregates
from tokentrace.rollup import Sums

FIELDS = ("prompt", "completion")


def token_quantile(aggregates: Aggregates, field: str, q: float) -> float | None:
    """Return the *q* quantile of the tokens per span; *field* is ``prompt`` or ``completion``; None without values."""
    value = aggregates.summary(field).quantile(q)
    return None if value is None else round(value, 6)


def render_tokens(aggregates: Aggregates) -> dict[str, Any]:
    """Return the metric group ``tokens`` of ``GET /metrics``."""
    sums = aggregates.sums
    totals = {
        "prompt_total": sums.prompt,
        "completion_total": sums.completion,
        "unclassified_total": unclassified(aggregates.sums),
        "total": sums.total,
        "cache_read_total": sums.cache_read,
        "cache_write_total": sums.cache_write,
        "cache_write_1h_total": sums.cache_write_1h,
        "reasoning_total": sums.reasoning,
    }
    return {
        **(totals if aggregates.calls.spans else dict.fromkeys(totals)),
        "prompt_p50": token_quantile(aggregates, "prompt", 0.50),
        "prompt_p95": token_quantile(aggregates, "prompt", 0.95),
        "completion_p50": token_quantile(aggregates, "completion", 0.50),
        "completion_p95": token_quantile(aggregates, "completion", 0.95),
    }


def render_split(aggregates: Aggregates) -> dict[str, int] | None:
    """Return the value of a model in ``tokens_by_model``; None without spans."""
    sums = aggregates.sums
    split = {"prompt": sums.prompt, "completion": sums.completion, "total": sums.total}
    return split if aggregates.calls.spans else None


def unclassified(sums: Sums) -> int:
    """Return the tokens that are neither prompt nor completion tokens: of spans of which only the total is known."""
    return max(sums.total - sums.prompt - sums.completion, 0)
