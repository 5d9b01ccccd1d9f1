"""Builders of OpenTelemetry spans of a call, and what they are mapped to."""

from __future__ import annotations

from typing import Any

from kit.random_otlp import make_otlp
from tokentrace.dialect.otlp import OtlpSpan, Reading, map_spans
from tokentrace.pricing import Pricer
from tokentrace.records import Span

PRICER = Pricer()
#: A call of gpt-4o-mini with 1200 + 300 tokens, by the conventions.
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 1200,
    "gen_ai.usage.output_tokens": 300,
}


def price(span: Span) -> int | None:
    """Return the cost of *span* in nano-dollars; None if it cannot be priced."""
    return PRICER.quote(span).cost_nusd


def read(otlp: OtlpSpan) -> Reading:
    """Return what is made of a request with one span."""
    (reading,) = map_spans([otlp], price).readings
    return reading


def mapped(attributes: dict[str, Any], **fields: Any) -> Span:
    """Return the record of a span with *attributes*; those that are None are left out."""
    given = {key: value for key, value in attributes.items() if value is not None}
    span = read(make_otlp(attributes=given, **fields)).span
    assert span is not None
    return span


def chat(extra: dict[str, Any], **fields: Any) -> Span:
    """Return the record of ``CHAT`` with *extra* attributes."""
    return mapped(CHAT | extra, **fields)
