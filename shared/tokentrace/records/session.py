"""The records of a batch besides spans: span starts, annotations, scores, chat messages, session ends, tombstones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokentrace.records.span import Id, Instant, Kind, Name, ScoreValue, Text

Role = Literal["user", "assistant", "system", "tool"]


class Started(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The start of a span. Until the span ends, it is shown as pending or abandoned and not counted.

    Attributes:
        started_ns: When the span started, Unix nanoseconds.
        metadata: Attributes from the start. Those from the end replace them key by key.
        caller: Calling service or function; "" = unknown.
        arrived_ns: When the pipeline received the start, Unix nanoseconds; 0 = unknown.
    """

    trace_id: Id
    span_id: Id
    parent_span_id: Id | None = None
    session_id: Id | None = None
    user_id: Id | None = None
    name: Name = ""
    kind: Kind = "custom"
    started_ns: Instant = 0
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    caller: Name = ""
    arrived_ns: Instant = 0


class Annotation(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    Attributes that are given to a span after it ended. They are shown with the span and not counted.

    Attributes:
        attributes: The attributes, which replace those of the span key by key.
    """

    trace_id: Id
    span_id: Id
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class Score(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A score that is given to a span after it ended, with the dimensions of the span.

    A rollup can count the score without knowing the span.

    Attributes:
        name: The name of the score, which starts with ``eval.``; metrics and rules use ``eval.score``.
        value: The new value in units of 1e-9; None removes the score.
        previous: The value before this change, in units of 1e-9; None if there was none.
        kind, model, provider, caller, span_name, status: The dimensions of the span.
        ended_ns, arrived_ns: The end and the arrival of the span, Unix nanoseconds. The score counts at the event time
            of the span.
        attributes: The attributes of the span, for rules that filter or group by attributes.
        session_id, user_id: The session and user of the span, for the same; None = unknown.
    """

    trace_id: Id
    span_id: Id
    name: Name
    value: ScoreValue | None
    previous: ScoreValue | None = None
    kind: Kind = "llm"
    model: Name = ""
    provider: Name = ""
    caller: Name = ""
    span_name: Name = ""
    status: Literal["ok", "error", "timeout"] = "ok"
    ended_ns: Instant = 0
    arrived_ns: Instant = 0
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    session_id: Id | None = None
    user_id: Id | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    One message of a conversation.

    Attributes:
        message_id: Unique within its session.
        span_id: The span that the message belongs to; "" = none.
        role: Who wrote the message.
        content: The redacted text; "" if the operator does not keep contents.
        redacted: True if something was removed from the text.
        created_ns: When the message was written, Unix nanoseconds.
        metadata: Further attributes, redacted.
        raw: The text before redaction, if the operator keeps it; "" = not kept, or equal to content.
        length: The length of the received text, characters.
        trace_id: The trace of the span; "" = unknown.
    """

    message_id: Id
    session_id: Id
    span_id: Id = ""
    role: Role = "user"
    content: str = ""
    redacted: bool = False
    created_ns: Instant = 0
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    raw: str = ""
    length: Annotated[int, Meta(ge=0, le=2**40)] = 0
    trace_id: Id = ""


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The end of a session.

    Attributes:
        ended_ns: When the session ended, Unix nanoseconds.
        error: The error with which it ended; "" = none.
    """

    session_id: Id
    ended_ns: Instant
    error: Text = ""


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A deletion. The deleted records stay hidden when the store is rebuilt from the log.

    Attributes:
        target: Whether all records of a trace, of a session or of a user were deleted.
        id: The id of the trace, session or user.
        deleted_ns: When the records were deleted, Unix nanoseconds. Records that arrive later are not hidden.
    """

    target: Literal["trace", "session", "user"]
    id: Id
    deleted_ns: Instant
