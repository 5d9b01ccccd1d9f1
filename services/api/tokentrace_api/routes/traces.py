"""``GET /traces``, ``/traces/recent``, ``/traces/{id}`` and ``/stats``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import docs, mist
from tokentrace.errors import Rejected, shorten
from tokentrace.metrics import Query
from tokentrace.records import Span, Started, counts_as_cost
from tokentrace.rollup import histogram_quantile_ms
from tokentrace.service.web import reply
from tokentrace.units import DAY, MS, ns_to_ms, nusd_to_usd, render_instant
from tokentrace_api.metrics_query import missing
from tokentrace_api.parameters import parameters, parse_count
from tokentrace_api.reads import TraceRow, depths, encode_cursor, find_page, open_spans, parse_cursor
from tokentrace_api.routes.searching import SEARCHED, parse_search
from tokentrace_api.store import Store

if TYPE_CHECKING:
    from tokentrace_api.service import Api

DEFAULT_LIMIT, MAX_LIMIT = 20, 200
RECENT_LIMIT, MAX_RECENT = 100, 10_000
#: A span that has not ended by then never will.
ABANDONED_NS = DAY


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the span store."""

    async def listed(request: Request) -> Response:
        given = parameters(request, (*SEARCHED, "limit", "offset", "cursor"), prefix="attr.")
        limit = parse_count(given, "limit", DEFAULT_LIMIT, most=MAX_LIMIT)
        offset = parse_count(given, "offset", 0)
        search = parse_search(given)
        cursor = parse_cursor(given["cursor"]) if "cursor" in given else None
        page = await api.read(lambda store: find_page(store, search, limit, offset, cursor, time.time_ns()))
        shown: dict[str, Any] = {
            "traces": [render_row(row) for row in page.rows],
            "trace_ids": [row.trace_id for row in page.rows],
            "count": len(page.rows),
            "total": page.total,
            "limit": limit,
            "offset": offset,
            "next_cursor": None if page.next is None else encode_cursor(page.next),
        }
        if page.searched_until_ns is not None:
            shown["searched_until"] = render_instant(page.searched_until_ns)
        return reply(shown)

    async def recent(request: Request) -> Response:
        text = request.query_params.get("limit", "")
        limit = min(int(text), MAX_RECENT) if text.isascii() and text.isdigit() and 0 < len(text) < 10 else 0
        spans = await api.read(lambda store: store.recent(limit or RECENT_LIMIT, time.time_ns()))
        return reply({"spans": [mist.render_span(span) for span in spans], "count": len(spans)})

    async def one(request: Request) -> Response:
        trace_id = request.path_params["trace_id"].rstrip("/")
        if not trace_id:
            raise Rejected("trace ID required")
        given = parameters(request, ("format",))
        if given.get("format", "docs") not in ("docs", "mist"):
            raise Rejected(f"format: {shorten(given['format'])!r} is neither docs nor mist")
        spans, pending = await _spans_of(api, trace_id)
        if given.get("format") == "mist":
            shown = [mist.render_span(span) for span in spans] + [_mist_pending(one) for one in pending]
            return reply({"trace_id": trace_id, "spans": shown})
        return reply(render_trace(trace_id, spans, pending, time.time_ns()))

    async def timeline(request: Request) -> Response:
        parameters(request, ())
        trace_id = request.path_params["trace_id"]
        spans, pending = await _spans_of(api, trace_id)
        return reply(render_timeline(trace_id, spans, pending, time.time_ns()))

    async def stats(request: Request) -> Response:
        parameters(request, ())
        answer = await api.aggregators.query(Query(what="lifetime"))
        sums = answer.total.sums
        shown: dict[str, Any] = {
            "total_spans": sums.spans,
            "error_count": sums.errors,
            "error_rate": sums.errors / sums.spans if sums.spans else 0,
            "latency_p50_ms": histogram_quantile_ms(answer.cumulative.walls, answer.cumulative.longest_ns, 0.50),
            "latency_p99_ms": histogram_quantile_ms(answer.cumulative.walls, answer.cumulative.longest_ns, 0.99),
            "latency_avg_ms": sums.wall / (sums.spans * MS) if sums.spans else 0,
            "total_tokens_in": sums.prompt,
            "total_tokens_out": sums.completion,
            "total_cost_usd": nusd_to_usd(sums.cost),
        }
        if answer.cumulative.by_operation:
            shown["by_operation"] = {
                name: {"count": count, "errors": errors}
                for name, (count, errors) in sorted(answer.cumulative.by_operation.items())
            }
        return reply(shown | missing(answer))

    return [
        Route("/traces", listed),
        Route("/traces/recent", recent),
        Route("/traces/{trace_id:path}/timeline", timeline),
        Route("/traces/{trace_id:path}", one),
        Route("/stats", stats),
    ]


async def _spans_of(api: Api, trace_id: str) -> tuple[list[Span], list[Started]]:
    """(Those that have ended, those that have not)."""
    now_ns = time.time_ns()

    def read(store: Store) -> tuple[list[Span], list[Started]]:
        # In this order, so that a span that ends meanwhile is not missed; of both it is the end that is shown.
        pending = open_spans(store, "trace_id", trace_id, now_ns)
        spans = store.trace(trace_id, now_ns)
        ended = {span.span_id for span in spans}
        return spans, [one for one in pending if one.span_id not in ended]

    spans, pending = await api.read(read)
    if not spans and not pending:
        raise Rejected("trace not found", status=404)
    return spans, pending


def render_timeline(
    trace_id: str, spans: Sequence[Span], pending: Sequence[Started] = (), now_ns: int = 0
) -> dict[str, Any]:
    """A trace ready to be drawn: a row for each span, where it begins and how long it is, milliseconds."""
    every: list[Span | Started] = [*spans, *pending]
    begin, depth = min(one.started_ns for one in every), depths(every)
    ends = [span.ended_ns for span in spans] or [begin]

    def row(one: Span | Started) -> dict[str, Any]:
        return {
            "span_id": one.span_id,
            "parent_span_id": one.parent_span_id,
            "name": one.name,
            "kind": one.kind,
            "depth": depth[one.trace_id, one.span_id],
            "start_ms": ns_to_ms(one.started_ns - begin),
        }

    rows = [
        row(span)
        | {
            "model": span.model or None,
            "status": span.status,
            "duration_ms": ns_to_ms(max(span.ended_ns - span.started_ns, 0)),
            "cost_usd": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        }
        for span in spans
    ]
    rows += [
        row(one) | {"model": None, "status": pending_status(one, now_ns), "duration_ms": None, "cost_usd": None}
        for one in pending
    ]
    return {
        "trace_id": trace_id,
        "started_at": render_instant(begin),
        "duration_ms": ns_to_ms(max(ends) - begin),
        "rows": sorted(rows, key=lambda row: row["start_ms"]),
    }


def pending_status(one: Started, now_ns: int) -> str:
    """What a span that has not ended is called: after a day nobody waits for it any more."""
    return "abandoned" if one.started_ns < now_ns - ABANDONED_NS else "pending"


def render_row(row: TraceRow) -> dict[str, Any]:
    """A line of the list of traces."""
    return {
        "trace_id": row.trace_id,
        "name": row.name,
        "started_at": render_instant(row.started_ns),
        "ended_at": render_instant(row.ended_ns),
        "total_cost_usd": nusd_to_usd(row.cost_nusd),
        "total_tokens": row.total_tokens,
        "span_count": row.span_count,
        "status": row.status,
    }


def render_trace(
    trace_id: str, spans: Sequence[Span], pending: Sequence[Started] = (), now_ns: int = 0
) -> dict[str, Any]:
    """A trace in the documents' form: sums over what has ended, then every span."""
    every: list[Span | Started] = [*spans, *pending]
    root = next((one for one in every if one.parent_span_id is None), every[0])
    cost = sum(span.cost_nusd or 0 for span in spans if counts_as_cost(span.kind))
    depth = depths(every)
    shown = [docs.render_span(span) | {"depth": depth[span.trace_id, span.span_id]} for span in spans]
    for span in shown:
        del span["trace_id"]
    shown += [_docs_pending(one, now_ns) | {"depth": depth[one.trace_id, one.span_id]} for one in pending]
    return {
        "trace_id": trace_id,
        "name": root.name,
        "started_at": render_instant(min(one.started_ns for one in every)),
        "ended_at": render_instant(max(span.ended_ns for span in spans)) if spans else None,
        "total_cost_usd": nusd_to_usd(cost),
        "total_tokens": sum(span.total_tokens for span in spans),
        "span_count": len(spans),
        "spans": shown,
    }


def _docs_pending(one: Started, now_ns: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "span_id": one.span_id,
        "parent_span_id": one.parent_span_id,
        "name": one.name,
        "kind": one.kind,
        "status": pending_status(one, now_ns),
        "started_at": render_instant(one.started_ns),
        "ended_at": None,
    }
    optional = {
        "caller": one.caller,
        "session_id": one.session_id,
        "user_id": one.user_id,
        "attributes": one.metadata,
    }
    return shown | {name: value for name, value in optional.items() if value}


def _mist_pending(one: Started) -> dict[str, Any]:
    """As MIST writes a span that has not ended: end_ns is 0."""
    shown = {
        "trace_id": one.trace_id,
        "span_id": one.span_id,
        "parent_id": one.parent_span_id,
        "operation": one.name,
        "start_ns": one.started_ns,
        "end_ns": 0,
        "status": "",
        "attrs": one.metadata,
    }
    return {key: value for key, value in shown.items() if value or key not in ("parent_id", "attrs")}
