"""``GET /traces/{id}/spans/{span_id}/messages``: the messages of a call, in one form for every source."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.records import ChatMessage
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.reads import find_started, find_telling, messages_of_span
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.traces import SpanId, TraceId
from tokentrace_api.span_messages import Part, PartType, Said, messages_of, redactions_in, text_part
from tokentrace_api.store import Store


class MessagePart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """
    A part of a message.

    Attributes:
        text: Its text; of a call of a tool, its arguments; of media, their address or an empty text.
        name: Name of the tool, or media type.
        base64_length: Number of characters of base64 that are left out; the attribute has them.
    """

    type: PartType
    text: str
    name: str | UnsetType = UNSET
    base64_length: Natural | UnsetType = UNSET


class SpanMessage(msgspec.Struct, kw_only=True):
    """
    A message of a span.

    Attributes:
        direction: ``input`` and ``output`` of the call; ``chat`` = it was sent by itself, as a message of a session.
        role: Who said it: system, user, assistant, tool, or another word of the sender's.
        source: The attribute that holds it; ``message`` = it was sent by itself.
        redactions: Number of marks of removed text, such as ``[EMAIL_REDACTED]``.
        is_redacted: Whether something was removed.
        created_at: When it was written; null = the call's time.
    """

    direction: Literal["input", "output", "chat"]
    role: str
    parts: list[MessagePart]
    source: str
    redactions: Natural
    is_redacted: bool
    created_at: InstantText | None


class SpanMessages(msgspec.Struct):
    """The messages of a span: its input, its output, then those that were sent by themselves, oldest first."""

    trace_id: str
    span_id: str
    messages: list[SpanMessage]


_EXAMPLE: dict[str, Any] = {
    "trace_id": "t1",
    "span_id": "s1",
    "messages": [
        {
            "direction": "input",
            "role": "user",
            "parts": [{"type": "text", "text": "Write to [EMAIL_REDACTED]"}],
            "source": "gen_ai.input.messages",
            "redactions": 1,
            "is_redacted": True,
            "created_at": None,
        },
        {
            "direction": "output",
            "role": "assistant",
            "parts": [{"type": "tool_call", "text": '{"to":"sales"}', "name": "send_mail"}],
            "source": "gen_ai.output.messages",
            "redactions": 0,
            "is_redacted": False,
            "created_at": None,
        },
    ],
}
_MESSAGES = operation(
    "getSpanMessages",
    "Get the messages of a span",
    """
    What was said to a model and by it: read from the attributes in which OpenTelemetry, OpenInference, the AI SDK and
    others keep messages, and from the messages that were sent by themselves. Media are named and left out.
    """,
    Answer(SpanMessages, "The messages.", _EXAMPLE),
    errors={
        400: "limit: unknown parameter; allowed are none",
        404: "span not found",
        503: "span store: is not open yet",
    },
)


def router(store: StoreReader) -> Router:
    """Return the route, to be registered before ``/traces/{id}``."""
    routes = Router("traces")

    @routes.get("/traces/{trace_id:path}/spans/{span_id:path}/messages", **_MESSAGES)
    async def messages(trace_id: TraceId, span_id: SpanId) -> Response:
        def read(spans: Store) -> Response:
            now_ns = store.now_ns()
            # A span that ends between the two reads must be found by one of them.
            started = find_started(spans, trace_id, span_id, now_ns)
            tellings = find_telling(spans, trace_id, span_id, now_ns)
            if not tellings and not started:
                raise Rejected("span not found", status=404)
            attributes = tellings[0].span.attributes if tellings else started[0].metadata
            sent = messages_of_span(spans, trace_id, span_id, now_ns)
            shown = [*map(_said, messages_of(attributes)), *map(_chat, sent)]
            return reply(SpanMessages(trace_id, span_id, shown))

        return await store.read(read)

    return routes


def _said(said: Said) -> SpanMessage:
    redactions = redactions_in(said.parts)
    return SpanMessage(
        direction=said.direction,
        role=said.role,
        parts=[_part(part) for part in said.parts],
        source=said.source,
        redactions=redactions,
        is_redacted=redactions > 0,
        created_at=None,
    )


def _part(part: Part) -> MessagePart:
    return MessagePart(type=part.type, text=part.text, name=part.name or UNSET, base64_length=part.size or UNSET)


def _chat(message: ChatMessage) -> SpanMessage:
    parts = [text_part(message.content)]
    return SpanMessage(
        direction="chat",
        role=message.role,
        parts=[_part(part) for part in parts],
        source="message",
        redactions=redactions_in(parts),
        is_redacted=message.redacted,
        created_at=render_instant(message.created_ns),
    )
