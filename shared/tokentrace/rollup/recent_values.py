"""
The newest values of every cell, raw: what makes quantiles of a few values exact, in any window that ends now.

Buckets of time hold histograms only. A window that holds up to ``quantile.RAW_LIMIT`` values of a cell holds its newest
ones, and those are here; whoever reads compares the count with that of the buckets, so a value that is missing makes
the answer a histogram's, never a wrong one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokentrace.rollup.quantile import RAW_LIMIT, Ints, starts_of

#: So many are kept of each cell, by event time; more than a summary needs, because events come a little late and early.
KEEP = RAW_LIMIT + 50
_ROOM = 2 * KEEP


class RecentValues:
    """The newest values of one field."""

    def __init__(self) -> None:
        self._slot_of: Ints = np.empty(0, np.int64)
        self._cells: Ints = np.empty(0, np.int64)
        self._filled: Ints = np.empty(0, np.int64)
        #: Nothing at or before this second is of use any more.
        self._floor: Ints = np.empty(0, np.int64)
        self._seconds: Ints = np.empty((0, _ROOM), np.int64)
        self._values: Ints = np.empty((0, _ROOM), np.int64)

    def add(self, cells: Ints, seconds: Ints, values: Ints) -> None:
        """Take in values, ordered by second."""
        slots = self._slots(cells)
        useful = seconds > self._floor[slots]
        if not useful.all():
            slots, seconds, values = slots[useful], seconds[useful], values[useful]
        if not len(slots):
            return
        order = np.argsort(slots, kind="stable")
        slots, seconds, values = slots[order], seconds[order], values[order]
        starts = starts_of(slots)
        ends = np.append(starts[1:], len(slots))
        # Of a crowd only the newest can stay.
        from_end = np.repeat(ends, ends - starts) - np.arange(len(slots))
        crowd = from_end > KEEP
        if crowd.any():
            kept = ~crowd
            slots, seconds, values = slots[kept], seconds[kept], values[kept]
            starts = starts_of(slots)
            ends = np.append(starts[1:], len(slots))
        touched, arriving = slots[starts], ends - starts
        full = touched[self._filled[touched] + arriving > _ROOM]
        if len(full):
            self._shrink(full)
        place = self._filled[slots] + np.arange(len(slots)) - np.repeat(starts, ends - starts)
        self._seconds[slots, place] = seconds
        self._values[slots, place] = values
        self._filled[touched] += arriving

    def _slots(self, cells: Ints) -> Ints:
        highest = int(cells.max())
        if highest >= len(self._slot_of):
            self._slot_of = np.concatenate([self._slot_of, np.full(highest + 1 - len(self._slot_of), -1, np.int64)])
        slots = self._slot_of[cells]
        if (slots < 0).any():
            new = np.unique(cells[slots < 0])
            self._slot_of[new] = len(self._cells) + np.arange(len(new))
            self._cells = np.concatenate([self._cells, new])
            zeros = np.zeros(len(new), np.int64)
            self._filled = np.concatenate([self._filled, zeros])
            self._floor = np.concatenate([self._floor, zeros - 1])
            wide = np.zeros((len(new), _ROOM), np.int64)
            self._seconds = np.concatenate([self._seconds, wide])
            self._values = np.concatenate([self._values, wide])
            slots = self._slot_of[cells]
        return slots

    def _shrink(self, slots: Ints) -> None:
        """Keep only the newest of *slots*, each of which holds more than it has to."""
        unused = np.arange(_ROOM) >= self._filled[slots][:, None]
        seconds = np.where(unused, np.int64(-1), self._seconds[slots])
        order = np.argsort(seconds, axis=1, kind="stable")[:, _ROOM - KEEP :]
        self._seconds[slots, :KEEP] = np.take_along_axis(seconds, order, axis=1)
        self._values[slots, :KEEP] = np.take_along_axis(self._values[slots], order, axis=1)
        self._floor[slots] = self._seconds[slots, 0]
        self._filled[slots] = KEEP

    def within(self, start_s: int, end_s: int, groups: Ints) -> tuple[Ints, Ints, Ints]:
        """
        What is kept of [start_s, end_s).

        Args:
            groups: Of every cell; cells of group < 0 are left out.

        Returns:
            (Group of each value, its second, values).
        """
        known = self._cells < len(groups)
        wanted = np.flatnonzero(known & (groups[np.where(known, self._cells, 0)] >= 0)) if len(groups) else known[:0]
        if not len(wanted):
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        seconds = self._seconds[wanted]
        inside = (seconds >= start_s) & (seconds < end_s)
        inside &= np.arange(_ROOM) < self._filled[wanted][:, None]
        own = np.broadcast_to(groups[self._cells[wanted]][:, None], inside.shape)
        return own[inside], seconds[inside], self._values[wanted][inside]

    def renumber(self, numbers: Ints) -> None:
        """Cell n is called numbers[n] from now on; what several cells become is known no more."""
        new = numbers[self._cells]
        alone = np.flatnonzero(np.bincount(new, minlength=1)[new] == 1)
        self._cells, self._filled, self._floor = new[alone], self._filled[alone], self._floor[alone]
        self._seconds, self._values = self._seconds[alone], self._values[alone]
        self._slot_of = np.full(int(new.max(initial=-1)) + 1, -1, np.int64)
        self._slot_of[self._cells] = np.arange(len(self._cells))

    def snapshot(self) -> list[bytes]:
        """Everything as plain data for ``restore``; what is kept, without the room around it."""
        used = np.arange(_ROOM) < self._filled[:, None]
        arrays = (self._cells, self._filled, self._floor, self._seconds[used], self._values[used])
        return [array.tobytes() for array in arrays]

    @classmethod
    def restore(cls, saved: Any) -> RecentValues:
        """As ``snapshot`` saw it."""
        newest = cls()
        cells, filled, floor, seconds, values = (np.frombuffer(data, np.int64) for data in saved)
        newest._cells, newest._filled, newest._floor = cells.copy(), filled.copy(), floor.copy()
        newest._slot_of = np.full(int(cells.max(initial=-1)) + 1, -1, np.int64)
        newest._slot_of[cells] = np.arange(len(cells))
        used = np.arange(_ROOM) < filled[:, None]
        newest._seconds = np.zeros((len(cells), _ROOM), np.int64)
        newest._values = np.zeros((len(cells), _ROOM), np.int64)
        newest._seconds[used], newest._values[used] = seconds, values
        return newest
