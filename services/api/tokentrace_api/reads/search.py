"""Which spans are asked for: as SQL over the stored ones, and as a predicate over those that arrive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokentrace.metrics import attribute_text_of
from tokentrace.records import Span
from tokentrace_api.store import attribute_is

#: No column holds more: a number that fits none must not fail where it is compared.
_MOST = 2**63 - 1


class Search(NamedTuple):
    """
    What one span has to have, all of it.

    Attributes:
        columns: Column -> value.
        attributes: Key -> value in text form.
        least: Column -> smallest value.
        text: What its name or error contains, whatever the case; "" = anything.
        since_ns, until_ns: What is listed started at or after, at or before; None = whenever. For a page of traces that
            is the trace, not the span that matches.
    """

    columns: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    least: Mapping[str, int] = {}
    text: str = ""
    since_ns: int | None = None
    until_ns: int | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """(SQL that is true of a span that matches, its values), bounds of time aside; "" = every span."""
        conditions = [f"{column} = ?" for column in self.columns]
        values: list[Any] = list(self.columns.values())
        for column, least in self.least.items():
            conditions.append(f"{column} >= ?")
            values.append(min(least, _MOST))
        for key, value in self.attributes.items():
            text, given = attribute_is(key, value)
            conditions.append(text)
            values += given
        if self.text:
            conditions.append("(contains(lower(name), ?) OR contains(lower(error), ?))")
            values += [lowered(self.text)] * 2
        return " AND ".join(conditions), values

    def bounds(self, column: str) -> tuple[str, list[Any]]:
        """The same for when *column*, Unix nanoseconds, may lie."""
        given = [(f"{column} >= ?", self.since_ns), (f"{column} <= ?", self.until_ns)]
        held = [(text, bound) for text, bound in given if bound is not None]
        return " AND ".join(text for text, _ in held), [bound for _, bound in held]

    def matches(self, span: Span) -> bool:
        """*span* has it all, and started when it may have."""
        if any(getattr(span, column) != value for column, value in self.columns.items()):
            return False
        for column, least in self.least.items():
            found = getattr(span, column)
            if found is None or found < least:
                return False
        if any(attribute_text_of(span, key) != value for key, value in self.attributes.items()):
            return False
        text = lowered(self.text)
        if text and text not in lowered(span.name) and text not in lowered(span.error):
            return False
        late_enough = self.since_ns is None or span.started_ns >= self.since_ns
        return late_enough and (self.until_ns is None or span.started_ns <= self.until_ns)


def lowered(text: str) -> str:
    """*text* in small letters as the store's SQL has it: each letter by itself, and one for one."""
    return text.lower() if text.isascii() else "".join(letter.lower()[0] for letter in text)
