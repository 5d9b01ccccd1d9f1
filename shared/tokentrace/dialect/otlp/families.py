"""Which family of emitters a span is from."""

from __future__ import annotations

from functools import lru_cache

from tokentrace.dialect.otlp.claude_code import CLAUDE_CODE
from tokentrace.dialect.otlp.family import Family
from tokentrace.dialect.otlp.langfuse import LANGFUSE
from tokentrace.dialect.otlp.litellm import LITELLM
from tokentrace.dialect.otlp.logfire import LOGFIRE
from tokentrace.dialect.otlp.model import OtlpSpan
from tokentrace.dialect.otlp.openinference import OPENINFERENCE
from tokentrace.dialect.otlp.openllmetry import OPENLLMETRY
from tokentrace.dialect.otlp.semconv import OPENLIT, SEMCONV
from tokentrace.dialect.otlp.vercel import VERCEL

#: Attributes that only one family sends.
_BY_ATTRIBUTE = (
    ("langfuse.observation.type", LANGFUSE),
    ("openinference.span.kind", OPENINFERENCE),
    ("ai.operationId", VERCEL),
)
_BY_SCOPE = (
    ("logfire", LOGFIRE),
    ("pydantic-ai", LOGFIRE),
    ("pydantic_ai", LOGFIRE),
    ("litellm", LITELLM),
    ("openlit", OPENLIT),
    ("traceloop", OPENLLMETRY),
    ("opentelemetry.instrumentation.openai.v", OPENLLMETRY),
    ("opentelemetry.instrumentation.anthropic", OPENLLMETRY),
    ("opentelemetry.instrumentation.google_generativeai", OPENLLMETRY),
)


def family_of(span: OtlpSpan) -> Family:
    """Return the family that *span* is from: by an attribute that only one has, by its name, else by its scope."""
    attributes = span.attributes
    for name, family in _BY_ATTRIBUTE:
        if name in attributes:
            return family
    if span.name.startswith("claude_code.") and "span.type" in attributes:
        return CLAUDE_CODE
    if span.name == "raw_gen_ai_request":
        return LITELLM
    found = _of_scope(span.scope)
    if found is SEMCONV and ("traceloop.span.kind" in attributes or "llm.request.type" in attributes):
        return OPENLLMETRY
    return found


@lru_cache(1024)
def _of_scope(scope: str) -> Family:
    return next((family for beginning, family in _BY_SCOPE if scope.startswith(beginning)), SEMCONV)
