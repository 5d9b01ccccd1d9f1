"""Finds the rules whose filter a span passes, without trying every rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokentrace.metrics import value_text
from tokentrace.records import Span


class FilterIndex:
    """
    An index of filters.

    Args:
        filters: Name -> filter, which maps dimensions or attributes to the values that a span must have, all of them.
    """

    def __init__(self, filters: Mapping[str, Mapping[str, str]]) -> None:
        #: Names of the empty filters, which every span passes.
        self.unfiltered = [name for name, filter_ in filters.items() if not filter_]
        uses = Counter(item for filter_ in filters.values() for item in filter_.items())
        #: Key -> value -> (name of a filter, its other items). A filter is listed under the one of its items that the
        #: fewest filters share, because that item excludes the most spans.
        self._by_key: dict[str, dict[str, list[tuple[str, list[tuple[str, str]]]]]] = {}
        for name, filter_ in filters.items():
            if filter_:
                key, value = min(filter_.items(), key=lambda item: (uses[item], item))
                rest = [item for item in filter_.items() if item != (key, value)]
                self._by_key.setdefault(key, {}).setdefault(value, []).append((name, rest))

    def match(self, spans: Sequence[Span]) -> Iterable[tuple[str, list[int] | None]]:
        """
        Yield the name of each filter that at least one span passes, with the indices of these spans.

        All spans pass an empty filter; its name is always yielded, with None instead of the indices.
        """
        for name in self.unfiltered:
            yield name, None
        matches: dict[str, list[int]] = {}
        for key, by_value in self._by_key.items():
            for index, span in enumerate(spans):
                value = value_text(span, key)
                if value is None:
                    continue
                for name, rest in by_value.get(value, ()):
                    if all(value_text(span, other) == wanted for other, wanted in rest):
                        matches.setdefault(name, []).append(index)
        yield from matches.items()
