"""What is known of the instrumentations that send calls: what each never tells, and how to make it tell more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

#: What a call should tell.
Fact = Literal["usage", "cached", "cache_1h", "ttft", "session", "user", "response_id", "cost"]


class Emitter(NamedTuple):
    """
    A program or library that sends calls.

    Attributes:
        never: What it does not tell in any version that is known here, or not for some providers.
        advice: Fact -> what to change so that it is told; a clause in the imperative. A fact that is missing is that of
            ``ANY``.
    """

    name: str
    never: frozenset[Fact] = frozenset()
    advice: Mapping[Fact, str] = {}


_INCLUDE_USAGE = 'pass stream_options={"include_usage": True} to streamed calls of OpenAI'
#: The advice that holds for OpenTelemetry spans of every origin.
ANY: Mapping[Fact, str] = {
    "usage": f"{_INCLUDE_USAGE}, because most calls without usage are streams, and read streams to their end",
    "cached": "use an instrumentation that tells cached tokens, such as the spans of the provider's own SDK",
    "cache_1h": "use an instrumentation that tells them, such as the spans of Anthropic's own SDK from version 2",
    "ttft": "use an instrumentation that sets gen_ai.response.time_to_first_chunk",
    "session": "set the attribute session.id on the spans of the calls, as a span processor can when a span starts",
    "user": "set the attribute user.id on the spans of the calls, as a span processor can when a span starts",
    "response_id": "use an instrumentation that sets gen_ai.response.id, by which a call that is told twice is found",
    "cost": "compare the prices of both sides with GET /prices/explain, and configure pricing.models if ours is wrong",
}
#: The advice for spans that reach us by other ways than OpenTelemetry.
_OWN: Mapping[Fact, str] = {
    "usage": "send prompt_tokens and comp_tokens with each call, or say usage_state",
    "cached": "send cache_read_tokens and cache_write_tokens",
    "cache_1h": "send cache_write_1h_tokens",
    "ttft": "send ttft_ms of streamed calls",
    "session": "send session_id",
    "user": "send user_id",
    "response_id": "send response_id, by which a call that is told twice is found",
}
_TRACELOOP = 'call Traceloop.set_association_properties({"session_id": ..., "user_id": ...})'
_OPENINFERENCE = "make the calls inside of using_attributes(session_id=..., user_id=...)"
_LANGFUSE = "make the calls inside of propagate_attributes(session_id=..., user_id=...)"
_OPENLIT = 'make the calls with openlit.inject_additional_attributes(call, {"session.id": ..., "user.id": ...})'
_VERCEL = "pass experimental_telemetry.metadata with sessionId and userId"
_HIDDEN = "do not hide outputs (OPENINFERENCE_HIDE_OUTPUTS), because it is told only inside of them"

_OPENAI_V2 = Emitter(
    "opentelemetry-instrumentation-openai-v2",
    frozenset({"cached", "ttft", "session", "user"}),
    {
        "cached": "use its successor opentelemetry-instrumentation-genai-openai",
        "ttft": "use its successor opentelemetry-instrumentation-genai-openai",
    },
)
_GENAI = Emitter("opentelemetry-instrumentation-genai", frozenset({"cache_1h", "user"}))
_ANTHROPIC_SDK = Emitter(
    "the Anthropic SDK",
    frozenset({"user"}),
    {
        "session": 'use client.with_options(open_telemetry={"conversation_id": ...})',
        "usage": "read streams to their end",
    },
)
_OPENLLMETRY = Emitter(
    "OpenLLMetry", frozenset({"cache_1h"}), {"session": _TRACELOOP, "user": _TRACELOOP, "ttft": "upgrade OpenLLMetry"}
)
_OPENLLMETRY_LANGCHAIN = Emitter(
    "OpenLLMetry for LangChain",
    frozenset({"cache_1h", "ttft"}),
    {"session": _TRACELOOP, "user": _TRACELOOP, "usage": "create the model with stream_usage=True"},
)
_OPENINFERENCE_ANY = Emitter(
    "OpenInference",
    frozenset(),
    {"session": _OPENINFERENCE, "user": _OPENINFERENCE, "response_id": _HIDDEN, "cache_1h": _HIDDEN},
)
_EMITTERS: tuple[tuple[str, Emitter], ...] = (
    ("opentelemetry.instrumentation.openai_v2", _OPENAI_V2),
    ("opentelemetry.instrumentation.genai", _GENAI),
    ("opentelemetry.util.genai", _GENAI),
    ("com.anthropic.sdk", _ANTHROPIC_SDK),
    ("com.anthropic.claude_code", Emitter("Claude Code", frozenset({"cache_1h"}))),
    ("opentelemetry.instrumentation.langchain", _OPENLLMETRY_LANGCHAIN),
    ("opentelemetry.instrumentation.openai.v", _OPENLLMETRY),
    ("opentelemetry.instrumentation.anthropic", _OPENLLMETRY._replace(never=frozenset({"cache_1h", "ttft"}))),
    ("opentelemetry.instrumentation.google_generativeai", _OPENLLMETRY._replace(never=frozenset({"ttft"}))),
    ("traceloop", _OPENLLMETRY),
    ("opentelemetry.instrumentation.google_genai", Emitter("opentelemetry-instrumentation-google-genai")),
    ("openinference.instrumentation.anthropic", _OPENINFERENCE_ANY._replace(never=frozenset({"ttft"}))),
    ("openinference.instrumentation.google_genai", _OPENINFERENCE_ANY._replace(never=frozenset({"ttft"}))),
    ("openinference", _OPENINFERENCE_ANY),
    (
        "openlit",
        Emitter(
            "OpenLIT",
            frozenset({"cache_1h", "session"}),
            {"session": _OPENLIT, "user": _OPENLIT},
        ),
    ),
    ("logfire", Emitter("Logfire", frozenset({"ttft"}))),
    (
        "pydantic-ai",
        Emitter(
            "pydantic-ai",
            frozenset({"user"}),
            {
                "session": "pass conversation_id to each run",
                "response_id": "upgrade pydantic-ai to version 2",
                "ttft": "upgrade pydantic-ai to version 2",
            },
        ),
    ),
    (
        "langfuse",
        Emitter(
            "Langfuse",
            frozenset({"response_id"}),
            {
                "session": _LANGFUSE,
                "user": _LANGFUSE,
                "usage": f"{_INCLUDE_USAGE}, and pass usage_details to generations that you make yourself",
                "response_id": "trace each call once, because Langfuse does not tell the id that a second telling has",
            },
        ),
    ),
    (
        "litellm",
        Emitter(
            "LiteLLM",
            frozenset({"ttft", "session"}),
            {
                "usage": _INCLUDE_USAGE.replace("of OpenAI", "of LiteLLM"),
                "user": "pass user to each call",
            },
        ),
    ),
    ("gen_ai", Emitter("Vercel AI SDK 7", frozenset({"cache_1h", "session", "user"}))),
)
_VERCEL_6 = Emitter(
    "Vercel AI SDK",
    frozenset(),
    {
        "usage": "upgrade the package ai to version 5 or later, which asks for the usage of streams",
        "cached": "upgrade the package ai to version 6 or later",
        "cache_1h": "upgrade the package ai to version 5 or 6",
        "session": _VERCEL,
        "user": _VERCEL,
    },
)
UNKNOWN_EMITTER = Emitter("unknown")
_WAYS_IN: Mapping[str, Emitter] = {
    "reporter": Emitter("tokentrace", advice=_OWN),
    "spans": Emitter("POST /spans", advice=_OWN),
    "mist": Emitter("MIST", advice=_OWN),
    "costkatana": Emitter("Cost Katana", advice=_OWN),
    "nats": Emitter("NATS", advice=_OWN),
}


def emitter_of(source: str, scope: str) -> Emitter:
    """
    Return what is known of the sender of calls.

    Args:
        source: The way in, as ``Span.source``.
        scope: The instrumentation that the calls name.
    """
    if source != "otlp":
        return _WAYS_IN.get(source, UNKNOWN_EMITTER)
    if scope == "ai":
        return _VERCEL_6
    return next((emitter for beginning, emitter in _EMITTERS if scope.startswith(beginning)), UNKNOWN_EMITTER)
