"""Answers of Amazon Bedrock's converse API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrace.client.usage.access import get, items, text
from tokentrace.client.usage.counts import Counts, described

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields


def read_converse(response: object, usage: object) -> SpanFields:
    """Return the fields of an answer, or of the metadata that ends a stream. The input includes the cached tokens."""
    counts = Counts()
    counts.cache_read = counts.number(usage, "cacheReadInputTokens")
    counts.cache_write = counts.number(usage, "cacheWriteInputTokens")
    for detail in items(usage, "cacheDetails"):
        if text(detail, "ttl") == "1h":
            counts.cache_write_1h += counts.number(detail, "inputTokens")
    counts.prompt = counts.number(usage, "inputTokens") + counts.cache_read + counts.cache_write
    counts.completion = counts.number(usage, "outputTokens")
    content = items(get(get(response, "output"), "message"), "content")
    fields = described(
        counts.fields(""),
        response,
        model="",
        finish_reason=text(response, "stopReason"),
        tool_calls=sum(get(block, "toolUse") is not None for block in content),
    )
    tier = text(get(response, "serviceTier"), "type")
    if tier:
        fields["pricing_context"] = {"service_tier": tier}
    request_id = text(get(response, "ResponseMetadata"), "RequestId")
    if request_id:
        fields["attributes"] = {**(fields.get("attributes") or {}), "request_id": request_id}
    return fields
