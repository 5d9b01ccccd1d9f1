"""Messages of Anthropic, whichever way they came: directly, through Bedrock, Vertex or Foundry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrace.client.usage.access import items, text
from tokentrace.client.usage.counts import Counts, described

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields


def read_message(response: object, usage: object) -> SpanFields:
    """Return the fields of a message. Anthropic counts cached tokens beside the input, which here includes them."""
    counts = Counts()
    _add(counts, usage)
    for iteration in items(usage, "iterations"):
        kind = text(iteration, "type")
        if kind == "compaction":
            # A request of its own at the same model, which the counts above leave out.
            _add(counts, iteration)
        elif kind == "advisor_message":
            # Another model, at its own price.
            counts.state = "partial"
    counts.add("web_searches", counts.number(usage, "server_tool_use", "web_search_requests"))
    model = text(response, "model")
    return described(
        counts.fields(model),
        response,
        model=model,
        response_id=text(response, "id"),
        finish_reason=text(response, "stop_reason"),
        tool_calls=sum(text(block, "type") == "tool_use" for block in items(response, "content")),
        context_of=(usage,),
    )


def _add(counts: Counts, usage: object) -> None:
    read = counts.number(usage, "cache_read_input_tokens")
    hour = counts.number(usage, "cache_creation", "ephemeral_1h_input_tokens")
    # The sum of its parts where only they are stated.
    parts = hour + counts.number(usage, "cache_creation", "ephemeral_5m_input_tokens")
    written = counts.number(usage, "cache_creation_input_tokens") or parts
    counts.prompt += counts.number(usage, "input_tokens") + read + written
    counts.completion += counts.number(usage, "output_tokens")
    counts.cache_read += read
    counts.cache_write += written
    counts.cache_write_1h += hour
    counts.reasoning += counts.number(usage, "output_tokens_details", "thinking_tokens")
