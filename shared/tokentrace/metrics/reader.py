"""Computes the aggregates of a query from a rollup: selects and groups the series and adds up their numbers."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tokentrace.metrics.merge import merge_summaries
from tokentrace.metrics.query import ALL_KINDS, Query
from tokentrace.metrics.result import Aggregates, Calls
from tokentrace.records import counts_as_cost
from tokentrace.rollup import (
    ADDED,
    COST_SUMS,
    COUNTED,
    TOKEN_SUMS,
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
#: A generator that does a piece of work before each yield and returns the result; the caller can do something else in
#: between.
Work = Generator[None, None, T]
#: Number of distributions to add up at a time if there are at least _MANY_ENTRIES histogram entries: counting in a
#: small array is faster than sorting all entries.
_PLACES, _MANY_ENTRIES = 256, 250_000
#: Series of all kinds count for quality, of all but roll-up kinds for cost, of the queried kind without roll-up kinds
#: for tokens, and of the queried kind for all other sums.
_CALLS, _COST, _QUALITY, _TOKENS = range(4)
_OTHERS = (
    dict.fromkeys(COST_SUMS, _COST) | dict.fromkeys(TOKEN_SUMS, _TOKENS) | dict.fromkeys(("score", "score_n"), _QUALITY)
)
_SUMS = (*COUNTED, *ADDED)
#: The columns of ``Sums``, then those of ``Aggregates.paid`` and ``Calls``; for each, which series count for it.
_COLUMNS = np.array([*range(WIDTH), *(map(_SUMS.index, ("spans", "spans", "cost", "unpriced", "partly_priced")))])
_COUNTS_FOR = np.array([*(_OTHERS.get(name, _CALLS) for name in _SUMS), _COST, _TOKENS, _TOKENS, _TOKENS, _TOKENS])


class Groups(NamedTuple):
    """Groups of series: the group number of each series, and the name of each group."""

    numbers: Ints
    names: Sequence[str]


def matching(table: SeriesTable, filters: Mapping[str, str]) -> Mask:
    """Return a mask of the series that have all values in *filters*, a map from dimension to value."""
    mask = np.ones(len(table), bool)
    for dimension, value in filters.items():
        codes, known = table.column(dimension)
        mask &= codes == known.get(value, -1)
    return mask


def grouped(table: SeriesTable, dimension: str) -> Groups:
    """Return the series of *table* grouped by *dimension*; "" = all series are in one group, called ""."""
    if not dimension:
        return Groups(np.zeros(len(table), np.int64), [""])
    codes, known = table.column(dimension)
    return Groups(codes, list(known))


class Read(NamedTuple):
    """
    The result of a query for one step.

    Attributes:
        total: Aggregates of all spans that count.
        groups: Value of ``Query.groupby`` -> aggregates, for the groups that are not empty.
        models: Model -> aggregates with sums only, for the models that are not empty, if the query asked for them.
    """

    total: Aggregates
    groups: dict[str, Aggregates]
    models: dict[str, Aggregates]


def pieces(work: Work[T]) -> Iterator[T | None]:
    """Yield None after each piece of *work*, then its result."""
    yield (yield from work)


def finish(work: Work[T]) -> T:
    """Do all of *work* and return its result."""
    *_, result = pieces(work)
    return cast(T, result)


class _Rows(NamedTuple):
    """The sums of each series in each step, as ``Rollup.totals`` returns them."""

    steps: Ints
    series: Ints
    totals: IntSums


class RollupReader:
    """Answers one query any number of times; it looks up which series count again only if there are new series."""

    def __init__(self, rollup: Rollup, table: SeriesTable, query: Query) -> None:
        self._rollup, self._table, self._query = rollup, table, query
        self._known = -1
        self._masks: Mask = np.empty((4, 0), bool)

    def read(self, steps: Steps) -> list[Read]:
        """Return the result of the query for each of *steps*; a window is a single step."""
        return finish(self.reading(steps))

    def reading(self, steps: Steps) -> Work[list[Read]]:
        """Do the same as ``read``, piece by piece; rows folded between the pieces are not included."""
        query, table = self._query, self._table
        if self._known != len(table):
            self._known, self._masks = len(table), _masks(table, query)
        rows = _Rows(*self._rollup.totals(steps))
        if not len(rows.series):
            return [Read(Aggregates(), {}, {}) for _ in steps]
        rows = self._counted(rows)
        nothing: list[dict[str, Aggregates]] = [{} for _ in steps]
        groups = (yield from self._aggregates(rows, steps, query.groupby, query.fields)) if query.groupby else nothing
        totals = yield from self._aggregates(rows, steps, "", () if query.groupby else query.fields)
        for total, own in zip(totals, groups, strict=True):
            # Each value is in exactly one group, and merging the groups is faster than reading the buckets again.
            if own:
                total[""].summaries = merge_summaries(own.values())
        models = (yield from self._aggregates(rows, steps, "model", ())) if query.by_model else nothing
        return [
            Read(total.get("", Aggregates()), nonempty(own), nonempty(by_model))
            for total, own, by_model in zip(totals, groups, models, strict=True)
        ]

    def _counted(self, rows: _Rows) -> _Rows:
        """Return *rows* with the columns ``_COLUMNS``, 0 if the series does not count for the column."""
        step, series, totals = rows
        counts = self._masks[:, series]
        wanted = counts.any(axis=0)
        if not wanted.all():
            kept = np.flatnonzero(wanted)
            step, series, totals, counts = step[kept], series[kept], totals.take(kept), counts[:, kept]
        shown = counts[_COUNTS_FOR].T
        high = None if totals.high is None else totals.high[:, _COLUMNS] * shown
        return _Rows(step, series, IntSums(totals.low[:, _COLUMNS] * shown, high))

    def _aggregates(
        self, rows: _Rows, steps: Steps, dimension: str, fields: Sequence[str]
    ) -> Work[list[dict[str, Aggregates]]]:
        """Return name of a group -> aggregates for each of *steps*, for the groups that have rows."""
        aggregates: list[dict[str, Aggregates]] = [{} for _ in steps]
        if not len(rows.series):
            return aggregates
        groups = grouped(self._table, dimension)
        size = len(groups.names)
        numbers, totals = add_together(rows.steps * size + groups.numbers[rows.series], rows.totals)
        wanted = {field: np.where(self._masks[_OTHERS.get(field, _CALLS)], groups.numbers, -1) for field in fields}
        summaries = yield from self._summaries(steps, wanted, size)
        for number, row in zip(numbers.tolist(), totals.all_numbers(), strict=True):
            own = {field: by_number[number] for field, by_number in summaries.items() if number in by_number}
            aggregates[number // size][groups.names[number % size]] = Aggregates(
                sums=Sums(row), summaries=own, paid=row[WIDTH], calls=Calls(*row[WIDTH + 1 :])
            )
        return aggregates

    def _summaries(self, steps: Steps, wanted: Mapping[str, Ints], size: int) -> Work[dict[str, dict[int, Summary]]]:
        """Do the same as ``Rollup.summaries``; if there are many histogram entries, for a few groups at a time."""
        # Add 1 because scores have two distributions, of added and of removed values.
        few = max(1, _PLACES // (len(steps) * (len(wanted) + 1)))
        if not wanted or size <= few:
            return self._rollup.summaries(steps, wanted, size)
        distributions = self._rollup.distributions(steps)
        if sum(len(block.bins) for _, block in distributions.blocks) < _MANY_ENTRIES:
            return self._rollup.summaries(steps, wanted, size)
        summaries: dict[str, dict[int, Summary]] = {field: {} for field in wanted}
        for first in range(0, size, few):
            yield
            chosen = {
                field: np.where((numbers >= first) & (numbers < first + few), numbers - first, -1)
                for field, numbers in wanted.items()
            }
            for field, part in self._rollup.summaries(steps, chosen, few, distributions).items():
                for number, summary in part.items():
                    summaries[field][number // few * size + first + number % few] = summary
        return summaries


def _masks(table: SeriesTable, query: Query) -> Mask:
    """Return which series count for calls, for cost, for quality and for tokens; shape (4, number of series)."""
    matches = matching(table, query.filters)
    kinds, known = table.column("kind")
    of_kind = np.ones(len(table), bool) if query.kind == ALL_KINDS else kinds == known.get(query.kind, -1)
    paying = np.array([counts_as_cost(kind) for kind in known], bool)[kinds]
    wider = of_kind | (not query.only_kind)
    return np.stack([matches & of_kind, matches & paying & wider, matches & wider, matches & paying & of_kind])


def nonempty(groups: Mapping[str, Aggregates]) -> dict[str, Aggregates]:
    """Return the groups that are not empty, sorted by name; a group with changes of scores only is not empty."""
    return {name: groups[name] for name in sorted(groups) if groups[name].shows_any or groups[name].changes_any}
