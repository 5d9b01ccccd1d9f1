"""The table that ``make bench`` prints; each row is printed as soon as it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from bench.row import Budget, Group, Plan, Row, Unit

_HEAD = ("Row", "Measured", "Limit in the same run", "Ratio", "Budget", "", "Note")


class Table:
    """A table in Markdown with aligned columns; their widths are computed from the names in the plans."""

    def __init__(self, groups: Sequence[Group], out: TextIO) -> None:
        self._out = out
        plans = [(group, plan) for group in groups for plan in group.plans]
        names = max((len(_label(group.name, plan.name)) for group, plan in plans), default=0)
        limits = max((len(plan.limit_name) for _, plan in plans), default=0)
        self._widths = (names, 17, max(limits + 18, len(_HEAD[2])), 8, 28, 6, 0)

    def head(self) -> None:
        """Print the head."""
        print(self._line(_HEAD), file=self._out)
        print("|" + "|".join("-" * (max(width, 4) + 2) for width in self._widths) + "|", file=self._out, flush=True)

    def show(self, row: Row) -> None:
        """Print *row*."""
        limit = f"{row.limit.name}: {quantity(row.limit.value, row.limit.unit)}" if row.limit else ""
        cells = (
            _label(row.group, row.name),
            "" if row.value is None else quantity(row.value, row.unit),
            limit,
            "" if row.ratio is None else f"{number(row.ratio)} ×",
            _budget_here(row),
            row.verdict,
            row.reason or row.note,
        )
        print(self._line(cells), file=self._out, flush=True)

    def _line(self, cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)) + " |"


def _label(group: str, name: str) -> str:
    return f"{group}: {name}"


def _budget_here(row: Row) -> str:
    """Return the budget as a ratio and as a value on this machine; "" for a row that has none."""
    if row.budget is None:
        return ""
    if row.limit is None:
        return f"{row.budget.sense} {quantity(row.budget.ratio, row.unit)}" if row.verdict != "FAILED" else ""
    here = row.budget.ratio * row.limit.value + row.budget.waits_s
    return f"{row.budget.sense} {number(row.budget.ratio)} × = {quantity(here, row.unit)}"


def listing(groups: Sequence[Group]) -> str:
    """Return a list of the rows of *groups*, each with unit, limit and budget."""
    lines = []
    for group in groups:
        lines.append(group.name)
        lines += [f"  {plan.name} [{plan.unit}]{_against(plan)}" for plan in group.plans]
    return "\n".join(lines)


def _against(plan: Plan) -> str:
    if plan.budget is None:
        return f", beside {plan.limit_name}" if plan.limit_name else ""
    return f": {_words(plan.budget, plan.limit_name, plan.unit)}"


def _words(budget: Budget, limit: str, unit: Unit) -> str:
    if not limit:
        return f"{budget.sense} {quantity(budget.ratio, unit)}"
    waits = f", after waits of {quantity(budget.waits_s, 's')}" if budget.waits_s else ""
    return f"{budget.sense} {number(budget.ratio)} × {limit}{waits}"


def quantity(value: float, unit: Unit) -> str:
    """Return *value* with its unit; short times are shown in ms or µs."""
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1 or name == "µs":
                return f"{number(value * factor)} {name}"
    return f"{number(value)} {'×' if unit == 'x' else unit}"


def number(value: float) -> str:
    """Return *value* with about three significant digits; all digits before the point are shown."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def seconds_per_call(work: Callable[[], object], *, at_least_s: float = 0.5, tries: int = 5) -> float:
    """Return the smallest of *tries* mean times of *work*, seconds; all tries together take at least *at_least_s*."""
    best = float("inf")
    for _ in range(tries):
        calls, began = 0, time.perf_counter()
        while not calls or time.perf_counter() - began < at_least_s / tries:
            work()
            calls += 1
        best = min(best, (time.perf_counter() - began) / calls)
    return best
