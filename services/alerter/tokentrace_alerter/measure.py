"""What a rule measures: a metric that everybody has, or one of one's own; each keeps a ring of the rule's window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tokentrace.cell import SPANS, Table
from tokentrace.metric.custom import CustomMetric, Measured, value_text
from tokentrace.metric.query import Query
from tokentrace.metric.reader import Reader
from tokentrace.quantile import Ints
from tokentrace.records import Span
from tokentrace.units import SECOND
from tokentrace.window import Part, Rollup, Stretch, Tier
from tokentrace_alerter.rule import Rule


class Measure(Protocol):
    """The spans of one rule's window and what they come to."""

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        """Take in the spans that the rule's filter lets through, of a message of stream time *time_ns*."""
        ...

    def read(self, instant_ns: int) -> tuple[float | None, int]:
        """(Value, contributing spans) of the window that ends at *instant_ns*; the value is None without data."""
        ...

    def snapshot(self) -> Callable[[], Any]:
        """Captured now, made into plain data for ``restore`` later and in any thread."""
        ...

    def restore(self, saved: Any) -> None: ...


def make_measure(rule: Rule, table: Table) -> Measure:
    """What *rule* measures; *table* numbers the cells of everybody's."""
    return _Everybodys(rule, table) if rule.custom is None else _Own(rule, rule.custom)


class _Window:
    """Which buckets a rule's window is made of."""

    def __init__(self, rule: Rule) -> None:
        self._width, self._window_s = rule.bucket_s, rule.window_s
        lag_s = rule.lag_ns // SECOND
        ring = Tier(self._width, rule.window_s + lag_s + 1 + 2 * self._width)
        # Wide buckets end where they end: the last seconds before an instant are read from buckets of one second.
        self.tiers = (ring,) if self._width == 1 else (Tier(1, 2 * self._width + lag_s + 5), ring)

    def stretches(self, instant_ns: int) -> list[Stretch]:
        """The window that ends at *instant_ns*, which it does not contain."""
        end_s = instant_ns // SECOND
        edge_s = end_s // self._width * self._width
        ring = Stretch(len(self.tiers) - 1, (end_s - self._window_s) // self._width * self._width, edge_s)
        return [ring] if edge_s == end_s else [ring, Stretch(0, edge_s, end_s)]


def passes(rule: Rule, span: Span) -> bool:
    """*span* has every dimension and attribute that the rule's filter asks for."""
    return all(value_text(span, key) == value for key, value in rule.filter.items())


class _Everybodys:
    def __init__(self, rule: Rule, table: Table) -> None:
        self._rule, self._table, self._window = rule, table, _Window(rule)
        self._metric = rule.of()
        needed = {name: SPANS.fields[name] for name in self._metric.fields}
        self._schema = SPANS._replace(fields=needed)
        self._rollup = Rollup(table, self._window.tiers, self._schema)

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        if self._rule.filter:
            rows = rows[np.array([passes(self._rule, span) for span in spans], dtype=bool)]
        self._rollup.fold(rows)

    def read(self, instant_ns: int) -> tuple[float | None, int]:
        kind = self._rule.filter.get("kind", "")
        query = Query(kind=kind or "llm", only_kind=bool(kind), fields=list(self._metric.fields))
        figures = Reader(self._rollup, self._table, query).read(self._window.stretches(instant_ns))[0]
        return self._metric.value(figures), self._metric.contributing(figures)

    def snapshot(self) -> Callable[[], Any]:
        return _later(*self._rollup.snapshot({}))

    def restore(self, saved: Any) -> None:
        state, parts = saved
        self._rollup = Rollup.restore(self._table, state, parts, self._window.tiers, self._schema)


class _Own:
    def __init__(self, rule: Rule, metric: CustomMetric) -> None:
        self._rule, self._window = rule, _Window(rule)
        self._measured = Measured(metric, self._window.tiers)

    def fold(self, spans: Sequence[Span], rows: Ints, time_ns: int) -> None:
        self._measured.fold([span for span in spans if passes(self._rule, span)], time_ns)

    def read(self, instant_ns: int) -> tuple[float | None, int]:
        tally, _ = self._measured.read(self._window.stretches(instant_ns), Query())
        return self._measured.metric.value(tally), tally.size

    def snapshot(self) -> Callable[[], Any]:
        return _later(*self._measured.snapshot({}))

    def restore(self, saved: Any) -> None:
        self._measured.restore(*saved)


def _later(state: Any, parts: Mapping[str, Part]) -> Callable[[], Any]:
    return lambda: (state, {name: part.encode() for name, part in parts.items() if part.encode is not None})
