"""What is made of an OTLP request, span by span, with the reasons."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.dialect.otlp import OtlpSpan, Reading, map_logs, map_spans
from tokentrace.pricing import Pricer, render_lines, render_price, render_usd
from tokentrace.records import MODEL_KINDS, Span
from tokentrace.units import MS
from tokentrace_standalone.doctor.payload import Payload

#: Own keys of a record with what was sent and answered; the doctor shows only that they are there.
_CONTENT = ("input", "output", "instructions", "tool.arguments", "tool.result", "tool.definitions", "raw.content")
#: Rule of the tokens -> what it means.
_TOKEN_RULES: Mapping[str, str] = {
    "inclusive": "cached tokens are part of the input, as the conventions ask",
    "exclusive": "cached tokens stand beside the input, so they were added to it",
}
_NATIVE = "native:"


class TokenFinding(msgspec.Struct):
    """
    The tokens of a call, or of a span that repeats those of calls.

    Attributes:
        rule, why: How the input was read, and what that means.
        notes: What was doubtful.
    """

    prompt: int
    completion: int
    total: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    other: dict[str, int]
    state: str
    rule: str
    why: str
    notes: list[str]


class CostFinding(msgspec.Struct):
    """
    The cost of a span.

    Attributes:
        cost_usd: Decimal text; None = unknown.
        source, reason: As ``cost_source`` and ``cost_reason`` of a stored span.
        reported_usd: What the span reports, if that does not count.
        our_price_usd: What we would charge, if the cost is reported.
        price: The price that was used, and the rules that led to it.
        lines: Units, amounts and rates.
        assumed: What was assumed because the span does not say it.
    """

    cost_usd: str | None
    source: str
    reason: str
    reported_usd: float | None
    our_price_usd: str | None
    price: dict[str, Any]
    lines: list[dict[str, Any]]
    assumed: str


class SpanFinding(msgspec.Struct):
    """
    What is made of one span.

    Attributes:
        place: Its place in the request, from 0.
        dialect, kind, kind_rule: The family of emitters, the kind, and what told the kind.
        counted: Whether it is a call that counts.
        duplicate_of, why_duplicate: The span that tells the same call and counts, and how that is known.
        ttft_ms, ttft_source: Time to the first token, and the attribute or event that tells it; None, "" = unknown.
        content: Keys with what was sent and answered.
        kept: Number of the other attributes that are kept.
        ignored: Names of the attributes that the record does not hold.
        adjusted: What was cut or corrected.
        not_stored: Why it is not stored; "" = it is.
    """

    place: int
    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    service: str
    scope: str
    scope_version: str
    dialect: str
    kind: str
    kind_rule: str
    counted: bool
    duplicate_of: str
    why_duplicate: str
    model: str
    requested_model: str
    provider: str
    status: str
    error: str
    finish_reason: str
    ttft_ms: float | None
    ttft_source: str
    tokens: TokenFinding | None
    session_id: str
    user_id: str
    response_id: str
    cost: CostFinding | None
    content: list[str]
    kept: int
    ignored: list[str]
    adjusted: list[str]
    not_stored: str


class RequestFinding(msgspec.Struct, omit_defaults=True):
    """
    What is made of one request.

    Attributes:
        spans: Of a request with traces: each of its spans.
        told_twice, saved_usd: Number of calls that are told again and do not count, and what they would have cost.
        annotated: Of a request with logs: number of spans to which it adds content or evaluations.
        unused_logs: Number of log records that say nothing about a call.
        metrics: Of a request with metrics: their number; they are not stored.
    """

    signal: str
    encoding: str
    gzip: bool
    spans: list[SpanFinding] = []
    told_twice: int = 0
    saved_usd: str = "0"
    annotated: int = 0
    unused_logs: int = 0
    metrics: int = 0


def examine(payload: Payload, pricer: Pricer) -> RequestFinding:
    """Return what ingest makes of *payload*, before it removes secrets."""
    found = RequestFinding(payload.signal, payload.encoding, payload.is_gzip)
    if payload.signal == "metrics":
        return msgspec.structs.replace(found, metrics=payload.points)
    if payload.signal == "logs":
        logs = map_logs(payload.logs)
        return msgspec.structs.replace(found, annotated=len(logs.annotations), unused_logs=logs.ignored)
    now_ns = time.time_ns()
    mapped = map_spans(payload.spans, lambda span: pricer.quote(span, span.ended_ns or now_ns).cost_nusd)
    bad = dict(mapped.bad)
    return msgspec.structs.replace(
        found,
        spans=[
            _finding(place, span, reading, bad.get(place, ""), pricer, now_ns)
            for place, (span, reading) in enumerate(zip(payload.spans, mapped.readings, strict=True))
        ],
        told_twice=mapped.saved["calls"],
        saved_usd=_usd(mapped.saved["nusd"]),
    )


def _finding(place: int, sent: OtlpSpan, reading: Reading, bad: str, pricer: Pricer, now_ns: int) -> SpanFinding:
    record = reading.span
    reason = bad or ("" if record is not None else "it only says that a call began")
    shown = record or Span(trace_id=sent.trace_id, span_id=sent.span_id, name=sent.name[:256], kind="custom")
    attributes = shown.attributes
    is_call = record is not None and record.kind in MODEL_KINDS
    service = sent.resource.get("service.name")
    return SpanFinding(
        place=place,
        trace_id=sent.trace_id,
        span_id=sent.span_id,
        parent_span_id=sent.parent_span_id,
        name=shown.name,
        service=service if isinstance(service, str) else "",
        scope=sent.scope,
        scope_version=sent.scope_version,
        dialect=reading.dialect,
        kind=reading.kind,
        kind_rule=reading.kind_rule,
        counted=is_call,
        duplicate_of=reading.duplicate_of,
        why_duplicate=reading.why_duplicate,
        model=shown.model,
        requested_model=reading.requested_model,
        provider=shown.provider,
        status=shown.status,
        error=shown.error[:200],
        finish_reason=reading.finish_reason,
        ttft_ms=shown.ttft_ns / MS if shown.ttft_ns else None,
        ttft_source=reading.ttft_source,
        tokens=_tokens(shown, reading) if record is not None else None,
        session_id=shown.session_id or "",
        user_id=shown.user_id or "",
        response_id=shown.response_id,
        cost=_cost(shown, pricer, now_ns) if is_call else None,
        content=[key for key in _CONTENT if key in attributes],
        kept=sum(key not in _CONTENT for key in attributes),
        ignored=list(reading.ignored),
        adjusted=list(shown.adjusted),
        not_stored=reason,
    )


def _tokens(span: Span, reading: Reading) -> TokenFinding | None:
    """Return the tokens of a call; of another span those that it repeats; None if it tells none."""
    prompt, completion = span.prompt_tokens, span.completion_tokens
    if span.kind not in MODEL_KINDS:
        prompt, completion = (span.attributes.get(f"rollup.{name}_tokens", 0) for name in ("prompt", "completion"))
        if not (prompt or completion):
            return None
    return TokenFinding(
        prompt=prompt,
        completion=completion,
        total=span.total_tokens,
        cache_read=span.cache_read_tokens,
        cache_write=span.cache_write_tokens,
        cache_write_1h=span.cache_write_1h_tokens,
        reasoning=span.reasoning_tokens,
        other=dict(span.usage or {}),
        state=span.usage_state,
        rule=reading.token_rule,
        why=_why(span, reading),
        notes=list(reading.token_notes),
    )


def _why(span: Span, reading: Reading) -> str:
    if reading.duplicate_of:
        return "another span tells the same call, so they are kept as attributes and not counted"
    if span.kind not in MODEL_KINDS:
        return f"they repeat those of calls, because this is a span of kind {span.kind}"
    if reading.token_rule.startswith(_NATIVE):
        return f"the provider's own usage object in {reading.token_rule.removeprefix(_NATIVE)}"
    return _TOKEN_RULES.get(reading.token_rule, "nothing tells what the call used")


def _cost(record: Span, pricer: Pricer, now_ns: int) -> CostFinding:
    """Return the cost that ingest would give *record*, and the way to it."""
    at_ns = record.ended_ns or now_ns
    work = pricer.work(record, at_ns)
    quote = work.quote
    # The receipt takes the event time for that of the prices.
    dated = replace(record, ended_ns=at_ns, arrived_ns=at_ns)
    priced = replace(
        dated,
        cost_nusd=quote.cost_nusd,
        cost_source=quote.source,
        cost_model=quote.model,
        unpriced_reason=quote.reason,
    )
    receipt = pricer.receipt(priced)
    own = pricer.quote(replace(dated, cost_nusd=None, cost_source=""), at_ns) if quote.source == "reported" else None
    reported = record.attributes.get("cost.reported_usd")
    return CostFinding(
        cost_usd=None if quote.cost_nusd is None else _usd(quote.cost_nusd),
        source=quote.source,
        reason=quote.reason,
        reported_usd=reported if isinstance(reported, (int, float)) else None,
        our_price_usd=None if own is None or own.cost_nusd is None else _usd(own.cost_nusd),
        price=render_price(quote.model, at_ns, receipt),
        lines=render_lines(receipt.lines),
        assumed=receipt.assumed,
    )


def _usd(nusd: int) -> str:
    return render_usd(Decimal(nusd).scaleb(-9))
