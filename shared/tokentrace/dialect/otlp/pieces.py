"""
Large OTLP requests, cut into pieces that are requests of their own, in the encoding of the whole.

The libraries decode a message in one go and hold Python's lock meanwhile, and what they make of it takes several times
its size. Piece by piece, other threads get turns, and only what has been decoded takes memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from tokentrace.bad_data import reading
from tokentrace.dialect.otlp import json_wire, protobuf_wire
from tokentrace.dialect.otlp.model import OtlpLog, OtlpSpan
from tokentrace.errors import Rejected

Signal = Literal["traces", "logs"]
Encoding = Literal["protobuf", "json"]

#: What a request holds, by signal: the names of its three levels in JSON.
_LEVELS: Mapping[str, tuple[str, str, str]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
}


class _Wire(Protocol):
    """The functions that ``json_wire`` and ``protobuf_wire`` have."""

    def holds_ids(self, body: bytes) -> bool: ...

    def check_logs(self, body: bytes) -> None: ...

    def count_points(self, body: bytes) -> int: ...

    def decode_traces(self, body: bytes) -> list[OtlpSpan]: ...

    def decode_logs(self, body: bytes) -> list[OtlpLog]: ...


_WIRES: Mapping[str, _Wire] = {"protobuf": protobuf_wire, "json": json_wire}


class _Group(NamedTuple):
    """
    The records of one scope, with what is said of the resource and the scope; all encoded.

    Attributes:
        resource, scope: In JSON, the members of the objects that hold them, such as ``"scope":{},"schemaUrl":""``.
    """

    resource: bytes
    scope: bytes
    records: list[memoryview]


class Piece(NamedTuple):
    """
    A part of a request.

    Attributes:
        places: The place of each of its records among all records of the whole request.
        size: Size of its records, bytes.
    """

    groups: list[_Group]
    places: range
    size: int
    encoding: Encoding
    signal: Signal

    def encode(self) -> bytes:
        """Return a request that holds only these records."""
        return _join_json(self.groups, self.signal) if self.encoding == "json" else _join_protobuf(self.groups)

    def check(self) -> bool:
        """
        Decode the records and forget them; return True if one of them is a span that has both ids.

        Raises:
            Rejected: They cannot be decoded.
        """
        wire = _WIRES[self.encoding]
        if self.signal == "traces":
            return wire.holds_ids(self.encode())
        wire.check_logs(self.encode())
        return False

    def spans(self) -> list[OtlpSpan]:
        """Return the spans; raise ``Rejected`` if they cannot be decoded."""
        return _WIRES[self.encoding].decode_traces(self.encode())

    def logs(self) -> list[OtlpLog]:
        """Return the log records; raise ``Rejected`` if they cannot be decoded."""
        return _WIRES[self.encoding].decode_logs(self.encode())


class Pieces(NamedTuple):
    """
    A request in parts.

    Attributes:
        total: Number of records of the request.
        parts: The parts, in order.
        too_large: Place and bytes of each record that is too large to be in a part.
    """

    total: int
    parts: list[Piece]
    too_large: list[tuple[int, bytes]]


def count_points(encoding: Encoding, body: bytes) -> int:
    """Return the number of data points of a request with metrics; raise ``Rejected`` if it cannot be decoded."""
    return _WIRES[encoding].count_points(body)


class Limits(NamedTuple):
    """
    Limits of a request and its parts.

    Attributes:
        records: Most records of a request; it may also have at most so many resources and so many scopes.
        piece_bytes: Limit for the records of a part, unless it has only one.
        record_bytes: Limit of a record that is in a part.
    """

    records: int
    piece_bytes: int
    record_bytes: int


def cut(encoding: Encoding, signal: Signal, body: bytes, limits: Limits) -> Pieces:
    """
    Cut *body* into parts.

    Raises:
        Rejected: *body* is not such a request, is of another signal, or 413, has too many records. What is wrong within
            a record is found when the part is decoded.
    """
    most = limits.records
    groups = _json_groups(body, signal, most) if encoding == "json" else _protobuf_groups(memoryview(body), most)
    pieces = Pieces(0, [], [])
    open_groups: list[_Group] = []
    place = first = size = 0

    def close() -> None:
        nonlocal open_groups, first, size
        if place > first:
            pieces.parts.append(Piece(open_groups, range(first, place), size, encoding, signal))
        open_groups, first, size = [], place, 0

    for group in groups:
        if place + len(group.records) > most:
            raise _too_many(most)
        if group.records:
            open_groups.append(group._replace(records=[]))
        for record in group.records:
            is_too_large = len(record) > limits.record_bytes
            if is_too_large or (size and size + len(record) > limits.piece_bytes):
                close()
                open_groups.append(group._replace(records=[]))
            if is_too_large:
                pieces.too_large.append((place, bytes(record)))
                first = place + 1
            else:
                open_groups[-1].records.append(record)
                size += len(record)
            place += 1
    close()
    return pieces._replace(total=place)


def _too_many(most: int) -> Rejected:
    return Rejected(f"body: over {most} records, which is the limit of a request", status=413)


# -- JSON

_NULL = msgspec.Raw(b"null")
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
#: An attribute of a span has about three commas, and a span some twenty attributes.
_COMMAS = 100


def _decoder(outer: str, middle: str, inner: str) -> msgspec.json.Decoder[Any]:
    """Return a decoder of a request whose records stay encoded; the arguments are the names of its three levels."""
    raw: Any = msgspec.Raw
    records = list[msgspec.Raw] | None
    url = ("schemaUrl", raw, _NULL)
    scope: Any = msgspec.defstruct(
        "Scope", [("scope", raw, _NULL), url, ("records", records, None)], rename={"records": inner}
    )
    groups = list[scope] | None
    resource: Any = msgspec.defstruct(
        "Resource", [("resource", raw, _NULL), url, ("groups", groups, None)], rename={"groups": middle}
    )
    others: list[Any] = [(names[0], raw, None) for names in _LEVELS.values() if names[0] != outer]
    fields = [("parts", list[resource] | None, None), *others, ("resourceMetrics", raw, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Request", fields, rename={"parts": outer}))


_decoders = {signal: _decoder(*levels) for signal, levels in _LEVELS.items()}


def _json_groups(body: bytes, signal: Signal, most: int) -> Iterator[_Group]:
    # The decoder makes an object of each item before it can be counted. Items are between commas, and commas in texts
    # are only looked at if there are very many.
    if body.count(b",") > _COMMAS * most and _TEXT.sub(b"", body).count(b",") > _COMMAS * most:
        raise _too_many(most)
    with reading("body"):
        request = _decoders[signal].decode(body)
    if not request.parts:
        other = next((name for name in request.__struct_fields__[1:] if getattr(request, name) is not None), "")
        if other:
            raise Rejected(f"body: has {other} and no {_LEVELS[signal][0]}; it is of another signal than {signal}")
    for part in request.parts or ():
        for group in part.groups or ():
            records = [memoryview(record) for record in group.records or ()]
            resource = b'"resource":%b,"schemaUrl":%b' % (part.resource, part.schemaUrl)
            yield _Group(resource, b'"scope":%b,"schemaUrl":%b' % (group.scope, group.schemaUrl), records)


def _join_json(groups: Sequence[_Group], signal: Signal) -> bytes:
    outer, middle, inner = (name.encode() for name in _LEVELS[signal])
    parts = [
        b'{%b,"%b":[{%b,"%b":[%b]}]}' % (resource, middle, scope, inner, b",".join(records))
        for resource, scope, records in groups
    ]
    return b'{"%b":[%b]}' % (outer, b",".join(parts))


# -- protobuf: in a request, a resource and a scope, the records or groups have field 2, in the request field 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BROKEN = "body: not an OTLP request in protobuf"
#: Most other fields of a request, a resource or a scope; they have three.
_MAX_FIELDS = 1000


def _protobuf_groups(body: memoryview, most: int) -> Iterator[_Group]:
    resources, _ = _split(body, 1, most)
    seen = 0
    for part in resources:
        scopes, resource = _split(part, 2, most)
        seen += len(scopes)
        if seen > most:
            raise _too_many(most)
        for group in scopes:
            records, scope = _split(group, 2, most)
            yield _Group(resource, scope, records)


def _join_protobuf(groups: Sequence[_Group]) -> bytes:
    return b"".join(
        _field(1, resource + _field(2, scope + b"".join([_field(2, record) for record in records])))
        for resource, scope, records in groups
    )


def _field(number: int, data: bytes | memoryview) -> bytes:
    size, encoded = len(data), bytearray([number << 3 | _BYTES])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + data


def _split(message: memoryview, number: int, most: int) -> tuple[list[memoryview], bytes]:
    """Return (the values of the field *number* of *message*, at most *most*, all other fields as they are encoded)."""
    values: list[memoryview] = []
    others: list[memoryview] = []
    # Where fields begin that are not copied to ``others`` yet.
    other = at = fields = 0
    end, wanted = len(message), number << 3 | _BYTES
    while at < end:
        begin = at
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind == _VARINT:
            size, (_, at) = 0, _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise Rejected(_BROKEN)
        fields += key != wanted
        if fields > _MAX_FIELDS:
            raise Rejected(_BROKEN)
        start, at = at, at + size
        if at > end:
            raise Rejected(_BROKEN)
        if key == wanted:
            if len(values) == most:
                raise _too_many(most)
            values.append(message[start:at])
            others.append(message[other:begin])
            other = at
    others.append(message[other:end])
    return values, b"".join(others)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Rejected(_BROKEN)
