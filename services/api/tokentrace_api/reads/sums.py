"""Sums over tellings that count: money and tokens, and how much of the money is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from tokentrace.records import ROLLUP_KINDS, counts_as_cost

_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
#: SQL that is true for a row whose cost and tokens are summed; those of a roll-up kind are counted in the calls below.
IN_SUMS = f"(counted AND kind NOT IN ({_ROLLUPS}))"
#: SQL of sums over spans; money and tokens may exceed 64 bits.
COST = (
    f"CASE WHEN count(cost_nusd) FILTER ({IN_SUMS}) > 0 OR count(*) FILTER ({IN_SUMS}) = 0 "
    f"THEN coalesce(sum(cost_nusd) FILTER ({IN_SUMS}), 0) END::HUGEINT"
)
TOKENS = f"coalesce(sum(total_tokens) FILTER ({IN_SUMS}), 0)::HUGEINT"
#: SQL of the fields of ``Sums``, in their order.
SUMS = (
    f"{COST}, count(*) FILTER ({IN_SUMS} AND cost_nusd IS NULL), "
    f"count(*) FILTER ({IN_SUMS} AND cost_source = 'partly_priced'), {TOKENS}, count(*) FILTER (counted)"
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


class Summed(Protocol):
    """What the sums read of a row; ``SpanRow`` has it."""

    @property
    def counted(self) -> bool:
        """True if sums use the row."""
        ...

    @property
    def kind(self) -> str:
        """Kind of the span."""
        ...

    @property
    def cost_nusd(self) -> int | None:
        """Nano-dollars; None = unknown."""
        ...

    @property
    def cost_source(self) -> str:
        """How the cost is known."""
        ...

    @property
    def total_tokens(self) -> int:
        """Tokens."""
        ...


def sums_of(rows: Iterable[Summed]) -> Sums:
    """Return the sums over those of *rows* that count."""
    counted = [row for row in rows if row.counted]
    summed = [row for row in counted if counts_as_cost(row.kind)]
    known = [row.cost_nusd for row in summed if row.cost_nusd is not None]
    return Sums(
        cost_nusd=sum(known) if known or not summed else None,
        unpriced=len(summed) - len(known),
        partly_priced=sum(row.cost_source == "partly_priced" for row in summed),
        total_tokens=sum(row.total_tokens for row in summed),
        spans=len(counted),
    )
