"""``/api/sessions``: what Cost Katana's clients ask of conversations (SPEC B.3)."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bad_data import reading
from tokentrace.dialect import costkatana
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Batch, ChatMessage, SessionEnd, Span, Started
from tokentrace.service.body import read_body
from tokentrace.service.web import reply
from tokentrace.units import ns_to_ms, nusd_to_usd, render_instant, usd_to_nusd
from tokentrace_api.parameters import Parameters, parameters, parse_count, parse_moment, parse_number
from tokentrace_api.reads import (
    Session,
    SessionFilter,
    depths,
    find_session,
    list_sessions,
    session_messages,
    session_spans,
    sum_sessions,
)
from tokentrace_api.routes.traces import pending_status

if TYPE_CHECKING:
    from tokentrace_api.service import Api

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_FILTERS = ("userId", "label", "status", "source", "from", "to", "minCost", "maxCost", "minSpans", "maxSpans")
_STATUSES = ("active", "completed", "error")
_MAX_BODY_BYTES = 64 * 1024


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the sessions."""

    async def listed(request: Request) -> Response:
        given = parameters(request, (*_FILTERS, "page", "limit"))
        page = max(parse_count(given, "page", 1), 1)
        limit = max(parse_count(given, "limit", DEFAULT_LIMIT, most=MAX_LIMIT), 1)
        wanted, now_ns = _wanted(given), time.time_ns()
        sessions, total = await api.read(lambda store: list_sessions(store, wanted, limit, (page - 1) * limit, now_ns))
        ids = [session.session_id for session in sessions]
        messages = await api.read(lambda store: session_messages(store, ids, now_ns))
        pages = math.ceil(total / limit)
        return reply(
            {
                "sessions": [_details(session, messages[session.session_id], now_ns) for session in sessions],
                "total": total,
                "page": page,
                "limit": limit,
                "pages": pages,
                "totalPages": pages,
            }
        )

    async def summary(request: Request) -> Response:
        given = parameters(request, ("from", "to"))
        since_ns, until_ns = parse_moment(given, "from"), parse_moment(given, "to")
        sums = await api.read(lambda store: sum_sessions(store, since_ns, until_ns, time.time_ns()))
        mean_ms = ns_to_ms(sums.duration_ns)
        return reply(
            {
                "totalSessions": sums.sessions,
                "activeSessions": sums.active,
                "completedSessions": sums.completed,
                "errorSessions": sums.errors,
                "totalCost": nusd_to_usd(sums.cost_nusd),
                "totalTokens": {"input": sums.prompt_tokens, "output": sums.completion_tokens},
                "avgDuration": mean_ms,
                "averageDuration": mean_ms,
                "errorRate": sums.errors / sums.sessions if sums.sessions else 0,
            }
        )

    async def graph(request: Request) -> Response:
        parameters(request, ())
        session_id, now_ns = request.path_params["session_id"], time.time_ns()
        await _found(api, session_id)
        spans, open_ = await api.read(lambda store: session_spans(store, session_id, now_ns))
        return reply(render_graph(spans, open_, now_ns))

    async def details(request: Request) -> Response:
        parameters(request, ())
        session = await _found(api, request.path_params["session_id"])
        return reply(await _with_messages(api, session))

    async def end(request: Request) -> Response:
        parameters(request, ())
        session_id = request.path_params["session_id"]
        error = _end_error(await read_body(request, _MAX_BODY_BYTES))
        session = await _found(api, session_id)
        if session.ended_ns is None:
            over = SessionEnd(session_id=session_id, ended_ns=time.time_ns(), error=error)
            now_ns = over.ended_ns
            await api.publish(Batch(id=f"session.{uuid.uuid4().hex}", arrived_ns=now_ns, session_ends=[over]))
            session = await _found(api, session_id)
        return reply(await _with_messages(api, session))

    return [
        Route("/api/sessions", listed),
        Route("/api/sessions/summary", summary),
        Route("/api/sessions/{session_id:path}/graph", graph),
        Route("/api/sessions/{session_id:path}/details", details),
        Route("/api/sessions/{session_id:path}/end", end, methods=["POST"]),
    ]


class _End(msgspec.Struct, kw_only=True):
    error: dict[str, Any] | str | None = None


def _end_error(body: bytes) -> str:
    """What a session ended with, in the body of its end; an empty body says that all went well."""
    if not body.strip():
        return ""
    with reading("body"):
        error = msgspec.json.decode(body, type=_End).error
    text = error.get("message", "") if isinstance(error, dict) else error or ""
    if not isinstance(text, str) or len(text) > 4096:
        raise Rejected("error: is not text of at most 4096 characters")
    return text


async def _found(api: Api, session_id: str) -> Session:
    found = await api.find(lambda store: find_session(store, session_id, time.time_ns()))
    if not found:
        raise Rejected(f"Session {shorten(session_id)} not found", status=404)
    return found[0]


async def _with_messages(api: Api, session: Session) -> dict[str, Any]:
    now_ns = time.time_ns()
    messages = await api.read(lambda store: session_messages(store, [session.session_id], now_ns))
    return _details(session, messages[session.session_id], now_ns)


def _wanted(given: Parameters) -> SessionFilter:
    if "status" in given and given["status"] not in _STATUSES:
        raise Rejected(f"status: {shorten(given['status'])!r} is none of {', '.join(_STATUSES)}")
    money = {name: usd_to_nusd(parse_number(given, name)) for name in ("minCost", "maxCost") if name in given}
    counts = {name: parse_count(given, name, 0) for name in ("minSpans", "maxSpans") if name in given}
    return SessionFilter(
        user_id=given.get("userId", ""),
        label=given.get("label", ""),
        status=given.get("status", ""),
        source=given.get("source", ""),
        since_ns=parse_moment(given, "from"),
        until_ns=parse_moment(given, "to"),
        min_cost_nusd=money.get("minCost"),
        max_cost_nusd=money.get("maxCost"),
        min_spans=counts.get("minSpans"),
        max_spans=counts.get("maxSpans"),
    )


def _details(session: Session, messages: Sequence[ChatMessage], now_ns: int) -> dict[str, Any]:
    """``SessionDetails`` of the SDK, and beside it what the backend calls the same."""
    until_ns = session.ended_ns or session.last_ns or session.started_ns
    duration_ms = ns_to_ms(max(until_ns - session.started_ns, 0))
    cost = nusd_to_usd(session.cost_nusd)
    tokens = {"input": session.prompt_tokens, "output": session.completion_tokens}
    shown: dict[str, Any] = {
        "sessionId": session.session_id,
        "status": session.status,
        "totalSpans": session.spans,
        "openSpans": session.open,
        "totalCostUSD": cost,
        "totalInputTokens": session.prompt_tokens,
        "totalOutputTokens": session.completion_tokens,
        "startedAt": render_instant(session.started_ns),
        "duration": duration_ms,
        "source": session.source,
        "hasErrors": session.errors > 0 or session.status == "error",
        "errorCount": session.errors,
        "summary": {
            "totalSpans": session.spans,
            "totalDuration": duration_ms,
            "totalCost": cost,
            "totalTokens": tokens,
        },
        "messages": [costkatana.render_message(message) for message in messages],
    }
    optional = {"userId": session.user_id, "label": session.label}
    shown |= {name: value for name, value in optional.items() if value}
    if session.ended_ns is not None:
        shown["endedAt"] = render_instant(session.ended_ns)
    if session.error:
        shown["error"] = {"message": session.error}
    return shown


def render_graph(spans: Sequence[Span], open_: Sequence[Started], now_ns: int) -> dict[str, Any]:
    """Nodes by start, and an edge for every one that names a parent, whether that is known or not."""
    depth = depths([*spans, *open_])
    dated: list[tuple[int, dict[str, Any]]] = [
        (span.started_ns, costkatana.render_node(span, depth[span.trace_id, span.span_id])) for span in spans
    ]
    for one in open_:
        node = costkatana.render_open(one, depth[one.trace_id, one.span_id], pending_status(one, now_ns))
        dated.append((one.started_ns, node))
    nodes = [node for _, node in sorted(dated, key=lambda item: item[0])]
    edges = [{"from": node["parentId"], "to": node["id"]} for node in nodes if "parentId" in node]
    return {"nodes": nodes, "edges": edges}
