"""
The emitters of OpenTelemetry spans that ``tests/system/test_emitters.py`` runs, and what their spans do not tell.

Each has a page in ``docs/how-to/otlp``, which sets it up. A gap is a fact that the emitter was told by the provider and
does not pass on, or passes on wrongly; the numbers of its spans can be no better.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple

from kit.emitter_cases import Case

#: The value of a gap where the emitter makes something up.
ANYTHING = "anything"


class Gap(NamedTuple):
    """
    What an emitter does not tell.

    Attributes:
        cases: The cases, ``provider:case`` with ``*`` for any.
        field: A field of ``emitter_truth.Call``; ``usage`` = all tokens, ``calls`` = the number of calls.
        value: What arrives instead.
    """

    cases: str
    field: str
    value: Any


@dataclass(frozen=True)
class Emitter:
    """
    An emitter and its set-up.

    Attributes:
        name: Its name, which is also that of the service it instruments.
        page: Its page.
        section: The heading above its set-up, if the page has several.
        driver: The client that makes the calls, of ``emitter_program``.
        providers: The providers it is tried with.
        leaves_out: Cases that its client has no call for.
        session: The session of the calls in the page.
        user: Their user.
        is_sticky: Whether all later calls have them too.
        gaps: What it does not tell.
        calls_home: The hosts that it asks for its own purposes, and cannot reach in a test.
    """

    name: str
    page: str
    section: str = ""
    driver: str = "sdk"
    providers: tuple[str, ...] = ("openai", "anthropic")
    leaves_out: tuple[str, ...] = ()
    session: str = ""
    user: str = ""
    is_sticky: bool = False
    gaps: tuple[Gap, ...] = ()
    calls_home: tuple[str, ...] = ()

    def does(self, case: Case) -> bool:
        """Return True if the emitter is tried with *case*."""
        return case.provider in self.providers and f"{case.provider}:{case.name}" not in self.leaves_out

    def gaps_of(self, case: Case) -> dict[str, Any]:
        """Return field -> value of the gaps in *case*."""
        return {gap.field: gap.value for gap in self.gaps if fnmatch(f"{case.provider}:{case.name}", gap.cases)}


#: A chat stream of OpenAI states its usage only if it is asked to.
UNASKED = Gap("openai:unasked", "usage", None)
#: Some put an estimate of their own in its place.
ESTIMATED = Gap("openai:unasked", "usage", ANYTHING)
#: Beside the spans of Anthropic's SDK, in traces of their own and without an id of the answer.
FAILURES_TWICE = (Gap("anthropic:refused", "calls", 2), Gap("anthropic:timeout", "calls", 2))
NO_CHAT_STREAMS = ("openai:unasked",)

EMITTERS = (
    Emitter(
        "openai-v2",
        "opentelemetry-openai-v2",
        providers=("openai",),
        gaps=(UNASKED, Gap("*:cached", "cache_read_tokens", 0), Gap("*:cached", "reasoning_tokens", 0)),
    ),
    Emitter("genai", "opentelemetry-genai", gaps=(UNASKED,)),
    Emitter("anthropic-sdk", "anthropic-sdk", providers=("anthropic",)),
    Emitter("openinference", "openinference", session="s1", user="u1", gaps=(UNASKED,)),
    Emitter("openllmetry", "openllmetry", gaps=(UNASKED, *FAILURES_TWICE)),
    Emitter("traceloop", "traceloop", session="s1", user="u1", is_sticky=True, gaps=(UNASKED, *FAILURES_TWICE)),
    Emitter(
        "openlit",
        "openlit",
        user="u1",
        gaps=(
            ESTIMATED,
            Gap("openai:cached", "reasoning_tokens", 0),
            Gap("anthropic:cached", "cache_write_1h_tokens", 0),
            Gap("anthropic:page", "user_id", ""),
        ),
        calls_home=("raw.githubusercontent.com",),
    ),
    Emitter("logfire", "logfire", gaps=(UNASKED,)),
    Emitter(
        "pydantic-ai",
        "pydantic-ai",
        driver="pydantic_ai",
        leaves_out=("openai:embeddings", "openai:unasked"),
        session="s1",
        # Each run without a conversation gets one.
        gaps=tuple(Gap(f"*:{name}", "session_id", ANYTHING) for name in ("[!p]*", "plain")),
    ),
    Emitter(
        "langfuse",
        "langfuse",
        providers=("openai",),
        session="s1",
        user="u1",
        gaps=(UNASKED, Gap("*", "provider", "")),
    ),
    Emitter(
        "litellm",
        "litellm",
        driver="litellm",
        user="u1",
        gaps=(
            ESTIMATED,
            Gap("openai:stream", "model", "gpt-4.1"),
            Gap("openai:unasked", "model", "gpt-4.1-nano"),
            Gap("anthropic:stream", "model", "claude-haiku-4-5"),
        ),
    ),
    Emitter(
        "vercel-7",
        "vercel-ai",
        "Version 7",
        "vercel",
        leaves_out=NO_CHAT_STREAMS,
        session="s1",
        user="u1",
        gaps=(Gap("openai:cached", "reasoning_tokens", 0), Gap("anthropic:cached", "cache_write_1h_tokens", 0)),
    ),
    Emitter("vercel-6", "vercel-ai", "Version 6", "vercel", leaves_out=NO_CHAT_STREAMS, session="s1", user="u1"),
    Emitter(
        "vercel-5",
        "vercel-ai",
        "Version 5",
        "vercel",
        leaves_out=NO_CHAT_STREAMS,
        session="s1",
        user="u1",
        gaps=(Gap("openai:cached", "cache_read_tokens", 0), Gap("openai:cached", "reasoning_tokens", 0)),
    ),
)
