"""``GET /traces/{id}/spans/{span_id}/receipt``: how the cost of a span was computed, line by line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.pricing import Pricer, Receipt, render_lines, render_price, render_usd
from tokentrace.records import counts_as_cost, duplicate_of, event_time
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import nusd_to_usd
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.routes.answers import InstantText
from tokentrace_api.routes.traces import SpanId, TraceId
from tokentrace_api.store import Telling

#: ``Span.cost_source`` -> ``ReceiptAnswer.confidence``.
_CONFIDENCE = {
    "": "exact",
    "priced": "exact",
    "free": "free",
    "reported": "reported",
    "overridden": "overridden",
    "partly_priced": "partly_priced",
    "unpriced": "unpriced",
    "zero_ignored": "reported_zero_ignored",
}


#: An amount in US dollars as decimal text, because a JSON number may be read as a float.
Money = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?$", examples=["0.00256"])]
Confidence = Literal["exact", "free", "reported", "overridden", "partly_priced", "unpriced", "reported_zero_ignored"]


class ReceiptLine(msgspec.Struct):
    """The cost of *amount* units: *rate_usd* US dollars for every *per* units."""

    unit: str
    amount: float
    rate_usd: Money
    per: int
    cost_usd: Money


class ReceiptPrice(msgspec.Struct):
    """
    The price that was used.

    Attributes:
        source: Name of the price; null = no price was used.
        version: Version of the price tables; null = unknown.
        matched_model: The name of the model under which the price was found.
        priced_at: The instant whose prices were used: the event time of the span.
        tier: The rates apply above this number of prompt tokens; null = the rates do not depend on it.
        matched: The rules that led from the names in the span to the price; null = no rule was needed.
        variant: What the call says of itself that changes the price; null = the standard price.
        period: When the rates apply; null = always.
    """

    source: str | None
    version: str | None
    matched_model: str | None
    priced_at: InstantText
    tier: int | None
    matched: str | None
    variant: str | None
    period: str | None


class ReceiptAnswer(msgspec.Struct):
    """
    How the cost of a span was computed; ``lines`` and ``rounding`` add up to ``cost_usd``.

    Attributes:
        total_cost_usd: The cost as a number, as other answers show it.
        counted: True if totals include the cost of this span; false for roll-up kinds, and for a call that another span
            told first.
        duplicate_of: Id of the span that counts in place of this one, because it came in the same request of OTLP and
            tells the same call; absent if there is none.
        reason: Why the cost is unknown, lacks a part or is 0.
        cost_reason: The same as ``reason``, under its name in spans.
        assumed: What was assumed because the span does not say it; null = nothing.
        rounding: Difference between the sum of the lines and the cost, US dollars.
        note: Present only if the cost cannot be recomputed with the installed prices; ``lines`` then has a single line
            for the whole cost.
    """

    trace_id: str
    span_id: str
    model: str
    provider: str
    cost_usd: Money | None
    total_cost_usd: float | None
    counted: bool
    confidence: Confidence
    reason: str | None
    cost_reason: str | None
    assumed: str | None
    price: ReceiptPrice
    lines: list[ReceiptLine]
    rounding: Money
    duplicate_of: str | UnsetType = UNSET
    note: str | UnsetType = UNSET


_EXAMPLE: dict[str, Any] = {
    "trace_id": "t1",
    "span_id": "s1",
    "model": "gpt-4o",
    "provider": "openai",
    "cost_usd": "0.00256",
    "total_cost_usd": 0.00256,
    "counted": True,
    "confidence": "exact",
    "reason": None,
    "cost_reason": None,
    "assumed": "standard price: no service tier, processing or speed was reported",
    "price": {
        "source": "openai:gpt-4o@genai-prices-0.2.3",
        "version": "genai-prices-0.2.3",
        "matched_model": "gpt-4o",
        "priced_at": "2026-03-15T14:23:02.261Z",
        "tier": None,
        "matched": "openai:gpt-4o",
        "variant": None,
        "period": None,
    },
    "lines": [
        {"unit": "input_tokens", "amount": 512, "rate_usd": "2.5", "per": 1000000, "cost_usd": "0.00128"},
        {"unit": "output_tokens", "amount": 128, "rate_usd": "10", "per": 1000000, "cost_usd": "0.00128"},
    ],
    "rounding": "0",
}
_RECEIPT = operation(
    "getReceipt",
    "Get the receipt of a span",
    "How the cost of a span was computed: prices, amounts and rounding. Amounts of money are decimal text.",
    Answer(ReceiptAnswer, "The receipt.", _EXAMPLE),
    errors={
        400: "limit: unknown parameter; allowed are none",
        404: "span not found",
        503: "span store: is not open yet",
    },
)


def router(store: StoreReader, pricer: Pricer) -> Router:
    """Return the route, to be registered before ``/traces/{id}``; *pricer* must have the prices that ingest has."""
    routes = Router("traces")

    @routes.get("/traces/{trace_id:path}/spans/{span_id:path}/receipt", **_RECEIPT)
    async def receipt(trace_id: TraceId, span_id: SpanId) -> Response:
        found = await store.read(lambda spans: spans.tellings_of(trace_id, span_id, store.now_ns()))
        if not found:
            raise Rejected("span not found", status=404)
        return reply(render_receipt(found[0], pricer.receipt(found[0].span)))

    return routes


def render_receipt(telling: Telling, receipt: Receipt) -> dict[str, Any]:
    """Return *receipt* of the span in *telling* as the struct ``ReceiptAnswer`` describes it."""
    span = telling.span
    shown: dict[str, Any] = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "model": span.model,
        "provider": span.provider,
        "cost_usd": None if receipt.cost_usd is None else render_usd(receipt.cost_usd),
        "total_cost_usd": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        "counted": telling.counted and counts_as_cost(span.kind),
        "confidence": _CONFIDENCE[span.cost_source],
        "reason": span.unpriced_reason or None,
        "cost_reason": span.unpriced_reason or None,
        "assumed": receipt.assumed or None,
        "price": render_price(span.cost_model, event_time(span), receipt),
        "lines": render_lines(receipt.lines),
        "rounding": render_usd(receipt.rounding_usd),
    }
    if winner := duplicate_of(span):
        shown["duplicate_of"] = winner
    if not receipt.explained:
        shown["note"] = "the cost cannot be recomputed with the installed prices; one line stands for the whole cost"
    return shown
