"""The conversion of single values that applications give to what ``Span`` and JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, get_args
from uuid import UUID

from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    MAX_COST_NUSD,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MAX_NAME,
    MAX_TOKENS,
    MIN_INSTANT_NS,
    Kind,
    Status,
    UsageState,
    is_id,
)
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE, US, is_number, score_to_int, usd_to_nusd

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The integers that MessagePack can hold.
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
#: More digits than any cost or score has, before or after the point.
_MAX_DIGITS = 60
_MAX_SHOWN_BITS = 1_000


def shown(value: object) -> str:
    """Return *value* for a note; of an object of the application, whose own text may fail, only its type."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        # Python refuses to write out a number of thousands of digits.
        return f"a number of {value.bit_length()} bits"
    simple = isinstance(value, (str, int, float, bytes, Decimal)) or value is None
    return shorten(value) if simple and type(value).__module__ in ("builtins", "decimal") else type(value).__name__


def text(value: Any) -> str:
    """Return *value*, a text or an id of another type, as a text; Rejected if it is neither."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, (int, UUID)) and not isinstance(value, bool):
        return str(value)
    raise Rejected(f"{shown(value)} is not a text")


def short_text(value: Any) -> str:
    """Return *value*, the id of a session, user or response, as a text; Rejected if it is too long to be kept."""
    id = text(value)
    if len(id) > MAX_NAME:
        raise Rejected(f"{shown(id)} is longer than {MAX_NAME} characters")
    return id


def identifier(value: Any) -> str:
    """Return *value*, the id of a trace or span, as a text; Rejected if it is not 1 to 256 printable characters."""
    id = text(value)
    if not is_id(id):
        raise Rejected(f"{shown(id)} is not 1-256 printable ASCII characters")
    return id


def _word(literal: Any) -> Callable[[Any], str]:
    words = frozenset(get_args(literal))

    def convert(value: Any) -> str:
        word = value.value if isinstance(value, Enum) else value
        if not isinstance(word, str) or word not in words:
            raise Rejected(f"{shown(word)} is none of {', '.join(sorted(words))}")
        return word

    return convert


def _count(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise Rejected(f"{shown(value)} is not a whole number of 0 to {MAX_TOKENS}")
    return value


def _instant(value: Any) -> int:
    """Return *value*, a datetime, in nanoseconds."""
    if not isinstance(value, datetime):
        raise Rejected(f"{shown(value)} is not a datetime")
    since = value.astimezone(UTC) - _EPOCH
    instant_ns = (since.days * 86_400 + since.seconds) * 1_000 * MS + since.microseconds * US
    if not MIN_INSTANT_NS <= instant_ns <= MAX_INSTANT_NS:
        raise Rejected("the instant is not between the years 2000 and 2100")
    return instant_ns


def _duration(value: Any) -> int:
    if not isinstance(value, Decimal) and not is_number(value):
        raise Rejected(f"{shown(value)} is not a number")
    if not math.isfinite(value) or not 0 <= value * MS <= MAX_LATENCY_NS:
        raise Rejected(f"{shown(value)} is not a duration of at most 30 days")
    return round(value * MS)


def _number(value: Any) -> int | float | Decimal:
    """Return *value*; Rejected if it is no finite number of a size that can be converted in no time."""
    if isinstance(value, Decimal):
        usable = value.is_finite() and (not value or abs(value.adjusted()) < _MAX_DIGITS)
    else:
        usable = is_number(value) and abs(value) < 10**_MAX_DIGITS
    if not usable:
        raise Rejected(f"{shown(value)} is not a number, or far too large or small")
    number: int | float | Decimal = value
    return number


def _cost(value: Any) -> int:
    nusd = usd_to_nusd(_number(value))
    if not 0 <= nusd <= MAX_COST_NUSD:
        raise Rejected(f"{shown(value)} is not a cost of 0 to {MAX_COST_NUSD // NUSD_PER_USD} USD")
    return nusd


def _score(value: Any) -> int:
    score = score_to_int(_number(value))
    if not 0 <= score <= SCORE_ONE:
        raise Rejected(f"{shown(value)} is not a score of 0 to 1")
    return score


def _amounts(value: Any) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for name, amount in dict(value).items():
        if not isinstance(name, str) or not is_number(amount) or not 0 <= amount <= MAX_TOKENS:
            raise Rejected(f"{shown(name)} is not a number of 0 to {MAX_TOKENS}")
        amounts[name] = amount
    return amounts


def _texts(value: Any) -> dict[str, str]:
    return {text(key): text(item) for key, item in dict(value).items()}


#: Field of ``SpanFields`` -> field of ``Span`` and the conversion.
CONVERTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{name: (name, text) for name in ("name", "model", "provider", "caller", "error", "error_stack", "scope")},
    **{name: (name, identifier) for name in ("span_id", "parent_span_id")},
    **{
        name: (name, _count)
        for name in (
            *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"),
            *("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
        )
    },
    **{name: (name, short_text) for name in ("session_id", "user_id", "response_id")},
    "kind": ("kind", _word(Kind)),
    "status": ("status", _word(Status)),
    "usage_state": ("usage_state", _word(UsageState)),
    "started_at": ("started_ns", _instant),
    "ended_at": ("ended_ns", _instant),
    "latency_ms": ("latency_ns", _duration),
    "ttft_ms": ("ttft_ns", _duration),
    "cost_usd": ("cost_nusd", _cost),
    "score": ("score", _score),
    "usage": ("usage", _amounts),
    "pricing_context": ("pricing_context", _texts),
}


def plain(value: Any, depth: int) -> Any:
    """Return *value* in a form that JSON can hold; Rejected if it has none."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (str, bool)):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise Rejected("more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Rejected("not finite")
        return value
    if isinstance(value, Decimal):
        return plain(float(value), depth)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    if depth and isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    if depth and isinstance(value, (set, frozenset)):
        return sorted((plain(item, depth - 1) for item in value), key=repr)
    raise Rejected(f"{type(value).__name__} has no form in JSON")
