"""Spans as a request of OTLP in protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tokentrace.dialect.otlp.model import OtlpSpan

_MAX_INT, _MIN_INT = 2**63 - 1, -(2**63)


def encode_traces(spans: Sequence[OtlpSpan]) -> bytes:
    """
    Return an ``ExportTraceServiceRequest``, which depends on *spans* alone.

    Spans that share one object as their resource, and the scope, are in one group.
    """
    request = ExportTraceServiceRequest()
    groups: dict[tuple[int, str, str], Any] = {}
    parts: dict[int, Any] = {}
    for span in spans:
        key = (id(span.resource), span.scope, span.scope_version)
        group = groups.get(key)
        if group is None:
            part = parts.get(id(span.resource))
            if part is None:
                part = parts[id(span.resource)] = request.resource_spans.add()
                _put_pairs(part.resource.attributes, span.resource)
            group = groups[key] = part.scope_spans.add()
            group.scope.name, group.scope.version = span.scope, span.scope_version
        _put_span(group.spans.add(), span)
    data: bytes = request.SerializeToString(deterministic=True)
    return data


def _put_span(message: Any, span: OtlpSpan) -> None:
    message.trace_id, message.span_id = bytes.fromhex(span.trace_id), bytes.fromhex(span.span_id)
    if span.parent_span_id:
        message.parent_span_id = bytes.fromhex(span.parent_span_id)
    message.name, message.kind = _text(span.name), span.kind
    message.start_time_unix_nano, message.end_time_unix_nano = span.started_ns, span.ended_ns
    _put_pairs(message.attributes, span.attributes)
    for event in span.events:
        put = message.events.add()
        put.name, put.time_unix_nano = _text(event.name), event.time_ns
        _put_pairs(put.attributes, event.attributes)
    if span.status or span.message:
        message.status.code, message.status.message = span.status, _text(span.message)


def _put_pairs(pairs: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        pair = pairs.add()
        pair.key = _text(str(key))
        put_value(pair.value, value)


def put_value(message: Any, value: Any) -> None:
    """Write *value* into an empty ``AnyValue``; a whole number of more than 64 bits becomes a text."""
    if isinstance(value, str):
        message.string_value = _text(value)
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        if _MIN_INT <= value <= _MAX_INT:
            message.int_value = value
        else:
            message.string_value = str(value)
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, (bytes, bytearray)):
        message.bytes_value = bytes(value)
    elif isinstance(value, (list, tuple)):
        message.array_value.SetInParent()
        for item in value:
            put_value(message.array_value.values.add(), item)
    elif isinstance(value, Mapping):
        message.kvlist_value.SetInParent()
        _put_pairs(message.kvlist_value.values, value)


def _text(text: str) -> str:
    """Return *text* without the halves of surrogate pairs, which UTF-8 cannot encode."""
    return text if text.isascii() else text.encode(errors="replace").decode()
