"""Explains the price of a model without a span: what ``GET /prices/explain`` and ``tokentrace prices explain`` show."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.pricing.pricer import Pricer
from tokentrace.pricing.rates import Sheet
from tokentrace.pricing.receipt import Line, Receipt, receipt_of
from tokentrace.records import MAX_NAME, MAX_TOKENS, Span
from tokentrace.units import render_instant

#: Names of fields of a span, beside those of units -> unit.
_FIELD_NAMES = {
    "prompt_tokens": "input_tokens",
    "comp_tokens": "output_tokens",
    "completion_tokens": "output_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}
_MAX_ENTRIES = 64


def explain(
    pricer: Pricer, model: str, provider: str, usage: Mapping[str, str], context: Mapping[str, str], at_ns: int
) -> dict[str, Any]:
    """
    Return how a call would be priced, as JSON values.

    Args:
        usage: Unit, or field of a span with tokens -> whole number as text; empty = only the rates are shown.
        context: What the call says of itself, as in ``Span.pricing_context``.
        at_ns: Time whose prices apply, Unix nanoseconds.

    Raises:
        Rejected: A name is too long, or a count is not a whole number.
    """
    for name, text in (
        ("model", model),
        ("provider", provider),
        *((f"context.{key}", context[key]) for key in context),
    ):
        if len(text) > MAX_NAME:
            raise Rejected(f"{shorten(name)}: is longer than {MAX_NAME} characters")
    if len(usage) > _MAX_ENTRIES or len(context) > _MAX_ENTRIES:
        raise Rejected(f"usage and context: more than {_MAX_ENTRIES} entries")
    counts: dict[str, int] = {}
    for name, text in usage.items():
        unit = _FIELD_NAMES.get(name, name)
        count = _count(f"usage.{name}", text)
        if counts.setdefault(unit, count) != count:
            raise Rejected(f"usage.{shorten(name)}: {count} is not {counts[unit]}, the count of {unit}")
    total = counts.pop("total_tokens", 0)
    span = Span(
        model=model,
        provider=provider,
        usage=counts or None,
        total_tokens=total,
        pricing_context=dict(context) or None,
        ended_ns=at_ns,
        arrived_ns=at_ns,
    )
    sheet, chosen, plan = pricer.rates(span, at_ns)
    quote = receipt = None
    if total or any(counts.values()):
        work = pricer.work(span, at_ns)
        quote, receipt = work.quote, receipt_of(work, work.quote.cost_nusd)
    reason = (
        quote.reason if quote else f"unknown_variant:{chosen.unknown}" if chosen and chosen.unknown else plan.reason
    )
    known = Decimal(0) if plan.source == "free" else None
    shown = receipt or Receipt([], Decimal(0), known, None, True, plan.matched)
    if chosen and chosen.sheet and not receipt:
        notes = "; ".join((*chosen.notes, *plan.notes))
        shown = shown._replace(variant=chosen.variant, period=chosen.period, assumed=notes)
    return {
        "model": model,
        "provider": provider,
        "usage": {**counts, **({"total_tokens": total} if total else {})},
        "pricing_context": dict(context),
        "cost_usd": None if shown.cost_usd is None else render_usd(shown.cost_usd),
        "cost_source": quote.source if quote else "free" if plan.source == "free" else None,
        "cost_reason": reason or None,
        "assumed": shown.assumed or None,
        "price": render_price(plan.model, at_ns, shown),
        "rates": _rates(sheet) if sheet else [],
        "lines": render_lines(shown.lines),
        "rounding": render_usd(shown.rounding_usd),
    }


def render_price(cost_model: str, at_ns: int, receipt: Receipt) -> dict[str, Any]:
    """Return the price that was used, called *cost_model* as in ``Span.cost_model``, as JSON values."""
    source, at, version = cost_model.rpartition("@")
    model = source if version == "configuration" else source.partition(":")[2] or source
    return {
        "source": cost_model or None,
        "version": version if at else None,
        "matched_model": model or None,
        "priced_at": render_instant(at_ns),
        "tier": receipt.tier,
        "matched": receipt.matched or None,
        "variant": receipt.variant or None,
        "period": receipt.period or None,
    }


def render_lines(lines: list[Line]) -> list[dict[str, Any]]:
    """Return the lines of a receipt as JSON values; amounts of money are text."""
    return [
        {
            "unit": line.unit,
            "amount": line.amount if isinstance(line.amount, int) else float(line.amount),
            "rate_usd": render_usd(line.rate_usd),
            "per": line.per,
            "cost_usd": render_usd(line.cost_usd),
        }
        for line in lines
    ]


def render_usd(usd: Decimal) -> str:
    """Return *usd* in plain digits, without zeros at the end."""
    text = f"{usd:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _rates(sheet: Sheet) -> list[dict[str, Any]]:
    """Return the rate of each unit in each tier in which it differs from the tier below."""
    rates = []
    for unit in sheet.rates:
        below = None
        for start in (0, *sheet.starts):
            rate = sheet.rate(unit, start + 1 if start else 0)
            if rate != below:
                rates.append({"unit": unit, "rate_usd": render_usd(rate), "per": sheet.per(unit), "above": start})
            below = rate
    return rates


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > 2 * MAX_TOKENS:
        raise Rejected(f"{shorten(name)}: {quoted(text)} is not a whole number of 0 to {2 * MAX_TOKENS}")
    return int(text)
