"""Series: the combinations of dimension values for which rollups keep numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tokentrace.records import Span
from tokentrace.rollup.quantile import Ints

#: Number of series of a shard up to which callers are kept apart; names are kept apart up to three quarters of it.
MAX_SERIES = 2000
#: Most models that a shard lists in its cumulative counters.
MAX_MODELS = 500
OTHER = "other"
UNKNOWN = "unknown"
DIMENSIONS = ("kind", "model", "provider", "caller", "name", "status")


class Dimensions(NamedTuple):
    """The dimensions of a series; ``unknown`` stands for a model, provider, caller or name that the span lacks."""

    kind: str
    model: str
    provider: str
    caller: str
    name: str
    status: str


class SeriesTable:
    """
    The series of one shard, numbered in order of appearance; a number never changes.

    From three quarters of ``MAX_SERIES`` on, a new combination is counted under the name ``other``; from ``MAX_SERIES``
    on, under the caller ``other`` too. Kind, model, provider and status are always kept, so totals and values by model
    are exact.

    Args:
        series: Dimensions of the first series, from a snapshot.
        most: The limit in place of ``MAX_SERIES``.

    Attributes:
        series: Dimensions of each series; the index is its number.
    """

    def __init__(self, series: Iterable[Sequence[str]] = (), *, most: int | None = None) -> None:
        self._most = most
        self.series: list[Dimensions] = [Dimensions(*values) for values in series]
        self._numbers: dict[tuple[str, ...], int] = {key: number for number, key in enumerate(self.series)}
        self._columns: dict[str, tuple[Ints, dict[str, int]]] = {}

    def __len__(self) -> int:
        return len(self.series)

    def number(self, key: tuple[str, str, str, str, str, str]) -> int:
        """Return the number of the series for the dimensions *key*; add the series if it is new."""
        known = self._numbers.get(key)
        if known is not None:
            return known
        kind, model, provider, caller, name, status = key
        full = Dimensions(kind, model or UNKNOWN, provider or UNKNOWN, caller or UNKNOWN, name or UNKNOWN, status)
        no_name = full._replace(name=OTHER)
        most = self._most or MAX_SERIES
        for candidate, limit in ((full, most * 3 // 4), (no_name, most)):
            known = self._numbers.get(candidate)
            if known is None and len(self.series) < limit:
                known = self._add(candidate)
            if known is not None:
                break
        else:
            no_caller = full._replace(name=OTHER, caller=OTHER)
            known = self._numbers.get(no_caller)
            if known is None:
                known = self._add(no_caller)
        # Remember a key that is counted under another one, within limits, to find its number in one step.
        if key not in self._numbers and len(self._numbers) < 4 * most:
            self._numbers[key] = known
        return known

    def number_of(self, span: Span) -> int:
        """Return the number of the series for *span*; add the series if it is new."""
        return self.number((span.kind, span.model, span.provider, span.caller, span.name, span.status))

    def number_of_group(self, span: Span, group: str) -> int:
        """Return the number of the series for *group* with the kind and status of *span*; add it if it is new."""
        return self.number((span.kind, "", "", "", group, span.status))

    def _add(self, dimensions: Dimensions) -> int:
        number = self._numbers[dimensions] = len(self.series)
        self.series.append(dimensions)
        return number

    def folded(self, names: Collection[str]) -> tuple[SeriesTable, Ints]:
        """Return (a table in which every name that is not in *names* is ``other``, the new number of each series)."""
        table = SeriesTable(most=self._most)
        keys = [key if key.name in names else key._replace(name=OTHER) for key in self.series]
        return table, np.array([table.number(key) for key in keys], np.int64)

    def column(self, dimension: str) -> tuple[Ints, dict[str, int]]:
        """Return (code of each series' value of *dimension*, value -> code); values are numbered as they appear."""
        codes, known = self._columns.get(dimension, (np.empty(0, np.int64), {}))
        if len(codes) < len(self.series):
            new = [known.setdefault(getattr(key, dimension), len(known)) for key in self.series[len(codes) :]]
            codes = np.concatenate([codes, np.array(new, np.int64)])
            self._columns[dimension] = (codes, known)
        return codes, known

    def distinct(self, dimension: str) -> int:
        """Return the number of different values of *dimension*."""
        return len(self.column(dimension)[1])
