"""The part of the OpenAPI document that describes the routes of sessions."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.records import Kind
from tokentrace.service.contract import Answer, Content, operation
from tokentrace_api.routes.answers import InstantText, Message, Milliseconds, Natural, SpanStatus


class TokenSums(msgspec.Struct):
    """Numbers of input and output tokens."""

    input: Natural
    output: Natural


class ErrorText(msgspec.Struct):
    """An error: its message and its stack trace."""

    message: str
    stack: str | UnsetType = UNSET


class SessionError(ErrorText):
    """
    The error of a session: the one with which it was ended, or else that of its first span that has one.

    Attributes:
        trace_id, span_id: The span; absent in lists, and if the session was ended with the error.
    """

    trace_id: str | UnsetType = UNSET
    span_id: str | UnsetType = UNSET


class SessionSums(msgspec.Struct, rename="camel"):
    """Sums over the spans of a session; cost in US dollars, null and counts as in ``SessionDetails``."""

    total_spans: Natural
    total_duration: Milliseconds
    total_cost: float | None
    total_tokens: TokenSums
    unpriced_span_count: Natural
    partly_priced_span_count: Natural


class SessionDetails(msgspec.Struct, kw_only=True, rename="camel"):
    """
    A session with messages. Cost Katana's SDK and backend name some values differently; both names are present.

    Attributes:
        total_spans: Number of spans, each call once.
        total_cost: US dollars, without unknown costs and without those of roll-up kinds; null = no cost is known and at
            least one is unknown.
        total_input_tokens, total_output_tokens: Tokens, without those of roll-up kinds.
        unpriced_span_count: Number of spans whose cost is unknown; if it is over 0, the cost is a lower bound.
        partly_priced_span_count: Number of spans of which only a part is priced; likewise.
        duration: Milliseconds from the start to the end of the session, or to the latest end of a span.
        ended_at: Present only if the session was ended by a request.
        error_count: Number of spans with status error or timeout.
        messages: Empty in a list of sessions; otherwise a page of the messages, oldest first.
        message_count: Number of all messages of the session.
    """

    session_id: str
    status: Literal["active", "completed", "error"]
    total_spans: Natural
    open_spans: Natural
    total_cost: float | None = msgspec.field(name="totalCostUSD")
    total_input_tokens: Natural
    total_output_tokens: Natural
    unpriced_span_count: Natural
    partly_priced_span_count: Natural
    started_at: InstantText
    duration: Milliseconds
    source: str
    has_errors: bool
    error_count: Natural
    summary: SessionSums
    messages: list[Message]
    message_count: Natural
    user_id: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    ended_at: InstantText | UnsetType = UNSET
    error: SessionError | UnsetType = UNSET


class SessionPage(msgspec.Struct, rename="camel"):
    """A page of sessions; ``pages`` and ``totalPages`` are the same."""

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
        total_cost, unpriced_span_count, partly_priced_span_count: As for a session.
        avg_duration, average_duration: Mean duration of the sessions that were ended by a request, milliseconds.
        error_rate: Fraction of the sessions that have the status error.
        ended_sessions: Number of the sessions that were ended by a request; of 0, the mean duration is 0.
    """

    total_sessions: Natural
    active_sessions: Natural
    completed_sessions: Natural
    error_sessions: Natural
    total_cost: float | None
    total_tokens: TokenSums
    unpriced_span_count: Natural
    partly_priced_span_count: Natural
    avg_duration: Milliseconds
    average_duration: Milliseconds
    error_rate: float
    ended_sessions: Natural


class TraceNode(msgspec.Struct, kw_only=True, rename="camel"):
    """
    A span as a node. Cost Katana's SDK and backend name some values differently; both names are present.

    Attributes:
        trace_id: The trace of the span, in which its id is unique.
    """

    id: str
    trace_id: str = msgspec.field(name="trace_id")
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
    later_versions: Natural | UnsetType = UNSET
    counted: bool | UnsetType = UNSET
    conflicting: bool | UnsetType = UNSET


class GraphEdge(msgspec.Struct, rename={"source": "from", "target": "to"}):
    """An edge from a span to a span that it called."""

    source: str
    target: str


class SessionGraph(msgspec.Struct):
    """
    Nodes by start, and an edge to every node that names a parent, even if the parent is not among the nodes.

    Attributes:
        next_cursor: Present only if further nodes follow: the `cursor` of the next page.
    """

    nodes: list[TraceNode]
    edges: list[GraphEdge]
    next_cursor: str | UnsetType = msgspec.field(default=UNSET, name="nextCursor")


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
    "unpricedSpanCount": 0,
    "partlyPricedSpanCount": 0,
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
        "unpricedSpanCount": 0,
        "partlyPricedSpanCount": 0,
    },
    "messages": [_MESSAGE_EXAMPLE],
    "messageCount": 1,
    "userId": "u-7",
    "endedAt": "2026-03-15T14:23:02.261Z",
}
LISTED_EXAMPLE = _SESSION_EXAMPLE | {"messages": []}
_NODE_EXAMPLE: dict[str, Any] = {
    "trace_id": "t1",
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
_BAD_LIMIT = {400: "limit: 'x' is not a whole number >= 0 of at most 18 digits"}
_NOT_FOUND = {404: "Session s1 not found"}
_STORE_AWAY = {503: "span store: is not open yet"}
LIST_SESSIONS = operation(
    "listSessions",
    "List sessions",
    "Sessions, in the order that `order` names. They are listed without their messages, which `/details` shows.",
    Answer(
        SessionPage,
        "A page.",
        {
            "sessions": [LISTED_EXAMPLE],
            "total": 1,
            "page": 1,
            "limit": 20,
            "pages": 1,
            "totalPages": 1,
        },
    ),
    errors={400: "status: 'done' is none of active, completed, error", **_STORE_AWAY},
)
GET_SUMMARY = operation(
    "getSessionsSummary",
    "Sum up sessions",
    "Counts, cost, tokens and mean duration of the sessions that match.",
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
            "unpricedSpanCount": 0,
            "partlyPricedSpanCount": 0,
            "avgDuration": 820,
            "averageDuration": 820,
            "errorRate": 0.5,
            "endedSessions": 1,
        },
    ),
    errors={400: "from: instant: 'today' is not RFC 3339 such as 2026-03-15T14:23:01.441Z", **_STORE_AWAY},
)
GET_GRAPH = operation(
    "getSessionGraph",
    "Get a session as a graph",
    """
    The spans of the session as nodes, and edges from parents to children. Over 5,000 spans, or after about 8 MiB of
    metadata, `nextCursor` leads to the next page.
    """,
    Answer(SessionGraph, "The graph.", {"nodes": [_NODE_EXAMPLE], "edges": [{"from": "root", "to": "call"}]}),
    errors={**_BAD_LIMIT, **_NOT_FOUND, **_STORE_AWAY},
)
GET_DETAILS = operation(
    "getSessionDetails",
    "Get a session with its messages",
    """
    A session with its messages, oldest message first. At most 1,000 messages, or about 8 MiB of them, are shown at
    once; `offset` leads to further ones, and `messageCount` says how many there are.
    """,
    Answer(SessionDetails, "The session.", _SESSION_EXAMPLE),
    errors={**_BAD_LIMIT, **_NOT_FOUND, **_STORE_AWAY},
)
END_SESSION = operation(
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
