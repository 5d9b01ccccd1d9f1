"""``GET /calls``: single calls, the newest, dearest, slowest or largest first."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.records import CostSource, Kind
from tokentrace.service.contract import Answer, Router, operation, parsed
from tokentrace.service.web import reply
from tokentrace.units import int_to_score, ns_to_ms, render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import Count, choice
from tokentrace_api.reads import CALL_ORDERS, CallCursor, CallRow, encode_call_cursor, find_calls, parse_call_cursor
from tokentrace_api.routes.answers import InstantText, Milliseconds, Natural, SpanStatus
from tokentrace_api.routes.searching import StoredSearchParams
from tokentrace_api.routes.shown_spans import usd

DEFAULT_LIMIT, MAX_LIMIT = 20, 200
_Order: Any = choice(CALL_ORDERS)
_Cursor = Annotated[CallCursor | None, parsed(parse_call_cursor), WithJsonSchema({"type": "string"})]


class CallListParams(StoredSearchParams):
    """Which calls are listed, in which order, and which page of them."""

    order: _Order = Field(
        "started",
        description="Newest start first, or the largest `cost`, `latency` or number of `tokens` first; an unknown cost "
        "is the last.",
    )
    limit: Count = Field(DEFAULT_LIMIT, description=f"Calls on a page; over {MAX_LIMIT} counts as {MAX_LIMIT}.")
    cursor: _Cursor = Field(None, description="`next_cursor` of the previous page.")


class ListedCall(msgspec.Struct):
    """
    A call in a list.

    Attributes:
        latency_ms: Milliseconds, with fractions.
        ttft_ms: Time to the first token, milliseconds; null if it is not known.
        cost_usd: US dollars; null if it is unknown.
        cost_source: How the cost is known; null if it has none.
        session_id, user_id: The field, or else the attribute of that name.
        score: From 0 to 1; null if it has none.
    """

    trace_id: str
    span_id: str
    name: str
    kind: Kind
    status: SpanStatus
    error: str | None
    started_at: InstantText
    latency_ms: Milliseconds
    ttft_ms: Milliseconds | None
    model: str | None
    provider: str | None
    caller: str | None
    prompt_tokens: Natural
    comp_tokens: Natural
    total_tokens: Natural
    cost_usd: float | None
    cost_source: CostSource | None
    score: float | None
    session_id: str | None
    user_id: str | None


class CallsPage(msgspec.Struct):
    """
    A page of calls in the order that was asked for.

    Attributes:
        count: Number of calls on this page.
        total: Number of matching calls on all pages.
        next_cursor: Cursor of the next page; null = this is the last page.
    """

    calls: list[ListedCall]
    count: Natural
    total: Natural
    limit: Natural
    next_cursor: str | None


_LIST = operation(
    "listCalls",
    "List calls",
    """
    Single calls, newest start first, or by `order`. Unlike `GET /traces`, a row is one span, and the filters and the
    bounds of time are about that span. Each call is listed once, by the telling that counts. Spans of kinds that only
    contain calls (`agent`, `chain`, `http`, `workflow`) are left out: their cost is that of the calls below them. What
    `GET /metrics` counts as calls has the kind `llm` unless it is asked for another one.
    """,
    Answer(
        CallsPage,
        "A page.",
        {
            "calls": [
                {
                    "trace_id": "t1",
                    "span_id": "s1",
                    "name": "answer question",
                    "kind": "llm",
                    "status": "ok",
                    "error": None,
                    "started_at": "2026-03-15T14:23:01.441Z",
                    "latency_ms": 820,
                    "ttft_ms": 210,
                    "model": "gpt-4o",
                    "provider": "openai",
                    "caller": "checkout",
                    "prompt_tokens": 512,
                    "comp_tokens": 128,
                    "total_tokens": 640,
                    "cost_usd": 0.00256,
                    "cost_source": "priced",
                    "score": 0.9,
                    "session_id": "s1",
                    "user_id": "u-7",
                }
            ],
            "count": 1,
            "total": 1,
            "limit": 20,
            "next_cursor": None,
        },
    ),
    errors={400: "order: 'duration' is none of started, cost, latency, tokens", 503: "span store: is not open yet"},
)


def router(store: StoreReader) -> Router:
    """Return the route."""
    routes = Router("traces")

    @routes.get("/calls", **_LIST)
    async def listed(params: Annotated[CallListParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        limit, search, cursor, order = (
            min(params.limit, MAX_LIMIT),
            params.search_at(now_ns),
            params.cursor,
            params.order,
        )
        if cursor is not None and cursor.order != order:
            raise Rejected("cursor: is that of a list in another order")
        page = await store.read(lambda spans: find_calls(spans, search, order, limit, cursor, now_ns))
        calls = [_shown(row) for row in page.rows]
        following = None if page.next is None else encode_call_cursor(page.next)
        return reply(CallsPage(calls, len(calls), page.total, limit, following))

    return routes


def _shown(row: CallRow) -> ListedCall:
    fields: dict[str, Any] = {
        **row._asdict(),
        "error": row.error or None,
        "started_at": render_instant(row.started_ns),
        "latency_ms": ns_to_ms(row.latency_ns),
        "ttft_ms": ns_to_ms(row.ttft_ns) if row.ttft_ns else None,
        "model": row.model or None,
        "provider": row.provider or None,
        "caller": row.caller or None,
        "comp_tokens": row.completion_tokens,
        "cost_usd": usd(row.cost_nusd),
        "cost_source": row.cost_source or None,
        "score": None if row.score is None else int_to_score(row.score),
        "session_id": row.session_id or None,
        "user_id": row.user_id or None,
    }
    return ListedCall(**{name: fields[name] for name in ListedCall.__struct_fields__})
