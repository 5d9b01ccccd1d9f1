"""Encodes the spans that an application reports."""

from __future__ import annotations

import time

import msgspec
from msgspec.structs import replace

from tokentrace.client.reporter.span_queue import Unencodable
from tokentrace.errors import cut_quoted, shorten
from tokentrace.records import SPAN_FIELDS, Span, whole_amounts, without_surrogates

_encoder = msgspec.msgpack.Encoder()


def encoded(span: Span) -> bytes | Unencodable:
    """Return *span* in MessagePack, with an end if it has no time at all."""
    try:
        if span.usage and any(isinstance(amount, float) for amount in span.usage.values()):
            span = replace(span, usage=whole_amounts(span.usage))
        if not span.ended_ns and not span.started_ns:
            span = replace(span, ended_ns=time.time_ns())
        try:
            return _encoder.encode(span)
        except UnicodeEncodeError:
            return _encoder.encode(Span(**{name: without_surrogates(getattr(span, name)) for name in SPAN_FIELDS}))
    except Exception as exc:  # noqa: BLE001 - a value may be an object of the application, with any behaviour
        return Unencodable(shorten(f"cannot be encoded: {cut_quoted(str(exc)) or type(exc).__name__}", 300))
