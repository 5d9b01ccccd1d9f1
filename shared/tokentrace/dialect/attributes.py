"""The fields of a span that foreign forms state in their free attributes, under the names of ``vendor_names``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

from tokentrace.dialect.vendor_names import (
    BESIDE,
    CONTEXT,
    PARTS,
    RESPONSE_IDS,
    SCOPES,
    SESSIONS,
    SHORT,
    USAGE_OBJECTS,
    USERS,
    WHOLES,
)
from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    FREE_REASONS,
    MAX_NAME,
    MODEL_KINDS,
    OTHER_UNITS,
    TOKEN_UNITS,
    is_response_id,
    whole_amounts,
)
from tokentrace.units import is_number, score_to_int

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=\d[hm])")
_STATES = ("missing", "partial", "estimated", "none")
_MAX_DEPTH = 3
#: Unit -> the field of ``Span`` that counts it.
_FIELDS = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "total_tokens": "total_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
}
#: Each span is one request, so an attribute of this name means something else.
_OTHER_UNITS = OTHER_UNITS - {"requests"}


@lru_cache(4096)
def snake(name: str) -> str:
    """Return *name* in snake case: ``cacheReadTokens`` is ``cache_read_tokens``."""
    return _CAMEL.sub("_", name).lower()


def counts_of(attributes: Mapping[str, Any], objects: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """
    Return the fields of ``Span`` that *attributes* and *objects* count: tokens, and ``usage`` for other units.

    ``usage_state`` is among them as partial if the cached input is known and the other input is not. A value that is no
    number is ignored. A fraction is cut off, except from seconds. Unknown names are ignored.

    Args:
        objects: Objects that hold nothing but counts, in which the names may be short.

    Raises:
        Rejected: Two names of one amount have different values, and neither is a total of the attributes; or an amount
            is negative or over 2**40. The text names both.
    """
    found: dict[str, float] = {}
    for key, value in attributes.items():
        if is_number(value) and (name := _count_name(key)):
            _note(found, name, value)
    # A free attribute may mean another total, such as that of a session, so a smaller one is no contradiction.
    total = found.pop("total_tokens", 0)
    for counts in objects:
        _flatten(counts, "", found)
    if not _OBJECT_KEYS.isdisjoint(attributes):
        for key in _OBJECT_KEYS:
            counts = attributes.get(key, {})
            if isinstance(counts, Mapping):
                _flatten(counts, "", found)
    if not total and not found.keys() - _PLAIN.keys():
        # The usual case: the counts of MIST and Cost Katana alone.
        plain = {_PLAIN[name]: int(amount) for name, amount in found.items() if amount}
        return {**plain, "total_tokens": sum(plain.values())} if plain else {}
    fields = _fields(found)
    if total > fields.get("prompt_tokens", 0) + fields.get("completion_tokens", 0) and "total_tokens" not in fields:
        fields |= whole_amounts({"total_tokens": total}, "tokens")
    return fields


_PLAIN = {"tokens_in": "prompt_tokens", "tokens_out": "completion_tokens"}


@lru_cache(4096)
def _count_name(key: str) -> str:
    """Return the name under which the attribute *key* is a count; "" if it is none."""
    name = snake(key)
    return name if _is_full_name(name) and ("token" in name or name in _OTHER_UNITS) else ""


def _is_full_name(name: str) -> bool:
    return name in WHOLES or name in PARTS or name in BESIDE or name in TOKEN_UNITS or name in _OTHER_UNITS


def _flatten(counts: Mapping[str, Any], prefix: str, found: dict[str, float], depth: int = _MAX_DEPTH) -> None:
    for key, value in counts.items():
        if is_number(value):
            if name := _name_in_object(prefix, key):
                _note(found, name, value)
        elif isinstance(value, Mapping) and depth:
            _flatten(value, f"{prefix}{snake(key)}.", found, depth - 1)


@lru_cache(4096)
def _name_in_object(prefix: str, key: str) -> str:
    """Return the name under which *key* of an object is a count; "" if it is none."""
    name = prefix + snake(key)
    name = SHORT.get(name, name)
    return name if _is_full_name(name) else ""


def _note(found: dict[str, float], name: str, value: float) -> None:
    amount = value if isinstance(value, int) or name.endswith("_seconds") else int(value)
    known = found.setdefault(name, amount)
    if known != amount:
        if known and amount:
            raise Rejected(
                f"{name}: {shorten(amount)} differs from {shorten(known)}, which is given under the same name"
            )
        found[name] = known or amount


def _fields(found: Mapping[str, float]) -> dict[str, Any]:
    amounts: dict[str, tuple[str, float]] = {}

    def set_amount(unit: str, name: str, amount: float) -> None:
        if not amount:
            return
        known_name, known = amounts.setdefault(unit, (name, amount))
        if known != amount:
            raise Rejected(
                f"{name}: {shorten(amount)} differs from {known_name} {shorten(known)}, which counts the same"
            )

    beside: dict[str, list[tuple[str, float]]] = {}
    for name, amount in found.items():
        if name in BESIDE:
            unit, whole = BESIDE[name]
            beside.setdefault(whole, []).append((unit, amount))
            set_amount(unit, name, amount)
    for name, amount in found.items():
        if name in WHOLES:
            set_amount(WHOLES[name], name, _whole(name, found, beside))
        elif name not in BESIDE:
            set_amount(PARTS.get(name, name), name, amount)
    state = {}
    for whole, added in beside.items():
        unit = WHOLES[whole]
        if unit not in amounts:
            set_amount(unit, whole, sum(amount for _, amount in added))
            if unit == "input_tokens" and unit in amounts:
                state = {"usage_state": "partial"}
    for name, amount in found.items():
        # That no cached token was audio tells how many of the cached tokens were text.
        unit = PARTS.get(name, name)
        if not amount and unit in TOKEN_UNITS and unit not in _FIELDS and amounts:
            amounts.setdefault(unit, (name, amount))
    fields = {_FIELDS[unit]: amount for unit, (_, amount) in amounts.items() if unit in _FIELDS}
    usage = {unit: amount for unit, (_, amount) in amounts.items() if unit not in _FIELDS}
    return {**whole_amounts(fields, "tokens"), **({"usage": whole_amounts(usage)} if usage else {}), **state}


def _whole(name: str, found: Mapping[str, float], beside: Mapping[str, list[tuple[str, float]]]) -> float:
    """Return the whole input or output that *name* counts, with what its vendor counts beside it."""
    amount = found[name]
    for whole, added in beside.items():
        extra = sum(value for _, value in added)
        # The tool's own whole may be a copy of the vendor's.
        if WHOLES[name] == WHOLES[whole] and (name == whole or amount == found.get(whole) or extra > amount):
            return amount + extra
    return amount


def stated_fields(attributes: Mapping[str, Any], kind: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fields of ``Span`` other than counts that *attributes* state.

    They are ``usage_state``, ``pricing_context``, ``response_id``, ``scope``, and ``cost_source`` with its reason. A
    value of another type, or one that a field cannot hold, is ignored: it is a free attribute.

    Args:
        kind: Kind of the span. A call to a model has the state ``missing`` if *counts* is empty and it states none.
        counts: The result of ``counts_of``.
    """
    fields: dict[str, Any] = {}
    if kind in MODEL_KINDS and not any(any(n.values()) if isinstance(n, dict) else n for n in counts.values()):
        fields["usage_state"] = "missing"
    if _STATED_KEYS.isdisjoint(attributes):
        return fields
    context = {name: text for name in CONTEXT if (text := text_of(attributes, name))}
    for name in _OBJECT_KEYS:
        inner = attributes.get(name)
        if isinstance(inner, Mapping):
            context = {**{key: text for key in CONTEXT if (text := text_of(inner, key))}, **context}
    given = attributes.get("pricing_context", attributes.get("pricingContext"))
    if isinstance(given, Mapping):
        for key, text in given.items():
            if not isinstance(text, str) or not text or not isinstance(key, str):
                continue
            if context.setdefault(key, text) != text:
                raise Rejected(f"{key}: differs from pricing_context.{key}")
    if context:
        fields["pricing_context"] = context
    state = text_of(attributes, "usage_state")
    if state in _STATES:
        fields["usage_state"] = state
    response_id = next((text for name in RESPONSE_IDS if (text := text_of(attributes, name))), "")
    if is_response_id(response_id):
        fields["response_id"] = response_id
    scope = next((text for name in SCOPES if (text := text_of(attributes, name))), "")
    if scope:
        fields["scope"] = scope
    if text_of(attributes, "cost_source") == "reported":
        fields["cost_source"] = "reported"
        reason = text_of(attributes, "cost_reason")
        if reason in FREE_REASONS:
            fields["unpriced_reason"] = reason
    return fields


def text_of(attributes: Mapping[str, Any], name: str) -> str:
    """Return the text under *name*, in snake or camel case, of at most 256 characters; "" if there is none."""
    for key in (name, _camel(name)):
        value = attributes.get(key)
        if isinstance(value, str) and value and len(value) <= MAX_NAME:
            return value
    return ""


@cache
def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def user_of(attributes: Mapping[str, Any]) -> str | None:
    """Return the user that *attributes* name, cut to 256 characters; a number is its text. None if they name none."""
    return _id_of(attributes, _USER_KEYS)


def session_of(attributes: Mapping[str, Any]) -> str | None:
    """Return the session that *attributes* name, cut to 256 characters; a number is its text; None if there is none."""
    return _id_of(attributes, _SESSION_KEYS)


def score_of(attributes: dict[str, Any]) -> int | None:
    """Return the attribute ``eval.score`` in units of 1e-9; None if it is absent or not a number from 0 to 1."""
    value = attributes.get("eval.score")
    return score_to_int(value) if is_number(value) and 0 <= value <= 1 else None


def _id_of(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = attributes.get(key)
        if value is None:
            continue
        if isinstance(value, str) and value:
            return value[:MAX_NAME]
        if is_number(value):
            return str(int(value) if abs(value) < 2**53 and value == int(value) else value)[:MAX_NAME]
    return None


def _both(*names: str) -> tuple[str, ...]:
    """Return *names* in snake and in camel case."""
    return tuple(dict.fromkeys(key for name in names for key in (name, _camel(name))))


_USER_KEYS, _SESSION_KEYS, _OBJECT_KEYS = _both(*USERS), _both(*SESSIONS), frozenset(_both(*USAGE_OBJECTS))
_STATED_KEYS = _OBJECT_KEYS.union(
    _both(*CONTEXT, *RESPONSE_IDS, *SCOPES, "pricing_context", "usage_state", "cost_source")
)
