"""Tokens: whole prompts and completions, and the parts of them that are cached or reasoned."""

from __future__ import annotations

from typing import Any

from tokentrace.metric.query import Figures


def render_tokens(figures: Figures) -> dict[str, Any]:
    """The group ``tokens`` of ``GET /metrics``."""
    sums = figures.sums
    return {
        "prompt_total": sums.prompt,
        "completion_total": sums.completion,
        "total": sums.total,
        "cache_read_total": sums.cache_read,
        "cache_write_total": sums.cache_write,
        "reasoning_total": sums.reasoning,
    }
