"""The reason why input was refused, as one of a few words, so that refusals can be counted by reason."""

from __future__ import annotations

import re

from tokentrace.records.span import SPAN_FIELDS

#: Other names of a field in error texts -> the name by which it is counted: the one that a JSON client writes.
_SAME = {
    "started_ns": "started_at",
    "ended_ns": "ended_at",
    "arrived_ns": "arrived_at",
    "latency_ns": "latency_ms",
    "ttft_ns": "ttft_ms",
    "cost_nusd": "cost_usd",
    "unpriced_reason": "cost_reason",
    "comp_tokens": "completion_tokens",
    "service_tier": "pricing_context",
    "processing": "pricing_context",
    "speed": "pricing_context",
}
#: All reasons: the names of the fields of a span, and four that are not about a field.
REFUSAL_REASONS: tuple[str, ...] = (
    *dict.fromkeys(_SAME.get(name, name) for name in SPAN_FIELDS),
    "undecodable",
    "too_large",
    "forbidden",
    "other",
)
_FIELDS = frozenset(REFUSAL_REASONS[:-4])
#: Where a record is in its list, at the beginning of a text: ``span 3: `` or ``spans[3]: ``.
_POSITION = re.compile(r"[a-z_]+(?: |\[)\d+\]?: ")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SIZE = re.compile(r"\b(?:longer than|larger than|over|at most) \d+|\b\d+ bytes\b|too large")
_FORBIDDEN = "only the api may write"
#: How texts begin that are about bytes which are no record, in lower case; the first four are of the decoders.
_UNDECODABLE = (
    "expected",
    "object",
    "json",
    "messagepack",
    "input data",
    "invalid",
    "utf-8",
    "'utf-8'",
    "not an object",
    "batch",
    "maximum recursion",
    "cannot be encoded",
    "cannot be decoded",
)


def reason_of(text: str) -> str:
    """
    Return the reason in *text*, the error text of a refused record: one of ``REFUSAL_REASONS``.

    A text that begins with a field, such as ``span 3: model: required``, has that field as its reason.
    """
    text = text[:400]
    if _FORBIDDEN in text:
        return "forbidden"
    if position := _POSITION.match(text):
        text = text[position.end() :]
    name = _NAME.match(text)
    field = _SAME.get(name[0], name[0]) if name is not None else ""
    if field in _FIELDS and ":" in text:
        return field
    if _SIZE.search(text):
        return "too_large"
    return "undecodable" if text.lower().startswith(_UNDECODABLE) else "other"
