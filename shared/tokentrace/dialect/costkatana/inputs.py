"""What Cost Katana's clients send: the inputs of its SDK and of its backend; unknown keys are passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tokentrace.dialect import explain
from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    MAX_INSTANT_NS,
    MIN_INSTANT_NS,
    Id,
    Kind,
    Name,
    Role,
    Text,
    Tokens,
    check_attributes,
    is_id,
)
from tokentrace.units import parse_instant

T = TypeVar("T")

#: Fields of theirs that are attributes of ours.
TOOL = "tool"
RESOURCE_IDS = "resource_ids"


class TokenCounts(msgspec.Struct, kw_only=True):
    """Tokens of the whole input and the whole output."""

    input: Tokens = 0
    output: Tokens = 0


class ErrorInput(msgspec.Struct, kw_only=True):
    """What went wrong."""

    message: Text = ""
    stack: Text | None = None


class EndInput(msgspec.Struct, kw_only=True, rename="camel"):
    """
    What is told when a span ends; everything may be left out or null.

    Attributes:
        status: pending = it has not ended, which only ``ingest`` may say.
        model, ai_model: The SDK's and the backend's name of the same.
        cost_usd: US dollars; absent = please price it.
        ended_at: RFC 3339 with a time zone; absent = now.
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
    What is told when a span starts, and of ``ingest`` also what its end tells.

    Attributes:
        trace_id: The span's id; absent = please make one.
        parent_id: The parent's span id; absent = a root.
        started_at: RFC 3339 with a time zone; absent = now.
    """

    name: Annotated[Name, Meta(min_length=1)]
    trace_id: Id | None = None
    session_id: Id | None = None
    parent_id: Id | None = None
    user_id: Id | None = None
    type: Kind | None = None
    started_at: str | None = None


class MessageInput(msgspec.Struct, kw_only=True, rename="camel"):
    """One message of a conversation; message_id absent = please make one, created_at absent = now."""

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
_many = msgspec.json.Decoder(list[SpanInput])


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc


def decode_start(body: bytes) -> SpanInput:
    """
    The body of ``POST /api/traces/start``.

    Raises:
        Rejected: Names the field.
    """
    given = _decode(_start, body)
    _check(given)
    return given


def decode_end(body: bytes) -> EndInput:
    """
    The body of ``POST /api/traces/{traceId}/end``; an empty one says that all went well.

    Raises:
        Rejected: Names the field.
    """
    given = _decode(_end, body) if body.strip() else EndInput()
    if given.status == "pending":
        raise Rejected("status: an end is ok, error or timeout, not pending")
    instant_of("endedAt", given.ended_at)
    check_metadata(attributes_of(given))
    return given


def decode_ingest(body: bytes) -> list[SpanInput]:
    """
    The body of ``POST /api/traces/ingest``: ``{"spans": [...]}``, an array, or one span.

    Raises:
        Rejected: Names the index of the span and the field.
    """
    if body.lstrip()[:1] == b"[":
        spans = _decode(_many, body)
    else:
        wrapped = _decode(_wrapped, body).spans
        if wrapped is not msgspec.UNSET and bytes(wrapped)[:1] != b"[":
            raise Rejected("spans: is not an array")
        spans = [_decode(_start, body)] if wrapped is msgspec.UNSET else _decode(_many, wrapped)
    first: dict[str, int] = {}
    for index, given in enumerate(spans):
        try:
            _check(given)
            if given.trace_id and first.setdefault(given.trace_id, index) != index:
                raise Rejected(f"traceId: {shorten(given.trace_id)!r} is also that of span {first[given.trace_id]}")
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}") from exc
    return spans


def decode_message(body: bytes) -> MessageInput:
    """
    The body of ``POST /api/traces/messages``.

    Raises:
        Rejected: Names the field.
    """
    given = _decode(_message, body)
    _check_id("sessionId", given.session_id)
    _check_id("traceId", given.trace_id)
    _check_id("messageId", given.message_id)
    instant_of("createdAt", given.created_at)
    check_metadata(given.metadata or {})
    return given


def _check(given: SpanInput) -> None:
    for name, value in (
        ("traceId", given.trace_id),
        ("sessionId", given.session_id),
        ("parentId", given.parent_id),
        ("userId", given.user_id),
    ):
        _check_id(name, value)
    if given.parent_id and given.parent_id == given.trace_id:
        raise Rejected("parentId: a span is not its own parent")
    started, ended = instant_of("startedAt", given.started_at), instant_of("endedAt", given.ended_at)
    if started and ended and ended < started:
        raise Rejected("endedAt: before startedAt")
    if given.status == "pending" and ended:
        raise Rejected("status: pending, but endedAt says that it has ended")
    check_metadata(attributes_of(given))


def _check_id(name: str, value: str | None) -> None:
    if value and not is_id(value):
        raise Rejected(f"{name}: {shorten(value)!r} is not 1-256 printable ASCII characters")


def instant_of(name: str, text: str | None) -> int:
    """
    *text*, the field *name*, as Unix nanoseconds; 0 for none.

    Raises:
        Rejected: Not RFC 3339 with a time zone, or not between the years 2000 and 2100.
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
    ``check_attributes`` in the words of Cost Katana.

    Raises:
        Rejected: Names the key.
    """
    try:
        check_attributes(attributes)
    except Rejected as exc:
        raise Rejected(f"metadata{str(exc).removeprefix('attributes')}") from exc


def attributes_of(given: EndInput) -> dict[str, Any]:
    """The metadata, with the fields of theirs that are attributes of ours."""
    attributes = dict(given.metadata or {})
    if given.tool:
        attributes[TOOL] = given.tool
    if given.resource_ids:
        attributes[RESOURCE_IDS] = given.resource_ids
    return attributes


def has_ended(given: SpanInput) -> bool:
    """True when a span of ``ingest`` is finished; else it stays open."""
    return bool(given.ended_at) or given.status in ("ok", "error", "timeout")
