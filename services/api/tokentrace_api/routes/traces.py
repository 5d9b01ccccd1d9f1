"""``GET /traces``, ``/traces/recent``, ``/traces/{id}``, its timeline and its spans, and ``/stats``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path as PathName
from fastapi import Query as QueryParams
from msgspec import UNSET
from pydantic import ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.dialect import mist
from tokentrace.errors import Rejected
from tokentrace.metrics import Query
from tokentrace.rollup import histogram_quantile_ms
from tokentrace.service.contract import Params, Router, parsed
from tokentrace.service.web import reply
from tokentrace.units import MS, nusd_to_usd, render_instant
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_query import missing
from tokentrace_api.parameters import Count, Flag, choice
from tokentrace_api.reads import (
    Cursor,
    Order,
    Outline,
    encode_cursor,
    find_page,
    find_started,
    find_telling,
    page_of,
    parse_cursor,
    trace_outline,
    whole_spans,
    without_metadata,
)
from tokentrace_api.routes.searching import SearchParams
from tokentrace_api.routes.shown_spans import render_telling
from tokentrace_api.routes.shown_traces import (
    render_mist_trace,
    render_open,
    render_row,
    render_timeline,
    render_trace,
)
from tokentrace_api.routes.span_pages import (
    DEFAULT_SPANS,
    MAX_SPANS,
    SPAN_CURSOR_TEXT,
    SPAN_LIMIT_TEXT,
    EndedFirstCursor,
    StartCursor,
)
from tokentrace_api.routes.traces_operations import (
    GET_SPAN,
    GET_STATS,
    GET_TIMELINE,
    GET_TRACE,
    LIST_RECENT,
    LIST_TRACES,
    OperationCounts,
    Stats,
    TracePage,
)
from tokentrace_api.store import Store

DEFAULT_LIMIT, MAX_LIMIT = 20, 200
RECENT_LIMIT, MAX_RECENT = 100, 10_000

TraceId = Annotated[str, PathName(description="Id of the trace; `/` and other characters escaped.", examples=["t1"])]
SpanId = Annotated[str, PathName(description="Id of the span; `/` and other characters escaped.", examples=["s1"])]
_Cursor = Annotated[Cursor | None, parsed(lambda text: _cursor(text)), WithJsonSchema({"type": "string"})]
_Format: Any = choice(("docs", "mist"), "neither docs nor mist")


def _cursor(text: str) -> Cursor:
    try:
        return parse_cursor(text)
    except Rejected as exc:
        raise Rejected(str(exc).removeprefix("cursor: ")) from exc


def _recent_limit(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        return RECENT_LIMIT
    digits = text.lstrip("0")
    return MAX_RECENT if len(digits) > len(str(MAX_RECENT)) else min(int(digits or RECENT_LIMIT), MAX_RECENT)


class TraceListParams(SearchParams):
    """Which traces are listed, and which page of them."""

    limit: Count = Field(DEFAULT_LIMIT, description=f"Traces on a page; over {MAX_LIMIT} counts as {MAX_LIMIT}.")
    offset: Count = Field(0, description="Number of traces to skip; a cursor is faster.")
    cursor: _Cursor = Field(None, description="`next_cursor` of the previous page.")


class RecentParams(Params):
    """Read as the original Go server read them: unknown parameters and invalid limits are ignored."""

    model_config = ConfigDict(extra="ignore")
    limit: Annotated[int, parsed(_recent_limit), WithJsonSchema({"type": ["integer", "string"]})] = Field(
        RECENT_LIMIT,
        description=f"How many, at most {MAX_RECENT}; anything but a positive integer counts as {RECENT_LIMIT}.",
    )


class TimelineParams(Params):
    """Which page of a trace is shown as a timeline."""

    limit: Count = Field(DEFAULT_SPANS, description=SPAN_LIMIT_TEXT)
    cursor: StartCursor = Field(None, description=SPAN_CURSOR_TEXT)


class TraceParams(Params):
    """The form in which a trace is shown, and which page of its spans."""

    format: _Format = Field("docs", description="`docs`, or `mist` for MIST's names and nanoseconds.")
    limit: Count = Field(DEFAULT_SPANS, description=SPAN_LIMIT_TEXT)
    cursor: EndedFirstCursor = Field(None, description=SPAN_CURSOR_TEXT)
    attributes: Flag = Field(True, description="`false` leaves out attributes and stack traces.")


def router(store: StoreReader, aggregators: AggregatorClient) -> Router:
    """Return the routes that read traces; that of ``/traces/{id}`` matches every path that no earlier route matches."""
    routes = Router("traces")

    @routes.get("/traces", **LIST_TRACES)
    async def listed(params: Annotated[TraceListParams, QueryParams()]) -> Response:
        limit, search = min(params.limit, MAX_LIMIT), params.search()
        page = await store.read(
            lambda spans: find_page(spans, search, limit, params.offset, params.cursor, store.now_ns())
        )
        until_ns = page.searched_until_ns
        return reply(
            TracePage(
                traces=[render_row(row) for row in page.rows],
                trace_ids=[row.trace_id for row in page.rows],
                count=len(page.rows),
                total=page.total,
                limit=limit,
                offset=params.offset,
                next_cursor=None if page.next is None else encode_cursor(page.next),
                searched_until=UNSET if until_ns is None else render_instant(until_ns),
            )
        )

    @routes.get("/traces/recent", **LIST_RECENT)
    async def recent(params: Annotated[RecentParams, QueryParams()]) -> Response:
        def read(spans: Store) -> Response:
            shown = [mist.render_span(span) for span in spans.recent(params.limit, store.now_ns())]
            return reply({"spans": shown, "count": len(shown)})

        return await store.read(read)

    @routes.get("/traces/{trace_id:path}/spans/{span_id:path}", **GET_SPAN)
    async def span(trace_id: TraceId, span_id: SpanId) -> Response:
        def read(spans: Store) -> Response:
            now_ns = store.now_ns()
            # A span that ends between the two reads must be found by one of them.
            started = find_started(spans, trace_id, span_id, now_ns)
            tellings = find_telling(spans, trace_id, span_id, now_ns)
            if tellings:
                return reply(render_telling(tellings[0]))
            if started:
                return reply(render_open(started[0], now_ns))
            raise Rejected("span not found", status=404)

        return await store.read(read)

    @routes.get("/traces/{trace_id:path}/timeline", **GET_TIMELINE)
    async def timeline(trace_id: TraceId, params: Annotated[TimelineParams, QueryParams()]) -> Response:
        def read(spans: Store) -> Response:
            now_ns = store.now_ns()
            outline = _outline(spans, trace_id, "start", now_ns)
            page = page_of(outline.rows, "start", min(params.limit, MAX_SPANS), params.cursor)
            return reply(render_timeline(trace_id, outline, page, now_ns))

        return await store.read(read)

    @routes.get("/traces/{trace_id:path}", **GET_TRACE)
    async def trace(request: Request, trace_id: TraceId, params: Annotated[TraceParams, QueryParams()]) -> Response:
        # An escaped slash belongs to the id. Slashes at the end do not, so that `/traces/recent/` is a trace.
        raw: bytes = request.scope.get("raw_path") or b""
        trace_id = trace_id[: len(trace_id) - (len(raw) - len(raw.rstrip(b"/")))] if raw.endswith(b"/") else trace_id
        if not trace_id:
            raise Rejected("trace ID required")
        shown_id = trace_id

        def read(spans: Store) -> Response:
            now_ns = store.now_ns()
            outline = _outline(spans, shown_id, "ended first", now_ns)
            page = page_of(outline.rows, "ended first", min(params.limit, MAX_SPANS), params.cursor)
            tellings, page = whole_spans(spans, page, "ended first", now_ns, attributes=params.attributes)
            if not params.attributes:
                outline = without_metadata(outline)
            if params.format == "mist":
                return reply(render_mist_trace(shown_id, outline, page, tellings))
            return reply(render_trace(shown_id, outline, page, tellings, now_ns))

        return await store.read(read)

    @routes.get("/stats", **GET_STATS)
    async def stats() -> Response:
        answer = await aggregators.query(Query(what="lifetime"))
        sums, cumulative = answer.total.sums, answer.cumulative
        by_operation = {
            name: OperationCounts(count, errors) for name, (count, errors) in sorted(cumulative.by_operation.items())
        }
        return reply(
            Stats(
                total_spans=sums.spans,
                error_count=sums.errors,
                error_rate=sums.errors / sums.spans if sums.spans else 0,
                latency_p50_ms=histogram_quantile_ms(cumulative.walls, cumulative.longest_ns, 0.50),
                latency_p99_ms=histogram_quantile_ms(cumulative.walls, cumulative.longest_ns, 0.99),
                latency_avg_ms=sums.wall / (sums.spans * MS) if sums.spans else 0,
                total_tokens_in=sums.prompt,
                total_tokens_out=sums.completion,
                total_cost_usd=nusd_to_usd(sums.cost),
                by_operation=by_operation or UNSET,
                folded=answer.folded or UNSET,
                **missing(answer),
            )
        )

    return routes


def _outline(store: Store, trace_id: str, order: Order, now_ns: int) -> Outline:
    """
    Return the outline of a trace.

    Raises:
        Rejected: There is no such trace.
        Unavailable: The store cannot be read.
    """
    outline = trace_outline(store, trace_id, order, now_ns)
    if not outline.rows:
        raise Rejected("trace not found", status=404)
    return outline
