"""Responses of OpenAI and of vendors that speak its protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokentrace.client.usage.access import get, items, text
from tokentrace.client.usage.counts import Counts, described
from tokentrace.units import is_number

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields

#: Items of an answer of the responses API that call a tool of the application.
_CALLS = frozenset({"function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call"})


def read_chat(response: object, usage: object) -> SpanFields:
    """Return the fields of a chat completion, a text completion or embeddings."""
    counts = _tokens(usage, ("prompt_tokens",), ("completion_tokens",))
    if not counts.cache_read:
        counts.cache_read = counts.number(usage, "prompt_cache_hit_tokens")  # DeepSeek
    counts.add("web_searches", counts.number(usage, "num_search_queries"))  # Perplexity
    choices = list(items(response, "choices"))
    calls = sum(len(list(items(get(choice, "message"), "tool_calls"))) for choice in choices)
    reasons = [reason for choice in choices if (reason := text(choice, "finish_reason"))]
    fields = _described(counts, response, finish_reason=reasons[0] if reasons else "", tool_calls=calls)
    if text(response, "object") == "list" or text(next(items(response, "data"), None), "object") == "embedding":
        fields["kind"] = "embedding"
    return fields


def read_responses(response: object, usage: object) -> SpanFields:
    """Return the fields of a response of the responses API, of decisions, images or a transcription by tokens."""
    counts = _tokens(usage, ("input_tokens",), ("output_tokens",))
    output = [text(item, "type") for item in items(response, "output")]
    # The billed searches, where the response states them: opening a page costs nothing.
    searches = get(get(get(response, "tool_usage"), "web_search"), "num_requests")
    counts.add("web_searches", int(searches) if is_number(searches) else output.count("web_search_call"))
    counts.add("code_executions", output.count("code_interpreter_call"))
    if get(get(get(response, "tool_usage"), "image_gen"), "total_tokens"):
        # Another model drew the images, at its own price.
        counts.state = "partial"
    reason = text(get(response, "incomplete_details"), "reason") or text(response, "status")
    return _described(counts, response, finish_reason=reason, tool_calls=sum(kind in _CALLS for kind in output))


def read_duration(response: object, usage: object) -> SpanFields:
    """Return the fields of a transcription that is billed by its seconds, which are rounded up."""
    counts = Counts()
    seconds = get(usage, "seconds")
    whole = counts.number(usage, "seconds")
    counts.add("audio_seconds", whole + (is_number(seconds) and seconds > whole))
    return _described(counts, response)


def _tokens(usage: object, prompt: tuple[str, ...], completion: tuple[str, ...]) -> Counts:
    counts = Counts()
    counts.prompt, counts.completion = counts.number(usage, *prompt), counts.number(usage, *completion)
    counts.total = counts.number(usage, "total_tokens")
    # Chat says prompt_tokens_details, responses and images input_tokens_details, transcriptions input_token_details.
    given = get(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    made = get(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    counts.cache_read = counts.number(given, "cached_tokens")
    counts.cache_write = counts.number(given, "cache_write_tokens")
    counts.reasoning = counts.number(made, "reasoning_tokens")
    for direction, details in (("input", given), ("output", made)):
        for modality in ("audio", "image"):
            counts.add(f"{direction}_{modality}_tokens", counts.number(details, f"{modality}_tokens"))
    return counts


def _described(counts: Counts, response: object, *, finish_reason: str = "", tool_calls: int = 0) -> SpanFields:
    model = text(response, "model")
    return described(
        counts.fields(model),
        response,
        model=model,
        response_id=text(response, "id"),
        finish_reason=finish_reason,
        tool_calls=tool_calls,
        context_of=(response,),
    )
