"""
Requests of OTLP as the messages of ``opentelemetry-proto``, with everything that their sender put into them.

``OtlpSpan`` leaves out what the mapping does not need, such as links. What is sent on to another backend is therefore
kept in these messages, whichever encoding the request had.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tokentrace.bad_data import reading
from tokentrace.errors import Rejected

Signal = Literal["traces", "logs", "metrics"]
Encoding = Literal["protobuf", "json"]

_REQUESTS: Mapping[str, type[Message]] = {
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
#: Decoders of protobuf refuse messages that are nested deeper than 100.
_MAX_DEPTH = 90
#: Fields of bytes that JSON writes in hexadecimal and not, as others, in base64.
_IDS = frozenset({"trace_id", "span_id", "parent_span_id"})
_DIGITS = re.compile(r"[+-]?[0-9]{1,20}")
_WHOLE = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED32,
        FieldDescriptor.TYPE_SFIXED64,
    }
)
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_decode = msgspec.json.Decoder().decode


def read_request(signal: Signal, encoding: Encoding, body: bytes) -> Any:
    """
    Return the request in *body* as a message.

    In JSON, a field that is unknown or whose value is not of its type is left out, as the mapping does.

    Raises:
        Rejected: *body* is neither protobuf nor JSON of such a request.
    """
    request = _REQUESTS[signal]()
    if encoding == "json":
        with reading("body"):
            decoded = _decode(body)
        if not isinstance(decoded, dict):
            raise Rejected("body: not an object in JSON")
        _fill(request, decoded)
        return request
    try:
        request.ParseFromString(body)
    except DecodeError as exc:
        raise Rejected(f"body: not an OTLP request in protobuf: {exc}") from exc
    return request


def _fill(message: Any, given: Mapping[str, Any], depth: int = 0) -> None:
    """Put what an object of JSON holds into *message*, but nothing that a receiver could not decode again."""
    if depth > _MAX_DEPTH:
        return
    fields = _fields_of(message.DESCRIPTOR)
    for name, value in given.items():
        field = fields.get(name)
        if field is None or value is None:
            continue
        if not field.is_repeated:
            _put(message, field, value, depth)
        elif isinstance(value, list):
            items = getattr(message, field.name)
            for item in value:
                if field.type != FieldDescriptor.TYPE_MESSAGE:
                    scalar = _scalar(field, item)
                    if scalar is not None:
                        items.append(scalar)
                elif isinstance(item, dict):
                    _fill(items.add(), item, depth + 1)


def _put(message: Any, field: FieldDescriptor, value: Any, depth: int) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if isinstance(value, dict):
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, value, depth + 1)
        return
    scalar = _scalar(field, value)
    if scalar is not None:
        setattr(message, field.name, scalar)


_known: dict[str, dict[str, FieldDescriptor]] = {}


def _fields_of(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """Return name in JSON -> field; the name in protobuf is accepted too."""
    found = _known.get(descriptor.full_name)
    if found is None:
        found = {field.name: field for field in descriptor.fields}
        found |= {field.json_name: field for field in descriptor.fields}
        _known[descriptor.full_name] = found
    return found


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    """Return *value* as *field* needs it; None if it is not of its type."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return value if isinstance(value, str) else None
    if kind == FieldDescriptor.TYPE_BOOL:
        return value if isinstance(value, bool) else None
    if kind == FieldDescriptor.TYPE_BYTES:
        return _bytes(field.name, value)
    if kind == FieldDescriptor.TYPE_ENUM:
        return _enum(field, value)
    if kind in _WHOLE:
        return _whole(kind, value)
    return _number(value)


def _bytes(name: str, value: Any) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return bytes.fromhex(value) if name in _IDS else base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _enum(field: FieldDescriptor, value: Any) -> int | None:
    names = field.enum_type.values_by_name if field.enum_type is not None else {}
    if isinstance(value, str) and value in names:
        number: int = names[value].number
        return number
    return _whole(FieldDescriptor.TYPE_INT32, value)


_LIMITS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31),
    FieldDescriptor.TYPE_UINT32: (0, 2**32),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32),
    FieldDescriptor.TYPE_UINT64: (0, 2**64),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64),
}


def _whole(kind: int, value: Any) -> int | None:
    if isinstance(value, str):
        value = int(value) if _DIGITS.fullmatch(value) else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if value is None or isinstance(value, bool) or not isinstance(value, int):
        return None
    low, end = _LIMITS.get(kind, (-(2**63), 2**63))
    return value if low <= value < end else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        if value in _SPECIAL:
            return _SPECIAL[value]
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
