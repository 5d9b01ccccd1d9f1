"""The table that ``make bench`` prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """
    One line.

    Attributes:
        measured: What came out, with its unit.
        limit: What it is compared with, measured in the same run; "" = nothing.
        budget: What it has to reach.
        met: None when there is no budget.
    """

    work: str
    measured: str
    limit: str = ""
    budget: str = ""
    met: bool | None = None


def render(rows: Sequence[Row]) -> str:
    """*rows* as a table in Markdown."""
    lines = [("Work", "Measured", "Compared with", "Budget", "")]
    lines += [(r.work, r.measured, r.limit, r.budget, {True: "met", False: "MISSED", None: ""}[r.met]) for r in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def seconds_per_call(work: Callable[[], object], *, at_least_s: float = 0.5, tries: int = 5) -> float:
    """The best of *tries* means: what the work takes when nothing else disturbs it."""
    best = float("inf")
    for _ in range(tries):
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < at_least_s / tries:
            work()
            calls += 1
        best = min(best, (time.perf_counter() - began) / calls)
    return best
