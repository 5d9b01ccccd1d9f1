"""When two spans are one call."""

from __future__ import annotations

import re

from tokentrace.records.span import Span
from tokentrace.units import MS

_PREFIX = re.compile(r"^[A-Za-z]{2,16}[-_]")
_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")
#: A response id with at least this many letters and digits, without its prefix, is long: providers do not repeat it.
_LONG = 12
#: Two spans with one long response id are one call if their intervals are at most this far apart, milliseconds.
LONG_MS = 60_000
#: The same for a short response id.
SHORT_MS = 5_000


def is_long(response_id: str) -> bool:
    """Return True if *response_id* has at least 12 letters and digits after a prefix such as ``chatcmpl-``."""
    return len(_NOT_ALPHANUMERIC.sub("", _PREFIX.sub("", response_id))) >= _LONG


def same_call(first: Span, other: Span) -> bool:
    """
    Return True if two spans with one response id may be one call: their intervals overlap or nearly do.

    The intervals are widened by ``LONG_MS`` if the id is long, otherwise by ``SHORT_MS``.
    """
    gap_ns = (LONG_MS if is_long(first.response_id) else SHORT_MS) * MS
    return first.started_ns - gap_ns <= max(other.ended_ns, other.started_ns) and other.started_ns - gap_ns <= max(
        first.ended_ns, first.started_ns
    )


def duplicate_of(span: Span) -> str:
    """Return the id of the span that counts in place of *span*, which one OTLP request told as well; "" = none does."""
    if span.kind != "chain" or span.source != "otlp":
        return ""
    winner = span.attributes.get("duplicate_of", "")
    return winner if isinstance(winner, str) else ""
