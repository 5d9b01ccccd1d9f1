"""
Exact sums of integers in columns: int64 as long as that suffices, with 32 more bits otherwise.

A sum is ``low + high * 2**32``. Usually there is no ``high``. Before a number in ``low`` could overflow, the upper bits
of all numbers move to ``high``, so adding stays one numpy operation and no sum overflows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokentrace.rollup.quantile import Ints, starts_of

#: Stored low parts have a smaller absolute value, so the sum of two of them fits int64.
_ROOM = 2**61
_SHIFT = 32
_MASK = (1 << _SHIFT) - 1


class IntSums(NamedTuple):
    """
    Rows of sums, each ``low + high * 2**32``.

    Attributes:
        low: Shape (rows, columns).
        high: Shape (rows, columns); None = all zero.
    """

    low: Ints
    high: Ints | None = None

    @classmethod
    def of(cls, numbers: Ints) -> IntSums:
        """Return sums equal to *numbers*, int64 of shape (rows, columns)."""
        totals = cls(numbers)
        fits = not numbers.size or (int(numbers.max()) < _ROOM and int(numbers.min()) > -_ROOM)
        return totals if fits else _carried(totals)

    @classmethod
    def zeros(cls, rows: int, columns: int) -> IntSums:
        """Return *rows* rows of zeros."""
        return cls(np.zeros((rows, columns), np.int64))

    def __len__(self) -> int:
        return len(self.low)

    def numbers(self, row: int) -> list[int]:
        """Return the sums in row *row* as Python integers."""
        low: list[int] = self.low[row].tolist()
        if self.high is None:
            return low
        return [part + (more << _SHIFT) for part, more in zip(low, self.high[row].tolist(), strict=True)]

    def all_numbers(self) -> list[list[int]]:
        """Return the sums of all rows as Python integers."""
        return self.low.tolist() if self.high is None else [self.numbers(row) for row in range(len(self))]

    def take(self, rows: Ints) -> IntSums:
        """Return a copy of the rows with the indices *rows*."""
        return IntSums(self.low[rows], None if self.high is None else self.high[rows])

    def spread(self, at: Ints, rows: int) -> IntSums:
        """Return *rows* rows with row i of these sums at index at[i] and zeros elsewhere."""
        low = np.zeros((rows, self.low.shape[1]), np.int64)
        low[at] = self.low
        if self.high is None:
            return IntSums(low)
        high = np.zeros_like(low)
        high[at] = self.high
        return IntSums(low, high)

    def add_at(self, at: Ints, more: IntSums) -> IntSums:
        """
        Add *more* to the rows *at*, which are distinct, and return the result.

        The arrays of these sums are changed, so use only the result; it may have a high part that they lack.
        """
        changed = self.low[at] + more.low
        self.low[at] = changed
        high = self.high
        if more.high is not None:
            high = np.zeros_like(self.low) if high is None else high
            high[at] += more.high
        if changed.size and (int(changed.max()) >= _ROOM or int(changed.min()) <= -_ROOM):
            return _carried(IntSums(self.low, high))
        return IntSums(self.low, high)


def _carried(totals: IntSums) -> IntSums:
    high = totals.low >> _SHIFT
    return IntSums(totals.low & _MASK, high if totals.high is None else totals.high + high)


def add_by(groups: Ints, totals: IntSums, size: int) -> IntSums:
    """
    Add up the rows of each group.

    Args:
        groups: Group of each row, shape (rows,); rows of group < 0 are left out.
        size: Number of groups.

    Returns:
        One row for each group; zeros for a group without rows.
    """
    present, added = add_together(groups, totals)
    return added.spread(present, size)


def add_together(groups: Ints, totals: IntSums) -> tuple[Ints, IntSums]:
    """Return (groups that have rows, ascending; the sum of the rows of each); rows of group < 0 are left out."""
    kept = groups >= 0
    if not kept.all():
        groups, totals = groups[kept], totals.take(np.flatnonzero(kept))
    order = np.argsort(groups, kind="stable")
    groups = groups[order]
    starts = starts_of(groups)
    return groups[starts], add_runs(totals.take(order), starts)


def add_runs(totals: IntSums, starts: Ints) -> IntSums:
    """Return the sum of each run of rows; a run extends from one index in *starts* to the next or to the end."""
    low, high = totals
    if len(low) == 0:
        return totals
    if max(int(low.max()), -int(low.min())) >= _ROOM // len(low):
        low, high = _carried(totals)
    added = IntSums(
        np.add.reduceat(low, starts, axis=0), None if high is None else np.add.reduceat(high, starts, axis=0)
    )
    return _carried(added) if high is not None else added


class Packed(NamedTuple):
    """
    Sums in less memory: columns of zeros are left out; columns of numbers from 0 to 2**32 - 1 take 32 bits per number.

    Attributes:
        small_columns, large_columns: Indices of the columns of the low part that are in ``small`` and in ``large``.
        small, large: uint32 of shape (rows, len(small_columns)); int64 of shape (rows, len(large_columns)).
        high: As in ``IntSums``.
        columns: Number of all columns, those left out included.
    """

    small_columns: Ints
    small: np.ndarray[tuple[int, int], np.dtype[np.uint32]]
    large_columns: Ints
    large: Ints
    high: Ints | None
    columns: int

    def __len__(self) -> int:
        return len(self.large)

    def into(self, low: Ints) -> None:
        """Write the low part into *low*, an array of zeros of shape (rows, columns)."""
        low[:, self.small_columns] = self.small
        low[:, self.large_columns] = self.large

    def unpack(self) -> IntSums:
        """Return the sums that were packed."""
        totals = IntSums.zeros(len(self), self.columns)
        self.into(totals.low)
        return IntSums(totals.low, None if self.high is None else self.high.copy())


def pack(totals: IntSums) -> Packed:
    """Return *totals* in less memory."""
    low = totals.low
    least, most = low.min(axis=0, initial=0), low.max(axis=0, initial=0)
    narrow = (least >= 0) & (most < 2**32)
    small = np.flatnonzero(narrow & (most > 0))
    large = np.flatnonzero(~narrow)
    return Packed(small, low[:, small].astype(np.uint32), large, low[:, large], totals.high, low.shape[1])
