"""
Records as spans of OTLP, in OpenTelemetry's conventions for generative AI.

A receiver that knows the conventions finds the operation, the models, the whole usage with its parts, the cost, the
session and the user. What the conventions have no name for is under ``tokentrace.``, so that ``own`` makes the same
record again. Encoding depends on the record alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokentrace.dialect.otlp import own_names as names
from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.model import CLIENT, INTERNAL, SERVER, STATUS_ERROR, OtlpEvent, OtlpSpan
from tokentrace.records import MODEL_KINDS, ROLLUP_KINDS, SPAN_DIGITS, TRACE_DIGITS, Span, w3c_digits
from tokentrace.units import SECOND, nusd_to_usd
from tokentrace.version import __version__

#: Kind -> operation; a chain, a database query, a request and a custom span are no operation of the conventions.
_OPERATIONS = {
    "llm": "chat",
    "embedding": "embeddings",
    "tool": "execute_tool",
    "retrieval": "retrieval",
    "agent": "invoke_agent",
    "workflow": "invoke_workflow",
}
_SEEN_FROM = {"llm": CLIENT, "embedding": CLIENT, "retrieval": CLIENT, "database": CLIENT, "http": SERVER}
#: ``service.name`` of a program that has none, as the conventions ask.
UNKNOWN_SERVICE = "unknown_service"


def export_spans(spans: Iterable[Span]) -> list[OtlpSpan]:
    """Return *spans* as spans of OTLP; those of one caller share one resource."""
    resources: dict[str, dict[str, Any]] = {}
    return [
        export_span(span, resources.setdefault(span.caller, {"service.name": span.caller or UNKNOWN_SERVICE}))
        for span in spans
    ]


def export_span(span: Span, resource: Mapping[str, Any]) -> OtlpSpan:
    """
    Return *span* as a span of OTLP.

    An id that is not of W3C's form becomes the digits that stand for it in the header ``traceparent`` too, and is an
    attribute as it was.

    Args:
        resource: The resource of its caller.
    """
    trace_id, span_id = w3c_digits(span.trace_id, TRACE_DIGITS), w3c_digits(span.span_id, SPAN_DIGITS)
    parent = w3c_digits(span.parent_span_id, SPAN_DIGITS) if span.parent_span_id else ""
    attributes = _facts(span)
    for field, whole, digits in (
        ("trace_id", span.trace_id, trace_id),
        ("span_id", span.span_id, span_id),
        ("parent_span_id", span.parent_span_id or "", parent),
    ):
        if whole != digits:
            attributes[names.PREFIX + field] = whole
    failed = span.status != "ok"
    if span.error and not failed:
        attributes["tokentrace.error"] = span.error
    if span.latency_ns != span.ended_ns - span.started_ns:
        attributes["tokentrace.latency_ns"] = span.latency_ns
    if span.caller.startswith(UNKNOWN_SERVICE):
        attributes["tokentrace.caller"] = span.caller
    attributes |= _attributes(span, attributes)
    return OtlpSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        name=span.name,
        kind=_SEEN_FROM.get(span.kind, INTERNAL),
        started_ns=span.started_ns,
        ended_ns=span.ended_ns,
        attributes=attributes,
        events=_events(span, attributes),
        status=STATUS_ERROR if failed else 0,
        message=span.error if failed else "",
        scope=names.SCOPE,
        scope_version=__version__,
        resource=resource,
    )


def _facts(span: Span) -> dict[str, Any]:
    """Return the attributes that say what the fields of *span* say."""
    facts: dict[str, Any] = {"tokentrace.kind": span.kind}
    if span.status == "timeout":
        facts["tokentrace.status"] = span.status
    if operation := _OPERATIONS.get(span.kind):
        facts[names.OPERATION] = operation
    if span.provider:
        facts[names.PROVIDER] = names.PROVIDERS.get(span.provider, span.provider)
        if span.provider in _SENT_PROVIDERS:
            facts["tokentrace.provider"] = span.provider
    if span.model:
        requested = span.attributes.get("requested_model")
        facts[names.REQUEST_MODEL] = requested if isinstance(requested, str) and requested else span.model
        if span.status == "ok" or facts[names.REQUEST_MODEL] != span.model:
            facts[names.RESPONSE_MODEL] = span.model
    for field, name in names.IDS.items():
        if value := getattr(span, field):
            facts[name] = value
    if span.session_id:
        facts["gen_ai.conversation.id"] = span.session_id
    for field in names.FIELDS:
        value = getattr(span, field)
        if value not in (None, "", 0) or (value == 0 and field in ("cost_nusd", "score")):
            facts[names.PREFIX + field] = value
    if span.cost_nusd is not None and span.kind not in ROLLUP_KINDS and (span.cost_nusd or span.cost_source):
        facts |= dict.fromkeys(names.COSTS, nusd_to_usd(span.cost_nusd))
    if span.ttft_ns:
        facts["gen_ai.response.time_to_first_chunk"] = span.ttft_ns / SECOND
        facts["gen_ai.request.stream"] = True
    facts |= _tokens(span) | _beside(span)
    facts |= {names.CONTEXT + key: value for key, value in (span.pricing_context or {}).items()}
    if span.adjusted:
        facts["tokentrace.adjusted"] = list(span.adjusted)
    return facts


_SENT_PROVIDERS = frozenset(names.PROVIDERS.values())


def _tokens(span: Span) -> dict[str, Any]:
    is_rollup = span.kind in ROLLUP_KINDS
    counts: dict[str, Any] = {}
    for field, name in names.TOKENS.items():
        if (count := getattr(span, field)) or _is_zero_of_a_call(span, field):
            counts[names.PREFIX + field if is_rollup else name] = count
    if span.total_tokens != span.prompt_tokens + span.completion_tokens:
        counts["tokentrace.total_tokens"] = span.total_tokens
        if not is_rollup:
            counts["gen_ai.usage.total_tokens"] = span.total_tokens
    if span.cache_write_tokens and not is_rollup:
        # The name of the conventions up to 1.42.
        counts["gen_ai.usage.cache_creation.input_tokens"] = span.cache_write_tokens
    for unit, amount in (span.usage or {}).items():
        known = None if is_rollup else names.MODALITIES.get(unit)
        counts[known or names.USAGE + unit] = amount
    return counts


def _is_zero_of_a_call(span: Span, field: str) -> bool:
    """Return True if a 0 is told: of a call whose usage is known, the input and the output are, whatever they are."""
    if span.kind not in MODEL_KINDS or not (span.prompt_tokens or span.completion_tokens):
        return False
    return not span.usage_state and field in ("prompt_tokens", "completion_tokens")


def _beside(span: Span) -> dict[str, Any]:
    """Return what only receivers that know the conventions need."""
    attributes = span.attributes
    beside: dict[str, Any] = {}
    finish = attributes.get("finish_reason")
    if isinstance(finish, str) and finish:
        beside["gen_ai.response.finish_reasons"] = [finish]
    if span.kind == "agent":
        beside["gen_ai.agent.name"] = span.name
    if span.kind == "tool":
        tool, call_id = attributes.get("tool.name"), attributes.get("tool.call.id")
        beside["gen_ai.tool.name"] = tool if isinstance(tool, str) and tool else span.name
        if isinstance(call_id, str) and call_id:
            beside["gen_ai.tool.call.id"] = call_id
    if span.status != "ok":
        stated = attributes.get("error_type")
        is_timeout = span.status == "timeout"
        beside[names.ERROR_TYPE] = (
            "timeout" if is_timeout else stated if isinstance(stated, str) and stated else "_OTHER"
        )
    return beside


def _attributes(span: Span, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of *span* under the names under which they are sent."""
    sent: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for key, value in span.attributes.items():
        if key in names.CONVENTIONS or key.startswith(names.PREFIX):
            sent[names.ATTRIBUTE + key] = value
            if key in names.BESIDE or (key in names.CONVENTIONS and key not in facts and key in names.COSTS):
                sent[key] = value
            continue
        name = _name_of_content(key, value)
        if name and name not in span.attributes:
            renamed[name] = key
            sent[name] = value
        else:
            sent[key] = value
    if renamed:
        sent[names.RENAMED] = renamed
    return sent


def _name_of_content(key: str, value: Any) -> str:
    if key in names.CONTENT:
        return names.CONTENT[key]
    if key in names.MESSAGES and isinstance(value, str):
        messages, text = names.MESSAGES[key]
        return messages if _is_messages(value) else text
    return ""


def _is_messages(text: str) -> bool:
    if not text.startswith("["):
        return False
    items = values.json(text)
    return isinstance(items, list) and bool(items) and all(isinstance(item, dict) and "role" in item for item in items)


def _events(span: Span, attributes: Mapping[str, Any]) -> tuple[OtlpEvent, ...]:
    """Return the exception of a failed span as the event that the conventions ask for."""
    if span.status == "ok" and not span.error_stack:
        return ()
    told = {
        "exception.type": attributes.get(names.ERROR_TYPE, ""),
        "exception.message": span.error,
        "exception.stacktrace": span.error_stack,
    }
    return (OtlpEvent("exception", span.ended_ns, {key: value for key, value in told.items() if value}),)
