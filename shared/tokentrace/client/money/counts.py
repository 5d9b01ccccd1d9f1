"""Reading what a call used from whatever an application has at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.records import MAX_TOKENS, SPAN_FIELDS, Span

_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
#: The fields of a span that decide its price, beside model and provider.
_DECIDING = (*_COUNTS, "usage", "usage_state", "pricing_context", "kind")
#: Further names that a mapping of fields may have, as ``Trace.record`` takes them.
_OTHER = {"latency_ms", "ttft_ms", "cost_usd", "started_at", "ended_at"}


def span_of(model: str, usage: object, provider: str) -> Span:
    """
    Return a span of *model* with what *usage* counts, and without a cost.

    Raises:
        Rejected: *usage* has no counts that can be read, or one is not a whole number from 0 to 2**40.
    """
    if isinstance(usage, Span):
        unpriced = {"cost_nusd": None, "cost_source": "", "unpriced_reason": ""}
        return replace(usage, model=model, provider=provider or usage.provider, **unpriced)
    fields = _fields_of(usage)
    given: dict[str, Any] = {name: fields[name] for name in _DECIDING if fields.get(name) is not None}
    for name in _COUNTS:
        if name in given:
            tokens_of(name, given[name])
    for name, amount in (given.get("usage") or {}).items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount <= MAX_TOKENS:
            raise Rejected(f"usage.{name}: {shorten(amount)} is not a number of 0 to {MAX_TOKENS}")
    return Span(model=model, provider=provider or str(fields.get("provider") or ""), **given)


def tokens_of(name: str, value: object) -> int:
    """Return *value*, a number of tokens; Rejected if it is none, with *name* in the text."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise Rejected(f"{name}: {shorten(value)} is not a whole number of 0 to {MAX_TOKENS}")
    return value


def _fields_of(usage: object) -> Mapping[str, Any]:
    """Return field of ``Span`` -> what *usage* says of it."""
    is_of_span = isinstance(usage, Mapping) and usage.keys() <= {*SPAN_FIELDS, *_OTHER}
    if isinstance(usage, Mapping) and is_of_span and usage.keys() & set(_COUNTS):
        return usage
    # Loaded with the first response, because most programs ask with counts of their own.
    from tokentrace.client.usage import read

    fields = read(usage) or read({"usage": usage})
    if fields:
        return fields
    if isinstance(usage, Mapping) and is_of_span and usage.keys() & set(_DECIDING):
        return usage
    what = f"keys {quoted(sorted(map(str, usage)))}" if isinstance(usage, Mapping) else type(usage).__name__
    raise Rejected(f"usage: {what}: no token counts are known here, such as prompt_tokens and completion_tokens")
