"""OpenLLMetry and the Traceloop SDK: the conventions, and the spans of an application's own workflows."""

from __future__ import annotations

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule
from tokentrace.dialect.otlp.semconv import PLANS, inside, kind_of
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Kind

_KINDS: dict[str, Kind] = {"workflow": "workflow", "task": "chain", "agent": "agent", "tool": "tool"}


def _kind_of(view: View) -> KindRule:
    kind = view.get("traceloop_kind")
    if kind:
        return KindRule(_KINDS.get(kind, "custom"), "traceloop.span.kind")
    return kind_of(view)


def _inside(view: View, kind: str) -> None:
    inside(view, kind)
    if kind == "tool":
        view.add("tool", view.get("entity"), "traceloop.entity.name")
    if view.get("finish") is None and view.name("output") == "gen_ai.completion.*":
        answers = values.json(view.get("output"))
        if isinstance(answers, list) and answers and isinstance(answers[0], dict):
            view.add("finish", values.text(answers[0].get("finish_reason")), "gen_ai.completion.0.finish_reason")


OPENLLMETRY = Family("openllmetry", PLANS, _kind_of, inside=_inside)
