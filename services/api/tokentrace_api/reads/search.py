"""The filter of lists, exports and live tails, as SQL for stored spans and as a predicate for arriving spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokentrace.metrics import attribute_is as span_attribute_is
from tokentrace.records import Span
from tokentrace.rollup import UNKNOWN
from tokentrace_api.store import attribute_is, contains_text, folded

#: The largest value of an integer column. A larger bound is reduced to it, because DuckDB cannot bind larger integers.
_MAX_INT = 2**63 - 1


class Search(NamedTuple):
    """
    A filter: a span must meet all its conditions.

    Attributes:
        columns: Column -> the value that it must have; "" and ``unknown`` are the same, see ``value_is``.
        attributes: Key -> the value that the attribute must have, in text form. The keys ``user_id`` and ``session_id``
            stand for the fields of those names, or else for the attributes; the value "" asks for spans with neither.
        least: Column -> the smallest value that it may have.
        text: Text that the name or the error contains, compared by ``folded``; "" = any.
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
        conditions: list[str] = []
        values: list[Any] = []
        for column, value in self.columns.items():
            text, parameters = value_is(column, value)
            conditions.append(text)
            values += parameters
        for column, least in self.least.items():
            conditions.append(f"{column} >= ?")
            values.append(min(least, _MAX_INT))
        for key, value in self.attributes.items():
            text, parameters = attribute_is(key, value)
            conditions.append(text)
            values += parameters
        if self.text:
            conditions.append(f"({contains_text('name')} OR {contains_text('error')})")
            values += [folded(self.text)] * 2
        return " AND ".join(conditions), values

    def bounds(self, column: str) -> tuple[str, list[Any]]:
        """Return (SQL for the bounds of time on *column*, its parameters); "" = there are no bounds."""
        bounds = [(f"{column} >= ?", self.since_ns), (f"{column} <= ?", self.until_ns)]
        present = [(text, bound) for text, bound in bounds if bound is not None]
        return " AND ".join(text for text, _ in present), [bound for _, bound in present]

    def matches(self, span: Span) -> bool:
        """Return True if *span* meets all conditions and starts within the bounds of time."""
        if any((getattr(span, column) or UNKNOWN) != (value or UNKNOWN) for column, value in self.columns.items()):
            return False
        for column, least in self.least.items():
            number = getattr(span, column)
            if number is None or number < least:
                return False
        if not all(span_attribute_is(span, key, value) for key, value in self.attributes.items()):
            return False
        text = folded(self.text)
        if text and text not in folded(span.name) and text not in folded(span.error):
            return False
        is_late_enough = self.since_ns is None or span.started_ns >= self.since_ns
        return is_late_enough and (self.until_ns is None or span.started_ns <= self.until_ns)


def value_is(column: str, value: str) -> tuple[str, list[str]]:
    """
    Return (SQL that is true if *column* is *value*, its parameters).

    A span without a value is shown as ``unknown`` by every metric, so "" and ``unknown`` both find it, and also a span
    whose value is the word ``unknown``.
    """
    if value in ("", UNKNOWN):
        return f"coalesce({column}, '') IN ('', '{UNKNOWN}')", []
    return f"{column} = ?", [value]
