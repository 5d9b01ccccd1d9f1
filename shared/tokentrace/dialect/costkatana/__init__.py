"""
The spans and messages of Cost Katana: JSON in camelCase, in which ``traceId`` is the id of a span.

``inputs`` decodes what clients send, ``spans`` makes records of it, and ``render`` shows records in the form that
clients expect.
"""

from tokentrace.dialect.costkatana.inputs import (
    EndInput,
    MessageInput,
    SpanInput,
    check_metadata,
    decode_end,
    decode_ingest,
    decode_message,
    decode_start,
    has_ended,
)
from tokentrace.dialect.costkatana.render import render_message, render_node, render_open
from tokentrace.dialect.costkatana.sessions import Session, render_session
from tokentrace.dialect.costkatana.spans import Place, end_of, message_of, place, start_of

__all__ = [
    "EndInput",
    "MessageInput",
    "Place",
    "Session",
    "SpanInput",
    "check_metadata",
    "decode_end",
    "decode_ingest",
    "decode_message",
    "decode_start",
    "end_of",
    "has_ended",
    "message_of",
    "place",
    "render_message",
    "render_node",
    "render_open",
    "render_session",
    "start_of",
]
