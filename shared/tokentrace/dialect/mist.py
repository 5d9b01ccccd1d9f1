"""The MIST span and its envelope, which Go tools post to ``/mist``."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from tokentrace.dialect import explain
from tokentrace.dialect.attributes import counts_of, score_of, session_of, stated_fields, user_of
from tokentrace.dialect.docs import shown_usage
from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.records import (
    BOM,
    KINDS,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MIN_INSTANT_NS,
    Span,
    check_span,
    decode_json,
    fit_span,
    is_id,
    name_fields,
    plain_json,
    repaired,
    settle_usage,
)
from tokentrace.units import is_number, ms_to_ns, ns_to_ms, nusd_to_usd, usd_to_nusd

TYPE = "trace.span"
_MAPPED = ("model", "provider", "tokens_in", "tokens_out", "cost_usd", "error", "caller", "ttft_ms", "type")


class MistMessage(msgspec.Struct, kw_only=True):
    """
    The envelope of a MIST message; unknown keys are ignored, as in the Go tools.

    Attributes:
        checksum: CRC32-IEEE of the payload's bytes as they were sent; 0 or null = not checked.
    """

    version: str = ""
    id: str = ""
    source: str = ""
    type: str = ""
    timestamp_ns: int = 0
    payload: msgspec.Raw = msgspec.Raw(b"null")
    checksum: int | None = 0


class TraceSpan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A MIST span; ``start_ns`` and ``end_ns`` are Unix nanoseconds, and ``end_ns`` 0 = the span has not ended."""

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    operation: str = ""
    start_ns: int = 0
    end_ns: int = 0
    status: str = ""
    attrs: dict[str, Any] | None = None


_message = msgspec.json.Decoder(MistMessage)
_payload = msgspec.json.Decoder(TraceSpan)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_message(body: bytes) -> Span:
    """
    Decode the span of one MIST message.

    Raises:
        Rejected: The message or its span is invalid; the text begins as in the Go handler: ``invalid message: …``,
            ``expected type trace.span, got …`` or ``invalid span payload: …``.
    """
    try:
        message = _decode_envelope(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(f"invalid message: {explain(str(exc))}") from exc
    if message.type != TYPE:
        raise Rejected(f"expected type {TYPE}, got {shorten(message.type)}")
    if message.version not in ("", "1"):
        raise Rejected(f"invalid message: version {quoted(message.version)} is not supported, only '1' is")
    payload = bytes(message.payload)
    if message.checksum and zlib.crc32(payload) != message.checksum:
        raise Rejected("invalid message: checksum does not match the payload")
    try:
        foreign = decode_json(_payload, TraceSpan, payload)
        span = parse_span(foreign, message.source)
        check_span(span, needs_model=False)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, Rejected) as exc:
        raise Rejected(f"invalid span payload: {explain(str(exc))}") from exc
    return span


def _decode_envelope(body: bytes) -> MistMessage:
    try:
        return _message.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        sent, fixed = body.removeprefix(BOM), repaired(body)
        fields = _fields.decode(fixed)
        plain = plain_json(msgspec.json.encode({**fields, "payload": None}), MistMessage)
        message = msgspec.convert(plain, MistMessage)
        if "payload" in fields:
            # The checksum covers the payload as it was sent. A repaired escape is as long as the one that was sent.
            payload = bytes(fields["payload"])
            start = fixed.find(payload)
            message.payload = msgspec.Raw(sent[start : start + len(payload)] if len(sent) == len(fixed) else payload)
        return message


def parse_span(foreign: TraceSpan, envelope_source: str) -> Span:
    """
    Return the record of a MIST span.

    An id that is not 1-256 printable ASCII characters becomes empty, and ingest makes a new one. If an instant is not
    between the years 2000 and 2100, as from a tool whose clock starts at zero, both instants become 0; the duration
    stays, and ingest sets the end to the arrival.

    Args:
        envelope_source: ``source`` of the envelope, which becomes the caller if the attributes name none.

    Raises:
        Rejected: A key in ``attrs`` is empty, the span takes over 30 days, or a value is out of bounds; the text names
            the field.
    """
    attrs = dict(foreign.attrs or {})
    if "" in attrs:
        raise Rejected("attrs: a key is empty")
    operation = foreign.operation
    if operation.startswith("matchspec.") or envelope_source == "matchspec":
        _map_matchspec(attrs)
    counts = counts_of(attrs)
    has_model = _has_model(attrs) or any(name != "usage" for name in counts)
    kind = attrs.get("type")
    if kind not in KINDS:
        kind = _inferred_kind(operation, has_model=has_model)
    cost = attrs.get("cost_usd")
    # Without a start, the end is all that is known of the time.
    start_ns = foreign.start_ns if foreign.start_ns > 0 or foreign.end_ns < MIN_INSTANT_NS else foreign.end_ns
    latency = max(foreign.end_ns - start_ns, 0) if foreign.end_ns else 0
    if latency > MAX_LATENCY_NS:
        raise Rejected("end_ns: over 30 days after start_ns")
    known_time = MIN_INSTANT_NS <= start_ns <= MAX_INSTANT_NS and foreign.end_ns <= MAX_INSTANT_NS
    ttft = attrs.get("ttft_ms")
    fields: dict[str, Any] = {
        "trace_id": foreign.trace_id if is_id(foreign.trace_id) else "",
        "span_id": foreign.span_id if is_id(foreign.span_id) else "",
        "parent_span_id": foreign.parent_id if is_id(foreign.parent_id) else None,
        "name": operation,
        "kind": kind,
        "caller": _text(attrs, "caller") or envelope_source,
        "model": _text(attrs, "model") or "",
        "provider": _text(attrs, "provider") or "",
        "status": _status(foreign.status, attrs),
        "started_ns": start_ns if known_time else 0,
        "ended_ns": foreign.end_ns if known_time and foreign.end_ns >= MIN_INSTANT_NS else 0,
        "latency_ns": latency,
        "ttft_ns": ms_to_ns(ttft) if is_number(ttft) and ttft > 0 else 0,
        "cost_nusd": usd_to_nusd(cost) if is_number(cost) else None,
        "error": _text(attrs, "error") or "",
        "session_id": session_of(attrs),
        "user_id": user_of(attrs),
        "score": score_of(attrs),
        "attributes": {key: value for key, value in attrs.items() if not _is_mapped(key, value)},
        "source": "mist",
        **counts,
        **stated_fields(attrs, kind, counts),
    }
    if is_number(cost) and cost > 0 and not fields["cost_nusd"]:
        fields["cost_source"] = "reported"  # less than half a nano-dollar, not the 0 of a tool without prices
    try:
        span = msgspec.convert(msgspec.to_builtins(fit_span(Span(**fields))), Span)
    except msgspec.ValidationError as exc:
        raise Rejected(name_fields(str(exc))) from exc
    return settle_usage(span)


def _has_model(attrs: dict[str, Any]) -> bool:
    return bool(_text(attrs, "model")) or is_number(attrs.get("tokens_in")) or is_number(attrs.get("tokens_out"))


def _inferred_kind(operation: str, *, has_model: bool) -> str:
    return "llm" if has_model or operation == "infermux.infer" else "custom"


def _map_matchspec(attrs: dict[str, Any]) -> None:
    score = attrs.get("score")
    if "eval.score" not in attrs and is_number(score) and 0 <= score <= 1:
        attrs["eval.score"] = attrs.pop("score")
    if "eval.suite" not in attrs and isinstance(attrs.get("suite"), str):
        attrs["eval.suite"] = attrs.pop("suite")


def _status(status: str, attrs: dict[str, Any]) -> str:
    if status == "timeout" or attrs.get("timeout") is True:
        return "timeout"
    if status in ("", "ok"):
        return "ok"
    if status != "error":
        attrs["mist.status"] = status
    return "error"


def _text(attrs: dict[str, Any], key: str) -> str | None:
    value = attrs.get(key)
    return value if isinstance(value, str) and value else None


def _is_mapped(key: str, value: Any) -> bool:
    """Return True if attribute *key* became a field of the span; a value of an unexpected type stays an attribute."""
    if key not in _MAPPED:
        return False
    if key in ("tokens_in", "tokens_out", "cost_usd", "ttft_ms"):
        return is_number(value)
    return isinstance(value, str) and (key != "type" or value in KINDS)


def render_span(span: Span) -> dict[str, Any]:
    """Return *span* as a MIST span; the fields that MIST does not have are in ``attrs``."""
    attrs: dict[str, Any] = dict(span.attributes)
    fields: dict[str, Any] = {
        "model": span.model,
        "provider": span.provider,
        "tokens_in": span.prompt_tokens,
        "tokens_out": span.completion_tokens,
        "cost_usd": nusd_to_usd(span.cost_nusd) if span.cost_nusd else None,
        "error": span.error,
        "caller": span.caller,
        "ttft_ms": ns_to_ms(span.ttft_ns),
        "session_id": span.session_id,
        "user_id": span.user_id,
        "cache_read_tokens": span.cache_read_tokens,
        "cache_write_tokens": span.cache_write_tokens,
        "cache_write_1h_tokens": span.cache_write_1h_tokens,
        "reasoning_tokens": span.reasoning_tokens,
        "usage": shown_usage(span.usage),
        # A call to a model without counts is missing them unless it says otherwise.
        "usage_state": "" if span.usage_state == "missing" else span.usage_state,
        "pricing_context": span.pricing_context,
        "response_id": span.response_id,
        "otel.scope.name": span.scope,
    }
    if span.total_tokens != span.prompt_tokens + span.completion_tokens:
        fields["total_tokens"] = span.total_tokens
    attrs.update((key, value) for key, value in fields.items() if value)
    has_model = bool(span.model or span.prompt_tokens or span.completion_tokens)
    if span.kind != _inferred_kind(span.name, has_model=has_model):
        attrs["type"] = span.kind
    mist_status = attrs.get("mist.status")
    status = span.status
    if status == "error" and isinstance(mist_status, str):
        status = attrs.pop("mist.status")
    shown = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_span_id,
        "operation": span.name,
        "start_ns": span.started_ns,
        "end_ns": span.ended_ns,
        "status": status,
        "attrs": attrs,
    }
    return {key: value for key, value in shown.items() if value or key not in ("parent_id", "attrs")}
