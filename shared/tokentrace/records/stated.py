"""What a sender may state about the cost of its span, and what only ingest may."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from tokentrace.records.span import FREE_REASONS, Span


def as_stated(span: Span) -> Span:
    """
    Return *span* without what only ingest may state about its cost.

    The cost source ``reported`` is the sender's to state, with the reason why a cost of 0 is true. Every other source
    says how ingest found the cost. An empty value of the pricing context says nothing and is left out.
    """
    changed: dict[str, Any] = {}
    if span.cost_source or span.unpriced_reason:
        reported = span.cost_source == "reported" and span.cost_nusd is not None
        free = reported and not span.cost_nusd and span.unpriced_reason in FREE_REASONS
        changed["cost_source"] = "reported" if reported else ""
        changed["unpriced_reason"] = span.unpriced_reason if free else ""
    if span.pricing_context is not None and not all(span.pricing_context.values()):
        changed["pricing_context"] = {name: value for name, value in span.pricing_context.items() if value} or None
    return replace(span, **changed) if changed else span
