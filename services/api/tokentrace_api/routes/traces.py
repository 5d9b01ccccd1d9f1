"""``GET /traces``, ``/traces/recent``, ``/traces/{id}``, its timeline, and ``/stats``."""

from __future__ import annotations

from collections.abc import Sequence
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
from tokentrace.records import Span, Started
from tokentrace.rollup import histogram_quantile_ms
from tokentrace.service.contract import Params, Router, parsed
from tokentrace.service.web import reply
from tokentrace.units import DAY, MS, ns_to_ms, nusd_to_usd, render_instant
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_query import missing
from tokentrace_api.parameters import Count, choice
from tokentrace_api.reads import (
    Cursor,
    TraceRow,
    depths,
    encode_cursor,
    find_page,
    open_spans,
    parse_cursor,
    sums_of,
    with_later_versions,
)
from tokentrace_api.routes.searching import SearchParams
from tokentrace_api.routes.shown_spans import render_telling, sum_fields
from tokentrace_api.routes.traces_operations import (
    GET_STATS,
    GET_TIMELINE,
    GET_TRACE,
    LIST_RECENT,
    LIST_TRACES,
    ListedTrace,
    OperationCounts,
    Stats,
    Timeline,
    TimelineRow,
    TracePage,
)
from tokentrace_api.store import Store, Telling

DEFAULT_LIMIT, MAX_LIMIT = 20, 200
RECENT_LIMIT, MAX_RECENT = 100, 10_000
#: An open span that started longer ago than this is abandoned, nanoseconds.
ABANDONED_NS = DAY

TraceId = Annotated[str, PathName(description="Id of the trace; `/` and other characters escaped.", examples=["t1"])]
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


class TraceParams(Params):
    """The form in which a trace is shown."""

    format: _Format = Field("docs", description="`docs`, or `mist` for MIST's names and nanoseconds.")


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
        spans = await store.read(lambda spans: spans.recent(params.limit, store.now_ns()))
        return reply({"spans": [mist.render_span(span) for span in spans], "count": len(spans)})

    @routes.get("/traces/{trace_id:path}/timeline", **GET_TIMELINE)
    async def timeline(trace_id: TraceId) -> Response:
        tellings, pending = await _spans_of(store, trace_id)
        return reply(render_timeline(trace_id, [telling.span for telling in tellings], pending, store.now_ns()))

    @routes.get("/traces/{trace_id:path}", **GET_TRACE)
    async def trace(request: Request, trace_id: TraceId, params: Annotated[TraceParams, QueryParams()]) -> Response:
        # An escaped slash belongs to the id. Slashes at the end do not, so that `/traces/recent/` is a trace.
        raw: bytes = request.scope.get("raw_path") or b""
        trace_id = trace_id[: len(trace_id) - (len(raw) - len(raw.rstrip(b"/")))] if raw.endswith(b"/") else trace_id
        if not trace_id:
            raise Rejected("trace ID required")
        spans, pending = await _spans_of(store, trace_id)
        if params.format == "mist":
            shown = [mist.render_span(span) for span, *_ in spans] + [_mist_pending(started) for started in pending]
            return reply({"trace_id": trace_id, "spans": shown})
        return reply(render_trace(trace_id, spans, pending, store.now_ns()))

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


async def _spans_of(store: StoreReader, trace_id: str) -> tuple[list[Telling], list[Started]]:
    """
    Return (a telling of each ended span, open spans) of a trace.

    Raises:
        Rejected: There is no such trace.
        Unavailable: The store cannot be read.
    """
    now_ns = store.now_ns()

    def read(store: Store) -> tuple[list[Telling], list[Started]]:
        # Open spans are read first: a span that ends between the two reads is then in both, not in neither.
        pending = open_spans(store, "trace_id", trace_id, now_ns)
        spans = with_later_versions(store, store.tellings(trace_id, now_ns), now_ns)
        ended = {span.span_id for span, *_ in spans}
        return spans, [started for started in pending if started.span_id not in ended]

    spans, pending = await store.read(read)
    if not spans and not pending:
        raise Rejected("trace not found", status=404)
    return spans, pending


def render_timeline(trace_id: str, spans: Sequence[Span], pending: Sequence[Started] = (), now_ns: int = 0) -> Timeline:
    """Return a trace as a timeline: a row for each span, with times in milliseconds since the start of the trace."""
    every: list[Span | Started] = [*spans, *pending]
    begin, depth = min(span.started_ns for span in every), depths(every)
    ends = [span.ended_ns for span in spans] or [begin]

    def row(
        span: Span | Started, status: Any, *, model: str | None, duration_ms: float | None, cost_usd: float | None
    ) -> TimelineRow:
        return TimelineRow(
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            name=span.name,
            kind=span.kind,
            depth=depth[span.trace_id, span.span_id],
            start_ms=ns_to_ms(span.started_ns - begin),
            model=model,
            status=status,
            duration_ms=duration_ms,
            cost_usd=cost_usd,
        )

    rows = [
        row(
            span,
            span.status,
            model=span.model or None,
            duration_ms=ns_to_ms(max(span.ended_ns - span.started_ns, 0)),
            cost_usd=None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        )
        for span in spans
    ]
    rows += [
        row(started, pending_status(started, now_ns), model=None, duration_ms=None, cost_usd=None)
        for started in pending
    ]
    return Timeline(
        trace_id=trace_id,
        started_at=render_instant(begin),
        duration_ms=ns_to_ms(max(ends) - begin),
        rows=sorted(rows, key=lambda row: row.start_ms),
    )


def pending_status(started: Started, now_ns: int) -> str:
    """Return the status of an open span: pending, or abandoned a day after its start."""
    return "abandoned" if started.started_ns < now_ns - ABANDONED_NS else "pending"


def render_row(row: TraceRow) -> ListedTrace:
    """Return *row* as the list of traces shows it."""
    return ListedTrace(
        trace_id=row.trace_id,
        name=row.name,
        started_at=render_instant(row.started_ns),
        ended_at=render_instant(row.ended_ns),
        status=row.status,
        **sum_fields(row.sums),
    )


def render_trace(
    trace_id: str, tellings: Sequence[Telling], pending: Sequence[Started] = (), now_ns: int = 0
) -> dict[str, Any]:
    """Return a trace as the struct ``Trace`` describes it."""
    spans = [telling.span for telling in tellings]
    every: list[Span | Started] = [*spans, *pending]
    root = next((span for span in every if span.parent_span_id is None), every[0])
    depth = depths(every)
    shown = [render_telling(telling) | {"depth": depth[telling.key]} for telling in tellings]
    for span in shown:
        del span["trace_id"]
    shown += [
        _docs_pending(started, now_ns) | {"depth": depth[started.trace_id, started.span_id]} for started in pending
    ]
    return {
        "trace_id": trace_id,
        "name": root.name,
        "started_at": render_instant(min(span.started_ns for span in every)),
        "ended_at": render_instant(max(span.ended_ns for span in spans)) if spans else None,
        **sum_fields(sums_of(tellings)),
        "spans": shown,
    }


def _docs_pending(started: Started, now_ns: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "span_id": started.span_id,
        "parent_span_id": started.parent_span_id,
        "name": started.name,
        "kind": started.kind,
        "status": pending_status(started, now_ns),
        "started_at": render_instant(started.started_ns),
        "ended_at": None,
    }
    optional = {
        "caller": started.caller,
        "session_id": started.session_id,
        "user_id": started.user_id,
        "attributes": started.metadata,
    }
    return shown | {name: value for name, value in optional.items() if value}


def _mist_pending(started: Started) -> dict[str, Any]:
    """Return an open span in MIST's form; its ``end_ns`` is 0."""
    shown = {
        "trace_id": started.trace_id,
        "span_id": started.span_id,
        "parent_id": started.parent_span_id,
        "operation": started.name,
        "start_ns": started.started_ns,
        "end_ns": 0,
        "status": "",
        "attrs": started.metadata,
    }
    return {key: value for key, value in shown.items() if value or key not in ("parent_id", "attrs")}
