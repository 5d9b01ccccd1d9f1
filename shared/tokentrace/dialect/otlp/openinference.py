"""OpenInference: what the library answered is one JSON in ``output.value``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule, Usage
from tokentrace.dialect.otlp.semconv import PLANS
from tokentrace.dialect.otlp.view import View
from tokentrace.records import MODEL_KINDS, Kind

_KINDS: dict[str, Kind] = {
    "LLM": "llm",
    "EMBEDDING": "embedding",
    "TOOL": "tool",
    "RETRIEVER": "retrieval",
    "RERANKER": "retrieval",
    "AGENT": "agent",
    "CHAIN": "chain",
}


def _kind_of(view: View) -> KindRule:
    return KindRule(_KINDS.get(str(view.get("openinference_kind")).upper(), "custom"), "openinference.span.kind")


def _inside(view: View, kind: str) -> None:
    chosen = values.mapping(view.get("metadata"))
    if chosen:
        view.add("provider", values.text(chosen.get("ls_provider")), "metadata.ls_provider")
        view.add("session", values.id_text(chosen.get("session_id")), "metadata.session_id")
        view.add("user", values.id_text(chosen.get("user_id")), "metadata.user_id")
        for key, value in chosen.items():
            if key not in ("session_id", "user_id") and not key.startswith(("ls_", "lc_")):
                view.keep(key, value)
    for slot in ("evaluations", "more_evaluations"):
        if told := view.get(slot):
            _keep_scores(view, values.json(told))
    if kind not in MODEL_KINDS:
        return
    if view.get("model") is None:
        parameters = values.mapping(view.get("parameters"))
        view.add("model", values.text(parameters.get("model")), "llm.invocation_parameters")
    answer = _answer_of(view.get("raw_output"))
    if answer is None:
        return
    message = _message_of(answer)
    from_model, metadata = _object(answer.llm_output), _object(message.get("response_metadata"))
    for found in (answer.id, answer.response_id, from_model.get("id"), metadata.get("id")):
        view.add("response_id", values.text(found), "output.value")
    for found in (answer.service_tier, from_model.get("service_tier"), metadata.get("service_tier")):
        view.add("service_tier", values.text(found), "output.value")
    objects = (
        answer.usage,
        answer.usage_metadata,
        from_model.get("usage"),
        from_model.get("token_usage"),
        metadata.get("usage"),
        message.get("usage_metadata"),
    )
    view.add("answered_usage", [usage for usage in objects if isinstance(usage, dict) and usage], "output.value")


def _keep_scores(view: View, told: Any) -> None:
    """Keep the scores of evaluations: one from 0 to 1 has the key of a score."""
    for item in told if isinstance(told, list) else ():
        name, score = _object(item).get("name"), values.number(_object(item).get("score"))
        if isinstance(name, str) and name and score is not None:
            view.keep(f"eval.{name}" if 0 <= score <= 1 else f"evaluation.{name}", score)


def _objects(view: View) -> Iterator[Usage]:
    for usage in view.get("answered_usage") or ():
        yield "output.value", usage


class _Answer(msgspec.Struct):
    """What is read of an answer; its texts, which may be long, are skipped."""

    id: Any = None
    response_id: Any = None
    service_tier: Any = None
    usage: Any = None
    usage_metadata: Any = None
    llm_output: Any = None
    generations: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


def _answer_of(text: str | None) -> _Answer | None:
    """Return the answer of a library as JSON; None = *text* is none."""
    if text is None or text[:1] != "{":
        return None
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _message_of(answer: _Answer) -> Mapping[str, Any]:
    """Return the first message that LangChain generated; {} = *answer* is not LangChain's."""
    first: Any = answer.generations
    for _ in range(2):
        first = first[0] if isinstance(first, list) and first else None
    return _object(_object(_object(first).get("message")).get("kwargs"))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


OPENINFERENCE = Family("openinference", PLANS, _kind_of, objects=_objects, inside=_inside)
