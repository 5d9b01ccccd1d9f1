"""From the cells of a rollup to figures: which spans count for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokentrace.cell import Sums, Table
from tokentrace.exact import Totals, add_by
from tokentrace.metric.query import ALL_KINDS, Figures, Query
from tokentrace.quantile import Ints
from tokentrace.records import counts_as_cost
from tokentrace.tier import Stretch
from tokentrace.window import Rollup

Mask = NDArray[np.bool_]
#: What comes from which spans: quality from every kind, money from every kind that costs, the rest from the asked one.
_QUALITY_FIELDS = ("score",)


class Groups(NamedTuple):
    """Which group each cell belongs to, and what the groups are called."""

    numbers: Ints
    names: Sequence[str]


def matching(table: Table, filters: Mapping[str, str]) -> Mask:
    """Which cells have every value of *filters*."""
    mask = np.ones(len(table), bool)
    for dimension, value in filters.items():
        codes, known = table.column(dimension)
        mask &= codes == known.get(value, -1)
    return mask


def grouped(table: Table, dimension: str) -> Groups:
    """The cells of *table* by their value of *dimension*; one group of all for ""."""
    if not dimension:
        return Groups(np.zeros(len(table), np.int64), [""])
    codes, known = table.column(dimension)
    return Groups(codes, list(known))


class Reader:
    """Answers one query from one rollup: which cells count for what, and in which group."""

    def __init__(self, rollup: Rollup, table: Table, query: Query) -> None:
        self._rollup, self._table, self._query = rollup, table, query
        found = matching(table, query.filters)
        kinds, known = table.column("kind")
        asked = np.ones(len(table), bool) if query.kind == ALL_KINDS else kinds == known.get(query.kind, -1)
        everything = not query.only_kind
        paying = np.isin(kinds, [code for kind, code in known.items() if counts_as_cost(kind)])
        self._calls = found & asked
        self._money = found & paying & (asked | everything)
        self._quality = found & (asked | everything)

    def read(self, stretches: Sequence[Stretch]) -> tuple[Figures, dict[str, Figures], dict[str, Figures]]:
        """(Figures over everything, for each group that has any, sums only for each model that has any)."""
        totals = self._rollup.totals(stretches)
        query, table = self._query, self._table
        total = self._figures(totals, stretches, grouped(table, ""), query.fields)[""]
        groups = self._figures(totals, stretches, grouped(table, query.groupby), query.fields) if query.groupby else {}
        models = self._figures(totals, stretches, grouped(table, "model"), ()) if query.by_model else {}
        return total, with_any(groups), with_any(models)

    def _figures(
        self, totals: Totals, stretches: Sequence[Stretch], groups: Groups, fields: Sequence[str]
    ) -> dict[str, Figures]:
        size = len(groups.names)

        def of(mask: Mask) -> Ints:
            return np.where(mask, groups.numbers, -1)

        calls, money, quality = of(self._calls), of(self._money), of(self._quality)
        call_sums, paid_sums, scored_sums = (add_by(mask, totals, size) for mask in (calls, money, quality))
        asked = {field: quality if field in _QUALITY_FIELDS else calls for field in fields}
        summaries = self._rollup.summaries(stretches, asked, size)
        figures = {}
        for number, name in enumerate(groups.names):
            sums, paid, scored = Sums.of(call_sums, number), Sums.of(paid_sums, number), Sums.of(scored_sums, number)
            sums.cost, sums.unpriced, sums.partly_priced = paid.cost, paid.unpriced, paid.partly_priced
            sums.score, sums.score_n = scored.score, scored.score_n
            own = {field: found[number] for field, found in summaries.items()}
            figures[name] = Figures(sums=sums, summaries=own, paid=paid.spans)
        return figures


def with_any(groups: Mapping[str, Figures]) -> dict[str, Figures]:
    """The groups that have anything to show or to add, by name."""
    return {name: groups[name] for name in sorted(groups) if groups[name].shows_any or groups[name].changes_any}
