"""Why a call ended, in one word for each reason."""

from __future__ import annotations

#: A provider's word in lower case -> the word that the record has; other words stay as they are, in lower case.
_WORDS: dict[str, str] = {
    "end_turn": "stop",
    "stop": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "tool-calls": "tool_calls",
    "function_call": "tool_calls",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "content-filter": "content_filter",
    "safety": "content_filter",
}


def finish_word(word: str) -> str:
    """Return why a call ended: stop, length, tool_calls, content_filter, or the emitter's word in lower case."""
    low = word.strip().lower()
    return _WORDS.get(low, low)
