"""Answers of Gemini, as JSON in camel case or as objects of google-genai in snake case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokentrace.client.usage.access import get, items, text
from tokentrace.client.usage.counts import Counts, described

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields

#: A page of a document is priced as an image. Text is what remains of the whole.
_MODALITIES = {"AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}


def usage_of(response: object) -> Any:
    """Return the usage of an answer of Gemini; None if *response* is none."""
    usage = get(response, "usageMetadata", "usage_metadata")
    names = ("promptTokenCount", "prompt_token_count", "totalTokenCount", "total_token_count")
    return usage if usage is not None and get(usage, *names) is not None else None


def read_generated(response: object, usage: object) -> SpanFields:
    """Return the fields of generated content. Thoughts and the results of tools are counted beside by Gemini."""
    counts = Counts()

    def number(camel: str, snake: str) -> int:
        return counts.number(usage, camel) or counts.number(usage, snake)

    tool = number("toolUsePromptTokenCount", "tool_use_prompt_token_count")
    thoughts = number("thoughtsTokenCount", "thoughts_token_count")
    counts.prompt = number("promptTokenCount", "prompt_token_count") + tool
    made = number("candidatesTokenCount", "candidates_token_count")
    counts.completion = (made or number("responseTokenCount", "response_token_count")) + thoughts
    counts.reasoning = thoughts
    counts.total = number("totalTokenCount", "total_token_count")
    counts.cache_read = number("cachedContentTokenCount", "cached_content_token_count")
    counts.add("input_tool_tokens", tool)
    given = _details(counts, usage, "promptTokensDetails", "prompt_tokens_details")
    for modality, amount in given.items():
        counts.add(f"input_{modality}_tokens", amount)
    for modality, amount in _details(counts, usage, "candidatesTokensDetails", "candidates_tokens_details").items():
        counts.add(f"output_{modality}_tokens", amount)
    for modality, amount in _details(
        counts, usage, "toolUsePromptTokensDetails", "tool_use_prompt_tokens_details"
    ).items():
        counts.add(f"input_{modality}_tokens", amount)
        counts.add(f"input_{modality}_tool_tokens", amount)
    cached = _details(counts, usage, "cacheTokensDetails", "cache_tokens_details")
    if cached or get(usage, "cacheTokensDetails", "cache_tokens_details"):
        # A modality that is not listed has no cached tokens, which a price needs to know.
        counts.units |= {f"cache_{modality}_read_tokens": cached.get(modality, 0) for modality in {*given, *cached}}
    return _described(counts, response, usage)


def _details(counts: Counts, usage: object, *names: str) -> dict[str, int]:
    """Return modality -> tokens of the list under *names*, without text."""
    found: dict[str, int] = {}
    for detail in items(usage, *names):
        modality = _MODALITIES.get(text(detail, "modality"))
        amount = counts.number(detail, "tokenCount") or counts.number(detail, "token_count")
        if modality and amount:
            found[modality] = found.get(modality, 0) + amount
    return found


def _described(counts: Counts, response: object, usage: object) -> SpanFields:
    candidates = list(items(response, "candidates"))
    parts = [part for candidate in candidates for part in items(get(candidate, "content"), "parts")]
    reasons = [reason for candidate in candidates if (reason := text(candidate, "finishReason", "finish_reason"))]
    model = text(response, "modelVersion", "model_version")
    fields = described(
        counts.fields(model),
        response,
        model=model,
        response_id=text(response, "responseId", "response_id"),
        finish_reason=reasons[0] if reasons else "",
        tool_calls=sum(get(part, "functionCall", "function_call") is not None for part in parts),
    )
    tier = text(usage, "serviceTier", "service_tier", "trafficType", "traffic_type")
    if tier and not tier.endswith("UNSPECIFIED"):
        fields["pricing_context"] = {"service_tier": tier.lower()}
    return fields
