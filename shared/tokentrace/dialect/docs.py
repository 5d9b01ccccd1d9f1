"""The JSON span of ``POST /spans`` and ``GET /traces/{id}``: milliseconds, dollars and RFC 3339 instants."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tokentrace.dialect import explain
from tokentrace.dialect.attributes import score_of, session_of, user_of
from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.records import (
    BOM,
    FREE_REASONS,
    MAX_ADJUSTED,
    MAX_LATENCY_NS,
    MAX_TOKENS,
    CostSource,
    Id,
    Kind,
    Name,
    Span,
    Status,
    Tokens,
    UsageState,
    check_span,
    decode_json,
    exact_amounts,
    fit_span,
    plain_json,
    repaired,
    settle_usage,
    whole_amounts,
)
from tokentrace.units import (
    MS,
    US,
    ms_to_ns,
    nusd_to_usd,
    render_instant,
    usd_to_nusd,
)

Milliseconds = Annotated[float, Meta(ge=0, le=MAX_LATENCY_NS // MS)]
Nanoseconds = Annotated[int, Meta(ge=0, le=MAX_LATENCY_NS)]
Moment = Annotated[datetime, Meta(tz=True)]
Amount = Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | Annotated[float, Meta(ge=0, le=MAX_TOKENS)]
#: Names of fields that are short for the keys of ``pricing_context``.
CONTEXT_FIELDS = ("service_tier", "processing", "speed")


class DocsSpan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """
    A span as JSON clients send it.

    Attributes:
        comp_tokens, completion_tokens: Tokens of the whole output; the first is the documented name, the second is
            accepted too.
        cost_usd: Cost in US dollars; absent = ingest prices the span.
        usage: Amounts of other priced units by the names of genai-prices, or of the token fields above. Seconds may be
            fractions, all other amounts are whole.
        usage_state: What is known about the usage if the counts are not complete; without it, a successful call to a
            model needs a count.
        pricing_context: What else decides the price, by name.
        service_tier, processing, speed: Short for the keys of pricing_context with the same name.
        response_id: The id that the provider gave the response.
        scope: The instrumentation that reported the span.
        cost_source: ``reported`` = a cost_usd of 0 is the true cost; any other value is ignored.
        cost_reason: Why a reported 0 is true, such as ``cache_hit``; ignored for any other cost.
        latency_ms, ttft_ms: Durations in milliseconds; 0 = unknown.
        latency_ns, ttft_ns: The same in nanoseconds; over 0, they count instead.
        started_at, ended_at: RFC 3339 with a time zone; absent = ingest fills them in.
        adjusted: What was cut or corrected, as an answer with this span said.
    """

    trace_id: Id = ""
    span_id: Id = ""
    parent_span_id: Id | None = None
    name: str = ""
    kind: Kind = "llm"
    caller: str = ""
    model: str = ""
    provider: str = ""
    prompt_tokens: Tokens = 0
    comp_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    total_tokens: Annotated[int, Meta(ge=0, le=2 * MAX_TOKENS)] = 0
    cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    cost_model: Name = ""
    latency_ms: Milliseconds = 0.0
    latency_ns: Nanoseconds = 0
    ttft_ms: Milliseconds = 0.0
    ttft_ns: Nanoseconds = 0
    status: Status = "ok"
    error: str = ""
    error_stack: str = ""
    started_at: Moment | None = None
    ended_at: Moment | None = None
    attributes: dict[str, str | int | float | bool] = {}
    session_id: Id | None = None
    user_id: Id | None = None
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    usage: dict[str, Amount] | None = None
    usage_state: UsageState = ""
    pricing_context: dict[Name, Name] | None = None
    service_tier: Name = ""
    processing: Name = ""
    speed: Name = ""
    response_id: Id = ""
    scope: str = ""
    cost_source: CostSource = ""
    cost_reason: Name = ""
    #: Accepted and ignored, so that a span from ``render_span`` can be sent again; ingest sets it anew.
    unpriced_reason: Name = ""
    later_versions: Tokens = 0
    counted: bool = True
    conflicting: bool = False
    adjusted: list[Name] = []


_PLACE = re.compile(r" - at `\$\[(\d+)\]")
_IN_MAP = re.compile(r" - at `\$(?:\[\d+\])?\.(attributes|usage|pricing_context)\[\.\.\.\]`$")
#: Name of a field that is a map -> its type.
_MAPS = {field.name: field.type for field in msgspec.structs.fields(DocsSpan)}
_span_decoder = msgspec.json.Decoder(DocsSpan)
_spans_decoder = msgspec.json.Decoder(list[DocsSpan])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_item = msgspec.json.Decoder(msgspec.Raw)


def decode_spans(body: bytes, source: str = "spans") -> list[Span]:
    """
    Decode one JSON span object or an array of them.

    Args:
        source: ``Span.source`` of the result.

    Raises:
        Rejected: *body* is not JSON, or a span in it is invalid; the text names the index of the span and the field.
    """
    start = body.removeprefix(BOM).lstrip()[:1]
    try:
        docs = (
            decode_json(_spans_decoder, list[DocsSpan], body)
            if start == b"["
            else [decode_json(_span_decoder, DocsSpan, body)]
        )
    except msgspec.ValidationError as exc:
        raise Rejected(_explained(body, str(exc))) from exc
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Rejected(explain(str(exc))) from exc
    spans = []
    for index, doc in enumerate(docs):
        try:
            span = fit_span(_span(doc, source))
            check_span(span)
        except Rejected as exc:
            raise Rejected(f"span {index}: {exc}") from exc
        spans.append(span)
    return spans


class BadSpan(NamedTuple):
    """
    A span of an array that is not valid.

    Attributes:
        place: Its place in the array.
        data: Its JSON.
        error: What is wrong with it; names the field.
    """

    place: int
    data: bytes
    error: str


def decode_each(body: bytes, source: str = "spans") -> tuple[list[Span], list[BadSpan]]:
    """
    Decode one JSON span object or an array of them, and leave out what is invalid.

    Args:
        source: ``Span.source`` of the result.

    Returns:
        (Valid spans, the others).

    Raises:
        Rejected: *body* is neither a JSON object nor an array.
    """
    try:
        return decode_spans(body, source), []
    except Rejected as exc:
        reason = str(exc)
    fixed = repaired(body)
    if fixed.lstrip()[:1] not in (b"[", b"{"):
        raise Rejected(reason)
    try:
        items = _items.decode(fixed) if fixed.lstrip()[:1] == b"[" else [_item.decode(fixed)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Rejected(reason) from None
    spans: list[Span] = []
    bad: list[BadSpan] = []
    for index, item in enumerate(map(bytes, items)):
        try:
            if item[:1] != b"{":
                raise Rejected("not an object")
            spans += decode_spans(item, source)
        except Rejected as exc:
            bad.append(BadSpan(index, item, str(exc).removeprefix("span 0: ")))
    return spans, bad


def _explained(body: bytes, error: str) -> str:
    """Return the message of a decoder with the index of the span, and with the key if a value in a map is wrong."""
    at, field = _PLACE.search(error), _IN_MAP.search(error)
    index = int(at[1]) if at is not None else 0
    text = explain(error)
    if field is not None:
        try:
            decoded = plain_json(body, list[DocsSpan] if at is not None else DocsSpan)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            decoded = {}
        values = (decoded[index] if at is not None and decoded else decoded).get(field[1]) or {}
        for key, value in values.items():
            try:
                msgspec.convert({key: value}, _MAPS[field[1]])
            except msgspec.ValidationError as exc:
                text = f"{field[1]}.{shorten(key)}: {explain(str(exc))}"
                break
    return f"span {index}: {text.removeprefix(f'span {index}: ')}"


def _span(doc: DocsSpan, source: str) -> Span:
    completion = doc.comp_tokens or doc.completion_tokens
    if doc.comp_tokens and doc.completion_tokens and doc.comp_tokens != doc.completion_tokens:
        raise Rejected("completion_tokens: differs from comp_tokens, which means the same")
    attributes = doc.attributes
    usage = whole_amounts(doc.usage) if doc.usage else None
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
        latency_ns=doc.latency_ns or (ms_to_ns(doc.latency_ms) if doc.latency_ms else 0),
        prompt_tokens=doc.prompt_tokens,
        completion_tokens=completion,
        total_tokens=doc.total_tokens or (0 if usage else doc.prompt_tokens + completion),
        cost_nusd=None if doc.cost_usd is None else usd_to_nusd(doc.cost_usd),
        attributes=attributes,
        source=source,
    )
    if (
        doc.trace_id
        or doc.span_id
        or doc.parent_span_id
        or doc.ttft_ms
        or doc.ttft_ns
        or doc.error
        or doc.cost_model
        or doc.session_id
        or doc.user_id
    ):
        span = replace(
            span,
            trace_id=doc.trace_id,
            span_id=doc.span_id,
            parent_span_id=doc.parent_span_id or None,
            ttft_ns=doc.ttft_ns or ms_to_ns(doc.ttft_ms),
            error=doc.error,
            cost_model=doc.cost_model,
            session_id=doc.session_id or None,
            user_id=doc.user_id or None,
        )
    if attributes:
        score, session, user = score_of(attributes), session_of(attributes), user_of(attributes)
        if score is not None or session or user:
            span = replace(span, score=score, session_id=span.session_id or session, user_id=span.user_id or user)
    if usage or doc.error_stack or doc.usage_state or doc.response_id or doc.scope or doc.adjusted:
        span = replace(
            span,
            adjusted=tuple(doc.adjusted[:MAX_ADJUSTED]),
            usage=usage,
            error_stack=doc.error_stack,
            usage_state=doc.usage_state,
            response_id=doc.response_id,
            scope=doc.scope,
        )
    if doc.cache_read_tokens or doc.cache_write_tokens or doc.cache_write_1h_tokens or doc.reasoning_tokens:
        span = replace(
            span,
            cache_read_tokens=doc.cache_read_tokens,
            cache_write_tokens=doc.cache_write_tokens,
            cache_write_1h_tokens=doc.cache_write_1h_tokens,
            reasoning_tokens=doc.reasoning_tokens,
        )
    if doc.pricing_context or doc.service_tier or doc.processing or doc.speed:
        span = replace(span, pricing_context=_context(doc))
    if doc.cost_usd is not None and (doc.cost_source == "reported" or (doc.cost_usd > 0 and span.cost_nusd == 0)):
        # Less than half a nano-dollar is not the 0 of a client that does not know the price.
        span = replace(span, cost_source="reported", unpriced_reason=_reason(doc))
    return settle_usage(span)


def _context(doc: DocsSpan) -> dict[str, str] | None:
    """Return the pricing context, without empty values, with the fields that are short for its keys."""
    context = {name: value for name, value in (doc.pricing_context or {}).items() if value}
    for name in CONTEXT_FIELDS:
        value: str = getattr(doc, name)
        if value and context.setdefault(name, value) != value:
            raise Rejected(f"{name}: {quoted(value)} differs from pricing_context.{name}, which means the same")
    return context or None


def _reason(doc: DocsSpan) -> str:
    if doc.cost_usd or doc.cost_source != "reported" or not doc.cost_reason:
        return ""
    if doc.cost_reason not in FREE_REASONS:
        raise Rejected(f"cost_reason: {quoted(doc.cost_reason)} is none of {', '.join(FREE_REASONS)}")
    return doc.cost_reason


def _instant(moment: datetime | None) -> int:
    if moment is None or moment.year == 1:  # Go's zero time
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
        "latency_ms": _whole_ms(span.latency_ns),
        "status": span.status,
        "started_at": render_instant(span.started_ns),
        "ended_at": render_instant(span.ended_ns),
    }
    optional: dict[str, Any] = {
        "caller": span.caller,
        "cost_model": span.cost_model,
        "cost_source": span.cost_source,
        "cost_reason": span.unpriced_reason,
        "unpriced_reason": "" if span.unpriced_reason in FREE_REASONS else span.unpriced_reason,
        "latency_ns": span.latency_ns if span.latency_ns % MS else 0,
        "ttft_ms": _whole_ms(span.ttft_ns),
        "ttft_ns": span.ttft_ns if span.ttft_ns % MS else 0,
        "error": span.error,
        "error_stack": span.error_stack,
        "session_id": span.session_id,
        "user_id": span.user_id,
        "cache_read_tokens": span.cache_read_tokens,
        "cache_write_tokens": span.cache_write_tokens,
        "cache_write_1h_tokens": span.cache_write_1h_tokens,
        "reasoning_tokens": span.reasoning_tokens,
        "usage": shown_usage(span.usage),
        "usage_state": span.usage_state,
        "pricing_context": span.pricing_context,
        "service_tier": (span.pricing_context or {}).get("service_tier"),
        "response_id": span.response_id,
        "scope": span.scope,
        "adjusted": list(span.adjusted),
        "attributes": span.attributes,
    }
    shown.update((name, value) for name, value in optional.items() if value)
    return shown


def shown_usage(usage: dict[str, int] | None) -> dict[str, float] | None:
    """Return *usage* with microseconds as the seconds that a client sends; None if it is empty."""
    amounts = exact_amounts(usage or {}).items()
    return {unit: amount if isinstance(amount, int) else float(amount) for unit, amount in amounts} or None


def _whole_ms(ns: int) -> int:
    """Return nanoseconds as whole milliseconds, halves rounded up: clients decode a 64-bit integer."""
    return (ns + MS // 2) // MS
