"""What an OTLP request holds, in the form in which the mapping reads it, whatever its encoding was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: ``Status.code`` of a span that failed.
STATUS_ERROR = 2
#: ``SpanKind`` of OTLP: what a span is seen from.
INTERNAL, SERVER, CLIENT = 1, 2, 3


#: Most attributes of a span, and items of a list, that are read; records hold far fewer.
MAX_ITEMS = 10_000


class OtlpEvent(NamedTuple):
    """
    An event of a span, such as an exception.

    Attributes:
        time_ns: Unix nanoseconds; 0 = unknown.
    """

    name: str
    time_ns: int
    attributes: Mapping[str, Any]


class OtlpSpan(NamedTuple):
    """
    A span as its emitter sent it.

    An attribute is a string, an int, a float, a bool, bytes, or a list or dict of them. An attribute without a value,
    and one that is not a finite number, is left out.

    Attributes:
        trace_id, span_id, parent_span_id: Hexadecimal, in lower case; "" = absent, all zeros, or of a wrong length.
        kind: ``SpanKind`` of OTLP; 0 = unknown.
        started_ns, ended_ns: Unix nanoseconds; 0 = unknown.
        status: ``Status.code``: 0 = unset, 1 = ok, 2 = error.
        message: ``Status.message``.
        scope, scope_version: The instrumentation that made the span; "" = unknown.
        resource: The attributes of the program that sent it, such as ``service.name``.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]
    events: tuple[OtlpEvent, ...]
    status: int
    message: str
    scope: str
    scope_version: str
    resource: Mapping[str, Any]


class OtlpLog(NamedTuple):
    """
    A log record as its emitter sent it; the attributes are those of ``OtlpSpan``.

    Attributes:
        trace_id, span_id: The span that it belongs to, hexadecimal; "" = none.
        event: The name of the event; "" = a log line.
        time_ns: When it happened, else when it was observed, Unix nanoseconds; 0 = unknown.
        body: The body, of the same types as an attribute; None = none.
    """

    trace_id: str
    span_id: str
    event: str
    time_ns: int
    attributes: Mapping[str, Any]
    body: Any
    scope: str
    resource: Mapping[str, Any]
