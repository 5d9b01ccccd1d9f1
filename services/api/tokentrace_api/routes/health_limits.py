"""The part of ``GET /health`` on limits: what aggregators keep apart and remember, and how far they are behind."""

from __future__ import annotations

from typing import Any

import msgspec

from tokentrace.dedup import MAX_REPORTERS, REPORTER_NS
from tokentrace.metrics import Answer
from tokentrace.rollup import MAX_MODELS, MAX_PROVIDERS, MAX_SERIES, distinct
from tokentrace.units import MS
from tokentrace_api.metrics_query import BEHIND_S
from tokentrace_api.routes.answers import Natural

_LIMITS = {"model": MAX_MODELS, "provider": MAX_PROVIDERS}


class DimensionState(msgspec.Struct):
    """
    How many values of a dimension are kept apart, in the shard that has the most.

    Attributes:
        kept: Number of values that are kept apart.
        limit: Most values that are kept apart; null = as many as there is room for their series.
        folded: About how many other values there are, which metrics show together as `other`.
    """

    kept: Natural
    limit: Natural | None
    folded: Natural


class SeriesState(msgspec.Struct):
    """
    How many combinations of dimensions are kept apart, in the shard that has the most.

    Attributes:
        kept: Number of series.
        limit: Most series with a name or a caller: three quarters may have a name. Combinations of kind, model,
            provider and status are kept beyond it.
        dimensions: Dimension -> its values.
    """

    kept: Natural
    limit: Natural
    dimensions: dict[str, DimensionState]


class ReportersState(msgspec.Struct):
    """
    The reporters whose batches are recognised by their numbers when they are sent again, in the shard with the most.

    Attributes:
        remembered: Number of reporters, and of parts of their batches.
        limit: Most that are remembered; beyond it, the one that was silent the longest is forgotten.
        reach_s: No reporter with a batch in the last so many seconds is forgotten; at most eight days. Batches of a
            forgotten reporter are recognised by their calls, as far as `calls.reach_s` says.
    """

    remembered: Natural
    limit: Natural
    reach_s: Natural


def limits(answer: Answer, now_ms: int) -> dict[str, Any]:
    """
    Return the keys of the answer that concern limits.

    Args:
        answer: The merged cumulative counters.
        now_ms: Unix milliseconds.
    """
    cumulative = answer.cumulative
    since_ms = max(cumulative.reporters_since_ms, now_ms - REPORTER_NS // MS)
    shown: dict[str, Any] = {
        "reporters": {
            "remembered": cumulative.reporters,
            "limit": MAX_REPORTERS,
            "reach_s": max(now_ms - since_ms, 0) // 1000,
        },
        "series": {
            "kept": cumulative.series,
            "limit": MAX_SERIES,
            "dimensions": {
                name: {"kept": use.separate, "limit": _LIMITS.get(name), "folded": distinct(use.folded)}
                for name, use in cumulative.dimensions.items()
            },
        },
    }
    return shown | ({"behind_s": round(answer.behind_s, 1)} if answer.behind_s >= BEHIND_S else {})


def warnings_of(answer: Answer) -> list[str]:
    """Return a line for each dimension with values under ``other``, and one if the aggregators are behind."""
    lines = [
        f"{name}: about {distinct(use.folded):,} values are counted together as other, because there are too many"
        for name, use in answer.cumulative.dimensions.items()
        if use.folded
    ]
    if answer.behind_s >= BEHIND_S:
        lines.append(f"metrics are behind by {answer.behind_s:,.0f} s: spans arrive faster than they are counted")
    return lines
