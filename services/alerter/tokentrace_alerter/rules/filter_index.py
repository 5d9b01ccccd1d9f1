"""Which rules a span concerns: found by the values they filter on, not tried one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokentrace.metrics import value_text
from tokentrace.records import Span


class FilterIndex:
    """
    Filters by name.

    Args:
        filters: Name -> dimension or attribute -> value, all of which a span must have.
    """

    def __init__(self, filters: Mapping[str, Mapping[str, str]]) -> None:
        self._everything = [name for name, filter_ in filters.items() if not filter_]
        shared = Counter(item for filter_ in filters.values() for item in filter_.items())
        #: Key -> value -> (name, the rest of its filter), each name under the item that it shares with the fewest.
        self._by_key: dict[str, dict[str, list[tuple[str, list[tuple[str, str]]]]]] = {}
        for name, filter_ in filters.items():
            if filter_:
                key, value = min(filter_.items(), key=lambda item: (shared[item], item))
                rest = [item for item in filter_.items() if item != (key, value)]
                self._by_key.setdefault(key, {}).setdefault(value, []).append((name, rest))

    def match(self, spans: Sequence[Span]) -> Iterable[tuple[str, list[int] | None]]:
        """(Name, indices of the spans that pass its filter), None for all of them; names without any are left out."""
        for name in self._everything:
            yield name, None
        found: dict[str, list[int]] = {}
        for key, by_value in self._by_key.items():
            for index, span in enumerate(spans):
                value = value_text(span, key)
                if value is None:
                    continue
                for name, rest in by_value.get(value, ()):
                    if all(value_text(span, other) == wanted for other, wanted in rest):
                        found.setdefault(name, []).append(index)
        yield from found.items()
