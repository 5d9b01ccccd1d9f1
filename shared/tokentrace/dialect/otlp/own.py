"""Spans of OTLP that ``encode`` has made, as records again: another pipeline, or this one, has sent them on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import astuple

from tokentrace.dialect.otlp import own_names as names
from tokentrace.dialect.otlp.encode import UNKNOWN_SERVICE
from tokentrace.dialect.otlp.model import STATUS_ERROR, OtlpSpan
from tokentrace.records import ROLLUP_KINDS, SPAN_FIELDS, Span

_PROVIDERS = {sent: provider for provider, sent in names.PROVIDERS.items()}
_DEFAULTS = dict(zip(SPAN_FIELDS, astuple(Span()), strict=True))
_UNITS = {sent: unit for unit, sent in names.MODALITIES.items()}


def read_own(span: OtlpSpan) -> Span | None:
    """
    Return the record that *span* was made of; None if it does not say what such a span says.

    Its way in is ``otlp``, whatever that of the first record was, and its cost counts as reported.
    """
    sent = span.attributes
    kind = sent.get("tokentrace.kind")
    fields: dict[str, Any] = {
        "name": span.name,
        "kind": kind,
        "status": _status(span),
        "started_ns": span.started_ns,
        "ended_ns": span.ended_ns,
        "latency_ns": sent.get("tokentrace.latency_ns", max(span.ended_ns - span.started_ns, 0)),
        "trace_id": sent.get("tokentrace.trace_id", span.trace_id),
        "span_id": sent.get("tokentrace.span_id", span.span_id),
        "parent_span_id": sent.get("tokentrace.parent_span_id", span.parent_span_id) or None,
        "caller": _caller(span),
        "model": sent.get(names.RESPONSE_MODEL) or sent.get(names.REQUEST_MODEL, ""),
        "provider": _provider(sent),
        "error": span.message if span.status == STATUS_ERROR else sent.get("tokentrace.error", ""),
        "error_stack": _stack(span),
        "adjusted": tuple(_list(sent.get("tokentrace.adjusted"))),
        "attributes": _attributes(sent),
    }
    fields |= {field: sent[name] for field, name in names.IDS.items() if name in sent}
    fields |= {field: sent[names.PREFIX + field] for field in names.FIELDS if names.PREFIX + field in sent}
    fields |= _tokens(sent, is_rollup=kind in ROLLUP_KINDS)
    context = _with_prefix(sent, names.CONTEXT)
    if context:
        fields["pricing_context"] = context
    fields["source"] = "otlp"
    is_stated = fields.get("cost_nusd") is not None and bool(fields.get("cost_source"))
    fields["cost_source"] = "reported" if is_stated else ""
    try:
        return msgspec.convert([fields.get(name, default) for name, default in _DEFAULTS.items()], Span)
    except msgspec.ValidationError:
        return None


def _status(span: OtlpSpan) -> Any:
    if span.status != STATUS_ERROR:
        return "ok"
    return span.attributes.get("tokentrace.status", "error")


def _caller(span: OtlpSpan) -> Any:
    if "tokentrace.caller" in span.attributes:
        return span.attributes["tokentrace.caller"]
    name = span.resource.get("service.name", "")
    return "" if isinstance(name, str) and name.startswith(UNKNOWN_SERVICE) else name


def _provider(sent: Mapping[str, Any]) -> Any:
    if "tokentrace.provider" in sent:
        return sent["tokentrace.provider"]
    named = sent.get(names.PROVIDER, "")
    return _PROVIDERS.get(named, named) if isinstance(named, str) else named


def _stack(span: OtlpSpan) -> Any:
    return next(
        (event.attributes.get("exception.stacktrace", "") for event in span.events if event.name == "exception"), ""
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tokens(sent: Mapping[str, Any], *, is_rollup: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, name in names.TOKENS.items():
        count = sent.get(names.PREFIX + field if is_rollup else name)
        if count is not None:
            fields[field] = count
    prompt, completion = fields.get("prompt_tokens", 0), fields.get("completion_tokens", 0)
    if "tokentrace.total_tokens" in sent:
        fields["total_tokens"] = sent["tokentrace.total_tokens"]
    elif isinstance(prompt, int) and isinstance(completion, int):
        fields["total_tokens"] = prompt + completion
    usage = {unit: sent[name] for name, unit in _UNITS.items() if name in sent} | _with_prefix(sent, names.USAGE)
    if usage:
        fields["usage"] = usage
    return fields


def _with_prefix(sent: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in sent.items() if name.startswith(prefix)}


def _attributes(sent: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in sent.items()
        if name not in names.CONVENTIONS and not name.startswith(names.PREFIX)
    }
    renamed = sent.get(names.RENAMED)
    for name, key in renamed.items() if isinstance(renamed, dict) else ():
        if name in kept and isinstance(key, str):
            kept[key] = kept.pop(name)
    return kept | _with_prefix(sent, names.ATTRIBUTE)
