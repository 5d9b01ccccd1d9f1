"""Receipts: the units, amounts and rates that make up the cost of a span."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, NamedTuple

from genai_prices.types import TieredPrices

from tokentrace.pricing.match import PriceTables
from tokentrace.pricing.rates import FIELD_UNITS, Rate, charged_amounts, field_amounts, rate_at
from tokentrace.records import Span, event_time
from tokentrace.units import SECOND

#: Number of significant digits in the computation of receipts.
_DIGITS = 100


class Line(NamedTuple):
    """
    One line of a receipt.

    Attributes:
        unit: Name of the unit in genai-prices; ``reported`` = the cost that the span reported, ``as_priced_then`` = the
            cost of a span that is not explained.
        amount: Number of units charged at this rate, without those that a line for a more specific unit charges.
        per: Number of units that the rate is for.
        rate_usd: US dollars for ``per`` units, exact.
        cost_usd: US dollars; exact, or rounded to 30 decimals if the exact cost has no last decimal.
    """

    unit: str
    amount: int
    per: int
    rate_usd: Decimal
    cost_usd: Decimal


class Receipt(NamedTuple):
    """
    The explanation of a span's cost.

    Attributes:
        lines: The costs of the lines and ``rounding_usd`` add up to ``cost_usd``.
        rounding_usd: What rounding the sum of the lines to whole nano-dollars has added, US dollars.
        cost_usd: Cost of the span, US dollars; None if the span is unpriced.
        tier: Number of prompt tokens above which the rates apply; 0 = the base, None = no tiers.
        explained: Whether the present prices give the cost; if not, ``lines`` has a single line for the whole cost.
    """

    lines: list[Line]
    rounding_usd: Decimal
    cost_usd: Decimal | None
    tier: int | None
    explained: bool


def write_receipt(tables: PriceTables, span: Span) -> Receipt:
    """Return the receipt for *span*, which was priced before, here or by another ingest."""
    with localcontext() as context:
        context.prec = _DIGITS
        return _receipt(tables, span)


def _receipt(tables: PriceTables, span: Span) -> Receipt:
    if span.cost_nusd is None:
        return Receipt([], Decimal(0), None, None, True)
    cost = Decimal(span.cost_nusd).scaleb(-9)
    lines, tier = ([], None) if span.cost_source in ("", "reported") else _lines(tables, span)
    added = sum((line.cost_usd for line in lines), Decimal(0))
    # Rounding changes a cost by at most half a nano-dollar. A larger difference means that other prices applied.
    explained = span.cost_source in ("", "reported") or abs(cost - added) * 2 <= Decimal(1).scaleb(-9)
    if span.cost_source == "reported" or not explained:
        lines = [Line("reported" if explained else "as_priced_then", 1, 1, cost, cost)]
        added = cost
    return Receipt(lines, cost - added, cost, tier, explained)


def _lines(tables: PriceTables, span: Span) -> tuple[list[Line], int | None]:
    override = tables.override(span.model)
    if override is not None:
        return _override_lines(override, span), None
    plan = tables.plan(span.provider, span.model)
    if plan is None or plan.info is None:
        return [], None
    prices = plan.info.get_prices(datetime.fromtimestamp(event_time(span) // SECOND, tz=UTC))
    priced = tables.priced_units(prices)
    charged = charged_amounts([unit for unit, _ in priced], unit_counts(span))
    lines = []
    for unit, value in priced:
        rate, amount = rate_at(value, span.prompt_tokens), charged[unit.usage_key]
        if amount:
            lines.append(Line(unit.usage_key, amount, unit.per, rate, _exact_cost(rate, amount, unit.per)))
    starts = [tier.start for _, value in priced if isinstance(value, TieredPrices) for tier in value.tiers]
    reached = max((start for start in starts if span.prompt_tokens > start), default=0)
    return lines, reached if starts else None


def unit_counts(span: Span) -> dict[str, Any]:
    """Return unit -> count of *span*: its ``usage``, replaced by the prompt, completion and other nonzero fields."""
    fields = dict(zip(FIELD_UNITS, field_amounts(span), strict=True))
    counted = {name: count for name, count in fields.items() if count or name in FIELD_UNITS[:2]}
    return {**(span.usage or {}), **counted}


def _exact_cost(rate: Decimal, amount: int, per: int) -> Decimal:
    """Return the cost of a line; a cost without a last decimal, as with *per* 3,600, is rounded to 30 decimals."""
    total = rate * amount
    cost = total / per
    return cost if cost * per == total else cost.quantize(Decimal(1).scaleb(-30), rounding=ROUND_HALF_EVEN)


def _override_lines(rate: Rate, span: Span) -> list[Line]:
    cached = 0 if rate.cache_read_per_1m is None else span.cache_read_tokens
    charged = (
        ("input_tokens", span.prompt_tokens - cached, rate.prompt_per_1m),
        ("cache_read_tokens", cached, rate.cache_read_per_1m or Decimal(0)),
        ("output_tokens", span.completion_tokens, rate.completion_per_1m),
    )
    return [
        Line(unit, amount, 1_000_000, price, _exact_cost(price, amount, 1_000_000))
        for unit, amount, price in charged
        if amount
    ]
