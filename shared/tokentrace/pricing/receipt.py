"""Receipts: the units, amounts and rates that make up the cost of a span, and how the price was found."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import NamedTuple

from tokentrace.pricing.rates import Amount
from tokentrace.pricing.work import Work

#: Number of significant digits in the computation of receipts.
_DIGITS = 100


class Line(NamedTuple):
    """
    One line of a receipt.

    Attributes:
        unit: Name of the unit in genai-prices; ``reported`` = the cost that the span reported, ``as_priced_then`` = the
            cost of a span that is not explained.
        amount: Number of units charged at this rate, without those that a line for a more specific unit charges; a
            fraction of seconds has at most 6 decimals.
        per: Number of units that the rate is for.
        rate_usd: US dollars for ``per`` units, exact.
        cost_usd: US dollars; exact, or rounded to 30 decimals if the exact cost has no last decimal.
    """

    unit: str
    amount: int | Decimal
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
        matched: The rules that led to the price, in words; "" = the price of a model was not needed.
        variant: What the call said of itself that changed the price, such as ``processing=batch``; "" = nothing.
        period: When the rates apply, in words; "" = always.
        assumed: What was assumed because the span does not say it; "" = nothing.
    """

    lines: list[Line]
    rounding_usd: Decimal
    cost_usd: Decimal | None
    tier: int | None
    explained: bool
    matched: str = ""
    variant: str = ""
    period: str = ""
    assumed: str = ""


def reported_receipt(cost_nusd: int | None) -> Receipt:
    """Return the receipt for a cost that a span reported."""
    cost = Decimal(cost_nusd or 0).scaleb(-9)
    return Receipt([Line("reported", 1, 1, cost, cost)], Decimal(0), cost, None, True)


def receipt_of(work: Work, cost_nusd: int | None) -> Receipt:
    """Return the receipt for a cost of *cost_nusd*; *work* says what the present prices give."""
    with localcontext() as context:
        context.prec = _DIGITS
        return _receipt(work, cost_nusd)


def _receipt(work: Work, cost_nusd: int | None) -> Receipt:
    matched = work.plan.matched if work.plan else ""
    if cost_nusd is None:
        return Receipt([], Decimal(0), None, None, True, matched)
    cost = Decimal(cost_nusd).scaleb(-9)
    lines = _lines(work)
    added = sum((line.cost_usd for line in lines), Decimal(0))
    # Rounding changes a cost by at most half a nano-dollar. A larger difference means that other prices applied.
    if abs(cost - added) * 2 > Decimal(1).scaleb(-9):
        return Receipt([Line("as_priced_then", 1, 1, cost, cost)], Decimal(0), cost, None, False)
    tier = work.sheet.tier(work.input_tokens) if work.sheet else None
    variant, period = (work.chosen.variant, work.chosen.period) if work.chosen else ("", "")
    return Receipt(lines, cost - added, cost, tier, True, matched, variant, period, "; ".join(work.notes))


def _lines(work: Work) -> list[Line]:
    sheet = work.sheet
    if sheet is None:
        return []
    lines = []
    for unit in sheet.rates:
        amount = work.charged.get(unit, 0)
        if amount:
            rate, per = sheet.rate(unit, work.input_tokens), sheet.per(unit)
            shown = amount if isinstance(amount, int) else Decimal(amount.numerator) / amount.denominator
            lines.append(Line(unit, shown, per, rate, _exact_cost(rate, amount, per)))
    return lines


def _exact_cost(rate: Decimal, amount: Amount, per: int) -> Decimal:
    """Return the cost of a line; a cost without a last decimal, as with *per* 3,600, is rounded to 30 decimals."""
    total = rate * amount.numerator / amount.denominator
    cost = total / per
    return cost if cost * per == total else cost.quantize(Decimal(1).scaleb(-30), rounding=ROUND_HALF_EVEN)
