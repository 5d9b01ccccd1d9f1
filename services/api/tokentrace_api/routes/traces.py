"""``GET /traces``, ``/traces/recent``, ``/traces/{id}`` and ``/stats``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import docs, mist
from tokentrace.errors import Rejected, shorten
from tokentrace.http import reply
from tokentrace.lifetime import histogram_quantile_ms
from tokentrace.metric.query import Query
from tokentrace.records import Span, counts_as_cost
from tokentrace.units import MS, nusd_to_usd, render_instant
from tokentrace_api.routes.parameters import parameters, parse_count, parse_moment
from tokentrace_api.store import Search, TraceRow

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_FILTERS = ("model", "caller", "status", "provider", "name", "kind")
_STATUSES = ("ok", "error", "timeout")
DEFAULT_LIMIT, MAX_LIMIT = 20, 200
RECENT_LIMIT, MAX_RECENT = 100, 10_000


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the span store."""

    async def listed(request: Request) -> Response:
        given = parameters(request, (*_FILTERS, "since", "until", "limit", "offset"), prefix="attr.")
        limit = parse_count(given, "limit", DEFAULT_LIMIT, most=MAX_LIMIT)
        offset = parse_count(given, "offset", 0)
        if given.get("status", "ok") not in _STATUSES:
            raise Rejected(f"status: {shorten(given['status'])!r} is none of {', '.join(_STATUSES)}")
        search = Search(
            columns={name: given[name] for name in _FILTERS if name in given},
            attributes={name.removeprefix("attr."): value for name, value in given.items() if name.startswith("attr.")},
            since_ns=parse_moment(given, "since"),
            until_ns=parse_moment(given, "until"),
        )
        rows, total = await api.read(lambda store: store.traces(search, limit, offset, time.time_ns()))
        return reply(
            {
                "traces": [render_row(row) for row in rows],
                "trace_ids": [row.trace_id for row in rows],
                "count": len(rows),
                "total": total,
                "limit": limit,
                "offset": offset,
            }
        )

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
        spans = await api.read(lambda store: store.trace(trace_id, time.time_ns()))
        if not spans:
            raise Rejected("trace not found", status=404)
        if given.get("format") == "mist":
            return reply({"trace_id": trace_id, "spans": [mist.render_span(span) for span in spans]})
        return reply(render_trace(trace_id, spans))

    async def stats(request: Request) -> Response:
        parameters(request, ())
        answer = await api.aggregators.ask(Query(what="lifetime"))
        sums = answer.total.sums
        shown: dict[str, Any] = {
            "total_spans": sums.spans,
            "error_count": sums.errors,
            "error_rate": sums.errors / sums.spans if sums.spans else 0,
            "latency_p50_ms": histogram_quantile_ms(answer.lived.walls, answer.lived.longest_ns, 0.50),
            "latency_p99_ms": histogram_quantile_ms(answer.lived.walls, answer.lived.longest_ns, 0.99),
            "latency_avg_ms": sums.wall / sums.spans / MS if sums.spans else 0,
            "total_tokens_in": sums.prompt,
            "total_tokens_out": sums.completion,
            "total_cost_usd": nusd_to_usd(sums.cost),
        }
        if answer.lived.by_operation:
            shown["by_operation"] = {
                name: {"count": count, "errors": errors}
                for name, (count, errors) in sorted(answer.lived.by_operation.items())
            }
        if answer.missing_shards:
            shown["incomplete"], shown["missing_shards"] = True, answer.missing_shards
        return reply(shown)

    return [
        Route("/traces", listed),
        Route("/traces/recent", recent),
        Route("/traces/{trace_id:path}", one),
        Route("/stats", stats),
    ]


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


def render_trace(trace_id: str, spans: list[Span]) -> dict[str, Any]:
    """A trace in the documents' form: sums, then every span."""
    root = next((span for span in spans if span.parent_span_id is None), spans[0])
    cost = sum(span.cost_nusd or 0 for span in spans if counts_as_cost(span.kind))
    shown = [docs.render_span(span) for span in spans]
    for span in shown:
        del span["trace_id"]
    return {
        "trace_id": trace_id,
        "name": root.name,
        "started_at": render_instant(min(span.started_ns for span in spans)),
        "ended_at": render_instant(max(span.ended_ns for span in spans)),
        "total_cost_usd": nusd_to_usd(cost),
        "total_tokens": sum(span.total_tokens for span in spans),
        "span_count": len(spans),
        "spans": shown,
    }
