"""``GET /traces``, ``/traces/recent``, ``/traces/{id}``, its timeline and its spans, and ``/stats``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import Path as PathName
from fastapi import Query as QueryParams
from msgspec import UNSET
from pydantic import ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.dialect import mist
from tokentrace.errors import Rejected, shorten
from tokentrace.metrics import Query
from tokentrace.rollup import histogram_quantile_ms
from tokentrace.service.contract import Params, Router, each_parsed, parsed
from tokentrace.service.web import reply
from tokentrace.units import MS, nusd_to_usd, render_instant
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_query import missing
from tokentrace_api.parameters import Count, Flag, OptionalCount, Text, choice
from tokentrace_api.reads import (
    RANKS,
    Cursor,
    Order,
    Outline,
    RankCursor,
    attributes_of,
    encode_cursor,
    encode_rank_cursor,
    find_page,
    find_ranked,
    find_started,
    find_telling,
    page_of,
    parse_cursor,
    parse_rank_cursor,
    trace_outline,
    whole_spans,
    without_metadata,
)
from tokentrace_api.routes.searching import StoredSearchParams
from tokentrace_api.routes.shown_spans import render_telling
from tokentrace_api.routes.shown_timeline import Shown
from tokentrace_api.routes.shown_traces import (
    render_mist_trace,
    render_open,
    render_row,
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
#: The most attributes that the rows of a list show.
MAX_ATTRIBUTES = 10
#: The most spans that a timeline in columns shows at once.
MAX_COLUMNS = 20_000
RECENT_LIMIT, MAX_RECENT = 100, 10_000

_ESCAPES = "`/` and other characters escaped, `.` and `..` as `%252E` and `%252E%252E`, because clients remove them."
TraceId = Annotated[str, PathName(description=f"Id of the trace; {_ESCAPES}", examples=["t1"])]
SpanId = Annotated[str, PathName(description=f"Id of the span; {_ESCAPES}", examples=["s1"])]
_Cursor = Annotated[Cursor | RankCursor | None, parsed(lambda text: _cursor(text)), WithJsonSchema({"type": "string"})]
_Keys = Annotated[
    tuple[str, ...],
    each_parsed(lambda text: text),
    WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_ATTRIBUTES}),
]
_ListOrder: Any = choice(("started", *RANKS))
_TimelineFormat: Any = choice(("rows", "columns"), "neither rows nor columns")
_Format: Any = choice(("docs", "mist"), "neither docs nor mist")


def _cursor(text: str) -> Cursor | RankCursor:
    try:
        return parse_rank_cursor(text) or parse_cursor(text)
    except Rejected as exc:
        raise Rejected(str(exc).removeprefix("cursor: ")) from exc


def _recent_limit(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        return RECENT_LIMIT
    digits = text.lstrip("0")
    return MAX_RECENT if len(digits) > len(str(MAX_RECENT)) else min(int(digits or RECENT_LIMIT), MAX_RECENT)


class TraceListParams(StoredSearchParams):
    """Which traces are listed, in which order, and which page of them."""

    repeated: ClassVar[frozenset[str]] = StoredSearchParams.repeated | {"attribute"}

    order: _ListOrder = Field(
        "started",
        description="Newest start first, or the largest `cost`, `duration` or number of `tokens` first; an unknown "
        "cost is the last.",
    )
    attribute: _Keys = Field(
        (),
        description=f"Key of an attribute that each row shows; may be given up to {MAX_ATTRIBUTES} times.",
        examples=[["team"]],
    )
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
    """In which form a trace is shown as a timeline, and which part of it."""

    format: _TimelineFormat = Field("rows", description="`rows`: an object for each span; or `columns`.")
    below: Text = Field(None, description="Only the spans below this span.", examples=["s1"])
    limit: OptionalCount = Field(
        None,
        description=f"Spans on a page: {DEFAULT_SPANS} rows unless given, over {MAX_SPANS} counts as {MAX_SPANS}; or "
        f"{MAX_COLUMNS} in columns, over that counts as {MAX_COLUMNS}.",
        examples=[500],
    )
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
        now_ns = store.now_ns()
        limit, search, cursor = min(params.limit, MAX_LIMIT), params.search_at(now_ns), params.cursor
        if cursor is not None and params.order != (cursor.rank if isinstance(cursor, RankCursor) else "started"):
            raise Rejected("cursor: is that of a list in another order")
        keys = tuple(dict.fromkeys(params.attribute))
        if len(keys) > MAX_ATTRIBUTES or "" in keys:
            raise Rejected(f"attribute: is {'empty' if '' in keys else f'given over {MAX_ATTRIBUTES} times'}")

        def read(spans: Store) -> Response:
            if params.order == "started":
                earlier = None if isinstance(cursor, RankCursor) else cursor
                page = find_page(spans, search, limit, params.offset, earlier, now_ns)
                following = None if page.next is None else encode_cursor(page.next)
                rows, total, until_ns = page.rows, page.total, page.searched_until_ns
            else:
                larger = cursor if isinstance(cursor, RankCursor) else None
                ranked = find_ranked(spans, search, params.order, limit, params.offset, larger, now_ns)
                following = None if ranked.next is None else encode_rank_cursor(ranked.next)
                rows, total, until_ns = ranked.rows, ranked.total, ranked.searched_until_ns
            shown = attributes_of(spans, [row.trace_id for row in rows], keys, now_ns)
            return reply(
                TracePage(
                    traces=[render_row(row, shown[row.trace_id]) for row in rows],
                    trace_ids=[row.trace_id for row in rows],
                    count=len(rows),
                    total=total,
                    limit=limit,
                    offset=params.offset,
                    next_cursor=following,
                    searched_until=UNSET if until_ns is None else render_instant(until_ns),
                )
            )

        return await store.read(read)

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
            try:
                shown = Shown(trace_id, outline, params.below, now_ns)
            except KeyError as exc:
                raise Rejected(f"below: span {shorten(params.below or '')} not found", status=404) from exc
            if params.format == "columns":
                limit = MAX_COLUMNS if params.limit is None else min(params.limit, MAX_COLUMNS)
                return reply(shown.as_columns(limit, MAX_COLUMNS, params.cursor))
            limit = DEFAULT_SPANS if params.limit is None else min(params.limit, MAX_SPANS)
            return reply(shown.as_rows(limit, params.cursor))

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
