"""The decoding of what Cost Katana's clients send, in the form of its SDK or backend. Unknown keys are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tokentrace.dialect import explain
from tokentrace.errors import Rejected, quoted
from tokentrace.records import (
    BOM,
    GO_ZERO,
    MAX_INSTANT_NS,
    MIN_INSTANT_NS,
    Id,
    Kind,
    Role,
    Tokens,
    check_attributes,
    decode_json,
    fit_attributes,
    is_id,
    repaired,
)
from tokentrace.units import parse_instant

T = TypeVar("T")

#: Keys of the attributes that hold Cost Katana's fields ``tool`` and ``resourceIds``.
TOOL = "tool"
RESOURCE_IDS = "resource_ids"


class TokenCounts(msgspec.Struct, kw_only=True, rename="camel"):
    """
    Amounts of tokens; absent and null = not counted.

    Attributes:
        input, output: The whole input and output, also called prompt and completion, or with the suffix Tokens.
        total: The sum of both, or the only known number.
        cached, cache_read, cache_write, cache_write_1h: Parts of the input.
        reasoning: The part of the output that was spent on reasoning.
        input_audio, output_audio: The audio in the input and in the output.
        cache_read_input_tokens, cache_creation_input_tokens: Anthropic's amounts, which ``input_tokens`` excludes.
    """

    input: Tokens | None = None
    output: Tokens | None = None
    total: Tokens | None = None
    prompt: Tokens | None = None
    completion: Tokens | None = None
    cached: Tokens | None = None
    cache_read: Tokens | None = None
    cache_write: Tokens | None = None
    cache_write_1h: Tokens | None = msgspec.field(name="cacheWrite1h", default=None)
    reasoning: Tokens | None = None
    input_audio: Tokens | None = None
    output_audio: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    cache_read_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    # The same under the names of the vendors' responses, which a client may pass on.
    snake_input: Tokens | None = msgspec.field(name="input_tokens", default=None)
    snake_output: Tokens | None = msgspec.field(name="output_tokens", default=None)
    snake_prompt: Tokens | None = msgspec.field(name="prompt_tokens", default=None)
    snake_completion: Tokens | None = msgspec.field(name="completion_tokens", default=None)
    snake_total: Tokens | None = msgspec.field(name="total_tokens", default=None)
    snake_cached: Tokens | None = msgspec.field(name="cached_tokens", default=None)
    snake_reasoning: Tokens | None = msgspec.field(name="reasoning_tokens", default=None)
    snake_cache_read: Tokens | None = msgspec.field(name="cache_read_input_tokens", default=None)
    snake_cache_creation: Tokens | None = msgspec.field(name="cache_creation_input_tokens", default=None)

    def amounts(self) -> dict[str, int]:
        """Return the amounts by the names that the client sent."""
        pairs = ((field.encode_name, getattr(self, field.name)) for field in _TOKEN_FIELDS)
        return {name: amount for name, amount in pairs if amount is not None}


_TOKEN_FIELDS = msgspec.structs.fields(TokenCounts)


class ErrorInput(msgspec.Struct, kw_only=True):
    """The error of a call."""

    message: str = ""
    stack: str | None = None


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
    error: ErrorInput | str | None = None
    model: str | None = None
    ai_model: str | None = None
    tokens: TokenCounts | None = None
    cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = msgspec.field(name="costUSD", default=None)
    tool: str | None = None
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

    name: Annotated[str, Meta(min_length=1)]
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


def _decode(decoder: msgspec.json.Decoder[T], kind: Any, body: bytes | msgspec.Raw) -> T:
    try:
        return decode_json(decoder, kind, body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc


def _unwrap(body: bytes) -> msgspec.Raw | msgspec.UnsetType:
    try:
        try:
            return _wrapped.decode(body).spans
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _wrapped.decode(repaired(body)).spans
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc


def decode_start(body: bytes) -> SpanInput:
    """
    Decode the body of ``POST /api/traces/start``.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    span = _decode(_start, SpanInput, body)
    _check(span)
    return span


def decode_end(body: bytes) -> EndInput:
    """
    Decode the body of ``POST /api/traces/{traceId}/end``; an empty body is an end without values.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    end = _decode(_end, EndInput, body) if body.strip() else EndInput()
    if end.status == "pending":
        raise Rejected("status: an end is ok, error or timeout, not pending")
    instant_of("endedAt", end.ended_at)
    check_metadata(fit_attributes(attributes_of(end), []))
    return end


def decode_ingest(body: bytes) -> list[SpanInput]:
    """
    Decode the body of ``POST /api/traces/ingest``: ``{"spans": [...]}``, an array, or one span.

    Raises:
        Rejected: *body* is not JSON, a value in it is invalid, or two spans have one ``traceId``; the text names the
            field and, where known, the index of the span.
    """
    if body.removeprefix(BOM).lstrip()[:1] == b"[":
        spans = _decode(_starts, list[SpanInput], body)
    else:
        wrapped = _unwrap(body)
        if wrapped is not msgspec.UNSET and bytes(wrapped)[:1] != b"[":
            raise Rejected("spans: is not an array")
        spans = (
            [_decode(_start, SpanInput, body)]
            if wrapped is msgspec.UNSET
            else _decode(_starts, list[SpanInput], wrapped)
        )
    first: dict[str, int] = {}
    for index, span in enumerate(spans):
        try:
            _check(span)
            if span.trace_id and first.setdefault(span.trace_id, index) != index:
                raise Rejected(f"traceId: {quoted(span.trace_id)} is also that of span {first[span.trace_id]}")
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}") from exc
    return spans


def decode_message(body: bytes) -> MessageInput:
    """
    Decode the body of ``POST /api/traces/messages``.

    Raises:
        Rejected: *body* is not JSON, or a value in it is invalid and the text names its field.
    """
    message = _decode(_message, MessageInput, body)
    _check_id("sessionId", message.session_id)
    _check_id("traceId", message.trace_id)
    _check_id("messageId", message.message_id)
    instant_of("createdAt", message.created_at)
    check_metadata(fit_attributes(message.metadata or {}, []))
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
    check_metadata(fit_attributes(attributes_of(span), []))


def _check_id(name: str, value: str | None) -> None:
    if value and not is_id(value):
        raise Rejected(f"{name}: {quoted(value)} is not 1-256 printable ASCII characters")


def instant_of(name: str, text: str | None) -> int:
    """
    Return *text*, the value of field *name*, as Unix nanoseconds; 0 if it is empty, None or Go's zero time.

    Raises:
        Rejected: *text* is not RFC 3339 with a time zone, or not between the years 2000 and 2100.
    """
    if not text or text.startswith(GO_ZERO):
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
