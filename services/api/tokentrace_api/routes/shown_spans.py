"""How answers show a stored span, and sums over spans."""

from __future__ import annotations

from typing import Any

from tokentrace.dialect import docs
from tokentrace.units import SCORE_ONE, nusd_to_usd
from tokentrace_api.reads import Sums
from tokentrace_api.store import Telling


def render_telling(telling: Telling) -> dict[str, Any]:
    """Return a stored span as the struct ``StoredSpan`` describes it."""
    return docs.render_span(telling.span) | telling_marks(telling)


def telling_marks(telling: Telling) -> dict[str, Any]:
    """Return the fields that say whether a span counts; {} for a span that counts and was told once."""
    if telling.counted:
        return {"later_versions": telling.later_versions} if telling.later_versions else {}
    return {"counted": False, "conflicting": True} if telling.conflicting else {"counted": False}


def sum_fields(sums: Sums) -> dict[str, Any]:
    """Return *sums* as the fields of ``SumsOfSpans`` in their order; cost in US dollars."""
    return {
        "total_cost_usd": usd(sums.cost_nusd),
        "total_tokens": sums.total_tokens,
        "span_count": sums.spans,
        "unpriced_span_count": sums.unpriced,
        "partly_priced_span_count": sums.partly_priced,
    }


def mean_score(total: int, count: int) -> float | None:
    """Return the mean of *count* scores from their sum in 10⁻⁹; None = there is none."""
    return total / (count * SCORE_ONE) if count else None


def usd(nusd: int | None) -> float | None:
    """Return nano-dollars as US dollars; None = unknown."""
    return None if nusd is None else nusd_to_usd(nusd)
