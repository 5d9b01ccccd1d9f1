"""The Langfuse SDK: observations whose values are JSON."""

from __future__ import annotations

from collections.abc import Iterator

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule, Usage
from tokentrace.dialect.otlp.semconv import PLANS
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Kind

_TYPES: dict[str, Kind] = {
    "generation": "llm",
    "embedding": "embedding",
    "tool": "tool",
    "agent": "agent",
    "chain": "chain",
    "retriever": "retrieval",
}


def _kind_of(view: View) -> KindRule:
    return KindRule(_TYPES.get(str(view.get("langfuse_type")).lower(), "custom"), "langfuse.observation.type")


def _objects(view: View) -> Iterator[Usage]:
    if usage := values.mapping(view.get("langfuse_usage")):
        yield "langfuse.usage_details", usage


#: What Langfuse's wrapper of OpenAI says was asked for when nothing was.
_INVENTED = (
    ("temperature", 1),
    ("max_tokens", "Infinity"),
    ("top_p", 1),
    ("frequency_penalty", 0),
    ("presence_penalty", 0),
)


def _inside(view: View, kind: str) -> None:
    for name, value in values.mapping(view.get("parameters")).items():
        if (name, value) not in _INVENTED:
            view.keep(f"gen_ai.request.{name}", value)
    if costs := values.mapping(view.get("langfuse_costs")):
        view.add("cost", values.number(costs.get("total")), "langfuse.observation.cost_details")


LANGFUSE = Family("langfuse", PLANS, _kind_of, objects=_objects, inside=_inside)
