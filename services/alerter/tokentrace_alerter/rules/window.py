"""What a rule measures: a metric that everybody has, or one of one's own; each keeps a ring of the rule's window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tokentrace.metrics import QUALITY, CustomMetric, CustomRollup, Query, RollupReader, value_text
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
from tokentrace_alerter.rules.rule import MAX_GROUPS, Reading, Rule

#: The one instance of a rule that is not grouped.
WHOLE = ""
Found = dict[str, Reading]


class RuleWindow(Protocol):
    """The spans of one rule's window and what they come to."""

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Take in spans that the rule's filter lets through, of a message of stream time *time_ns*."""
        ...

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        """Take in those sides of scores given after the fact that the rule's filter lets through."""
        ...

    def read(self, instant_ns: int) -> Found:
        """Instance -> what its window that ends at *instant_ns* comes to; the value is None without data."""
        ...

    def bound(self, found: Found, busy: Collection[str]) -> set[str] | None:
        """When there are too many instances the lightest become one; returns those that stay, None when all do."""
        ...

    @property
    def late(self) -> int:
        """Spans that came when no window could hold them any more."""
        ...

    def snapshot(self) -> Callable[[], Any]:
        """Captured now, made into plain data for ``restore`` later and in any thread."""
        ...

    def restore(self, saved: Any) -> None: ...


def make_window(rule: Rule, table: SeriesTable) -> RuleWindow:
    """What *rule* measures; *table* numbers the cells of everybody's."""
    return _Everybodys(rule, table) if rule.custom is None else _Own(rule, rule.custom)


class _Window:
    """Which buckets a rule's window is made of."""

    def __init__(self, rule: Rule) -> None:
        self._width, self._window_s, self._changes = rule.bucket_s, rule.window_s, bool(rule.change)
        lag_s = rule.lag_ns // SECOND
        length_s = rule.window_s * (2 if rule.change else 1)
        ring = Resolution(self._width, length_s + lag_s + 1 + 2 * self._width)
        # Where an instant may lie within a bucket, the last seconds before it are read from buckets of one second.
        ends_with_buckets = rule.eval_interval_ns % (self._width * SECOND) == 0
        self.tiers = (ring,) if ends_with_buckets else (Resolution(1, 2 * self._width + lag_s + 5), ring)

    def stretches(self, instant_ns: int) -> list[Stretch]:
        """The window that ends at *instant_ns*, which it does not contain."""
        end_s = instant_ns // SECOND
        edge_s = end_s // self._width * self._width
        ring = Stretch(len(self.tiers) - 1, (end_s - self._window_s) // self._width * self._width, edge_s)
        return [ring] if edge_s == end_s else [ring, Stretch(0, edge_s, end_s)]

    def before(self, instant_ns: int) -> list[Stretch]:
        """The window before that one, up to where it begins."""
        end_s = (instant_ns // SECOND - self._window_s) // self._width * self._width
        return [Stretch(len(self.tiers) - 1, (end_s - self._window_s) // self._width * self._width, end_s)]


def _changed(rule: Rule, now: Found, before: Found) -> Found:
    """The difference of each instance to the window before; None where there is nothing to compare with."""
    found: Found = {}
    for name in {*now, *before}:
        value, count = now.get(name, Reading(None, 0))
        old = before.get(name, Reading(None, 0)).value
        if value is None or old is None or (rule.change == "percent" and old == 0):
            found[name] = Reading(None, count)
        else:
            found[name] = Reading((value - old) / abs(old) * 100 if rule.change == "percent" else value - old, count)
    return found


#: Stands before the name of an instance where it is the name of a cell: an empty one is its own.
_MARK = "="
#: An instance has a cell for each kind and status.
_MOST_CELLS = 40 * MAX_GROUPS


class _Groups:
    """The instances of a grouped rule; when there are too many, the heaviest half stays and the rest is ``other``."""

    def __init__(self, rule: Rule) -> None:
        self._key = rule.group_by
        self.known: set[str] = set()

    def of(self, span: Span) -> str | None:
        """The name of the cells of *span*'s instance; None when it has none."""
        value = value_text(span, self._key)
        if value is None or value == OTHER:
            return value
        if value not in self.known:
            if len(self.known) >= MAX_GROUPS:
                return OTHER
            self.known.add(value)
        return _MARK + value

    def named(self, found: Found) -> Found:
        """What was found, by instance instead of by cell."""
        return {name.removeprefix(_MARK): seen for name, seen in found.items()}

    def stay(self, found: Found, busy: Collection[str]) -> set[str] | None:
        """The instances that stay when some have to go, those of *busy* first; None when all do."""
        if len(self.known) < MAX_GROUPS:
            return None
        order = sorted(
            self.known, key=lambda name: (name not in busy, -found.get(name, Reading(None, 0)).span_count, name)
        )
        # One place is kept for somebody who becomes heavy, even when all of them are busy.
        self.known = set(order[: max(MAX_GROUPS // 2, min(len(self.known & set(busy)), MAX_GROUPS - 1))])
        return self.known


class _Everybodys:
    def __init__(self, rule: Rule, table: SeriesTable) -> None:
        self._rule, self._window = rule, _Window(rule)
        self._groups = _Groups(rule) if rule.group_by else None
        self._table = table if self._groups is None else SeriesTable(most=_MOST_CELLS)
        self._metric = rule.of()
        self._schema = SPAN_SCHEMA._replace(fields={name: SPAN_SCHEMA.fields[name] for name in self._metric.fields})
        self._rollup = Rollup(self._table, self._window.tiers, self._schema)
        self._reader = self._make_reader()

    def _make_reader(self) -> RollupReader:
        kind = self._rule.filter.get("kind", "")
        query = Query(
            kind=kind or "llm",
            only_kind=bool(kind),
            fields=list(self._metric.fields),
            groupby="name" if self._groups else "",
        )
        return RollupReader(self._rollup, self._table, query)

    @property
    def late(self) -> int:
        return self._rollup.late

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        if self._groups is not None:
            rows = rows.copy()
            for index, span in enumerate(spans):
                number = self._number(span)
                rows[index, SERIES] = -1 if number is None else number
            rows = rows[rows[:, SERIES] >= 0]
        self._rollup.fold(rows)

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        if self._rule.metric in QUALITY:
            self._rollup.change(score_rows(changes, self._number, time_ns))

    def _number(self, span: Span) -> int | None:
        if self._groups is None:
            return self._table.number_of(span)
        group = self._groups.of(span)
        return None if group is None else self._table.number((span.kind, "", "", "", group, span.status))

    def read(self, instant_ns: int) -> Found:
        found = self._read(self._window.stretches(instant_ns))
        if self._rule.change:
            found = _changed(self._rule, found, self._read(self._window.before(instant_ns)))
        return found

    def bound(self, found: Found, busy: Collection[str]) -> set[str] | None:
        names = None if self._groups is None else self._groups.stay(found, busy)
        if names is not None:
            self._table, numbers = self._table.folded({_MARK + name for name in names})
            self._rollup.renumber(self._table, numbers)
            self._reader = self._make_reader()
        return names

    def _read(self, stretches: Sequence[Stretch]) -> Found:
        [(total, groups, _)] = self._reader.read([stretches])
        every = groups if self._groups is not None else {WHOLE: total}
        found = {
            name: Reading(self._metric.value(figures), self._metric.contributing(figures))
            for name, figures in every.items()
        }
        return found if self._groups is None else self._groups.named(found)

    def snapshot(self) -> Callable[[], Any]:
        known, cells = ([], []) if self._groups is None else (sorted(self._groups.known), list(self._table.series))
        return _later(known, cells, *self._rollup.snapshot({}))

    def restore(self, saved: Any) -> None:
        known, cells, state, parts = saved
        if self._groups is not None:
            self._table = SeriesTable(cells, most=_MOST_CELLS)
            self._groups.known = set(known)
        self._rollup = Rollup.restore(self._table, state, parts, self._window.tiers, self._schema)
        self._reader = self._make_reader()


class _Own:
    def __init__(self, rule: Rule, metric: CustomMetric) -> None:
        self._rule, self._window = rule, _Window(rule)
        self._groups = _Groups(rule) if rule.group_by else None
        self._measured = CustomRollup(
            metric, self._window.tiers, group=None if self._groups is None else self._groups.of
        )

    @property
    def late(self) -> int:
        return self._measured.late

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        self._measured.fold(spans, time_ns)

    def change(self, changes: Sequence[ScoreDelta], time_ns: int) -> None:
        self._measured.change(changes, time_ns)

    def read(self, instant_ns: int) -> Found:
        found = self._read(self._window.stretches(instant_ns))
        if self._rule.change:
            found = _changed(self._rule, found, self._read(self._window.before(instant_ns)))
        return found

    def bound(self, found: Found, busy: Collection[str]) -> set[str] | None:
        names = None if self._groups is None else self._groups.stay(found, busy)
        if names is not None:
            self._measured.fold_names({_MARK + name for name in names})
        return names

    def _read(self, stretches: Sequence[Stretch]) -> Found:
        [(total, groups)] = self._measured.read([stretches], Query(groupby="name" if self._groups else ""))
        every = groups if self._groups is not None else {WHOLE: total}
        found = {name: Reading(self._measured.metric.value(tally), max(tally.size, 0)) for name, tally in every.items()}
        return found if self._groups is None else self._groups.named(found)

    def snapshot(self) -> Callable[[], Any]:
        known = [] if self._groups is None else sorted(self._groups.known)
        return _later(known, [], *self._measured.snapshot({}))

    def restore(self, saved: Any) -> None:
        known, _, state, parts = saved
        self._measured.restore(state, parts)
        if self._groups is not None:
            self._groups.known = set(known)


def _later(known: list[str], cells: Any, state: Any, parts: Mapping[str, Part]) -> Callable[[], Any]:
    made = {name: part.encode for name, part in parts.items() if part.encode is not None}
    return lambda: (known, cells, state, {name: encode() for name, encode in made.items()})


def choose(spans: Sequence[Span], rows: Ints, indices: Sequence[int] | None) -> tuple[Sequence[Span], Ints]:
    """Some spans and their rows; all when *indices* is None."""
    if indices is None:
        return spans, rows
    return [spans[index] for index in indices], rows[np.array(indices)]
