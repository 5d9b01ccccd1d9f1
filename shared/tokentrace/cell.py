"""
Cells: the combinations of dimensions that rollups count by, and what one row of a span adds to them.

A sum is held as two int64 columns, ``value & 0xffffffff`` and ``value >> 32``: whatever arrives within the bounds of a
span, no sum of two thousand million spans can overflow, and the two join into an exact Python integer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tokentrace.quantile import Ints
from tokentrace.records import Span
from tokentrace.records.span import FUTURE_NS
from tokentrace.units import SECOND

MAX_CELLS = 2000
MAX_MODELS = 500
OTHER = "other"
UNKNOWN = "unknown"
DIMENSIONS = ("kind", "model", "provider", "caller", "name", "status")
_NONE = -1


class Dimensions(NamedTuple):
    """What a cell counts: one value of each dimension; ``unknown`` where the span said nothing."""

    kind: str
    model: str
    provider: str
    caller: str
    name: str
    status: str


class Table:
    """
    The cells of one shard, numbered in order of appearance.

    When three quarters of ``MAX_CELLS`` are taken a new combination gives up its name, when all are its caller too;
    kind, model, provider and status are never given up, so totals and figures by model stay exact whatever overflows.
    A number, once given, stays.
    """

    def __init__(self, cells: Iterable[Sequence[str]] = ()) -> None:
        self.cells: list[Dimensions] = [Dimensions(*cell) for cell in cells]
        self._numbers: dict[tuple[str, ...], int] = {cell: number for number, cell in enumerate(self.cells)}

    def __len__(self) -> int:
        return len(self.cells)

    def number(self, cell: tuple[str, str, str, str, str, str]) -> int:
        """The number of *cell*, given now if it is new."""
        known = self._numbers.get(cell)
        if known is not None:
            return known
        kind, model, provider, caller, name, status = cell
        full = Dimensions(kind, model or UNKNOWN, provider or UNKNOWN, caller or UNKNOWN, name or UNKNOWN, status)
        no_name = full._replace(name=OTHER)
        for candidate, limit in ((full, MAX_CELLS * 3 // 4), (no_name, MAX_CELLS)):
            known = self._numbers.get(candidate)
            if known is None and len(self.cells) < limit:
                known = self._add(candidate)
            if known is not None:
                break
        else:
            nobody = full._replace(name=OTHER, caller=OTHER)
            known = self._numbers.get(nobody)
            if known is None:
                known = self._add(nobody)
        if full != cell and len(self._numbers) < 4 * MAX_CELLS:
            self._numbers[cell] = known
        return known

    def _add(self, cell: Dimensions) -> int:
        number = self._numbers[cell] = len(self.cells)
        self.cells.append(cell)
        return number

    def distinct(self, dimension: str) -> int:
        """How many values *dimension* has taken."""
        return len({getattr(cell, dimension) for cell in self.cells})


#: Columns of a row, one row per span.
(
    CELL,
    SECOND_OF,
    ARRIVED,
    COST,
    PARTLY,
    PROMPT,
    COMPLETION,
    TOTAL,
    READ,
    WRITE,
    WRITE_1H,
    REASONING,
    LATENCY,
    TTFT,
    SCORE,
    WALL,
) = range(16)

#: What a cell counts and adds up, in this order.
COUNTED = ("spans", "errors", "timeouts", "unpriced", "partly_priced", "latency_n", "ttft_n", "score_n")
ADDED = {
    "cost": COST,
    "prompt": PROMPT,
    "completion": COMPLETION,
    "total": TOTAL,
    "cache_read": READ,
    "cache_write": WRITE,
    "cache_write_1h": WRITE_1H,
    "reasoning": REASONING,
    "latency": LATENCY,
    "ttft": TTFT,
    "score": SCORE,
    "wall": WALL,
}
WIDTH = len(COUNTED) + 2 * len(ADDED)
#: Distributions kept, by name -> (column, smallest value that counts).
FIELDS = {
    "latency": (LATENCY, 1),
    "ttft": (TTFT, 1),
    "prompt": (PROMPT, 0),
    "completion": (COMPLETION, 0),
    "score": (SCORE, 0),
}


_ROW = struct.Struct("16q")


class Sums(msgspec.Struct, kw_only=True):
    """
    What some spans come to.

    Attributes:
        spans, errors, timeouts: How many, and how many of them ended with status error, timeout.
        unpriced, partly_priced: Spans nobody could price, or not wholly.
        latency_n, ttft_n, score_n: Spans that have one.
        cost: Nano-dollars. latency, ttft, wall: Nanoseconds; wall is ended - started. score: 1e-9. The rest: tokens.
    """

    spans: int = 0
    errors: int = 0
    timeouts: int = 0
    unpriced: int = 0
    partly_priced: int = 0
    latency_n: int = 0
    ttft_n: int = 0
    score_n: int = 0
    cost: int = 0
    prompt: int = 0
    completion: int = 0
    total: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    latency: int = 0
    ttft: int = 0
    score: int = 0
    wall: int = 0

    def add(self, other: Sums) -> None:
        """Add what *other* comes to."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def of(cls, row: Ints) -> Sums:
        """From one row of WIDTH columns."""
        numbers = row.tolist()
        sums = cls(**dict(zip(COUNTED, numbers, strict=False)))
        for index, name in enumerate(ADDED):
            low = numbers[len(COUNTED) + 2 * index]
            setattr(sums, name, (numbers[len(COUNTED) + 2 * index + 1] << 32) + low)
        return sums


def rows_of(spans: Sequence[Span], table: Table, arrived_ns: int) -> Ints:
    """
    One row per span, in the columns above.

    Args:
        arrived_ns: Stream time of the message, which decides what is late.

    Returns:
        int64 array of shape (n, 16).
    """
    number, pack = table.number, _ROW.pack
    arrived_s = arrived_ns // SECOND
    rows = []
    for s in spans:
        ended = s.ended_ns
        cost = s.cost_nusd
        score = s.score
        # Packing bytes and reading them back as one array takes a third of the time of an array of tuples.
        rows.append(
            pack(
                number((s.kind, s.model, s.provider, s.caller, s.name, s.status)),
                (ended if ended <= s.arrived_ns + FUTURE_NS else s.arrived_ns) // SECOND,
                arrived_s,
                _NONE if cost is None else cost,
                s.cost_source == "partly_priced",
                s.prompt_tokens,
                s.completion_tokens,
                s.total_tokens,
                s.cache_read_tokens,
                s.cache_write_tokens,
                s.cache_write_1h_tokens,
                s.reasoning_tokens,
                s.latency_ns,
                s.ttft_ns,
                _NONE if score is None else score,
                ended - s.started_ns if ended > s.started_ns else 0,
            )
        )
    return np.frombuffer(b"".join(rows), np.int64).reshape(len(rows), 16)


def sums_of(rows: Ints, table: Table) -> Ints:
    """What each row adds: int64 array of shape (n, WIDTH)."""
    sums = np.empty((len(rows), WIDTH), np.int64)
    status = _statuses(table)[rows[:, CELL]]
    sums[:, 0] = 1
    sums[:, 1] = status == 1
    sums[:, 2] = status == 2
    sums[:, 3] = rows[:, COST] < 0
    sums[:, 4] = rows[:, PARTLY]
    sums[:, 5] = rows[:, LATENCY] > 0
    sums[:, 6] = rows[:, TTFT] > 0
    sums[:, 7] = rows[:, SCORE] >= 0
    for index, column in enumerate(ADDED.values()):
        values = np.maximum(rows[:, column], 0)
        sums[:, len(COUNTED) + 2 * index] = values & 0xFFFFFFFF
        sums[:, len(COUNTED) + 2 * index + 1] = values >> 32
    return sums


def _statuses(table: Table) -> NDArray[np.int8]:
    codes = {"ok": 0, "error": 1, "timeout": 2}
    return np.array([codes[cell.status] for cell in table.cells], dtype=np.int8)


def add_by(groups: Ints, sums: Ints, size: int) -> Ints:
    """Rows of *sums* added up by group: shape (size, WIDTH); rows of group < 0 are left out."""
    out = np.zeros((size, sums.shape[1]), np.int64)
    kept = groups >= 0
    if not kept.all():
        groups, sums = groups[kept], sums[kept]
    if not len(groups):
        return out
    order = np.argsort(groups, kind="stable")
    groups = groups[order]
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    out[groups[starts]] = np.add.reduceat(sums[order], starts, axis=0)
    return out
