"""
Cells: the combinations of dimensions that rollups count by, and what one row of a span adds to them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from tokentrace.records import FUTURE_NS, Span
from tokentrace.rollup.int_sums import IntSums
from tokentrace.rollup.quantile import Ints
from tokentrace.units import SECOND

MAX_SERIES = 2000
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


class SeriesTable:
    """
    The cells of one shard, numbered in order of appearance.

    When three quarters of ``MAX_CELLS`` are taken a new combination gives up its name, when all are its caller too;
    kind, model, provider and status are never given up, so totals and figures by model stay exact whatever overflows.
    A number, once given, stays.

    Args:
        most: Instead of ``MAX_CELLS``.
    """

    def __init__(self, cells: Iterable[Sequence[str]] = (), *, most: int | None = None) -> None:
        self._most = most
        self.cells: list[Dimensions] = [Dimensions(*cell) for cell in cells]
        self._numbers: dict[tuple[str, ...], int] = {cell: number for number, cell in enumerate(self.cells)}
        self._columns: dict[str, tuple[Ints, dict[str, int]]] = {}

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
        most = self._most or MAX_SERIES
        for candidate, limit in ((full, most * 3 // 4), (no_name, most)):
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
        if full != cell and len(self._numbers) < 4 * most:
            self._numbers[cell] = known
        return known

    def number_of(self, span: Span) -> int:
        """The number of *span*'s cell."""
        return self.number((span.kind, span.model, span.provider, span.caller, span.name, span.status))

    def _add(self, cell: Dimensions) -> int:
        number = self._numbers[cell] = len(self.cells)
        self.cells.append(cell)
        return number

    def folded(self, names: Collection[str]) -> tuple[SeriesTable, Ints]:
        """(A table in which every other name is ``other``, the number there of every cell of this one)."""
        table = SeriesTable(most=self._most)
        cells = [cell if cell.name in names else cell._replace(name=OTHER) for cell in self.cells]
        return table, np.array([table.number(cell) for cell in cells], np.int64)

    def column(self, dimension: str) -> tuple[Ints, dict[str, int]]:
        """(Code of every cell's value of *dimension*, value -> its code), codes in order of appearance."""
        codes, known = self._columns.get(dimension, (np.empty(0, np.int64), {}))
        if len(codes) < len(self.cells):
            new = [known.setdefault(getattr(cell, dimension), len(known)) for cell in self.cells[len(codes) :]]
            codes = np.concatenate([codes, np.array(new, np.int64)])
            self._columns[dimension] = (codes, known)
        return codes, known

    def distinct(self, dimension: str) -> int:
        """How many values *dimension* has taken."""
        return len(self.column(dimension)[1])


#: Columns of a row, one row per span; the first three are those of every schema.
(
    SERIES,
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
    STATUS,
) = range(17)

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
WIDTH = len(COUNTED) + len(ADDED)
#: Distributions kept, by name -> (column, smallest value that counts).
FIELDS = {
    "latency": (LATENCY, 1),
    "ttft": (TTFT, 1),
    "prompt": (PROMPT, 0),
    "completion": (COMPLETION, 0),
    "score": (SCORE, 0),
}


class Schema(NamedTuple):
    """
    What a rollup keeps of its rows.

    Attributes:
        width: How many sums.
        sums_of: Rows -> what each adds, int64 of shape (rows, width).
        fields: Distribution -> (column, smallest value that counts).
        changing: The one of them of which values are taken away, and added for spans that were counted before.
        changes_of: Rows of changes -> what each adds, as ``sums_of``.
    """

    width: int
    sums_of: Callable[[Ints], Ints]
    fields: Mapping[str, tuple[int, int]]
    changing: str
    changes_of: Callable[[Ints], Ints]


_ROW = struct.Struct("17q")
_STATUSES = {"ok": 0, "error": 1, "timeout": 2}
#: Added to the status of a span that claims to end too far in the future, and counts when it arrived.
CLAMPED = 4


class Sums:
    """
    What some spans come to, as exact integers of any size.

    Attributes:
        spans, errors, timeouts: How many, and how many of them ended with status error, timeout.
        unpriced, partly_priced: Spans nobody could price, or not wholly.
        latency_n, ttft_n, score_n: Spans that have one.
        cost: Nano-dollars. latency, ttft, wall: Nanoseconds; wall is ended - started. score: 1e-9. The rest: tokens.
    """

    __slots__ = (*COUNTED, *ADDED)
    __hash__ = None  # type: ignore[assignment]
    spans: int
    errors: int
    timeouts: int
    unpriced: int
    partly_priced: int
    latency_n: int
    ttft_n: int
    score_n: int
    cost: int
    prompt: int
    completion: int
    total: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    latency: int
    ttft: int
    score: int
    wall: int

    def __init__(self, numbers: Iterable[int] = (), /, **named: int) -> None:
        for name, number in zip(self.__slots__, chain(numbers, repeat(0)), strict=False):
            setattr(self, name, number)
        for name, number in named.items():
            setattr(self, name, number)

    def __eq__(self, other: object) -> bool:
        return self.numbers() == other.numbers() if isinstance(other, Sums) else NotImplemented

    def __repr__(self) -> str:
        return f"Sums({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__ if getattr(self, name))})"

    def numbers(self) -> list[int]:
        """All of them, in order."""
        return [getattr(self, name) for name in self.__slots__]

    def add(self, other: Sums) -> None:
        """Add what *other* comes to."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def of(cls, totals: IntSums, row: int = 0) -> Sums:
        """From one row of WIDTH columns."""
        return cls(totals.numbers(row))


def rows_of(spans: Sequence[Span], table: SeriesTable, arrived_ns: int) -> Ints:
    """
    One row per span, in the columns above.

    Args:
        arrived_ns: Stream time of the message, which decides what is late.

    Returns:
        int64 array of shape (n, 17).
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
                _STATUSES[s.status] if ended <= s.arrived_ns + FUTURE_NS else _STATUSES[s.status] + CLAMPED,
            )
        )
    return np.frombuffer(b"".join(rows), np.int64).reshape(len(rows), 17)


def sums_of(rows: Ints) -> Ints:
    """What each row adds: int64 array of shape (n, WIDTH)."""
    sums = np.empty((len(rows), WIDTH), np.int64)
    status = rows[:, STATUS] % CLAMPED
    sums[:, 0] = 1
    sums[:, 1] = status == 1
    sums[:, 2] = status == 2
    sums[:, 3] = rows[:, COST] < 0
    sums[:, 4] = rows[:, PARTLY]
    sums[:, 5] = rows[:, LATENCY] > 0
    sums[:, 6] = rows[:, TTFT] > 0
    sums[:, 7] = rows[:, SCORE] >= 0
    # But for the cost, which may be missing, what is added up lies side by side and in the same order.
    np.maximum(rows[:, COST], 0, out=sums[:, len(COUNTED)])
    sums[:, len(COUNTED) + 1 :] = rows[:, PROMPT : WALL + 1]
    np.maximum(sums[:, _SCORE_AT], 0, out=sums[:, _SCORE_AT])
    return sums


_SCORE_AT = len(COUNTED) + list(ADDED).index("score")
_SCORED_AT = COUNTED.index("score_n")

#: Columns of a change after the first three, which are those of a row: 1 or -1, and the value that comes or goes.
SIGN, CHANGED = 3, 4


def changes_of(rows: Ints) -> Ints:
    """What each change of a score adds: int64 array of shape (n, WIDTH); numbers below 0 for what goes."""
    sums = np.zeros((len(rows), WIDTH), np.int64)
    sums[:, _SCORED_AT] = rows[:, SIGN]
    sums[:, _SCORE_AT] = rows[:, SIGN] * rows[:, CHANGED]
    return sums


#: What is kept of spans.
SPAN_SCHEMA = Schema(WIDTH, sums_of, FIELDS, "score", changes_of)
