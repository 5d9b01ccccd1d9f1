"""The rollup of one custom metric: its number, sum and distribution of values, by series."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokentrace.metrics.custom import QUANTILES, CustomMetric
from tokentrace.metrics.query import Query
from tokentrace.metrics.reader import Read, grouped, matching
from tokentrace.metrics.result import Aggregates, CustomValue
from tokentrace.records import Span, event_time
from tokentrace.rollup import (
    CHANGED,
    MAX_SERIES,
    RESOLUTIONS,
    SIGN,
    Counters,
    Field,
    Ints,
    IntSums,
    Resolution,
    Rollup,
    Schema,
    ScoreDelta,
    SeriesTable,
    Steps,
    add_by,
    add_together,
    change_rows,
    decode_part,
)
from tokentrace.state import Part
from tokentrace.units import SECOND

#: Columns after those that every schema has: 1 = the span has a value, the value or 0, 1 = the cost of the span is
#: unknown, 1 = the value is a cost that lacks a part. They are also the sums.
_HAS, _VALUE, _UNPRICED, _PARTLY = range(3, 7)
#: Number of sums in snapshots that do not say it.
_OLD_WIDTH = 2


def _sums_of(rows: Ints) -> Ints:
    return rows[:, _HAS : _PARTLY + 1].copy()


def _changes_of(rows: Ints) -> Ints:
    sums = np.zeros((len(rows), VALUES.width), np.int64)
    sums[:, 0], sums[:, 1] = rows[:, SIGN], rows[:, SIGN] * rows[:, CHANGED]
    return sums


VALUES = Schema(4, _sums_of, {"value": Field(_VALUE, -(2**63), (_HAS,))}, "value", _changes_of)


class CustomRollup:
    """
    The values of one custom metric, by series and in buckets of several resolutions.

    Args:
        metric: The metric to measure.
        resolutions: As for ``Rollup``.
        group: Span -> group. Series then consist of kind, status and the group, which is in the place of the name; a
            span of group None is left out. None = series consist of all dimensions.

    Attributes:
        since_ns: Start of the measurement, Unix nanoseconds; 0 = the metric was always measured.
    """

    def __init__(
        self,
        metric: CustomMetric,
        resolutions: Sequence[Resolution] = RESOLUTIONS,
        *,
        group: Callable[[Span], str | None] | None = None,
    ) -> None:
        self.metric, self._resolutions, self._group = metric, resolutions, group
        self.since_ns = 0
        self._table = self._empty_table()
        self._counters = Counters(VALUES.width)
        self._rollup = Rollup(self._table, resolutions, VALUES, self._counters)

    def _empty_table(
        self, series: Sequence[Sequence[str]] = (), folded: Mapping[str, Sequence[Any]] | None = None
    ) -> SeriesTable:
        # With *group*, the caller limits the number of groups (see ``fold_names``), so the table may be larger.
        return SeriesTable(series, most=None if self._group is None else 20 * MAX_SERIES, folded=folded)

    def fold(self, spans: Sequence[Span], arrived_ns: int) -> None:
        """Measure *spans* of a message with the stream time *arrived_ns* and add their values."""
        measure, lacks_price, rows = self.metric.measure, self.metric.lacks_price, []
        arrived_s = arrived_ns // SECOND
        for span in spans:
            value = measure(span)
            unpriced = value is None and lacks_price(span)
            number = self._number(span) if unpriced or value is not None else None
            if number is not None:
                partly = self.metric.money and span.cost_source == "partly_priced"
                second = event_time(span) // SECOND
                rows.append((number, second, arrived_s, value is not None, value or 0, unpriced, partly))
        if rows:
            self._rollup.fold(np.array(rows, np.int64))

    def change(self, changes: Sequence[ScoreDelta], arrived_ns: int) -> None:
        """Apply late scores; a metric of cost, tokens or times does not change."""
        if self.metric.follows_scores:
            self._rollup.change(change_rows(changes, self._number, self.metric.measure, arrived_ns))

    def _number(self, span: Span) -> int | None:
        """Return the number of the series of *span*; None if the span has no group."""
        if self._group is None:
            return self._table.number_of(span)
        group = self._group(span)
        return None if group is None else self._table.number_of_group(span, group)

    @property
    def late(self) -> int:
        """Number of values for whose second no bucket was kept any more when they arrived."""
        return self._rollup.late

    @property
    def groups(self) -> list[str]:
        """The names of all series, distinct and sorted; with *group*, they are the groups."""
        return sorted({key.name for key in self._table.series})

    def fold_names(self, names: Collection[str]) -> None:
        """Count every name that is not in *names* under ``other``, in existing buckets too."""
        self._renumber(*self._table.folded(names))

    def keep_limits(self, until_s: int) -> None:
        """Keep the limits of models and providers in a state of an earlier version, which counted up to *until_s*."""
        self._table.forget_before(until_s)
        if self._table.is_over_limits:
            self._renumber(*self._table.within_limits())

    def _renumber(self, table: SeriesTable, numbers: Ints) -> None:
        self._table = table
        self._rollup.renumber(table, numbers)
        self._counters.renumber(numbers, len(table))

    @property
    def table(self) -> SeriesTable:
        """The series of the values."""
        return self._table

    def tick(self, now_ns: int) -> None:
        """Add the waiting values and drop the buckets that are not kept any more."""
        self._rollup.settle()
        self._rollup.evict(now_ns)

    def read(self, steps: Steps, query: Query) -> list[tuple[CustomValue, dict[str, CustomValue]]]:
        """
        Return (what was measured in all, group of ``query.groupby`` -> what was measured in it) for each of *steps*.

        The filters of *query* apply. ``CustomMetric.counts`` says which kinds count.
        """
        wanted = matching(self._table, query.filters) & self._of_kind(query)
        rows = self._rollup.totals(steps)
        totals = self._values(rows, steps, np.where(wanted, 0, -1), 1)
        values: list[tuple[CustomValue, dict[str, CustomValue]]] = [
            (totals.get(step, CustomValue()), {}) for step in range(len(steps))
        ]
        if query.groupby:
            groups = grouped(self._table, query.groupby)
            size = len(groups.names)
            for number, value in self._values(rows, steps, np.where(wanted, groups.numbers, -1), size).items():
                if value.holds_any:
                    values[number // size][1][groups.names[number % size]] = value
        return values

    def _of_kind(self, query: Query) -> NDArray[np.bool_]:
        kinds, known = self._table.column("kind")
        mask: NDArray[np.bool_] = np.array([self.metric.counts(kind, query) for kind in known], bool)[kinds]
        return mask

    def _values(
        self, rows: tuple[Ints, Ints, IntSums], steps: Steps, groups: Ints, size: int
    ) -> dict[int, CustomValue]:
        """Return step * size + group -> its values; *rows* is the result of ``Rollup.totals``."""
        step, series, totals = rows
        own = groups[series]
        numbers, sums = add_together(np.where(own >= 0, step * size + own, -1), totals)
        is_quantile = self.metric.type in QUANTILES
        summaries = self._rollup.summaries(steps, {"value": groups}, size)["value"] if is_quantile else {}
        return {
            number: CustomValue(count, total, summaries.get(number), unpriced, partly)
            for number, (count, total, unpriced, partly) in zip(numbers.tolist(), sums.all_numbers(), strict=True)
        }

    def cumulative(self) -> CustomValue:
        """Return the number and the sum of all values ever measured, without their distribution."""
        self._rollup.settle()
        size = len(self._counters.totals)
        counted = np.where(self._of_kind(Query())[:size], 0, -1)
        count, total, unpriced, partly = add_by(counted, self._counters.totals, 1).numbers(0)
        return CustomValue(count, total, None, unpriced, partly)

    def snapshot(self, saved: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Part]]:
        """Return plain data and pieces for ``restore``; *saved* is as for ``Rollup.snapshot``."""
        rollup, parts = self._rollup.snapshot(saved)
        state = {
            "metric": self.metric,
            "since_ns": self.since_ns,
            "cells": self._table.series,
            "folded": self._table.folded_snapshot(),
            "counters": self._counters.snapshot(),
            "width": VALUES.width,
            "rollup": rollup,
        }
        return state, parts

    @staticmethod
    def decode_part(data: bytes) -> Any:
        """Return what ``restore`` takes over of a piece, as ``rollup.decode_part``."""
        return decode_part(data, VALUES)

    def restore(self, state: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
        """Take over the state from ``snapshot``; return False and change nothing if it belongs to another metric."""
        if msgspec.convert(state["metric"], CustomMetric) != self.metric:
            return False
        self.since_ns = state["since_ns"]
        self._table = self._empty_table(state["cells"], state.get("folded"))
        self._counters.restore(state["counters"], state.get("width", _OLD_WIDTH))
        self._rollup = Rollup.restore(self._table, state["rollup"], parts, self._resolutions, VALUES, self._counters)
        return True


def add_custom(
    results: Sequence[Read], measured: Mapping[str, Sequence[tuple[CustomValue, dict[str, CustomValue]]]]
) -> None:
    """
    Add the values of custom metrics to *results*.

    Args:
        results: The result of each step.
        measured: Name of a custom metric -> what ``CustomRollup.read`` returned for the same steps.
    """
    for name, steps in measured.items():
        for result, (total, groups) in zip(results, steps, strict=True):
            result.total.custom[name] = total
            for group, value in groups.items():
                result.groups.setdefault(group, Aggregates()).custom[name] = value
