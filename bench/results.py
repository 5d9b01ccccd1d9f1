"""Results: the rows of a run as a JSON file, and the comparison of two runs."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from bench.row import Row
from bench.table import number, quantity

#: Relative change above which a row is marked as worse. Runs of the same code differ by less only on an idle machine.
WORSE = 0.05


class Results(msgspec.Struct, frozen=True):
    """
    The contents of a file of results.

    Attributes:
        format: Version of the format.
        taken_at: End of the run, ISO 8601.
        python: Version of Python.
        cores: Number of cores of the machine.
        sizes: The ``BENCH_…`` variables of the environment; rows measured with other variables cannot be compared.
    """

    format: Literal[1]
    taken_at: str
    python: str
    cores: int
    sizes: dict[str, str]
    rows: list[Row]


class Comparison(NamedTuple):
    """
    A comparison of two runs.

    Attributes:
        text: A table in Markdown.
        worse: ``group: name`` of each row that became worse or failed.
    """

    text: str
    worse: list[str]


def write(path: Path, rows: Sequence[Row]) -> None:
    """
    Write *rows* to a file.

    Raises:
        OSError: The file cannot be written.
    """
    taken_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = Results(1, taken_at, platform.python_version(), os.cpu_count() or 1, sizes(), list(rows))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def sizes() -> dict[str, str]:
    """Return the ``BENCH_…`` variables of the environment, which set sizes and durations."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("BENCH_")}


def read(path: Path) -> Results:
    """
    Read a file that ``write`` wrote.

    Raises:
        OSError: The file cannot be read.
        msgspec.DecodeError: The file does not contain results.
    """
    return msgspec.json.decode(path.read_bytes(), type=Results)


def compare(old: Sequence[Row], new: Sequence[Row]) -> Comparison:
    """
    Compare the rows of two runs that have the same group and name.

    If both rows have a ratio to a limit and neither is 0, the ratios are compared, so that the runs may be from
    different machines; otherwise the values are compared.
    """
    before = {(row.group, row.name): row for row in old}
    lines = [("Row", "Old", "New", "New/old", "Old ratio", "New ratio", "New/old", "")]
    worse = []
    for row in new:
        was = before.pop((row.group, row.name), None)
        mark = _mark(was, row)
        if mark in ("WORSE", "FAILED"):
            worse.append(f"{row.group}: {row.name}")
        old_ratio, old_value = (was.ratio, was.value) if was else (None, None)
        lines.append(
            (
                f"{row.group}: {row.name}",
                _value(was),
                _value(row),
                _quotient(row.value, old_value),
                _ratio(was),
                _ratio(row),
                _quotient(row.ratio, old_ratio),
                mark,
            )
        )
    measured = {row.group for row in new}
    lines += [
        (f"{row.group}: {row.name}", _value(row), "", "", _ratio(row), "", "", "gone")
        for row in before.values()
        if row.group in measured
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return Comparison("\n".join(text), worse)


def _mark(was: Row | None, row: Row) -> str:
    if row.value is None:
        return "FAILED"
    if was is None or was.value is None:
        return "new"
    # If a ratio is 0, the value was not above the waits of the budget, so compare the values.
    old, new = (was.ratio, row.ratio) if was.ratio and row.ratio else (was.value, row.value)
    worse = new < old * (1 - WORSE) if row.more_is_better else new > old * (1 + WORSE)
    return "WORSE" if worse else ""


def _value(row: Row | None) -> str:
    if row is None:
        return ""
    return row.verdict if row.value is None else quantity(row.value, row.unit)


def _ratio(row: Row | None) -> str:
    return "" if row is None or row.ratio is None else f"{number(row.ratio)} ×"


def _quotient(new: float | None, old: float | None) -> str:
    return f"{new / old:.2f}" if new is not None and old else ""
