"""The filter of lists, exports and live tails, as SQL for stored spans and as a predicate for arriving spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokentrace.metrics import attribute_text_of
from tokentrace.records import ID_FIELDS, Span
from tokentrace_api.store import attribute_is

#: The largest value of an integer column. A larger bound is reduced to it, because DuckDB cannot bind larger integers.
_MAX_INT = 2**63 - 1


class Search(NamedTuple):
    """
    A filter: a span must meet all its conditions.

    Attributes:
        columns: Column -> the value that it must have.
        attributes: Key -> the value that the attribute must have, in text form. The keys ``user_id`` and ``session_id``
            stand for the fields of those names, or else for the attributes; the value "" asks for spans with neither.
        least: Column -> the smallest value that it may have.
        text: Text that the name or the error contains, regardless of case; "" = any.
        since_ns, until_ns: Bounds of the start, both included, Unix nanoseconds; None = no bound. On a page of traces
            they apply to the start of the trace, not of the matching span.
    """

    columns: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    least: Mapping[str, int] = {}
    text: str = ""
    since_ns: int | None = None
    until_ns: int | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """Return (SQL for all conditions except the bounds of time, its parameters); "" = every span matches."""
        conditions = [f"{column} = ?" for column in self.columns]
        values: list[Any] = list(self.columns.values())
        for column, least in self.least.items():
            conditions.append(f"{column} >= ?")
            values.append(min(least, _MAX_INT))
        for key, value in self.attributes.items():
            text, parameters = attribute_is(key, value)
            conditions.append(text)
            values += parameters
        if self.text:
            conditions.append("(contains(lower(name), ?) OR contains(lower(error), ?))")
            values += [lowered(self.text)] * 2
        return " AND ".join(conditions), values

    def bounds(self, column: str) -> tuple[str, list[Any]]:
        """Return (SQL for the bounds of time on *column*, its parameters); "" = there are no bounds."""
        bounds = [(f"{column} >= ?", self.since_ns), (f"{column} <= ?", self.until_ns)]
        present = [(text, bound) for text, bound in bounds if bound is not None]
        return " AND ".join(text for text, _ in present), [bound for _, bound in present]

    def matches(self, span: Span) -> bool:
        """Return True if *span* meets all conditions and starts within the bounds of time."""
        if any(getattr(span, column) != value for column, value in self.columns.items()):
            return False
        for column, least in self.least.items():
            number = getattr(span, column)
            if number is None or number < least:
                return False
        if not all(_has(span, key, value) for key, value in self.attributes.items()):
            return False
        text = lowered(self.text)
        if text and text not in lowered(span.name) and text not in lowered(span.error):
            return False
        is_late_enough = self.since_ns is None or span.started_ns >= self.since_ns
        return is_late_enough and (self.until_ns is None or span.started_ns <= self.until_ns)


def _has(span: Span, key: str, value: str) -> bool:
    text = attribute_text_of(span, key)
    return (text or "") == value if key in ID_FIELDS else text == value


def lowered(text: str) -> str:
    """Return *text* in lower case as SQL ``lower`` does it: each letter becomes exactly one letter."""
    return text.lower() if text.isascii() else "".join(letter.lower()[0] for letter in text)
