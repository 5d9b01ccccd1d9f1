"""
The calls that each emitter of OpenTelemetry spans is tried with, and what the server of models says in them.

A model belongs to one case, so that the spans of a case are found by their model. The module uses the standard library
only, because it also runs in the environments of emitters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kit.llm_server import Script, Told

#: Seconds after which a client gives up in the case ``timeout``.
TIMEOUT_S = 0.3


class Counts(NamedTuple):
    """Tokens of a call: cached and reasoning tokens are parts of the first two."""

    prompt: int
    completion: int
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0

    def chat(self) -> dict[str, Any]:
        """Return the usage as OpenAI's chat completions write it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cache_read, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning, "audio_tokens": 0},
        }

    def message(self) -> dict[str, Any]:
        """Return the usage as Anthropic's messages write it: the input is what is left without cached tokens."""
        writes = {
            "ephemeral_5m_input_tokens": self.cache_write - self.cache_write_1h,
            "ephemeral_1h_input_tokens": self.cache_write_1h,
        }
        return {
            "input_tokens": self.prompt - self.cache_read - self.cache_write,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation_input_tokens": self.cache_write,
            "cache_creation": writes,
            "output_tokens": self.completion,
            "service_tier": "standard",
        }


@dataclass(frozen=True)
class Case:
    """
    A use of a provider.

    Attributes:
        provider: openai or anthropic.
        name: What it shows.
        model: The model that is asked for.
        answered: The model that answers.
        counts: What is used; None = the call fails.
        status: The status of its span.
        kind: The kind of its span.
    """

    provider: str
    name: str
    model: str
    answered: str
    counts: Counts | None
    status: str = "ok"
    kind: str = "llm"

    def script(self) -> Script:
        """Return how the server answers."""
        if self.counts is None:
            return Script(hang=self.name == "timeout", statuses=(429,) * 20)
        if self.kind == "embedding":
            return Script(usage={"prompt_tokens": self.counts.prompt, "total_tokens": self.counts.prompt})
        usage = self.counts.chat() if self.provider == "openai" else self.counts.message()
        return Script(usage=usage, model=self.answered)


def _openai(name: str, model: str, date: str, counts: Counts | None, **fields: str) -> Case:
    return Case("openai", name, model, f"{model}{date}", counts, **fields)


def _anthropic(name: str, model: str, counts: Counts | None, **fields: str) -> Case:
    return Case("anthropic", name, model, f"{model}-20250929", counts, **fields)


#: ``page`` is the call in the document of an emitter; ``unasked`` is a stream that is not asked for its usage.
CASES = [
    _openai("page", "gpt-4o", "-2024-08-06", Counts(1100, 200)),
    _openai("plain", "gpt-4o-mini", "-2024-07-18", Counts(1200, 300)),
    _openai("stream", "gpt-4.1", "-2025-04-14", Counts(1210, 310)),
    _openai("unasked", "gpt-4.1-nano", "-2025-04-14", Counts(1230, 320)),
    _openai("tools", "gpt-4.1-mini", "-2025-04-14", Counts(1220, 45)),
    _openai("cached", "o4-mini", "-2025-04-16", Counts(1300, 330, cache_read=1024, reasoning=128)),
    _openai("embeddings", "text-embedding-3-small", "", Counts(1240, 0), kind="embedding"),
    _openai("refused", "gpt-4-turbo", "", None, status="error"),
    _openai("timeout", "gpt-4", "", None, status="timeout"),
    _anthropic("page", "claude-opus-4-5", Counts(1100, 200)),
    _anthropic("plain", "claude-sonnet-4-5", Counts(1200, 300)),
    _anthropic("stream", "claude-haiku-4-5", Counts(1210, 310)),
    _anthropic("tools", "claude-opus-4-1", Counts(1220, 45)),
    _anthropic("cached", "claude-sonnet-4-0", Counts(5100, 250, 3000, 2000, 900)),
    _anthropic("refused", "claude-3-7-sonnet", None, status="error"),
    _anthropic("timeout", "claude-3-5-haiku", None, status="timeout"),
]
BY_MODEL: Mapping[str, Case] = {case.model: case for case in CASES}


def case_of(told: Told) -> Case:
    """Return the case to which a call belongs."""
    return BY_MODEL[told.model]
