"""LiteLLM's callback: the usage as Python prints it, and a second span with the raw request."""

from __future__ import annotations

from collections.abc import Iterator

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule, Usage
from tokentrace.dialect.otlp.semconv import PLANS, inside, kind_of
from tokentrace.dialect.otlp.view import View

_RAW = "raw_gen_ai_request"


def _kind_of(view: View) -> KindRule:
    return KindRule("custom", "name") if view.span.name == _RAW else kind_of(view)


def _objects(view: View) -> Iterator[Usage]:
    if usage := values.python_mapping(view.get("litellm_usage")):
        yield "litellm.usage_object", usage


def _inside(view: View, kind: str) -> None:
    inside(view, kind)
    if model := view.get("provider_model"):
        view.add("provider", model.partition("/")[0] if "/" in model else None, "litellm.provider.model")
    if view.span.name == _RAW:
        # All of it is content: what was sent and what was answered.
        raw = {key: view.free.pop(key) for key in list(view.free) if key.startswith("llm.")}
        view.add("raw", values.content(raw), "llm.*")


LITELLM = Family("litellm", PLANS, _kind_of, objects=_objects, inside=_inside)
