"""From the cells of a rollup to figures: which spans count for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokentrace.cell import Table
from tokentrace.metric.query import ALL_KINDS, Figures, Query
from tokentrace.quantile import Ints
from tokentrace.records import counts_as_cost
from tokentrace.window import Rollup, Stretch

#: What comes from which spans: quality from every kind, money from every kind that costs, the rest from the asked one.
_QUALITY_FIELDS = ("score",)


class Reader:
    """Answers one query from one rollup: which cells count for what, and in which group."""

    def __init__(self, rollup: Rollup, table: Table, query: Query) -> None:
        self._rollup, self._query = rollup, query
        cells = table.cells
        matching = [
            all(getattr(cell, dimension) == value for dimension, value in query.filters.items()) for cell in cells
        ]
        asked = [query.kind in (ALL_KINDS, cell.kind) for cell in cells]
        everything = not query.only_kind
        self._calls = np.array([m and a for m, a in zip(matching, asked, strict=True)], dtype=bool)
        self._money = np.array(
            [
                m and (everything or a) and counts_as_cost(c.kind)
                for m, a, c in zip(matching, asked, cells, strict=True)
            ],
            dtype=bool,
        )
        self._quality = np.array([m and (everything or a) for m, a in zip(matching, asked, strict=True)], dtype=bool)
        self._names: list[str] = []
        self._group: Ints = np.zeros(len(cells), np.int64)
        if query.groupby:
            values = [getattr(cell, query.groupby) for cell in cells]
            self._names = sorted(set(values))
            index = {name: number for number, name in enumerate(self._names)}
            self._group = np.array([index[value] for value in values], np.int64)

    def read(self, stretches: Sequence[Stretch]) -> tuple[Figures, dict[str, Figures]]:
        """Figures over everything, and for each group that has any."""
        total = self._figures(stretches, np.zeros_like(self._group), 1)[0]
        if not self._query.groupby:
            return total, {}
        figures = self._figures(stretches, self._group, len(self._names))
        groups = {
            name: one
            for name, one in zip(self._names, figures, strict=True)
            if one.sums.spans or one.sums.cost or one.sums.score_n or one.sums.unpriced
        }
        return total, groups

    def _figures(self, stretches: Sequence[Stretch], groups: Ints, size: int) -> list[Figures]:
        fields = self._query.fields
        call_fields = [field for field in fields if field not in _QUALITY_FIELDS]
        quality_fields = [field for field in fields if field in _QUALITY_FIELDS]
        calls = self._rollup.read(stretches, np.where(self._calls, groups, -1), size, call_fields)
        money = self._rollup.read(stretches, np.where(self._money, groups, -1), size, [])
        quality = self._rollup.read(stretches, np.where(self._quality, groups, -1), size, quality_fields)
        figures = []
        for call, paid, scored in zip(calls, money, quality, strict=True):
            sums = call.sums
            sums.cost, sums.unpriced, sums.partly_priced = paid.sums.cost, paid.sums.unpriced, paid.sums.partly_priced
            sums.score, sums.score_n = scored.sums.score, scored.sums.score_n
            summaries = {**call.summaries, **scored.summaries}
            figures.append(Figures(sums=sums, summaries=summaries, paid=paid.sums.spans))
        return figures
