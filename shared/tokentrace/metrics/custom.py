"""Metrics of one's own (SPEC C.3): a sum, count, average or p95 of a field or attribute, over the spans that match."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec
import numpy as np

from tokentrace.errors import ConfigError, shorten
from tokentrace.metrics.query import Query
from tokentrace.metrics.reader import Read, grouped, matching
from tokentrace.metrics.registry import (
    ALERT_METRICS,
    ALIASES,
    BREAKDOWNS,
    GROUPS,
    METRICS,
    RESERVED,
    TRANSPORT_METRICS,
    Metric,
)
from tokentrace.metrics.result import Aggregates, CustomValue
from tokentrace.records import Span, attribute, counts_as_cost, event_time
from tokentrace.rollup import (
    CHANGED,
    DIMENSIONS,
    MAX_SERIES,
    RESOLUTIONS,
    SIGN,
    UNKNOWN,
    Counters,
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
)
from tokentrace.state import Part
from tokentrace.units import MS, NUSD_PER_USD, SCORE_ONE, SECOND, is_number, score_to_int

#: A numeric attribute below this counts; beyond it an integer of 1e-9 fits no int64.
MAX_ATTRIBUTE = 9_200_000_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ESCAPE = re.compile(r"\\(u[0-9a-f]{4}|.)")
#: Field as written -> (field of a span, what a unit of it is divided by, whether 0 means unset).
_FIELDS = {
    "cost": ("cost_nusd", NUSD_PER_USD, False),
    "prompt_tokens": ("prompt_tokens", 1, False),
    "comp_tokens": ("completion_tokens", 1, False),
    "total_tokens": ("total_tokens", 1, False),
    "latency_ms": ("latency_ns", MS, True),
    "ttft_ms": ("ttft_ns", MS, True),
}


class CustomMetric(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is measured.

    Attributes:
        field: A key of ``_FIELDS``, or ``attr.<key>``; "" for a count.
        filter_key: Dimension or attribute a span must have; "" = every span.
        filter_val: The value it must have; None = any.
    """

    name: str
    type: Literal["sum", "count", "avg", "p95"]
    field: str = ""
    filter_key: str = ""
    filter_val: str | None = None

    @property
    def divisor(self) -> int:
        """Integers kept for one unit shown: nano-dollars for a dollar, nanoseconds for a millisecond."""
        if self.type == "count":
            return 1
        return _FIELDS[self.field][1] if self.field in _FIELDS else SCORE_ONE

    @property
    def column(self) -> str:
        """The field of a span that is measured, ``attributes`` for one of those; "" for spans as such."""
        return _FIELDS[self.field][0] if self.field in _FIELDS else "attributes" if self.field else ""

    @property
    def zero_is_unset(self) -> bool:
        """A value of 0 is no value."""
        return self.field in _FIELDS and _FIELDS[self.field][2]

    @property
    def falls(self) -> bool:
        """It may get smaller over all time: an attribute may be negative, and a score may be taken away."""
        if self.type == "sum":
            return self.field.startswith("attr.")
        keys = (self.field, self.filter_key)
        return self.follows_scores and any(key.removeprefix("attr.").startswith("eval.") for key in keys)

    @property
    def follows_scores(self) -> bool:
        """It changes with scores given after the fact, which tell a span's attributes but not its cost or tokens."""
        return self.field not in _FIELDS

    @property
    def prometheus(self) -> str:
        """What Prometheus calls it; a counter ends in ``_total``."""
        counter = self.type in ("sum", "count") and not self.falls
        return f"tokentrace_custom_{self.name}" + ("_total" if counter else "")

    def measure(self, span: Span) -> int | None:
        """What *span* adds, as an integer; None when it does not match or has no such value."""
        if self.filter_key:
            found = value_text(span, self.filter_key)
            if found is None or (self.filter_val is not None and found != self.filter_val):
                return None
        if self.type == "count" and not self.field:
            return 0
        if self.field in _FIELDS:
            name, _, zero_is_unset = _FIELDS[self.field]
            value: int | None = getattr(span, name)
            if self.field == "cost" and not counts_as_cost(span.kind):
                return None
            return None if value is None or (value == 0 and zero_is_unset) else value
        given = attribute(span, self.field.removeprefix("attr."))
        return attribute_to_int(given)

    def value(self, tally: CustomValue) -> float | None:
        """The metric in the unit of its field; None without data."""
        if tally.size <= 0:
            return None
        if self.type == "count":
            return float(tally.size)
        if self.type == "sum":
            return tally.total / self.divisor
        if self.type == "avg":
            return tally.total / (tally.size * self.divisor)
        found = tally.summary.quantile(0.95)
        return None if found is None else found / self.divisor

    def as_metric(self) -> Metric:
        """Like a metric that everybody has: of figures in which it was asked for."""
        return Metric(
            (),
            lambda figures: self.value(figures.custom.get(self.name, CustomValue())),
            lambda figures: max(figures.custom.get(self.name, CustomValue()).size, 0),
        )


def value_text(span: Span, key: str) -> str | None:
    """A dimension or attribute of *span* as text: what filters compare with; None when it has none."""
    if key in DIMENSIONS:
        return str(getattr(span, key) or UNKNOWN)
    return attribute_text_of(span, key.removeprefix("attr."))


def attribute_text_of(span: Span, key: str) -> str | None:
    """The attribute *key* of *span* as text, as the span store has it; None when it has none."""
    value = attribute(span, key)
    if value is None or isinstance(value, str):
        return value
    return _json_text(value)


def _json_text(value: object) -> str:
    """*value* in JSON as the span store takes it out of what is around it."""
    if isinstance(value, float):
        return _number_text(value)
    if isinstance(value, list):
        return f"[{','.join(map(_json_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json_text(str(key))}:{_json_text(item)}" for key, item in value.items()) + "}"
    return _ESCAPE.sub(_large_digits, msgspec.json.encode(value).decode())


def _large_digits(escape: re.Match[str]) -> str:
    return f"\\u{escape[1][1:].upper()}" if len(escape[1]) > 1 else escape[0]


def _number_text(value: float) -> str:
    """The text of a number as the span store has it: the shortest that reads back, without an exponent up to 1e21."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else text + ".0"
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa


def attribute_to_int(value: object) -> int | None:
    """A numeric attribute as an integer of 1e-9; None for what is no number or fits no int64."""
    return score_to_int(value) if is_number(value) and abs(value) < MAX_ATTRIBUTE else None


def parse_custom_metric(given: Mapping[str, Any], where: str) -> CustomMetric:
    """
    A metric from its documented form, checked.

    Raises:
        ConfigError: Names the key and what is allowed.
    """
    metric = CustomMetric(
        name=given["name"],
        type=given["type"],
        field=given.get("field") or "",
        filter_key=given.get("filter_key") or "",
        filter_val=given.get("filter_val"),
    )
    if not _NAME.fullmatch(metric.name):
        raise ConfigError(f"{where}.name: {shorten(metric.name)!r} is not letters, digits and _")
    taken = {*METRICS, *ALIASES, *GROUPS, *BREAKDOWNS, *RESERVED, *TRANSPORT_METRICS, *ALERT_METRICS}
    if metric.name in taken or metric.name.startswith("by_"):
        raise ConfigError(f"{where}.name: {metric.name!r} is a metric already")
    known = metric.field in _FIELDS or (metric.field.startswith("attr.") and len(metric.field) > len("attr."))
    if not known and not (metric.type == "count" and not metric.field):
        raise ConfigError(f"{where}.field: {shorten(metric.field)!r} is none of {', '.join(_FIELDS)}, attr.<key>")
    return metric


def parse_custom_metrics(given: Sequence[Mapping[str, Any]]) -> dict[str, CustomMetric]:
    """
    The metrics of a configuration by name.

    Raises:
        ConfigError: As ``parse_custom``, or a name is used twice.
    """
    found = {one["name"]: parse_custom_metric(one, f"custom_metrics[{index}]") for index, one in enumerate(given)}
    if len(found) < len(given):
        raise ConfigError("custom_metrics: a name is used twice")
    shown: dict[str, str] = {}
    for name, metric in found.items():
        other = shown.setdefault(metric.prometheus, name)
        if other != name:
            raise ConfigError(f"custom_metrics: the names {other!r} and {name!r} are both {metric.prometheus}")
    return found


#: Columns of a row after those of every schema: the value measured.
_VALUE = 3


def _sums_of(rows: Ints) -> Ints:
    sums = np.ones((len(rows), 2), np.int64)
    sums[:, 1] = rows[:, _VALUE]
    return sums


def _changes_of(rows: Ints) -> Ints:
    return np.stack([rows[:, SIGN], rows[:, SIGN] * rows[:, CHANGED]], axis=1)


VALUES = Schema(2, _sums_of, {"value": (_VALUE, -(2**63))}, "value", _changes_of)


class CustomRollup:
    """
    What one metric of one's own measured, by cell and in tiers, like everything else.

    Args:
        group: Tells spans apart by this instead of by their dimensions, under ``name``; None of it leaves a span out.

    Attributes:
        since_ns: It was not measured before; 0 = always.
    """

    def __init__(
        self,
        metric: CustomMetric,
        tiers: Sequence[Resolution] = RESOLUTIONS,
        *,
        group: Callable[[Span], str | None] | None = None,
    ) -> None:
        self.metric, self._tiers, self._group = metric, tiers, group
        self.since_ns = 0
        self._table = self._empty_table()
        self._counters = Counters(VALUES.width)
        self._rollup = Rollup(self._table, tiers, VALUES, self._counters)

    def _empty_table(self, cells: Sequence[Sequence[str]] = ()) -> SeriesTable:
        # Whoever tells spans apart bounds how many there are.
        return SeriesTable(cells, most=None if self._group is None else 20 * MAX_SERIES)

    def fold(self, spans: Sequence[Span], arrived_ns: int) -> None:
        """Take in what *spans* add."""
        measure, rows = self.metric.measure, []
        for span in spans:
            value = measure(span)
            number = None if value is None else self._number(span)
            if number is not None:
                rows.append((number, event_time(span) // SECOND, arrived_ns // SECOND, value))
        if rows:
            self._rollup.fold(np.array(rows, np.int64))

    def change(self, changes: Sequence[ScoreDelta], arrived_ns: int) -> None:
        """Take in what scores given after the fact take away and add; a metric of cost, tokens or time stays."""
        if self.metric.follows_scores:
            self._rollup.change(change_rows(changes, self._number, self.metric.measure, arrived_ns))

    def _number(self, span: Span) -> int | None:
        """The number of *span*'s cell; None when it belongs to none."""
        if self._group is None:
            return self._table.number_of(span)
        group = self._group(span)
        return None if group is None else self._table.number((span.kind, "", "", "", group, span.status))

    @property
    def late(self) -> int:
        """Values that came behind every tier."""
        return self._rollup.late

    @property
    def groups(self) -> list[str]:
        """The names that were told apart."""
        return sorted({cell.name for cell in self._table.cells})

    def fold_names(self, names: Collection[str]) -> None:
        """Every other name is ``other`` from now on."""
        self._table, numbers = self._table.folded(names)
        self._rollup.renumber(self._table, numbers)
        self._counters.totals = add_by(numbers[: len(self._counters.totals)], self._counters.totals, len(self._table))

    def tick(self, now_ns: int) -> None:
        """Forget what is behind what the tiers keep."""
        self._rollup.settle()
        self._rollup.evict(now_ns)

    def read(self, steps: Steps, query: Query) -> list[tuple[CustomValue, dict[str, CustomValue]]]:
        """
        (Everything, each group that has any) in each of *steps*, a window being a single one.

        Of the cells that *query* lets through, every kind unless it says.
        """
        wanted = matching(self._table, query.filters | ({"kind": query.kind} if query.only_kind else {}))
        rows = self._rollup.totals(steps)
        total = self._tallies(rows, steps, np.where(wanted, 0, -1), 1)
        found: list[tuple[CustomValue, dict[str, CustomValue]]] = [
            (total.get(step, CustomValue()), {}) for step in range(len(steps))
        ]
        if query.groupby:
            groups = grouped(self._table, query.groupby)
            size = len(groups.names)
            for number, tally in self._tallies(rows, steps, np.where(wanted, groups.numbers, -1), size).items():
                if tally.holds_any:
                    found[number // size][1][groups.names[number % size]] = tally
        return found

    def _tallies(
        self, rows: tuple[Ints, Ints, IntSums], steps: Steps, groups: Ints, size: int
    ) -> dict[int, CustomValue]:
        """Step * size + group -> what it comes to; *rows* as ``Rollup.totals`` has them."""
        step, cells, totals = rows
        own = groups[cells]
        numbers, sums = add_together(np.where(own >= 0, step * size + own, -1), totals)
        p95 = self.metric.type == "p95"
        summaries = self._rollup.summaries(steps, {"value": groups}, size)["value"] if p95 else {}
        return {
            number: CustomValue(count, total, summaries.get(number))
            for number, (count, total) in zip(numbers.tolist(), sums.every(), strict=True)
        }

    def lived(self) -> CustomValue:
        """Everything it ever measured, without the distribution."""
        self._rollup.settle()
        size = len(self._counters.totals)
        count, total = add_by(np.zeros(size, np.int64), self._counters.totals, 1).numbers(0)
        return CustomValue(count, total)

    def snapshot(self, saved: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Part]]:
        """As ``Rollup.snapshot``."""
        rollup, parts = self._rollup.snapshot(saved)
        state = {
            "metric": self.metric,
            "since_ns": self.since_ns,
            "cells": self._table.cells,
            "counters": self._counters.snapshot(),
            "rollup": rollup,
        }
        return state, parts

    def restore(self, state: Mapping[str, Any], parts: Mapping[str, bytes]) -> bool:
        """Go on where ``snapshot`` was; False, and unchanged, if that measured something else."""
        if msgspec.convert(state["metric"], CustomMetric) != self.metric:
            return False
        self.since_ns = state["since_ns"]
        self._table = self._empty_table(state["cells"])
        self._counters.restore(state["counters"])
        self._rollup = Rollup.restore(self._table, state["rollup"], parts, self._tiers, VALUES, self._counters)
        return True


def add_custom(
    found: Sequence[Read], measured: Mapping[str, Sequence[tuple[CustomValue, dict[str, CustomValue]]]]
) -> None:
    """Put what each metric of one's own *measured*, as ``Measured.read`` has it, into what was *found* besides."""
    for name, every in measured.items():
        for one, (total, parts) in zip(found, every, strict=True):
            one.total.custom[name] = total
            for group, tally in parts.items():
                one.groups.setdefault(group, Aggregates()).custom[name] = tally
