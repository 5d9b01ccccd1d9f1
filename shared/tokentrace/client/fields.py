"""The fields of a span as applications give them, in milliseconds, dollars and datetimes, and their conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict

from msgspec.structs import replace

from tokentrace.client.field_values import CONVERTED, plain, shown
from tokentrace.records import MAX_ADJUSTED, MODEL_KINDS, SPAN_FIELDS, Kind, Span, Status, UsageState

_MAX_NOTE = 200
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "usage", "usage_state")
_MAX_DEPTH = 16


class SpanFields(TypedDict, total=False):
    """
    The fields that ``record``, ``span`` and ``set`` take; a value of None is a field that is not given.

    Attributes:
        started_at, ended_at: When the call started and ended; a datetime without a zone is local time.
        latency_ms, ttft_ms: The whole time and the time to the first token, milliseconds.
        prompt_tokens, completion_tokens, total_tokens: Tokens, cached and reasoning tokens included.
        cache_read_tokens, cache_write_tokens, cache_write_1h_tokens: Parts of prompt_tokens.
        reasoning_tokens: Part of completion_tokens.
        cost_usd: The cost, US dollars; not given = the pipeline computes it.
        score: The quality of the answer, 0 to 1.
        usage: Amounts of other priced units by name, such as ``{"web_searches": 2}``.
        adjusted: What was corrected before, such as ``cache_read_tokens: 12 is more than its whole, 10 kept``.
    """

    name: str
    kind: Kind | None
    model: str | None
    provider: str | None
    caller: str | None
    status: Status
    started_at: datetime | None
    ended_at: datetime | None
    latency_ms: float | None
    ttft_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_1h_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: float | Decimal | None
    score: float | Decimal | None
    usage: Mapping[str, float] | None
    usage_state: UsageState
    pricing_context: Mapping[str, str] | None
    response_id: str | None
    scope: str | None
    attributes: Mapping[str, object] | None
    error: str | None
    error_stack: str | None
    session_id: str | None
    user_id: str | None
    span_id: str | None
    parent_span_id: str | None
    adjusted: Sequence[str] | None


_NAMES = frozenset(SpanFields.__annotations__)


def values_of(fields: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """
    Return the fields of ``Span`` that *fields* state.

    Args:
        fields: Fields of ``SpanFields``.
        notes: Gets a text for each value that cannot be used and is left out.

    Raises:
        TypeError: The name of a field is unknown.
    """
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _NAMES:
            raise TypeError(f"unknown field {name!r} of a span; the fields are {', '.join(sorted(_NAMES))}")
        if value is None:
            continue
        if name == "attributes":
            values[name] = plain_attributes(value, notes)
            continue
        if name == "adjusted":
            notes.extend(str(text)[:_MAX_NOTE] for text in value)
            continue
        target, convert = CONVERTED[name]
        try:
            values[target] = convert(value)
        except Exception:  # noqa: BLE001 - a value may be an object of the application, with any behaviour
            note(notes, name, f"{shown(value)} left out")
    return values


def plain_attributes(attributes: Mapping[str, object], notes: list[str]) -> dict[str, Any]:
    """Return *attributes* with values that JSON can hold; what has no such form is left out and added to *notes*."""
    found: dict[str, Any] = {}
    try:
        items = list(attributes.items())
    except Exception:  # noqa: BLE001 - it may be an object of the application, with any behaviour
        note(notes, "attributes", f"{type(attributes).__name__} left out")
        return found
    for key, value in items:
        try:
            found[str(key)] = plain(value, _MAX_DEPTH)
        except Exception:  # noqa: BLE001 - as above
            note(notes, f"attributes.{shown(key)}", f"{type(value).__name__} left out")
    return found


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return *values*, fields of a finished ``Span``, with the kind and the state of the usage that follow from them.

    A span with a model is a call of kind ``llm``, and one without is of kind ``custom``, unless a kind is given. A call
    that succeeded without any tokens says that they are missing.
    """
    whole = {"kind": "llm" if values.get("model") else "custom", **values}
    is_call = whole["kind"] in MODEL_KINDS and whole.get("status", "ok") == "ok"
    if is_call and not any(whole.get(name) for name in _TOKENS):
        whole["usage_state"] = "missing"
    return whole


def note(notes: list[str], name: str, what: str) -> None:
    """Add to *notes* that the value *name* was left out or changed."""
    notes.append(f"{name}: {what}"[:_MAX_NOTE])


def with_notes(span: Span, notes: list[str]) -> Span:
    """Return *span* with *notes* added to ``adjusted``."""
    if not notes:
        return span
    return replace(span, adjusted=tuple(dict.fromkeys([*span.adjusted, *notes]))[:MAX_ADJUSTED])


def merged(span: Span, values: Mapping[str, Any]) -> Span:
    """Return *span* with *values*, the attributes of both included; those of *values* win."""
    if "attributes" in values and span.attributes:
        values = {**values, "attributes": {**span.attributes, **values["attributes"]}}
    return replace(span, **values)


def filled(span: Span, defaults: Mapping[str, Any]) -> Span:
    """Return *span* with *defaults* for the fields that have no value, and for attributes that it lacks."""
    values = {name: value for name, value in defaults.items() if value and not getattr(span, name)}
    attributes = defaults.get("attributes")
    if attributes and span.attributes:
        values["attributes"] = {**attributes, **span.attributes}
    return replace(span, **values) if values else span


def as_span(values: Mapping[str, Any]) -> Span:
    """Return a span with *values*; the names are fields of ``Span``."""
    return Span(**{name: value for name, value in values.items() if name in SPAN_FIELDS})
