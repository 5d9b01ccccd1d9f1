"""``/api/sessions``: sessions, in the form that Cost Katana's clients use."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import Path as PathName
from fastapi import Query as QueryParams
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bad_data import reading
from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Session
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Batch, SessionEnd
from tokentrace.service.body import read_body
from tokentrace.service.contract import Params, Router
from tokentrace.service.web import reply
from tokentrace.units import ns_to_ms
from tokentrace_api.interfaces import Publisher, StoreReader
from tokentrace_api.parameters import Count, Flag
from tokentrace_api.reads import (
    Outline,
    SpanPage,
    count_messages,
    depths,
    find_session,
    first_failures,
    list_sessions,
    page_of,
    session_messages,
    session_outline,
    sum_sessions,
    whole_spans,
    without_metadata,
)
from tokentrace_api.routes.sessions_operations import (
    END_SESSION,
    GET_DETAILS,
    GET_GRAPH,
    GET_SUMMARY,
    LIST_SESSIONS,
    SessionEndInput,
    SessionSummary,
    TokenSums,
)
from tokentrace_api.routes.sessions_parameters import MAX_LIMIT, SessionFilterParams, SessionPageParams
from tokentrace_api.routes.shown_spans import telling_marks, usd
from tokentrace_api.routes.shown_traces import next_page, pending_status
from tokentrace_api.routes.span_pages import StartCursor
from tokentrace_api.store import Store, Telling

#: The most nodes of a graph and messages of a session in one answer.
MAX_NODES, MAX_MESSAGES = 5000, 1000
_MAX_BODY_BYTES = 64 * 1024
SessionId = Annotated[
    str, PathName(description="Id of the session, escaped; `.` and `..` as `%252E` and `%252E%252E`.", examples=["s1"])
]


class GraphParams(Params):
    """Which page of a session's spans is shown, and in which form."""

    limit: Count = Field(MAX_NODES, description=f"Nodes on a page; over {MAX_NODES} counts as {MAX_NODES}.")
    cursor: StartCursor = Field(None, description="Cursor of the page: `nextCursor` of the previous page.")
    metadata: Flag = Field(True, description="`false` leaves out metadata, resource ids and stack traces.")


class DetailsParams(Params):
    """Which messages of a session are shown."""

    limit: Count = Field(MAX_MESSAGES, description=f"Messages on a page; over {MAX_MESSAGES} counts as {MAX_MESSAGES}.")
    offset: Count = Field(0, description="Number of messages to skip.")


def router(store: StoreReader, publisher: Publisher) -> Router:
    """Return the routes of sessions; *publisher* publishes their ends."""
    routes = Router("sessions")

    @routes.get("/api/sessions", **LIST_SESSIONS)
    async def listed(params: Annotated[SessionPageParams, QueryParams()]) -> Response:
        page, limit = max(params.page, 1), min(max(params.limit, 1), MAX_LIMIT)
        wanted, now_ns = params.wanted(), store.now_ns()

        def read(spans: Store) -> Response:
            sessions, total = list_sessions(spans, wanted, limit, (page - 1) * limit, now_ns, params.order)
            counts = count_messages(spans, [session.session_id for session in sessions], now_ns)
            pages = math.ceil(total / limit)
            return reply(
                {
                    "sessions": [
                        costkatana.render_session(session, [], counts[session.session_id]) for session in sessions
                    ],
                    "total": total,
                    "page": page,
                    "limit": limit,
                    "pages": pages,
                    "totalPages": pages,
                }
            )

        return await store.read(read)

    @routes.get("/api/sessions/summary", **GET_SUMMARY)
    async def summary(params: Annotated[SessionFilterParams, QueryParams()]) -> Response:
        sums = await store.read(lambda spans: sum_sessions(spans, params.wanted(), store.now_ns()))
        mean_ms = ns_to_ms(sums.duration_ns)
        return reply(
            SessionSummary(
                total_sessions=sums.sessions,
                active_sessions=sums.active,
                completed_sessions=sums.completed,
                error_sessions=sums.errors,
                total_cost=usd(sums.cost_nusd),
                total_tokens=TokenSums(sums.prompt_tokens, sums.completion_tokens),
                unpriced_span_count=sums.unpriced,
                partly_priced_span_count=sums.partly_priced,
                avg_duration=mean_ms,
                average_duration=mean_ms,
                error_rate=sums.errors / sums.sessions if sums.sessions else 0,
                ended_sessions=sums.ended,
            )
        )

    @routes.get("/api/sessions/{session_id:path}/graph", **GET_GRAPH)
    async def graph(session_id: SessionId, params: Annotated[GraphParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        await _find(store, session_id)

        def read(spans: Store) -> Response:
            outline = session_outline(spans, session_id, "start", now_ns)
            page = page_of(outline.rows, "start", min(params.limit, MAX_NODES), params.cursor)
            tellings, page = whole_spans(spans, page, "start", now_ns, attributes=params.metadata)
            if not params.metadata:
                outline = without_metadata(outline)
            return reply(render_graph(outline, page, tellings, now_ns))

        return await store.read(read)

    @routes.get("/api/sessions/{session_id:path}/details", **GET_DETAILS)
    async def details(session_id: SessionId, params: Annotated[DetailsParams, QueryParams()]) -> Response:
        limit = min(params.limit, MAX_MESSAGES)
        return await _with_messages(store, await _find(store, session_id), limit, params.offset)

    @routes.post("/api/sessions/{session_id:path}/end", **END_SESSION)
    async def end(request: Request, session_id: SessionId) -> Response:
        error = _end_error(await read_body(request, _MAX_BODY_BYTES))
        session = await _find(store, session_id)
        if session.ended_ns is None:
            session_end = SessionEnd(session_id=session_id, ended_ns=store.now_ns(), error=error)
            now_ns = session_end.ended_ns
            await publisher.publish(
                Batch(id=f"session.{uuid.uuid4().hex}", arrived_ns=now_ns, session_ends=[session_end])
            )
            session = await _find(store, session_id)
        return await _with_messages(store, session)

    return routes


def _end_error(body: bytes) -> str:
    """
    Return the error text in the body of a session's end; "" = there is none.

    Raises:
        Rejected: *body* cannot be decoded, or the error is not text of at most 4096 characters.
    """
    if not body.strip():
        return ""
    with reading("body"):
        error = msgspec.json.decode(body, type=SessionEndInput).error
    text = error.get("message", "") if isinstance(error, dict) else error or ""
    if not isinstance(text, str) or len(text) > 4096:
        raise Rejected("error: is not text of at most 4096 characters")
    return text


async def _find(store: StoreReader, session_id: str) -> Session:
    sessions = await store.find(lambda spans: find_session(spans, session_id, store.now_ns()))
    if not sessions:
        raise Rejected(f"Session {shorten(session_id)} not found", status=404)
    return sessions[0]


async def _with_messages(store: StoreReader, session: Session, limit: int = MAX_MESSAGES, offset: int = 0) -> Response:
    now_ns = store.now_ns()

    def read(spans: Store) -> Response:
        messages = session_messages(spans, session.session_id, limit, offset, now_ns)
        count = count_messages(spans, [session.session_id], now_ns)[session.session_id]
        shown = costkatana.render_session(session, messages, count)
        for message, rendered in zip(messages, shown["messages"], strict=True):
            if message.trace_id:
                rendered["trace_id"] = message.trace_id
        if session.error:
            shown["error"] |= _origin(session.error, first_failures(spans, session.session_id, now_ns))
        return reply(shown)

    return await store.read(read)


def _origin(error: str, failures: Sequence[Telling]) -> dict[str, Any]:
    """Return the span that *error*, a session's, comes from, and its stack trace; {} if the session's end told it."""
    for span in (telling.span for telling in failures if telling.span.error == error):
        stack = {"stack": span.error_stack} if span.error_stack else {}
        return {**stack, "trace_id": span.trace_id, "span_id": span.span_id}
    return {}


def render_graph(outline: Outline, page: SpanPage, tellings: Sequence[Telling], now_ns: int) -> dict[str, Any]:
    """
    Return a page of a session's spans as the struct ``SessionGraph`` describes it.

    Args:
        outline: All spans of the session.
        page: The rows that are shown.
        tellings: The ended spans of *page*.
    """
    depth = depths(outline.rows)
    nodes = {
        telling.key: {
            "trace_id": telling.span.trace_id,
            **costkatana.render_node(telling.span, depth[telling.key]),
            **_in_camel_case(telling_marks(telling)),
        }
        for telling in tellings
    }
    for row in page.rows:
        if row.ended_ns is None:
            status = pending_status(row.started_ns, now_ns)
            node = costkatana.render_open(outline.started[row.key], depth[row.key], status)
            nodes[row.key] = {"trace_id": row.trace_id, **node}
    # A span that was deleted meanwhile has no node.
    shown = [nodes[row.key] for row in page.rows if row.key in nodes]
    edges = [{"from": node["parentId"], "to": node["id"]} for node in shown if "parentId" in node]
    return {"nodes": shown, "edges": edges, **next_page(page, "nextCursor")}


def _in_camel_case(fields: dict[str, Any]) -> dict[str, Any]:
    return {"laterVersions" if name == "later_versions" else name: value for name, value in fields.items()}
