"""
The window of a rule: buckets of a built-in or custom metric, from which the value at an instant is read.

A rule has buckets of one width, as many as its window needs. If an instant can lie inside a bucket, the last seconds
before the instant are read from buckets of one second, so that the window ends at the second of the instant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tokentrace.metrics import QUALITY, Aggregates, CustomMetric, CustomRollup, Metric, Query, RollupReader, value_text
from tokentrace.records import Span
from tokentrace.rollup import (
    OTHER,
    SERIES,
    SPAN_SCHEMA,
    Ints,
    Resolution,
    Rollup,
    ScoreDelta,
    SeriesTable,
    Stretch,
    score_rows,
)
from tokentrace.state import Part
from tokentrace.units import SECOND
from tokentrace_alerter.rules.decide import NO_READING, Reading
from tokentrace_alerter.rules.readings import WHOLE, Readings, difference
from tokentrace_alerter.rules.schema import Rule
from tokentrace_alerter.rules.transport_window import TransportWindow

#: Limit of the instances of a grouped rule that an evaluation leaves; further values are counted together.
MAX_GROUPS = 1000
#: Between two evaluations there may be this many times MAX_GROUPS instances, so that the evaluation sees them all.
_ADMITTED = 4


class RuleWindow(Protocol):
    """The spans of one rule, in buckets that cover its window."""

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Fold spans that pass the filter, with their *rows*; *time_ns* is the stream time of the message."""
        ...

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        """Fold changes to the scores of spans that pass the filter."""
        ...

    def read(self, instant_ns: int) -> Readings:
        """
        Return the reading of each instance for the window that ends at *instant_ns* (exclusive).

        The spans of instances over the limit have no reading here; ``overflow`` has it.
        """
        ...

    @property
    def overflow(self) -> Reading:
        """The reading of all instances over the limit together, for the window that was read last."""
        ...

    def limit_groups(self, readings: Readings, busy: Collection[str]) -> set[str] | None:
        """
        If there are too many instances, count the least important ones together.

        For a rule that fires on high values these have the lowest values, else the fewest spans.

        Args:
            busy: Instances that are firing or pending, which are kept before all others.

        Returns:
            The instances that are kept; None = all are kept.
        """
        ...

    def forget(self, name: str) -> None:
        """Count the spans of the instance *name* in the overflow, so that nothing names it any more."""
        ...

    @property
    def late(self) -> int:
        """Number of spans that arrived when the bucket for their time was no longer kept."""
        ...

    def snapshot(self) -> Callable[[], Any]:
        """Capture the state; return a function that encodes it later, in any thread."""
        ...

    def restore(self, saved: Any) -> None:
        """Continue from a state that the function returned by ``snapshot`` has encoded."""
        ...


def make_window(rule: Rule, table: SeriesTable) -> RuleWindow:
    """Return an empty window for *rule*; *table* is used only by ungrouped rules on built-in metrics of spans."""
    if rule.about_reporters:
        return TransportWindow(rule)
    return _BuiltinWindow(rule, table) if rule.custom is None else _CustomWindow(rule, rule.custom)


class _Buckets:
    """The choice of the buckets that make up a rule's window."""

    def __init__(self, rule: Rule) -> None:
        self._width, self._window_s = rule.bucket_s, rule.window_s
        lag_s = rule.lag_ns // SECOND
        length_s = rule.window_s * (2 if rule.change else 1)
        coarse = Resolution(self._width, length_s + lag_s + 1 + 2 * self._width)
        fine = Resolution(1, 2 * self._width + lag_s + 5)
        ends_with_buckets = rule.eval_interval_ns % (self._width * SECOND) == 0
        self.resolutions = (coarse,) if ends_with_buckets else (fine, coarse)

    def stretches(self, instant_ns: int) -> list[Stretch]:
        """Return the stretches of buckets of the window that ends at *instant_ns*."""
        end_s = instant_ns // SECOND
        edge_s = end_s // self._width * self._width
        start_s = (end_s - self._window_s) // self._width * self._width
        coarse = Stretch(len(self.resolutions) - 1, start_s, edge_s)
        return [coarse] if edge_s == end_s else [coarse, Stretch(0, edge_s, end_s)]

    def before(self, instant_ns: int) -> list[Stretch]:
        """Return the stretches of the window that precedes the one that ends at *instant_ns*."""
        end_s = (instant_ns // SECOND - self._window_s) // self._width * self._width
        start_s = (end_s - self._window_s) // self._width * self._width
        return [Stretch(len(self.resolutions) - 1, start_s, end_s)]


def _query(rule: Rule, groupby: str, fields: Sequence[str] = ()) -> Query:
    """Return the query for the value of *rule*; its kinds are those of ``GET /metrics`` with the rule's filter."""
    kind = rule.filter.get("kind", "")
    return Query(kind=kind or "llm", only_kind=bool(kind), fields=list(fields), groupby=groupby)


def _reading(metric: Metric, aggregates: Aggregates) -> Reading:
    contributing = metric.contributing(aggregates)
    unpriced = metric.not_priced(aggregates).unpriced if metric.not_priced else 0
    # A count of no spans is 0, but for a rule it is no data.
    return Reading(metric.value(aggregates) if contributing else None, contributing, unpriced)


#: Prefix of the series name of an instance. Without it, the instance "" would share the series of the instance
#: "unknown", because ``SeriesTable`` replaces an empty name by that.
_MARK = "="
#: Limit of the series of a grouped rule, of which eleven sixteenths may have new names. An instance has one for each
#: combination of kind and status: at most 30.
_MAX_SERIES = 48 * _ADMITTED * MAX_GROUPS


class _Groups:
    """The instances of a grouped rule. At the limit, ``keep`` chooses those that are not counted together."""

    def __init__(self, rule: Rule) -> None:
        self._rule, self._key = rule, rule.group_by
        self.known: set[str] = set()
        self.overflow = NO_READING

    def series_name(self, span: Span) -> str | None:
        """Return the series name of the instance that *span* belongs to; None if it has no value to group by."""
        value = value_text(span, self._key)
        if value is None:
            return None
        if value not in self.known:
            if len(self.known) >= _ADMITTED * MAX_GROUPS:
                return OTHER
            self.known.add(value)
        return _MARK + value

    def by_instance(self, readings: Readings) -> Readings:
        """Return *readings*, which are by series name, by instance; set ``overflow`` to that of no single instance."""
        self.overflow = readings.get(OTHER, NO_READING)
        return {name.removeprefix(_MARK): reading for name, reading in readings.items() if name != OTHER}

    def keep(self, readings: Readings, busy: Collection[str]) -> set[str] | None:
        """
        Choose the instances that are kept at the limit, as ``RuleWindow.limit_groups``.

        Half of the places are filled, or more if more instances are busy: first with these, then by value if the rule
        fires on high ones, then by number of spans.
        """
        if len(self.known) < MAX_GROUPS:
            return None
        rule = self._rule
        by_value = rule.op in ("gt", "gte")

        def rank(name: str) -> tuple[bool, float, int, str]:
            value, span_count, _ = readings.get(name, NO_READING)
            counts = by_value and value is not None and span_count >= rule.min_spans
            return name not in busy, -(value or 0.0) if counts else math.inf, -span_count, name

        order = sorted(self.known, key=rank)
        # Leave one place free for a new instance, even if all instances are busy.
        count = max(MAX_GROUPS // 2, min(len(self.known & set(busy)), MAX_GROUPS - 1))
        self.known = set(order[:count])
        return self.known


class _BuiltinWindow:
    def __init__(self, rule: Rule, table: SeriesTable) -> None:
        self._rule, self._buckets = rule, _Buckets(rule)
        self._groups = _Groups(rule) if rule.group_by else None
        self._table = table if self._groups is None else SeriesTable(most=_MAX_SERIES)
        self._metric = rule.builtin_metric()
        self._schema = SPAN_SCHEMA._replace(fields={name: SPAN_SCHEMA.fields[name] for name in self._metric.fields})
        self._rollup = Rollup(self._table, self._buckets.resolutions, self._schema)
        self._reader = self._make_reader()

    def _make_reader(self) -> RollupReader:
        query = _query(self._rule, "name" if self._groups else "", self._metric.fields)
        return RollupReader(self._rollup, self._table, query)

    @property
    def late(self) -> int:
        return self._rollup.late

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        if self._groups is not None:
            rows = rows.copy()
            for index, span in enumerate(spans):
                series_id = self._series_id(span)
                rows[index, SERIES] = -1 if series_id is None else series_id
            rows = rows[rows[:, SERIES] >= 0]
        self._rollup.fold(rows)

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        if self._rule.metric in QUALITY:
            self._rollup.change(score_rows(changes, self._series_id, time_ns))

    def _series_id(self, span: Span) -> int | None:
        if self._groups is None:
            return self._table.number_of(span)
        name = self._groups.series_name(span)
        return None if name is None else self._table.number_of_group(span, name)

    def read(self, instant_ns: int) -> Readings:
        readings = self._read(self._buckets.stretches(instant_ns))
        if self._rule.change:
            readings = difference(self._rule, readings, self._read(self._buckets.before(instant_ns)))
        return readings if self._groups is None else self._groups.by_instance(readings)

    @property
    def overflow(self) -> Reading:
        return NO_READING if self._groups is None else self._groups.overflow

    def limit_groups(self, readings: Readings, busy: Collection[str]) -> set[str] | None:
        kept = None if self._groups is None else self._groups.keep(readings, busy)
        if kept is not None:
            self._keep_only(kept)
        return kept

    def forget(self, name: str) -> None:
        if self._groups is not None and name in self._groups.known:
            self._groups.known.discard(name)
            self._keep_only(self._groups.known)

    def _keep_only(self, names: Collection[str]) -> None:
        self._table, numbers = self._table.folded({_MARK + name for name in names})
        self._rollup.renumber(self._table, numbers)
        self._reader = self._make_reader()

    def _read(self, stretches: Sequence[Stretch]) -> Readings:
        [(total, groups, _)] = self._reader.read([stretches])
        by_name = groups if self._groups is not None else {WHOLE: total}
        return {name: _reading(self._metric, aggregates) for name, aggregates in by_name.items()}

    def snapshot(self) -> Callable[[], Any]:
        known, series = ([], []) if self._groups is None else (sorted(self._groups.known), list(self._table.series))
        return _encode_later(known, series, *self._rollup.snapshot({}))

    def restore(self, saved: Any) -> None:
        known, series, state, parts = saved
        if self._groups is not None:
            self._table = SeriesTable(series, most=_MAX_SERIES)
            self._groups.known = set(known)
        self._rollup = Rollup.restore(self._table, state, parts, self._buckets.resolutions, self._schema)
        self._reader = self._make_reader()


class _CustomWindow:
    def __init__(self, rule: Rule, metric: CustomMetric) -> None:
        self._rule, self._buckets = rule, _Buckets(rule)
        self._groups = _Groups(rule) if rule.group_by else None
        group = None if self._groups is None else self._groups.series_name
        self._metric = metric
        self._rollup = CustomRollup(metric, self._buckets.resolutions, group=group)

    @property
    def late(self) -> int:
        return self._rollup.late

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        self._rollup.fold(spans, time_ns)

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        self._rollup.change(changes, time_ns)

    def read(self, instant_ns: int) -> Readings:
        readings = self._read(self._buckets.stretches(instant_ns))
        if self._rule.change:
            readings = difference(self._rule, readings, self._read(self._buckets.before(instant_ns)))
        return readings if self._groups is None else self._groups.by_instance(readings)

    @property
    def overflow(self) -> Reading:
        return NO_READING if self._groups is None else self._groups.overflow

    def limit_groups(self, readings: Readings, busy: Collection[str]) -> set[str] | None:
        kept = None if self._groups is None else self._groups.keep(readings, busy)
        if kept is not None:
            self._rollup.fold_names({_MARK + name for name in kept})
        return kept

    def forget(self, name: str) -> None:
        if self._groups is not None and name in self._groups.known:
            self._groups.known.discard(name)
            self._rollup.fold_names({_MARK + other for other in self._groups.known})

    def _read(self, stretches: Sequence[Stretch]) -> Readings:
        [(total, groups)] = self._rollup.read([stretches], _query(self._rule, "name" if self._groups else ""))
        by_name = groups if self._groups is not None else {WHOLE: total}
        return {
            name: Reading(self._metric.value(value) if value.size > 0 else None, max(value.size, 0), value.unpriced)
            for name, value in by_name.items()
        }

    def snapshot(self) -> Callable[[], Any]:
        known = [] if self._groups is None else sorted(self._groups.known)
        return _encode_later(known, [], *self._rollup.snapshot({}))

    def restore(self, saved: Any) -> None:
        known, _, state, parts = saved
        self._rollup.restore(state, parts)
        if self._groups is not None:
            self._groups.known = set(known)


def _encode_later(known: list[str], series: Any, state: Any, parts: Mapping[str, Part]) -> Callable[[], Any]:
    encoders = {name: part.encode for name, part in parts.items() if part.encode is not None}
    return lambda: (known, series, state, {name: encode() for name, encode in encoders.items()})


def select(spans: Sequence[Span], rows: Ints, indices: Sequence[int] | None) -> tuple[Sequence[Span], Ints]:
    """Return the spans at *indices* and their rows; with None, all of them."""
    if indices is None:
        return spans, rows
    return [spans[index] for index in indices], rows[np.array(indices)]
