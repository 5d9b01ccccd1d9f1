"""The mapping of log records: what was sent and answered, and evaluations, become annotations of their spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.model import OtlpLog
from tokentrace.errors import Rejected
from tokentrace.records import Annotation, check_attributes, fit_attributes

#: Events with one message each -> the role if the body does not say it, and the own key.
_MESSAGES = {
    "gen_ai.system.message": ("system", "input"),
    "gen_ai.user.message": ("user", "input"),
    "gen_ai.assistant.message": ("assistant", "input"),
    "gen_ai.tool.message": ("tool", "input"),
    "gen_ai.choice": ("assistant", "output"),
}
_DETAILS = "gen_ai.client.inference.operation.details"
_EVALUATION = "gen_ai.evaluation.result"
#: Attributes with content -> the own key.
_CONTENT = (
    ("gen_ai.input.messages", "input"),
    ("gen_ai.output.messages", "output"),
    ("gen_ai.system_instructions", "instructions"),
    ("gen_ai.tool.definitions", "tool.definitions"),
)
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class MappedLogs(NamedTuple):
    """
    The log records of a request.

    Attributes:
        annotations: At most one for each span, in the order of the first record about it. An evaluation is the
            attribute ``eval.<name>`` if it is a number from 0 to 1, else ``evaluation.<name>``.
        ignored: Number of records that are neither content nor an evaluation of a span.
    """

    annotations: list[Annotation]
    ignored: int


def map_logs(logs: Sequence[OtlpLog]) -> MappedLogs:
    """
    Map the log records of one request.

    The usage in a log record is not counted, because it repeats that of a span. An evaluation that names only a
    response, and no span, is ignored.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    messages: dict[tuple[str, str], dict[str, list[Any]]] = {}
    ignored = 0
    for log in logs:
        event = log.event or values.text(log.attributes.get("event.name")) or ""
        span = (log.trace_id, log.span_id)
        if not all(span) or event not in _EVENTS:
            ignored += 1
        elif event in _MESSAGES:
            role, key = _MESSAGES[event]
            messages.setdefault(span, {}).setdefault(key, []).append(_message(log.body, role))
            found.setdefault(span, {})
        elif event == _EVALUATION:
            found.setdefault(span, {}).update(_evaluation(log))
        else:
            told = found.setdefault(span, {})
            told.update((key, text) for name, key in _CONTENT if (text := values.content(log.attributes.get(name))))
    annotations: list[Annotation] = []
    for span, attributes in found.items():
        merged = {**attributes, **{key: values.encoded(items) for key, items in messages.get(span, {}).items()}}
        if not merged:
            ignored += 1
            continue
        fitted = fit_attributes(merged, [])
        try:
            check_attributes(fitted)
        except Rejected:
            ignored += 1
            continue
        annotations.append(Annotation(trace_id=span[0], span_id=span[1], attributes=fitted))
    return MappedLogs(annotations, ignored)


_EVENTS = frozenset({*_MESSAGES, _DETAILS, _EVALUATION})


def _message(body: Any, role: str) -> Any:
    return {"role": role, **body} if isinstance(body, dict) else {"role": role, "content": body}


def _evaluation(log: OtlpLog) -> dict[str, Any]:
    told = log.attributes
    name = _NAME.sub("_", values.text(told.get("gen_ai.evaluation.name")) or "score")[:100]
    score = values.number(told.get("gen_ai.evaluation.score.value"))
    label = values.text(told.get("gen_ai.evaluation.score.label"))
    explanation = values.text(told.get("gen_ai.evaluation.explanation"))
    attributes: dict[str, Any] = {}
    if score is not None:
        attributes[f"eval.{name}" if 0 <= score <= 1 else f"evaluation.{name}"] = score
    if label:
        attributes[f"evaluation.{name}.label"] = label
    if explanation:
        # What an evaluator writes repeats what it read.
        attributes[f"evaluation.{name}.content"] = explanation
    return attributes
