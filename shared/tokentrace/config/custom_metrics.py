"""``custom_metrics``: metrics that the configuration defines."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from tokentrace.config.section import Section


class CustomMetric(Section, frozen=True, kw_only=True):
    """A sum, count, average or p95 of a field, over the spans that match a filter."""

    name: Annotated[str, Meta(description="Name of the metric in /metrics/{name} and in rules.")]
    type: Annotated[Literal["sum", "count", "avg", "p95"], Meta(description="How values are aggregated.")]
    field: Annotated[
        str,
        Meta(
            description="cost, prompt_tokens, comp_tokens, total_tokens, latency_ms, ttft_ms or attr.<key>; "
            "a count needs none."
        ),
    ] = ""
    filter_key: Annotated[
        str, Meta(description="Only spans with this dimension or attr.<key> count; empty = all spans.")
    ] = ""
    filter_val: Annotated[str | None, Meta(description="Value that filter_key must have; unset = any value.")] = None
