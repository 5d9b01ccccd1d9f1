"""``/api/sessions``: sessions, in the form that Cost Katana's clients use."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Path as PathName
from fastapi import Query as QueryParams
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bad_data import reading
from tokentrace.dialect import costkatana
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Batch, ChatMessage, Kind, SessionEnd, Span, Started
from tokentrace.service.body import read_body
from tokentrace.service.contract import Answer, Content, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import ns_to_ms, nusd_to_usd, render_instant, usd_to_nusd
from tokentrace_api.interfaces import Publisher, StoreReader
from tokentrace_api.parameters import Amount, Count, Moment, OptionalCount, Text, choice
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
from tokentrace_api.routes.answers import InstantText, Message, Milliseconds, Natural, SpanStatus
from tokentrace_api.routes.traces import pending_status

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_STATUSES = ("active", "completed", "error")
_MAX_BODY_BYTES = 64 * 1024
_Status: Any = choice(_STATUSES)
SessionId = Annotated[str, PathName(description="Id of the session.", examples=["s1"])]


class PeriodParams(Params):
    """Bounds for the start of a session."""

    from_: Moment = Field(None, alias="from", description="Earliest start.", examples=["2026-03-15T00:00:00Z"])
    to: Moment = Field(None, description="Latest start.", examples=["2026-03-16T00:00:00Z"])


class SessionParams(PeriodParams):
    """Which sessions are listed, and which page of them."""

    user_id: Text = Field(
        None, alias="userId", description="User of the session; empty = sessions without a user.", examples=["u-7"]
    )
    label: Text = Field(None, description="Text that the label contains, regardless of case.", examples=["chat"])
    status: _Status = Field(
        None, description="Status; `error` if a span failed or the session ended with an error.", examples=["completed"]
    )
    source: Text = Field(
        None,
        description="How the first span came: `reporter`, `spans`, `mist`, `costkatana` or `nats`.",
        examples=["costkatana"],
    )
    min_cost: Amount = Field(None, alias="minCost", description="Least cost, US dollars.", examples=[0.01])
    max_cost: Amount = Field(None, alias="maxCost", description="Greatest cost, US dollars.", examples=[10])
    min_spans: OptionalCount = Field(None, alias="minSpans", description="Least number of spans.", examples=[1])
    max_spans: OptionalCount = Field(None, alias="maxSpans", description="Greatest number of spans.", examples=[100])
    page: Count = Field(1, description="Page, from 1; 0 counts as 1.")
    limit: Count = Field(
        DEFAULT_LIMIT, description=f"Sessions on a page; below 1 counts as 1, over {MAX_LIMIT} as {MAX_LIMIT}."
    )

    def wanted(self) -> SessionFilter:
        """Return the filters as a ``SessionFilter``."""
        return SessionFilter(
            user_id=self.user_id,
            label=self.label or "",
            status=self.status or "",
            source=self.source or "",
            since_ns=self.from_,
            until_ns=self.to,
            min_cost_nusd=None if self.min_cost is None else usd_to_nusd(self.min_cost),
            max_cost_nusd=None if self.max_cost is None else usd_to_nusd(self.max_cost),
            min_spans=self.min_spans,
            max_spans=self.max_spans,
        )


class TokenSums(msgspec.Struct):
    """Numbers of input and output tokens."""

    input: Natural
    output: Natural


class ErrorText(msgspec.Struct):
    """An error: its message and its stack trace."""

    message: str
    stack: str | UnsetType = UNSET


class SessionSums(msgspec.Struct, rename="camel"):
    """Sums over the spans of a session; cost in US dollars."""

    total_spans: Natural
    total_duration: Milliseconds
    total_cost: float
    total_tokens: TokenSums


class SessionDetails(msgspec.Struct, kw_only=True, rename="camel"):
    """
    A session with its messages. Cost Katana's SDK and backend name some values differently; both names are present.

    Attributes:
        duration: Milliseconds from the start to the end of the session, or to the latest end of a span.
        ended_at: Present only if the session was ended by a request.
        error_count: Number of spans with status error or timeout.
    """

    session_id: str
    status: Literal["active", "completed", "error"]
    total_spans: Natural
    open_spans: Natural
    total_cost: float = msgspec.field(name="totalCostUSD")
    total_input_tokens: Natural
    total_output_tokens: Natural
    started_at: InstantText
    duration: Milliseconds
    source: str
    has_errors: bool
    error_count: Natural
    summary: SessionSums
    messages: list[Message]
    user_id: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    ended_at: InstantText | UnsetType = UNSET
    error: ErrorText | UnsetType = UNSET


class SessionPage(msgspec.Struct, rename="camel"):
    """A page of sessions, newest start first; ``pages`` and ``totalPages`` are the same."""

    sessions: list[SessionDetails]
    total: Natural
    page: Natural
    limit: Natural
    pages: Natural
    total_pages: Natural


class SessionSummary(msgspec.Struct, rename="camel"):
    """
    Sums over the sessions of a period; cost in US dollars.

    Attributes:
        avg_duration, average_duration: Mean duration of the sessions that were ended by a request, milliseconds.
        error_rate: Fraction of the sessions that have the status error.
    """

    total_sessions: Natural
    active_sessions: Natural
    completed_sessions: Natural
    error_sessions: Natural
    total_cost: float
    total_tokens: TokenSums
    avg_duration: Milliseconds
    average_duration: Milliseconds
    error_rate: float


class TraceNode(msgspec.Struct, kw_only=True, rename="camel"):
    """A span as a node. Cost Katana's SDK and backend name some values differently; both names are present."""

    id: str
    session_id: str
    name: str
    label: str
    type: Kind
    status: SpanStatus
    depth: Natural
    tokens: TokenSums
    cost: float | None = msgspec.field(name="costUSD")
    metadata: dict[str, Any]
    started_at: InstantText
    ended_at: InstantText | None
    duration: Milliseconds | None
    start: InstantText
    end: InstantText | None
    parent_id: str | UnsetType = UNSET
    error: ErrorText | UnsetType = UNSET
    model: str | UnsetType = UNSET
    ai_model: str | UnsetType = UNSET
    tool: str | UnsetType = UNSET
    resource_ids: list[Any] | UnsetType = UNSET


class GraphEdge(msgspec.Struct, rename={"source": "from", "target": "to"}):
    """An edge from a span to a span that it called."""

    source: str
    target: str


class SessionGraph(msgspec.Struct):
    """Nodes by start, and an edge to every node that names a parent, even if the parent is not among the nodes."""

    nodes: list[TraceNode]
    edges: list[GraphEdge]


class SessionEndInput(msgspec.Struct, kw_only=True):
    """How a session ended; with an empty body or without an error it is completed."""

    error: dict[str, Any] | str | None = None


_MESSAGE_EXAMPLE = {
    "messageId": "m1",
    "sessionId": "s1",
    "traceId": "call",
    "role": "user",
    "content": "mail me: [EMAIL]",
    "redactedContent": "mail me: [EMAIL]",
    "isRedacted": True,
    "metadata": {},
    "createdAt": "2026-03-15T14:23:01.441Z",
    "timestamp": "2026-03-15T14:23:01.441Z",
    "contentPreview": "mail me: [EMAIL]",
    "fullContentStored": True,
}
_SESSION_EXAMPLE: dict[str, Any] = {
    "sessionId": "s1",
    "status": "completed",
    "totalSpans": 2,
    "openSpans": 0,
    "totalCostUSD": 0.00256,
    "totalInputTokens": 512,
    "totalOutputTokens": 128,
    "startedAt": "2026-03-15T14:23:01.441Z",
    "duration": 820,
    "source": "costkatana",
    "hasErrors": False,
    "errorCount": 0,
    "summary": {
        "totalSpans": 2,
        "totalDuration": 820,
        "totalCost": 0.00256,
        "totalTokens": {"input": 512, "output": 128},
    },
    "messages": [_MESSAGE_EXAMPLE],
    "userId": "u-7",
    "endedAt": "2026-03-15T14:23:02.261Z",
}
_NODE_EXAMPLE: dict[str, Any] = {
    "id": "call",
    "parentId": "root",
    "sessionId": "s1",
    "name": "answer",
    "label": "answer",
    "type": "llm",
    "status": "ok",
    "depth": 1,
    "model": "gpt-4o",
    "aiModel": "gpt-4o",
    "tokens": {"input": 512, "output": 128},
    "costUSD": 0.00256,
    "metadata": {},
    "startedAt": "2026-03-15T14:23:01.441Z",
    "endedAt": "2026-03-15T14:23:02.261Z",
    "duration": 820,
    "start": "2026-03-15T14:23:01.441Z",
    "end": "2026-03-15T14:23:02.261Z",
}
_NO_PARAMETERS = {400: "limit: unknown parameter; allowed are none"}
_NOT_FOUND = {404: "Session s1 not found"}
_STORE_AWAY = {503: "span store: is not open yet"}
_LIST = operation(
    "listSessions",
    "List sessions",
    "Sessions with their messages, newest start first.",
    Answer(
        SessionPage,
        "A page.",
        {"sessions": [_SESSION_EXAMPLE], "total": 1, "page": 1, "limit": 20, "pages": 1, "totalPages": 1},
    ),
    errors={400: "status: 'done' is none of active, completed, error", **_STORE_AWAY},
)
_SUMMARY = operation(
    "getSessionsSummary",
    "Sum up sessions",
    "Counts, cost, tokens and mean duration of the sessions that started in a period.",
    Answer(
        SessionSummary,
        "The sums.",
        {
            "totalSessions": 2,
            "activeSessions": 0,
            "completedSessions": 1,
            "errorSessions": 1,
            "totalCost": 0.00512,
            "totalTokens": {"input": 1024, "output": 256},
            "avgDuration": 820,
            "averageDuration": 820,
            "errorRate": 0.5,
        },
    ),
    errors={400: "from: instant: 'today' is not RFC 3339 such as 2026-03-15T14:23:01.441Z", **_STORE_AWAY},
)
_GRAPH = operation(
    "getSessionGraph",
    "Get a session as a graph",
    "The spans of the session as nodes, and edges from parents to children.",
    Answer(SessionGraph, "The graph.", {"nodes": [_NODE_EXAMPLE], "edges": [{"from": "root", "to": "call"}]}),
    errors={**_NO_PARAMETERS, **_NOT_FOUND, **_STORE_AWAY},
)
_DETAILS = operation(
    "getSessionDetails",
    "Get a session with its messages",
    "A session with its messages, oldest message first.",
    Answer(SessionDetails, "The session.", _SESSION_EXAMPLE),
    errors={**_NO_PARAMETERS, **_NOT_FOUND, **_STORE_AWAY},
)
_END = operation(
    "endSession",
    "End a session",
    "The first end counts; ending a session again changes nothing.",
    Answer(SessionDetails, "The session.", _SESSION_EXAMPLE),
    body=[Content(SessionEndInput, {"completed": {}, "error": {"error": {"message": "gave up"}}})],
    body_required=False,
    errors={
        400: "error: is not text of at most 4096 characters",
        **_NOT_FOUND,
        413: "body: over 65536 bytes, which is the limit after decompression",
        415: "Content-Encoding: 'br' is not supported, only gzip is",
        503: "span store: is behind",
    },
)


def router(store: StoreReader, publisher: Publisher) -> Router:
    """Return the routes of sessions; *publisher* publishes their ends."""
    routes = Router("sessions")

    @routes.get("/api/sessions", **_LIST)
    async def listed(params: Annotated[SessionParams, QueryParams()]) -> Response:
        page, limit = max(params.page, 1), min(max(params.limit, 1), MAX_LIMIT)
        wanted, now_ns = params.wanted(), time.time_ns()
        sessions, total = await store.read(
            lambda spans: list_sessions(spans, wanted, limit, (page - 1) * limit, now_ns)
        )
        ids = [session.session_id for session in sessions]
        messages = await store.read(lambda spans: session_messages(spans, ids, now_ns))
        pages = math.ceil(total / limit)
        return reply(
            {
                "sessions": [_details(session, messages[session.session_id]) for session in sessions],
                "total": total,
                "page": page,
                "limit": limit,
                "pages": pages,
                "totalPages": pages,
            }
        )

    @routes.get("/api/sessions/summary", **_SUMMARY)
    async def summary(params: Annotated[PeriodParams, QueryParams()]) -> Response:
        sums = await store.read(lambda spans: sum_sessions(spans, params.from_, params.to, time.time_ns()))
        mean_ms = ns_to_ms(sums.duration_ns)
        return reply(
            SessionSummary(
                total_sessions=sums.sessions,
                active_sessions=sums.active,
                completed_sessions=sums.completed,
                error_sessions=sums.errors,
                total_cost=nusd_to_usd(sums.cost_nusd),
                total_tokens=TokenSums(sums.prompt_tokens, sums.completion_tokens),
                avg_duration=mean_ms,
                average_duration=mean_ms,
                error_rate=sums.errors / sums.sessions if sums.sessions else 0,
            )
        )

    @routes.get("/api/sessions/{session_id:path}/graph", **_GRAPH)
    async def graph(session_id: SessionId) -> Response:
        now_ns = time.time_ns()
        await _find(store, session_id)
        spans, pending = await store.read(lambda spans: session_spans(spans, session_id, now_ns))
        return reply(render_graph(spans, pending, now_ns))

    @routes.get("/api/sessions/{session_id:path}/details", **_DETAILS)
    async def details(session_id: SessionId) -> Response:
        return reply(await _with_messages(store, await _find(store, session_id)))

    @routes.post("/api/sessions/{session_id:path}/end", **_END)
    async def end(request: Request, session_id: SessionId) -> Response:
        error = _end_error(await read_body(request, _MAX_BODY_BYTES))
        session = await _find(store, session_id)
        if session.ended_ns is None:
            session_end = SessionEnd(session_id=session_id, ended_ns=time.time_ns(), error=error)
            now_ns = session_end.ended_ns
            await publisher.publish(
                Batch(id=f"session.{uuid.uuid4().hex}", arrived_ns=now_ns, session_ends=[session_end])
            )
            session = await _find(store, session_id)
        return reply(await _with_messages(store, session))

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
    sessions = await store.find(lambda spans: find_session(spans, session_id, time.time_ns()))
    if not sessions:
        raise Rejected(f"Session {shorten(session_id)} not found", status=404)
    return sessions[0]


async def _with_messages(store: StoreReader, session: Session) -> dict[str, Any]:
    now_ns = time.time_ns()
    messages = await store.read(lambda spans: session_messages(spans, [session.session_id], now_ns))
    return _details(session, messages[session.session_id])


def _details(session: Session, messages: Sequence[ChatMessage]) -> dict[str, Any]:
    """Return *session* as the struct ``SessionDetails`` describes it."""
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
    """Return ended and open spans as the struct ``SessionGraph`` describes them."""
    depth = depths([*spans, *open_])
    dated: list[tuple[int, dict[str, Any]]] = [
        (span.started_ns, costkatana.render_node(span, depth[span.trace_id, span.span_id])) for span in spans
    ]
    for started in open_:
        node = costkatana.render_open(
            started, depth[started.trace_id, started.span_id], pending_status(started, now_ns)
        )
        dated.append((started.started_ns, node))
    nodes = [node for _, node in sorted(dated, key=lambda item: item[0])]
    edges = [{"from": node["parentId"], "to": node["id"]} for node in nodes if "parentId" in node]
    return {"nodes": nodes, "edges": edges}
