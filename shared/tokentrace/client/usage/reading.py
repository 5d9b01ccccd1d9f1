"""The reading of a response: its form decides which vendor's counting applies, whatever client it came through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrace.client.usage import anthropic, bedrock, google, openai
from tokentrace.client.usage.access import get, text

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields


def read(response: object) -> SpanFields:
    """
    Return what *response* tells about its call.

    Chat completions, text completions, embeddings, responses, decisions, transcriptions and images of OpenAI, messages
    of Anthropic, content of Gemini and answers of Bedrock's converse API are known, with or without their usage.

    Args:
        response: An object of a vendor's SDK, or its JSON as a dict.

    Returns:
        Fields of a span, as ``SpanFields`` describes them; empty if the form is not known. Counts are tokens, cached
        tokens included. Each part is at most its whole; what was corrected is named in ``adjusted``.
    """
    usage = get(response, "usage")
    if usage is None:
        generated = google.usage_of(response)
        if generated is not None:
            return google.read_generated(response, generated)
        usage = get(get(response, "x_groq"), "usage")
    if usage is None:
        return _without_usage(response)
    # The most frequent forms first: a name that an object of an SDK lacks takes long to look up.
    if _has(usage, "prompt_tokens", "completion_tokens"):
        return openai.read_chat(response, usage)
    if _has(usage, "input_tokens", "output_tokens"):
        if text(response, "type") == "message" or _has(usage, "cache_read_input_tokens", "cache_creation_input_tokens"):
            return anthropic.read_message(response, usage)
        return openai.read_responses(response, usage)
    if text(usage, "type") == "duration":
        return openai.read_duration(response, usage)
    if _has(usage, "inputTokens", "outputTokens"):
        return bedrock.read_converse(response, usage)
    return _without_usage(response)


def _has(usage: object, *names: str) -> bool:
    return get(usage, *names) is not None


def _without_usage(response: object) -> SpanFields:
    """Return the fields of a response that states no usage; the counts are missing, not zero."""
    form = text(response, "object")
    if form in ("chat.completion", "chat.completion.chunk", "text_completion"):
        fields = openai.read_chat(response, {})
    elif form == "response":
        fields = openai.read_responses(response, {})
    elif text(response, "type") == "message" and get(response, "stop_reason", "content") is not None:
        fields = anthropic.read_message(response, {})
    else:
        return {}
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        fields.pop(name, None)  # type: ignore[misc]  # mypy wants a literal, and these are three
    if not fields.get("usage"):
        fields["usage_state"] = "missing"
    return fields
