"""Logfire and pydantic-ai: the conventions, with a streamed call in two halves and names that are templates."""

from __future__ import annotations

from collections.abc import Iterator

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule, Usage
from tokentrace.dialect.otlp.ladders import Ladders, table_of
from tokentrace.dialect.otlp.model import STATUS_ERROR
from tokentrace.dialect.otlp.plan import Plans
from tokentrace.dialect.otlp.semconv import inside, kind_of
from tokentrace.dialect.otlp.view import View

_OWN: Ladders = {
    "input": (values.content, ("request_data",)),
    "output": (values.content, ("response_data", "final_result")),
    "seconds": (values.number, ("duration",)),
    "model": (values.text, ("model_name",)),
}


def _kind_of(view: View) -> KindRule:
    found = kind_of(view)
    span, get = view.span, view.get
    if (
        found.kind == "llm"
        and span.scope.startswith("logfire.")
        and span.status != STATUS_ERROR
        and not get("response_id")
        and not get("O")
    ):
        # The other half has the answer, and nothing links the two.
        return KindRule("chain", "the request of a streamed call")
    return found


def _objects(view: View) -> Iterator[Usage]:
    if usage := values.mapping(view.get("raw_usage")):
        yield "gen_ai.usage.raw", usage


LOGFIRE = Family(
    "logfire", Plans(table_of(_OWN, ignored=("async", "agent_name"))), _kind_of, objects=_objects, inside=inside
)
