"""The filter of lists, exports and live tails, as SQL for stored spans and as a predicate for arriving spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        columns: Column -> the values of which it must have one; "" and ``unknown`` are the same, see ``value_is``.
        attributes: Key -> the values of which the attribute must have one, in text form. The keys ``user_id`` and
            ``session_id`` stand for the fields of those names, or else for the attributes; the value "" asks for spans
            with neither.
        least, most: Column -> the smallest and the largest value that it may have.
        without, without_attributes: As *columns* and *attributes*, but the values that it must not have. On a page of
            traces, no span of the trace may have one.
        text: Text that the name or the error contains, compared by ``folded``; "" = any.
        since_ns, until_ns: Bounds of the start, both included, Unix nanoseconds; None = no bound. On a page of traces
            they apply to the start of the trace, not of the matching span.
    """

    columns: Mapping[str, Sequence[str]] = {}
    attributes: Mapping[str, Sequence[str]] = {}
    least: Mapping[str, int] = {}
    text: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    most: Mapping[str, int] = {}
    without: Mapping[str, Sequence[str]] = {}
    without_attributes: Mapping[str, Sequence[str]] = {}

    def condition(self) -> tuple[str, list[Any]]:
        """
        Return (SQL for the values that a span must have, its parameters); "" = every span has them.

        The bounds of time and the values that it must not have are not part of it.
        """
        conditions: list[str] = []
        values: list[Any] = []
        for text, parameters in (*_each(self.columns, value_is), *_each(self.attributes, attribute_is)):
            conditions.append(text)
            values += parameters
        for sign, bounds in ((">=", self.least), ("<=", self.most)):
            for column, bound in bounds.items():
                conditions.append(f"{column} {sign} ?")
                values.append(min(bound, _MAX_INT))
        if self.text:
            conditions.append(f"({contains_text('name')} OR {contains_text('error')})")
            values += [folded(self.text)] * 2
        return " AND ".join(conditions), values

    def exclusion(self) -> tuple[str, list[Any]]:
        """Return (SQL that is true for a span with an unwanted value, its parameters); "" = there is none."""
        found = [*_each(self.without, value_is), *_each(self.without_attributes, attribute_is)]
        if not found:
            return "", []
        text = " OR ".join(condition for condition, _ in found)
        # A span without the attribute gives NULL.
        return f"coalesce({text}, false)", [value for _, parameters in found for value in parameters]

    def of_span(self) -> tuple[str, list[Any]]:
        """Return (SQL for all conditions on one span except the bounds of time, its parameters); "" = no condition."""
        condition, values = self.condition()
        exclusion, excluded = self.exclusion()
        texts = [condition, f"NOT {exclusion}" if exclusion else ""]
        return " AND ".join(text for text in texts if text), [*values, *excluded]

    def of_trace(self) -> tuple[str, list[Any]]:
        """Return (SQL for the spans of one trace, to be used after ``HAVING``, its parameters); "" = no condition."""
        condition, values = self.condition()
        exclusion, excluded = self.exclusion()
        texts = [f"bool_or({condition})" if condition else "", f"NOT bool_or({exclusion})" if exclusion else ""]
        return " AND ".join(text for text in texts if text), [*values, *excluded]

    def bounds(self, column: str) -> tuple[str, list[Any]]:
        """Return (SQL for the bounds of time on *column*, its parameters); "" = there are no bounds."""
        bounds = [(f"{column} >= ?", self.since_ns), (f"{column} <= ?", self.until_ns)]
        present = [(text, bound) for text, bound in bounds if bound is not None]
        return " AND ".join(text for text, _ in present), [bound for _, bound in present]

    def matches(self, span: Span) -> bool:
        """Return True if *span* meets all conditions and starts within the bounds of time."""
        if not all(_has_value(span, column, values) for column, values in self.columns.items()):
            return False
        if any(_has_value(span, column, values) for column, values in self.without.items()):
            return False
        for column in {*self.least, *self.most}:
            number = getattr(span, column)
            if number is None or not self.least.get(column, number) <= number <= self.most.get(column, number):
                return False
        if not all(_has_attribute(span, key, values) for key, values in self.attributes.items()):
            return False
        if any(_has_attribute(span, key, values) for key, values in self.without_attributes.items()):
            return False
        text = folded(self.text)
        if text and text not in folded(span.name) and text not in folded(span.error):
            return False
        is_late_enough = self.since_ns is None or span.started_ns >= self.since_ns
        return is_late_enough and (self.until_ns is None or span.started_ns <= self.until_ns)


def _each(
    wanted: Mapping[str, Sequence[str]], is_value: Callable[[str, str], tuple[str, list[Any]]]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield for each key of *wanted* (SQL that is true if it has one of the values, its parameters)."""
    for key, values in wanted.items():
        found = [is_value(key, value) for value in values]
        yield f"({' OR '.join(text for text, _ in found)})", [value for _, parameters in found for value in parameters]


def _has_value(span: Span, column: str, values: Sequence[str]) -> bool:
    held = getattr(span, column) or UNKNOWN
    return any(held == (value or UNKNOWN) for value in values)


def _has_attribute(span: Span, key: str, values: Sequence[str]) -> bool:
    return any(span_attribute_is(span, key, value) for value in values)


def value_is(column: str, value: str) -> tuple[str, list[Any]]:
    """
    Return (SQL that is true if *column* is *value*, its parameters).

    A span without a value is shown as ``unknown`` by every metric, so "" and ``unknown`` both find it, and also a span
    whose value is the word ``unknown``.
    """
    if value in ("", UNKNOWN):
        return f"coalesce({column}, '') IN ('', '{UNKNOWN}')", []
    return f"{column} = ?", [value]
