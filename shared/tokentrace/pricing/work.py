"""What pricing a span gives: the quote that is stored, and everything that a receipt needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tokentrace.pricing.plans import Chosen, Plan
from tokentrace.pricing.rates import Amount, Sheet


class Quote(NamedTuple):
    """
    The cost of a span and how it was found.

    Attributes:
        cost_nusd: Cost in nano-dollars; None if the span cannot be priced.
        source: Value for ``Span.cost_source``.
        model: Value for ``Span.cost_model``.
        reason: Value for ``Span.unpriced_reason``.
    """

    cost_nusd: int | None
    source: str
    model: str
    reason: str


class Work(NamedTuple):
    """
    A quote with everything that led to it, for receipts.

    Attributes:
        plan: How the model is priced; None = the price of the model was not needed.
        sheet: The rates; None = no rates were used.
        chosen: The period and the variant of the rates.
        charged: Unit -> amount charged at the rate of this unit.
        input_tokens: What selects the tier.
        notes: What a receipt must say.
    """

    quote: Quote
    plan: Plan | None = None
    sheet: Sheet | None = None
    chosen: Chosen | None = None
    charged: Mapping[str, Amount] = {}
    input_tokens: int = 0
    notes: tuple[str, ...] = ()
