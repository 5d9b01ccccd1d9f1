"""Sums over tellings that count: money and tokens, and how much of the money is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokentrace.records import ROLLUP_KINDS, counts_as_cost
from tokentrace_api.store import Telling

_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
#: SQL that is true for a row whose cost and tokens are summed; those of a roll-up kind are counted in the calls below.
IN_SUMS = f"(counted AND kind NOT IN ({_ROLLUPS}))"
#: SQL of the fields of ``Sums``, in their order; money and tokens may exceed 64 bits.
SUMS = (
    f"CASE WHEN count(cost_nusd) FILTER ({IN_SUMS}) > 0 OR count(*) FILTER ({IN_SUMS}) = 0 "
    f"THEN coalesce(sum(cost_nusd) FILTER ({IN_SUMS}), 0) END::HUGEINT, "
    f"count(*) FILTER ({IN_SUMS} AND cost_nusd IS NULL), "
    f"count(*) FILTER ({IN_SUMS} AND cost_source = 'partly_priced'), "
    f"coalesce(sum(total_tokens) FILTER ({IN_SUMS}), 0)::HUGEINT, "
    "count(*) FILTER (counted)"
)


class Sums(NamedTuple):
    """
    Sums over the spans of a trace or a session that count, each once.

    Attributes:
        cost_nusd: Nano-dollars; without the spans whose cost is unknown. None = no span has a known cost, and at least
            one has an unknown cost.
        unpriced: Number of spans whose cost is unknown; if it is over 0, the cost is a lower bound.
        partly_priced: Number of spans of which only a part is priced; if it is over 0, the cost is a lower bound.
        total_tokens: Tokens; like money, without those of roll-up kinds.
        spans: Number of spans, of every kind.
    """

    cost_nusd: int | None
    unpriced: int
    partly_priced: int
    total_tokens: int
    spans: int


def sums_of(tellings: Iterable[Telling]) -> Sums:
    """Return the sums over those of *tellings* that count."""
    counted = [telling.span for telling in tellings if telling.counted]
    summed = [span for span in counted if counts_as_cost(span.kind)]
    known = [span.cost_nusd for span in summed if span.cost_nusd is not None]
    return Sums(
        cost_nusd=sum(known) if known or not summed else None,
        unpriced=len(summed) - len(known),
        partly_priced=sum(span.cost_source == "partly_priced" for span in summed),
        total_tokens=sum(span.total_tokens for span in summed),
        spans=len(counted),
    )
