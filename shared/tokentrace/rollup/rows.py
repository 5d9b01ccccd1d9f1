"""Rows: the numbers that a rollup keeps of a span, as int64, and what a row adds to sums and distributions."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokentrace.records import FUTURE_NS, UNPRICED_REASONS, Span, counts_as_cost
from tokentrace.rollup.int_sums import IntSums
from tokentrace.rollup.quantile import Ints
from tokentrace.rollup.series import SeriesTable
from tokentrace.units import SECOND

#: Stands for a missing cost or score.
NO_VALUE = -1

#: Columns of a row. There is one row for each span; the rows of every schema have the first three columns.
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
    REASON,
) = range(18)

#: Names of the sums that count spans; they come first.
COUNTED = ("spans", "errors", "timeouts", "unpriced", "partly_priced", "latency_n", "ttft_n", "score_n")
#: Name of a sum that adds up a column -> the column; these come after COUNTED.
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
#: Names of the sums that concern money, and of those that concern tokens.
COST_SUMS = ("cost", "unpriced", "partly_priced")
TOKEN_SUMS = ("prompt", "completion", "total", "cache_read", "cache_write", "cache_write_1h", "reasoning")
#: Number of sums of a series.
WIDTH = len(COUNTED) + len(ADDED)
_ZEROS = (0,) * WIDTH


class Field(NamedTuple):
    """
    The values of a distribution.

    Attributes:
        column: The column of a row with the value.
        least: The smallest value that counts.
        known: Columns of which at least one must be over 0, or the value is unknown; () = no such condition.
    """

    column: int
    least: int
    known: tuple[int, ...] = ()

    def counted(self, rows: Ints) -> NDArray[np.bool_]:
        """Return a mask of the *rows* that have a value."""
        mask: NDArray[np.bool_] = rows[:, self.column] >= self.least
        if self.known:
            mask &= (rows[:, self.known] > 0).any(axis=1)
        return mask


#: Name of a distribution -> its values. Without prompt and completion tokens, only the total or nothing is known.
FIELDS = {
    "latency": Field(LATENCY, 1),
    "ttft": Field(TTFT, 1),
    "prompt": Field(PROMPT, 0, (PROMPT, COMPLETION)),
    "completion": Field(COMPLETION, 0, (PROMPT, COMPLETION)),
    "score": Field(SCORE, 0),
}
#: Why the cost of a span is unknown or lacks a part; REASON is the index in this list + 1, and 0 for any other cost.
REASONS = (*UNPRICED_REASONS, "other")
_REASON_CODES = {reason: number for number, reason in enumerate(REASONS, 1)}


class Schema(NamedTuple):
    """
    What a rollup keeps of its rows.

    Attributes:
        width: Number of sums of a series.
        sums_of: Rows -> what each row adds to the sums, int64 of shape (rows, width).
        fields: Name of a distribution -> its values.
        changing: The distribution whose values may be removed or added after their spans were counted.
        changes_of: Rows from ``change_rows`` -> what each row adds to the sums, int64 of shape (rows, width).
    """

    width: int
    sums_of: Callable[[Ints], Ints]
    fields: Mapping[str, Field]
    changing: str
    changes_of: Callable[[Ints], Ints]


_ROW = struct.Struct("18q")
_STATUSES = {"ok": 0, "error": 1, "timeout": 2}
#: Added to the status code of a span whose end is too far in the future; such a span counts at its arrival.
CLAMPED = 4


class Sums:
    """
    Sums over some spans, as exact integers of any size.

    Attributes:
        spans, errors, timeouts: Number of all spans, of those with status error, of those with status timeout.
        unpriced, partly_priced: Number of spans without a known cost, and of those with a cost that lacks a part.
        latency_n, ttft_n, score_n: Number of spans with a latency, with a time to first token, with a score.
        cost: Sum of the known costs, nano-dollars.
        latency, ttft, wall: Nanoseconds; ttft = time to first token, wall = ended - started, 0 if negative.
        score: Sum of the scores, units of 1e-9.
        prompt, completion, total, cache_read, cache_write, cache_write_1h, reasoning: Tokens.
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
        # An answer has tens of thousands of sums, and unpacking costs a fifth of setting each attribute by name.
        (
            self.spans,
            self.errors,
            self.timeouts,
            self.unpriced,
            self.partly_priced,
            self.latency_n,
            self.ttft_n,
            self.score_n,
            self.cost,
            self.prompt,
            self.completion,
            self.total,
            self.cache_read,
            self.cache_write,
            self.cache_write_1h,
            self.reasoning,
            self.latency,
            self.ttft,
            self.score,
            self.wall,
        ) = islice(chain(numbers, _ZEROS), WIDTH)
        for name, number in named.items():
            setattr(self, name, number)

    def __eq__(self, other: object) -> bool:
        return self.numbers() == other.numbers() if isinstance(other, Sums) else NotImplemented

    def __repr__(self) -> str:
        return f"Sums({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__ if getattr(self, name))})"

    def numbers(self) -> list[int]:
        """Return all sums in the order of ``COUNTED`` and then ``ADDED``."""
        return list(_numbers_of(self))

    def add(self, other: Sums) -> None:
        """Add *other* to these sums."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def of(cls, totals: IntSums, row: int = 0) -> Sums:
        """Return the sums in row *row* of *totals*, whose first columns are those of ``COUNTED`` and ``ADDED``."""
        return cls(totals.numbers(row))


_numbers_of: Callable[[Sums], tuple[int, ...]] = attrgetter(*Sums.__slots__)


def rows_of(spans: Sequence[Span], table: SeriesTable, arrived_ns: int) -> Ints:
    """
    Return one row for each span, with the columns from SERIES to REASON; number new series in *table*.

    Args:
        arrived_ns: Stream time of the message, Unix nanoseconds; it decides whether a span is late.

    Returns:
        int64 array of shape (number of spans, 18).
    """
    number, pack = table.number, _ROW.pack
    arrived_s = arrived_ns // SECOND
    rows = []
    for s in spans:
        ended = s.ended_ns
        cost = s.cost_nusd
        score = s.score
        partly = s.cost_source == "partly_priced"
        # Packing bytes and reading them as one array takes a third of the time of an array of tuples.
        rows.append(
            pack(
                number((s.kind, s.model, s.provider, s.caller, s.name, s.status)),
                (ended if ended <= s.arrived_ns + FUTURE_NS else s.arrived_ns) // SECOND,
                arrived_s,
                NO_VALUE if cost is None else cost,
                partly,
                s.prompt_tokens,
                s.completion_tokens,
                s.total_tokens,
                s.cache_read_tokens,
                s.cache_write_tokens,
                s.cache_write_1h_tokens,
                s.reasoning_tokens,
                s.latency_ns,
                s.ttft_ns,
                NO_VALUE if score is None else score,
                ended - s.started_ns if ended > s.started_ns else 0,
                _STATUSES[s.status] if ended <= s.arrived_ns + FUTURE_NS else _STATUSES[s.status] + CLAMPED,
                _reason(s) if cost is None or partly else 0,
            )
        )
    return np.frombuffer(b"".join(rows), np.int64).reshape(len(rows), 18)


def _reason(span: Span) -> int:
    """Return the code of why the cost of *span* is unknown or lacks a part; 0 for a roll-up kind."""
    if not counts_as_cost(span.kind):
        return 0
    return _REASON_CODES.get(span.unpriced_reason.partition(":")[0], len(REASONS))


def sums_of(rows: Ints) -> Ints:
    """Return what each of *rows* adds to the sums: int64 array of shape (number of rows, WIDTH)."""
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
    # A missing cost is NO_VALUE. The other columns of ADDED are adjacent and in the same order.
    np.maximum(rows[:, COST], 0, out=sums[:, len(COUNTED)])
    sums[:, len(COUNTED) + 1 :] = rows[:, PROMPT : WALL + 1]
    np.maximum(sums[:, _SCORE_AT], 0, out=sums[:, _SCORE_AT])
    return sums


_SCORE_AT = len(COUNTED) + list(ADDED).index("score")
_SCORED_AT = COUNTED.index("score_n")

#: Columns of a row from ``change_rows`` after the first three: SIGN is 1 = add or -1 = remove, CHANGED is the value.
SIGN, CHANGED = 3, 4


def changes_of(rows: Ints) -> Ints:
    """Return what each changed score adds to the sums, negative for removed ones: shape (number of rows, WIDTH)."""
    sums = np.zeros((len(rows), WIDTH), np.int64)
    sums[:, _SCORED_AT] = rows[:, SIGN]
    sums[:, _SCORE_AT] = rows[:, SIGN] * rows[:, CHANGED]
    return sums


#: What the rollups of spans keep of their rows.
SPAN_SCHEMA = Schema(WIDTH, sums_of, FIELDS, "score", changes_of)
