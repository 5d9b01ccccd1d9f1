"""How the cost of a span came about, line by line, exact to the last digit."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, NamedTuple

from genai_prices.types import TieredPrices

from tokentrace.pricing.match import PriceTables
from tokentrace.pricing.rates import FIELD_UNITS, Rate, charged_amounts, field_amounts, rate_at
from tokentrace.records import Span, event_time
from tokentrace.units import SECOND

#: Decimal digits that receipts are computed with before rounding.
_DIGITS = 100


class Line(NamedTuple):
    """
    One line of a receipt.

    Attributes:
        unit: As genai-prices names it; ``reported`` for a cost that came with the span.
        amount: How many units were charged at this rate, without those that a more specific line charges.
        per: The rate is for this many units.
        rate_usd, cost_usd: US dollars, exact.
    """

    unit: str
    amount: int
    per: int
    rate_usd: Decimal
    cost_usd: Decimal


class Receipt(NamedTuple):
    """
    How a cost came about.

    Attributes:
        lines: Together with *rounding_usd* they add up to *cost_usd*.
        rounding_usd: Difference to a whole nano-dollar.
        cost_usd: None if the span is unpriced.
        tier: The rates apply above this many prompt tokens; 0 = the base, None = the model has no tiers.
        explained: False if the price tables have changed since the span was priced; one line then stands for all.
    """

    lines: list[Line]
    rounding_usd: Decimal
    cost_usd: Decimal | None
    tier: int | None
    explained: bool


def write_receipt(tables: PriceTables, span: Span) -> Receipt:
    """The receipt of *span*, which was priced before, here or by another ingest."""
    with localcontext() as context:
        context.prec = _DIGITS
        return _receipt(tables, span)


def _receipt(tables: PriceTables, span: Span) -> Receipt:
    if span.cost_nusd is None:
        return Receipt([], Decimal(0), None, None, True)
    cost = Decimal(span.cost_nusd).scaleb(-9)
    lines, tier = ([], None) if span.cost_source in ("", "reported") else _lines(tables, span)
    added = sum((line.cost_usd for line in lines), Decimal(0))
    # Rounding changes a cost by at most half a nano-dollar; a larger difference means that the prices have changed.
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
    """Unit -> how many *span* used, from its ``usage`` map and its token fields; a field wins."""
    fields = dict(zip(FIELD_UNITS, field_amounts(span), strict=True))
    counted = {name: count for name, count in fields.items() if count or name in FIELD_UNITS[:2]}
    return {**(span.usage or {}), **counted}


def _exact_cost(rate: Decimal, amount: int, per: int) -> Decimal:
    """The cost of a line; a quotient without an end, such as a price per 3,600, is cut at 30 decimals."""
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
