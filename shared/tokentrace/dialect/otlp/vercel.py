"""The Vercel AI SDK up to version 6: ``ai.operationId`` tells a call from the function around it."""

from __future__ import annotations

from collections.abc import Iterator

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule, Usage
from tokentrace.dialect.otlp.semconv import PLANS
from tokentrace.dialect.otlp.view import View


def _kind_of(view: View) -> KindRule:
    operation = str(view.get("vercel_operation"))
    if operation.endswith((".doGenerate", ".doStream")):
        return KindRule("llm", "ai.operationId")
    if operation.endswith(".doEmbed"):
        return KindRule("embedding", "ai.operationId")
    # The functions around a call repeat its usage.
    return KindRule("tool" if operation == "ai.toolCall" else "chain", "ai.operationId")


def _objects(view: View) -> Iterator[Usage]:
    anthropic = values.mapping(view.get("provider_metadata")).get("anthropic")
    usage = anthropic.get("usage") if isinstance(anthropic, dict) else None
    if isinstance(usage, dict):
        yield "ai.providerMetadata", usage


def _inside(view: View, kind: str) -> None:
    metadata = values.mapping(view.get("provider_metadata"))
    for owner, name, slot in (
        ("openai", "cachedPromptTokens", "R"),
        ("anthropic", "cacheReadInputTokens", "R"),
        ("anthropic", "cacheCreationInputTokens", "W"),
        ("openai", "reasoningTokens", "G"),
    ):
        told = metadata.get(owner)
        if isinstance(told, dict):
            view.add(slot, values.count(told.get(name)), f"ai.response.providerMetadata.{owner}.{name}")


def _excludes_cached(view: View, provider: str) -> bool:
    # Version 6 says what was not cached, and counts cached tokens as input.
    return provider in ("anthropic", "aws") and view.get("N") is None


VERCEL = Family("vercel", PLANS, _kind_of, objects=_objects, excludes_cached=_excludes_cached, inside=_inside)
