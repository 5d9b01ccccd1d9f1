"""From the cells of a rollup to figures: which spans count for what."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tokentrace.metrics.merge import merge_summaries
from tokentrace.metrics.query import ALL_KINDS, Query
from tokentrace.metrics.result import Aggregates
from tokentrace.records import counts_as_cost
from tokentrace.rollup import (
    ADDED,
    COUNTED,
    WIDTH,
    Ints,
    IntSums,
    Rollup,
    SeriesTable,
    Steps,
    Summary,
    Sums,
    add_together,
)

Mask = NDArray[np.bool_]
T = TypeVar("T")
#: Done piece by piece: whoever asks for the next piece may do something else before.
Work = Generator[None, None, T]
#: Distributions of so many groups are added up at once where there are many entries: a dense count beats sorting.
_PLACES, _MANY_ENTRIES = 256, 250_000
#: What comes from which spans: quality from every kind, money from every kind that costs, the rest from the asked one.
_QUALITY_FIELDS = ("score",)
_CALLS, _MONEY, _QUALITY = range(3)
_OTHERS = dict.fromkeys(("cost", "unpriced", "partly_priced"), _MONEY) | dict.fromkeys(("score", "score_n"), _QUALITY)
#: The columns that are read, those of ``Sums`` and how many spans are of a kind that costs; who counts for each.
_COLUMNS = np.array([*range(WIDTH), COUNTED.index("spans")])
_COUNTS_FOR = np.array([*(_OTHERS.get(name, _CALLS) for name in (*COUNTED, *ADDED)), _MONEY])


class Groups(NamedTuple):
    """Which group each cell belongs to, and what the groups are called."""

    numbers: Ints
    names: Sequence[str]


def matching(table: SeriesTable, filters: Mapping[str, str]) -> Mask:
    """Which cells have every value of *filters*."""
    mask = np.ones(len(table), bool)
    for dimension, value in filters.items():
        codes, known = table.column(dimension)
        mask &= codes == known.get(value, -1)
    return mask


def grouped(table: SeriesTable, dimension: str) -> Groups:
    """The cells of *table* by their value of *dimension*; one group of all for ""."""
    if not dimension:
        return Groups(np.zeros(len(table), np.int64), [""])
    codes, known = table.column(dimension)
    return Groups(codes, list(known))


class Read(NamedTuple):
    """
    What a query finds in one step.

    Attributes:
        total: Over everything.
        groups: Value of the dimension asked for -> figures, of those that have any.
        models: Model -> sums only, of those that have any.
    """

    total: Aggregates
    groups: dict[str, Aggregates]
    models: dict[str, Aggregates]


def pieces(work: Work[T]) -> Iterator[T | None]:
    """None after each piece of *work*, at last what it comes to."""
    yield (yield from work)


def finish(work: Work[T]) -> T:
    """What *work* comes to, done in one go."""
    *_, result = pieces(work)
    return cast(T, result)


class _Rows(NamedTuple):
    """What the cells come to in each step, as ``Rollup.totals`` has it."""

    steps: Ints
    cells: Ints
    totals: IntSums


class RollupReader:
    """Answers one query again and again: which cells count for what is looked up when there are new ones."""

    def __init__(self, rollup: Rollup, table: SeriesTable, query: Query) -> None:
        self._rollup, self._table, self._query = rollup, table, query
        self._known = -1
        self._masks: Mask = np.empty((3, 0), bool)

    def read(self, steps: Steps) -> list[Read]:
        """What the query finds in each of *steps*; a window is a single one."""
        return finish(self.reading(steps))

    def reading(self, steps: Steps) -> Work[list[Read]]:
        """As ``read``, piece by piece; what comes meanwhile is not in it."""
        query, table = self._query, self._table
        if self._known != len(table):
            self._known, self._masks = len(table), _masks(table, query)
        rows = _Rows(*self._rollup.totals(steps))
        if not len(rows.cells):
            return [Read(Aggregates(), {}, {}) for _ in steps]
        rows = self._counted(rows)
        nothing: list[dict[str, Aggregates]] = [{} for _ in steps]
        groups = (yield from self._figures(rows, steps, query.groupby, query.fields)) if query.groupby else nothing
        totals = yield from self._figures(rows, steps, "", () if query.groupby else query.fields)
        for total, own in zip(totals, groups, strict=True):
            # Each value is in one group: to add up their distributions is quicker than to read the buckets twice.
            if own:
                total[""].summaries = merge_summaries(own.values())
        models = (yield from self._figures(rows, steps, "model", ())) if query.by_model else nothing
        return [
            Read(total.get("", Aggregates()), with_any(own), with_any(by_model))
            for total, own, by_model in zip(totals, groups, models, strict=True)
        ]

    def _counted(self, rows: _Rows) -> _Rows:
        """Columns that a cell does not count for at 0, and one more: who paid."""
        step, cells, totals = rows
        counts = self._masks[:, cells]
        wanted = counts.any(axis=0)
        if not wanted.all():
            kept = np.flatnonzero(wanted)
            step, cells, totals, counts = step[kept], cells[kept], totals.take(kept), counts[:, kept]
        shown = counts[_COUNTS_FOR].T
        high = None if totals.high is None else totals.high[:, _COLUMNS] * shown
        return _Rows(step, cells, IntSums(totals.low[:, _COLUMNS] * shown, high))

    def _figures(
        self, rows: _Rows, steps: Steps, dimension: str, fields: Sequence[str]
    ) -> Work[list[dict[str, Aggregates]]]:
        """Name of a group -> figures, for each of *steps*, of the groups that have any."""
        figures: list[dict[str, Aggregates]] = [{} for _ in steps]
        if not len(rows.cells):
            return figures
        groups = grouped(self._table, dimension)
        size = len(groups.names)
        numbers, totals = add_together(rows.steps * size + groups.numbers[rows.cells], rows.totals)
        asked = {
            field: np.where(self._masks[_QUALITY if field in _QUALITY_FIELDS else _CALLS], groups.numbers, -1)
            for field in fields
        }
        summaries = yield from self._summaries(steps, asked, size)
        for number, row in zip(numbers.tolist(), totals.every(), strict=True):
            own = {field: found[number] for field, found in summaries.items() if number in found}
            figures[number // size][groups.names[number % size]] = Aggregates(
                sums=Sums(row), summaries=own, paid=row[-1]
            )
        return figures

    def _summaries(self, steps: Steps, asked: Mapping[str, Ints], size: int) -> Work[dict[str, dict[int, Summary]]]:
        """As ``Rollup.summaries``; where there is much to add up a few groups at a time."""
        few = max(1, _PLACES // (len(steps) * (len(asked) + 1)))  # scores are kept in two: what came, what went
        if not asked or size <= few:
            return self._rollup.summaries(steps, asked, size)
        puts = self._rollup.puts(steps)
        if sum(len(put.bins) for _, put in puts) < _MANY_ENTRIES:
            return self._rollup.summaries(steps, asked, size)
        found: dict[str, dict[int, Summary]] = {field: {} for field in asked}
        for first in range(0, size, few):
            yield
            chosen = {
                field: np.where((numbers >= first) & (numbers < first + few), numbers - first, -1)
                for field, numbers in asked.items()
            }
            for field, part in self._rollup.summaries(steps, chosen, few, puts).items():
                for number, summary in part.items():
                    found[field][number // few * size + first + number % few] = summary
        return found


def _masks(table: SeriesTable, query: Query) -> Mask:
    """Which cells count for calls, for money, for quality; shape (3, cells)."""
    found = matching(table, query.filters)
    kinds, known = table.column("kind")
    asked = np.ones(len(table), bool) if query.kind == ALL_KINDS else kinds == known.get(query.kind, -1)
    paying = np.array([counts_as_cost(kind) for kind in known], bool)[kinds]
    wider = asked | (not query.only_kind)
    return np.stack([found & asked, found & paying & wider, found & wider])


def with_any(groups: Mapping[str, Aggregates]) -> dict[str, Aggregates]:
    """The groups that have anything to show or to add, by name."""
    return {name: groups[name] for name in sorted(groups) if groups[name].shows_any or groups[name].changes_any}
