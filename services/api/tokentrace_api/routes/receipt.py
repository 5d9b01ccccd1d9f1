"""``GET /traces/{id}/spans/{span_id}/receipt``: how the cost of a span came about, line by line."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import Rejected
from tokentrace.pricing import Receipt
from tokentrace.records import Span, counts_as_cost, event_time
from tokentrace.service.web import reply
from tokentrace.units import nusd_to_usd, render_instant
from tokentrace_api.parameters import parameters

if TYPE_CHECKING:
    from tokentrace_api.service import Api

#: Where a cost comes from -> how sure it is.
_CONFIDENCE = {
    "": "exact",
    "priced": "exact",
    "reported": "reported",
    "overridden": "overridden",
    "partly_priced": "partly_priced",
    "unpriced": "unpriced",
    "zero_ignored": "reported_zero_ignored",
}


def routes(api: Api) -> list[BaseRoute]:
    """The route; it comes before that of ``/traces/{id}``."""

    async def receipt(request: Request) -> Response:
        parameters(request, ())
        trace_id, span_id = request.path_params["trace_id"], request.path_params["span_id"]
        spans = await api.read(lambda store: store.trace(trace_id, time.time_ns()))
        span = next((span for span in spans if span.span_id == span_id), None)
        if span is None:
            raise Rejected("span not found", status=404)
        return reply(render_receipt(span, api.pricer.receipt(span)))

    return [Route("/traces/{trace_id:path}/spans/{span_id:path}/receipt", receipt)]


def render_receipt(span: Span, receipt: Receipt) -> dict[str, Any]:
    """Amounts of money are decimal text, exact; ``lines`` and ``rounding`` add up to ``cost_usd``."""
    source, at, version = span.cost_model.rpartition("@")
    model = source.partition(":")[2] or source
    shown: dict[str, Any] = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "model": span.model,
        "provider": span.provider,
        "cost_usd": None if receipt.cost_usd is None else _money(receipt.cost_usd),
        "total_cost_usd": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        "counted": counts_as_cost(span.kind),
        "confidence": _CONFIDENCE[span.cost_source],
        "reason": span.unpriced_reason or None,
        "price": {
            "source": span.cost_model or None,
            "version": version if at else None,
            "matched_model": model or None,
            "priced_at": render_instant(event_time(span)),
            "tier": receipt.tier,
        },
        "lines": [
            {
                "unit": line.unit,
                "amount": line.amount,
                "rate_usd": _money(line.rate_usd),
                "per": line.per,
                "cost_usd": _money(line.cost_usd),
            }
            for line in receipt.lines
        ],
        "rounding": _money(receipt.rounding_usd),
    }
    if not receipt.explained:
        shown["note"] = "priced with other tables than this program has: one line stands for all"
    return shown


def _money(usd: Decimal) -> str:
    text = f"{usd:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
