"""The decoding of what Cost Katana's clients send, in the form of its SDK or backend. Unknown keys are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tokentrace.dialect import explain
from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    MAX_INSTANT_NS,
    MAX_TOKENS,
    MIN_INSTANT_NS,
    Id,
    Kind,
    Name,
    Role,
    Text,
    check_attributes,
    is_id,
)
from tokentrace.units import is_number, parse_instant

T = TypeVar("T")

#: Keys of the attributes that hold Cost Katana's fields ``tool`` and ``resourceIds``.
TOOL = "tool"
RESOURCE_IDS = "resource_ids"


#: Amounts by name: ``input`` and ``output`` are the whole input and output, ``cached`` is a part of the input. Further
#: names are those of ``vendor_names``; unknown names are ignored.
TokenCounts = Annotated[
    dict[str, Any],
    Meta(
        description="Amounts by name. `input` and `output` are the whole input and output, others are parts of them.",
        extra_json_schema={
            "properties": {
                name: {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}
                for name in (
                    "input",
                    "output",
                    "total",
                    "cached",
                    "cacheRead",
                    "cacheWrite",
                    "cacheWrite1h",
                    "reasoning",
                    "inputAudio",
                    "outputAudio",
                )
            }
        },
        examples=[{"input": 512, "output": 128, "cached": 256}],
    ),
]


class ErrorInput(msgspec.Struct, kw_only=True):
    """The error of a call."""

    message: Text = ""
    stack: Text | None = None


class EndInput(msgspec.Struct, kw_only=True, rename="camel"):
    """
    The end of a span; every field may be absent or null.

    Attributes:
        status: pending = the span has not ended; not allowed in the body of ``POST /api/traces/{traceId}/end``.
        model, ai_model: The model; the SDK calls the field ``model``, the backend ``aiModel``.
        cost_usd: Cost in US dollars; absent = ingest prices the span.
        ended_at: RFC 3339 with a time zone; absent = the arrival of the request.
    """

    status: Literal["ok", "error", "timeout", "pending"] | None = None
    error: ErrorInput | Text | None = None
    model: Name | None = None
    ai_model: Name | None = None
    tokens: TokenCounts | None = None
    cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = msgspec.field(name="costUSD", default=None)
    tool: Name | None = None
    resource_ids: list[str] | None = None
    metadata: dict[str, Any] | None = None
    ended_at: str | None = None


class SpanInput(EndInput, kw_only=True, rename="camel"):
    """
    The start of a span; in ``POST /api/traces/ingest`` also its end.

    Attributes:
        trace_id: The id of the span; absent = ingest makes one.
        parent_id: The id of the parent span; absent = a root.
        started_at: RFC 3339 with a time zone; absent = the arrival of the request.
    """

    name: Annotated[Name, Meta(min_length=1)]
    trace_id: Id | None = None
    session_id: Id | None = None
    parent_id: Id | None = None
    user_id: Id | None = None
    type: Kind | None = None
    started_at: str | None = None


class MessageInput(msgspec.Struct, kw_only=True, rename="camel"):
    """
    One message of a conversation.

    Attributes:
        trace_id: The id of the span that the message belongs to; absent = none.
        message_id: The id of the message; absent = ingest makes one.
        created_at: RFC 3339 with a time zone; absent = the arrival of the request.
    """

    session_id: Annotated[Id, Meta(min_length=1)]
    role: Role
    content: str
    trace_id: Id | None = None
    message_id: Id | None = None
    metadata: dict[str, Any] | None = None
    created_at: str | None = None


class _Wrapped(msgspec.Struct):
    spans: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_start = msgspec.json.Decoder(SpanInput)
_end = msgspec.json.Decoder(EndInput)
_message = msgspec.json.Decoder(MessageInput)
_wrapped = msgspec.json.Decoder(_Wrapped)
_starts = msgspec.json.Decoder(list[SpanInput])


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc


def decode_start(body: bytes) -> SpanInput:
    """
    Decode the body of ``POST /api/traces/start``.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    span = _decode(_start, body)
    _check(span)
    return span


def check_tokens(tokens: dict[str, Any] | None) -> None:
    """
    Check the amounts of *tokens*, which may be null.

    Raises:
        Rejected: An amount is no whole number from 0 to 2**40; the text names it.
    """
    for name, value in (tokens or {}).items():
        if value is None or isinstance(value, dict):
            continue
        whole = isinstance(value, float) and value.is_integer()
        if not whole and (not isinstance(value, int) or isinstance(value, bool)) and not name.endswith("econds"):
            raise Rejected(f"tokens.{shorten(name)}: {shorten(value)!r} is not a whole number")
        if is_number(value) and not 0 <= value <= MAX_TOKENS:
            raise Rejected(f"tokens.{shorten(name)}: {shorten(value)} is not between 0 and {MAX_TOKENS}")


def decode_end(body: bytes) -> EndInput:
    """
    Decode the body of ``POST /api/traces/{traceId}/end``; an empty body is an end without values.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    end = _decode(_end, body) if body.strip() else EndInput()
    if end.status == "pending":
        raise Rejected("status: an end is ok, error or timeout, not pending")
    instant_of("endedAt", end.ended_at)
    check_tokens(end.tokens)
    check_metadata(attributes_of(end))
    return end


def decode_ingest(body: bytes) -> list[SpanInput]:
    """
    Decode the body of ``POST /api/traces/ingest``: ``{"spans": [...]}``, an array, or one span.

    Raises:
        Rejected: *body* is not JSON, a value in it is invalid, or two spans have one ``traceId``; the text names the
            field and, where known, the index of the span.
    """
    if body.lstrip()[:1] == b"[":
        spans = _decode(_starts, body)
    else:
        wrapped = _decode(_wrapped, body).spans
        if wrapped is not msgspec.UNSET and bytes(wrapped)[:1] != b"[":
            raise Rejected("spans: is not an array")
        spans = [_decode(_start, body)] if wrapped is msgspec.UNSET else _decode(_starts, wrapped)
    first: dict[str, int] = {}
    for index, span in enumerate(spans):
        try:
            _check(span)
            if span.trace_id and first.setdefault(span.trace_id, index) != index:
                raise Rejected(f"traceId: {shorten(span.trace_id)!r} is also that of span {first[span.trace_id]}")
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}") from exc
    return spans


def decode_message(body: bytes) -> MessageInput:
    """
    Decode the body of ``POST /api/traces/messages``.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    message = _decode(_message, body)
    _check_id("sessionId", message.session_id)
    _check_id("traceId", message.trace_id)
    _check_id("messageId", message.message_id)
    instant_of("createdAt", message.created_at)
    check_metadata(message.metadata or {})
    return message


def _check(span: SpanInput) -> None:
    for name, value in (
        ("traceId", span.trace_id),
        ("sessionId", span.session_id),
        ("parentId", span.parent_id),
        ("userId", span.user_id),
    ):
        _check_id(name, value)
    if span.parent_id and span.parent_id == span.trace_id:
        raise Rejected("parentId: a span is not its own parent")
    started, ended = instant_of("startedAt", span.started_at), instant_of("endedAt", span.ended_at)
    if started and ended and ended < started:
        raise Rejected("endedAt: before startedAt")
    if span.status == "pending" and ended:
        raise Rejected("status: pending, but endedAt says that it has ended")
    check_tokens(span.tokens)
    check_metadata(attributes_of(span))


def _check_id(name: str, value: str | None) -> None:
    if value and not is_id(value):
        raise Rejected(f"{name}: {shorten(value)!r} is not 1-256 printable ASCII characters")


def instant_of(name: str, text: str | None) -> int:
    """
    Return *text*, the value of field *name*, as Unix nanoseconds; 0 if it is empty or None.

    Raises:
        Rejected: *text* is not RFC 3339 with a time zone, or not between the years 2000 and 2100.
    """
    if not text:
        return 0
    try:
        at = parse_instant(text)
    except Rejected as exc:
        raise Rejected(f"{name}: {str(exc).removeprefix('instant: ')}") from exc
    if not MIN_INSTANT_NS <= at <= MAX_INSTANT_NS:
        raise Rejected(f"{name}: not between the years 2000 and 2100")
    return at


def check_metadata(attributes: dict[str, Any]) -> None:
    """
    Check *attributes* with ``check_attributes``; error texts call them metadata, as Cost Katana does.

    Raises:
        Rejected: As ``check_attributes``.
    """
    try:
        check_attributes(attributes)
    except Rejected as exc:
        raise Rejected(f"metadata{str(exc).removeprefix('attributes')}") from exc


def attributes_of(end: EndInput) -> dict[str, Any]:
    """Return the metadata of *end*, with ``tool`` and ``resourceIds`` as attributes."""
    attributes = dict(end.metadata or {})
    if end.tool:
        attributes[TOOL] = end.tool
    if end.resource_ids:
        attributes[RESOURCE_IDS] = end.resource_ids
    return attributes


def has_ended(span: SpanInput) -> bool:
    """Return True if *span*, from ``POST /api/traces/ingest``, has an end or a status other than pending."""
    return bool(span.ended_at) or span.status in ("ok", "error", "timeout")
