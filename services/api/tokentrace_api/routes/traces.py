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
from tokentrace.http import reply
from tokentrace.lifetime import histogram_quantile_ms
from tokentrace.metric.query import Query
from tokentrace.records import Span, counts_as_cost
from tokentrace.units import MS, ms_to_ns, ns_to_ms, nusd_to_usd, render_instant, usd_to_nusd
from tokentrace_api.question import missing
from tokentrace_api.routes.parameters import Parameters, parameters, parse_count, parse_moment, parse_number
from tokentrace_api.store import Search, TraceRow

if TYPE_CHECKING:
    from tokentrace_api.service import Api

#: Parameter -> column.
_FILTERS = {
    "model": "model",
    "caller": "caller",
    "status": "status",
    "provider": "provider",
    "name": "name",
    "kind": "kind",
    "session": "session_id",
    "user": "user_id",
}
_SEARCHED = ("min_cost", "min_latency", "q", "since", "until")
_STATUSES = ("ok", "error", "timeout")
DEFAULT_LIMIT, MAX_LIMIT = 20, 200
RECENT_LIMIT, MAX_RECENT = 100, 10_000


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the span store."""

    async def listed(request: Request) -> Response:
        given = parameters(request, (*_FILTERS, *_SEARCHED, "limit", "offset"), prefix="attr.")
        limit = parse_count(given, "limit", DEFAULT_LIMIT, most=MAX_LIMIT)
        offset = parse_count(given, "offset", 0)
        if given.get("status", "ok") not in _STATUSES:
            raise Rejected(f"status: {shorten(given['status'])!r} is none of {', '.join(_STATUSES)}")
        search = parse_search(given)
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
        spans = await _spans_of(api, trace_id)
        if given.get("format") == "mist":
            return reply({"trace_id": trace_id, "spans": [mist.render_span(span) for span in spans]})
        return reply(render_trace(trace_id, spans))

    async def timeline(request: Request) -> Response:
        parameters(request, ())
        trace_id = request.path_params["trace_id"]
        spans = await _spans_of(api, trace_id)
        return reply(render_timeline(trace_id, spans))

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
        return reply(shown | missing(answer))

    return [
        Route("/traces", listed),
        Route("/traces/recent", recent),
        Route("/traces/{trace_id:path}/timeline", timeline),
        Route("/traces/{trace_id:path}", one),
        Route("/stats", stats),
    ]


async def _spans_of(api: Api, trace_id: str) -> list[Span]:
    spans = await api.read(lambda store: store.trace(trace_id, time.time_ns()))
    if not spans:
        raise Rejected("trace not found", status=404)
    return spans


def parse_search(given: Parameters) -> Search:
    """
    Which traces the parameters ask for.

    Raises:
        Rejected: Names the parameter.
    """
    least = {}
    for name, column, scale in (("min_cost", "cost_nusd", usd_to_nusd), ("min_latency", "latency_ns", ms_to_ns)):
        if name in given:
            least[column] = scale(parse_number(given, name))
    return Search(
        columns={column: given[name] for name, column in _FILTERS.items() if name in given},
        attributes={name.removeprefix("attr."): value for name, value in given.items() if name.startswith("attr.")},
        least=least,
        text=given.get("q", ""),
        since_ns=parse_moment(given, "since"),
        until_ns=parse_moment(given, "until"),
    )


def depths(spans: Sequence[Span]) -> dict[str, int]:
    """Span -> how many of its ancestors are in the trace; spans that are their own ancestors count from 0."""
    parents = {span.span_id: span.parent_span_id for span in spans}
    found: dict[str, int] = {}
    for own in parents:
        chain: list[str] = []
        at: str | None = own
        while at is not None and at in parents and at not in found and at not in chain:
            chain.append(at)
            at = parents[at]
        below = found[at] + 1 if at is not None and at in found else 0
        for offset, one in enumerate(reversed(chain)):
            found[one] = below + offset
    return found


def render_timeline(trace_id: str, spans: Sequence[Span]) -> dict[str, Any]:
    """A trace ready to be drawn: a row for each span, where it begins and how long it is, milliseconds."""
    begin, depth = min(span.started_ns for span in spans), depths(spans)
    return {
        "trace_id": trace_id,
        "started_at": render_instant(begin),
        "duration_ms": ns_to_ms(max(span.ended_ns for span in spans) - begin),
        "rows": [
            {
                "span_id": span.span_id,
                "parent_span_id": span.parent_span_id,
                "name": span.name,
                "kind": span.kind,
                "model": span.model or None,
                "status": span.status,
                "depth": depth[span.span_id],
                "start_ms": ns_to_ms(span.started_ns - begin),
                "duration_ms": ns_to_ms(max(span.ended_ns - span.started_ns, 0)),
                "cost_usd": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
            }
            for span in spans
        ],
    }


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
    shown, depth = [docs.render_span(span) for span in spans], depths(spans)
    for span in shown:
        del span["trace_id"]
        span["depth"] = depth[span["span_id"]]
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
