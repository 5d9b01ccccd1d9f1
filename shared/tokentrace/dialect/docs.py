"""The JSON span of ``POST /spans`` and ``GET /traces/{id}``: milliseconds, dollars and RFC 3339 instants."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tokentrace.dialect import explain
from tokentrace.errors import Rejected
from tokentrace.records import (
    MAX_LATENCY_NS,
    MAX_TOKENS,
    CostSource,
    Id,
    Kind,
    Name,
    Span,
    Status,
    Text,
    Tokens,
    check_span,
)
from tokentrace.units import (
    MS,
    US,
    is_number,
    ms_to_ns,
    ns_to_ms,
    nusd_to_usd,
    render_instant,
    score_to_int,
    usd_to_nusd,
)

Milliseconds = Annotated[float, Meta(ge=0, le=MAX_LATENCY_NS // MS)]
Moment = Annotated[datetime, Meta(tz=True)]


class DocsSpan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """
    A span as JSON clients send it.

    Attributes:
        comp_tokens, completion_tokens: Tokens of the whole output; the first is the documented name, the second is
            accepted too.
        cost_usd: Cost in US dollars; absent = ingest prices the span.
        latency_ms, ttft_ms: Durations in milliseconds; 0 = unknown.
        started_at, ended_at: RFC 3339 with a time zone; absent = ingest fills them in.
    """

    trace_id: Id = ""
    span_id: Id = ""
    parent_span_id: Id | None = None
    name: Name = ""
    kind: Kind = "llm"
    caller: Name = ""
    model: Name = ""
    provider: Name = ""
    prompt_tokens: Tokens = 0
    comp_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    total_tokens: Annotated[int, Meta(ge=0, le=2 * MAX_TOKENS)] = 0
    cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    cost_model: Name = ""
    latency_ms: Milliseconds = 0.0
    ttft_ms: Milliseconds = 0.0
    status: Status = "ok"
    error: Text = ""
    error_stack: Text = ""
    started_at: Moment | None = None
    ended_at: Moment | None = None
    attributes: dict[str, str | int | float | bool] = {}
    session_id: Id | None = None
    user_id: Id | None = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    usage: dict[str, Tokens] | None = None
    #: Accepted and ignored, so that a span from ``render_span`` can be sent again; ingest sets both anew.
    cost_source: CostSource = ""
    unpriced_reason: Name = ""


_span_decoder = msgspec.json.Decoder(DocsSpan)
_spans_decoder = msgspec.json.Decoder(list[DocsSpan])


def decode_spans(body: bytes, source: str = "spans") -> list[Span]:
    """
    Decode one JSON span object or an array of them.

    Args:
        source: ``Span.source`` of the result.

    Raises:
        Rejected: *body* is not JSON, or a span in it is invalid; the text names the field and, where known, the index
            of the span.
    """
    start = body.lstrip()[:1]
    try:
        docs = _spans_decoder.decode(body) if start == b"[" else [_span_decoder.decode(body)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc
    spans = []
    for index, doc in enumerate(docs):
        try:
            span = _span(doc, source)
            check_span(span)
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}") from exc
        spans.append(span)
    return spans


def _span(doc: DocsSpan, source: str) -> Span:
    completion = doc.comp_tokens or doc.completion_tokens
    if doc.comp_tokens and doc.completion_tokens and doc.comp_tokens != doc.completion_tokens:
        raise Rejected("completion_tokens: differs from comp_tokens, which means the same")
    attributes = doc.attributes
    session, user, score = doc.session_id, doc.user_id, None
    if attributes:
        session = session or _text(attributes, "session_id")
        user = user or _text(attributes, "user_id")
        score = score_of(attributes)
    # The span is built in steps, because a call with more than 15 keywords takes four times as long.
    span = Span(
        name=doc.name,
        kind=doc.kind,
        caller=doc.caller,
        model=doc.model,
        provider=doc.provider,
        status=doc.status,
        started_ns=_instant(doc.started_at),
        ended_ns=_instant(doc.ended_at),
        latency_ns=ms_to_ns(doc.latency_ms) if doc.latency_ms else 0,
        prompt_tokens=doc.prompt_tokens,
        completion_tokens=completion,
        total_tokens=doc.total_tokens or doc.prompt_tokens + completion,
        cost_nusd=None if doc.cost_usd is None else usd_to_nusd(doc.cost_usd),
        attributes=attributes,
        source=source,
    )
    if (
        doc.trace_id
        or doc.span_id
        or doc.parent_span_id
        or doc.ttft_ms
        or doc.error
        or doc.cost_model
        or session
        or user
    ):
        span = replace(
            span,
            trace_id=doc.trace_id,
            span_id=doc.span_id,
            parent_span_id=doc.parent_span_id or None,
            ttft_ns=ms_to_ns(doc.ttft_ms),
            error=doc.error,
            cost_model=doc.cost_model,
            session_id=session,
            user_id=user,
        )
    if score is not None or doc.usage or doc.error_stack:
        span = replace(span, score=score, usage=doc.usage or None, error_stack=doc.error_stack)
    if doc.cache_read_tokens or doc.cache_write_tokens or doc.cache_write_1h_tokens or doc.reasoning_tokens:
        span = replace(
            span,
            cache_read_tokens=doc.cache_read_tokens,
            cache_write_tokens=doc.cache_write_tokens,
            cache_write_1h_tokens=doc.cache_write_1h_tokens,
            reasoning_tokens=doc.reasoning_tokens,
        )
    return span


def score_of(attributes: dict[str, Any]) -> int | None:
    """Return the attribute ``eval.score`` in units of 1e-9; None if it is absent or not a number from 0 to 1."""
    value = attributes.get("eval.score")
    return score_to_int(value) if is_number(value) and 0 <= value <= 1 else None


def _text(attributes: dict[str, Any], key: str) -> str | None:
    value = attributes.get(key)
    return value[:256] if isinstance(value, str) and value else None


def _instant(moment: datetime | None) -> int:
    if moment is None:
        return 0
    # Microseconds since 1970 stay below 2**53, so the float is exact to the microsecond that a datetime holds.
    return round(moment.timestamp() * 1e6) * US


def render_span(span: Span) -> dict[str, Any]:
    """Return *span* as ``GET /traces/{id}`` shows it; empty optional fields are left out, a root's parent is null."""
    shown: dict[str, Any] = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "kind": span.kind,
        "model": span.model,
        "provider": span.provider,
        "prompt_tokens": span.prompt_tokens,
        "comp_tokens": span.completion_tokens,
        "total_tokens": span.total_tokens,
        "cost_usd": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        "latency_ms": ns_to_ms(span.latency_ns),
        "status": span.status,
        "started_at": render_instant(span.started_ns),
        "ended_at": render_instant(span.ended_ns),
    }
    optional: dict[str, Any] = {
        "caller": span.caller,
        "cost_model": span.cost_model,
        "cost_source": span.cost_source,
        "unpriced_reason": span.unpriced_reason,
        "ttft_ms": ns_to_ms(span.ttft_ns),
        "error": span.error,
        "error_stack": span.error_stack,
        "session_id": span.session_id,
        "user_id": span.user_id,
        "cache_read_tokens": span.cache_read_tokens,
        "cache_write_tokens": span.cache_write_tokens,
        "cache_write_1h_tokens": span.cache_write_1h_tokens,
        "reasoning_tokens": span.reasoning_tokens,
        "usage": span.usage,
        "attributes": span.attributes,
    }
    shown.update((name, value) for name, value in optional.items() if value)
    return shown
