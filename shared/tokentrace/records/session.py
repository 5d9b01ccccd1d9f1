"""The rarer records of a batch: what sessions, scores and deletions are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokentrace.records.span import Id, Instant, Kind, Name, Text
from tokentrace.records.span import Score as ScoreValue

Role = Literal["user", "assistant", "system", "tool"]


class Started(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A span that has started and not ended: shown as pending, never counted.

    Attributes:
        started_ns: Unix nanoseconds.
        metadata: As given at the start; the end's metadata is merged over it.
        caller: Calling service or function; "" = unknown.
        arrived_ns: When the pipeline took it in, Unix nanoseconds.
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
    What was said of a span after it had ended: shown with it, never counted.

    Attributes:
        attributes: Merged over those the span has.
    """

    trace_id: Id
    span_id: Id
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class Score(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A score given after the fact, with the span's dimensions, so that a rollup needs not know the span.

    Attributes:
        name: Which score: an attribute that starts with ``eval.``; ``eval.score`` is what metrics and rules use.
        value: The new value in 1e-9; None takes the score away.
        previous: The value it replaces; None = there was none.
        ended_ns, arrived_ns: The span's, Unix nanoseconds: the score counts where the span counts.
        attributes: The span's, for whoever filters or groups by them.
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


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    One message of a conversation.

    Attributes:
        span_id: The span it belongs to; "" = none in particular.
        content: Without secrets; empty when only counts are kept.
        redacted: True when something was taken out of content.
        created_ns: Unix nanoseconds.
        raw: What content was before, where the operator keeps it; "" = not kept, or the same.
        length: Of the content as it came, characters.
        trace_id: Of that span; "" = nobody knows.
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
    A session was ended by somebody.

    Attributes:
        ended_ns: Unix nanoseconds.
        error: What it ended with; "" = well.
    """

    session_id: Id
    ended_ns: Instant
    error: Text = ""


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    Something was deleted and must not come back when the store is rebuilt.

    Attributes:
        target: trace, session or user.
        id: Which one.
        deleted_ns: Unix nanoseconds; records that arrived later are new and stay.
    """

    target: Literal["trace", "session", "user"]
    id: Id
    deleted_ns: Instant
