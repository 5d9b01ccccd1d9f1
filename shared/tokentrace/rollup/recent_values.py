"""
The most recent values of every series, unrounded, so that quantiles of few values are exact in windows that end now.

Buckets of time hold histograms only. If a window that ends now has at most ``quantile.RAW_LIMIT`` values of a series,
they are the most recent values of the series, which are kept here. ``BucketReader`` compares their number with the
count in the buckets and uses the histogram if a value is missing here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokentrace.rollup.quantile import RAW_LIMIT, Ints, starts_of

#: Number of values kept for each series, those with the latest seconds; more than RAW_LIMIT, because spans arrive out
#: of order.
KEEP = RAW_LIMIT + 50
#: Most values that a series can hold before it is cut back to KEEP: the number of columns of the arrays.
_ROOM = 2 * KEEP


class RecentValues:
    """The most recent values of one distribution; each series has a slot, which is a row of the arrays."""

    def __init__(self) -> None:
        self._slot_of: Ints = np.empty(0, np.int64)
        self._series: Ints = np.empty(0, np.int64)
        self._filled: Ints = np.empty(0, np.int64)
        #: Second of the oldest value kept when a slot was last cut back, -1 = never; ``add`` ignores values up to it.
        self._floor: Ints = np.empty(0, np.int64)
        self._seconds: Ints = np.empty((0, _ROOM), np.int64)
        self._values: Ints = np.empty((0, _ROOM), np.int64)

    def add(self, series: Ints, seconds: Ints, values: Ints) -> None:
        """Add values[i] of series[i] at second seconds[i], in order of the seconds; ignore values that are too old."""
        slots = self._slots(series)
        useful = seconds > self._floor[slots]
        if not useful.all():
            slots, seconds, values = slots[useful], seconds[useful], values[useful]
        if not len(slots):
            return
        order = np.argsort(slots, kind="stable")
        slots, seconds, values = slots[order], seconds[order], values[order]
        starts = starts_of(slots)
        ends = np.append(starts[1:], len(slots))
        # If one call adds more than KEEP values of a series, use the newest KEEP of them.
        from_end = np.repeat(ends, ends - starts) - np.arange(len(slots))
        surplus = from_end > KEEP
        if surplus.any():
            kept = ~surplus
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

    def _slots(self, series: Ints) -> Ints:
        highest = int(series.max())
        if highest >= len(self._slot_of):
            self._slot_of = np.concatenate([self._slot_of, np.full(highest + 1 - len(self._slot_of), -1, np.int64)])
        slots = self._slot_of[series]
        if (slots < 0).any():
            new = np.unique(series[slots < 0])
            self._slot_of[new] = len(self._series) + np.arange(len(new))
            self._series = np.concatenate([self._series, new])
            zeros = np.zeros(len(new), np.int64)
            self._filled = np.concatenate([self._filled, zeros])
            self._floor = np.concatenate([self._floor, zeros - 1])
            wide = np.zeros((len(new), _ROOM), np.int64)
            self._seconds = np.concatenate([self._seconds, wide])
            self._values = np.concatenate([self._values, wide])
            slots = self._slot_of[series]
        return slots

    def _shrink(self, slots: Ints) -> None:
        """Cut each of *slots*, which holds more than KEEP values, back to the newest KEEP."""
        unused = np.arange(_ROOM) >= self._filled[slots][:, None]
        seconds = np.where(unused, np.int64(-1), self._seconds[slots])
        order = np.argsort(seconds, axis=1, kind="stable")[:, _ROOM - KEEP :]
        self._seconds[slots, :KEEP] = np.take_along_axis(seconds, order, axis=1)
        self._values[slots, :KEEP] = np.take_along_axis(self._values[slots], order, axis=1)
        self._floor[slots] = self._seconds[slots, 0]
        self._filled[slots] = KEEP

    def within(self, start_s: int, end_s: int, groups: Ints) -> tuple[Ints, Ints, Ints]:
        """
        Return the values kept with a second in [start_s, end_s).

        Args:
            start_s, end_s: Unix seconds.
            groups: Group of every series; series of group < 0 are left out.

        Returns:
            (Group of each value, its second, the value), three arrays of equal length.
        """
        known = self._series < len(groups)
        wanted = np.flatnonzero(known & (groups[np.where(known, self._series, 0)] >= 0)) if len(groups) else known[:0]
        if not len(wanted):
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        seconds = self._seconds[wanted]
        inside = (seconds >= start_s) & (seconds < end_s)
        inside &= np.arange(_ROOM) < self._filled[wanted][:, None]
        own = np.broadcast_to(groups[self._series[wanted]][:, None], inside.shape)
        return own[inside], seconds[inside], self._values[wanted][inside]

    def renumber(self, numbers: Ints) -> None:
        """Replace series n by numbers[n]; the values of series that get the same number are dropped."""
        new = numbers[self._series]
        alone = np.flatnonzero(np.bincount(new, minlength=1)[new] == 1)
        self._series, self._filled, self._floor = new[alone], self._filled[alone], self._floor[alone]
        self._seconds, self._values = self._seconds[alone], self._values[alone]
        self._slot_of = np.full(int(new.max(initial=-1)) + 1, -1, np.int64)
        self._slot_of[self._series] = np.arange(len(self._series))

    def snapshot(self) -> list[bytes]:
        """Return the used parts of the arrays as plain data for ``restore``."""
        used = np.arange(_ROOM) < self._filled[:, None]
        arrays = (self._series, self._filled, self._floor, self._seconds[used], self._values[used])
        return [array.tobytes() for array in arrays]

    @classmethod
    def restore(cls, saved: Any) -> RecentValues:
        """Return the values that ``snapshot`` returned."""
        recent = cls()
        series, filled, floor, seconds, values = (np.frombuffer(data, np.int64) for data in saved)
        recent._series, recent._filled, recent._floor = series.copy(), filled.copy(), floor.copy()
        recent._slot_of = np.full(int(series.max(initial=-1)) + 1, -1, np.int64)
        recent._slot_of[series] = np.arange(len(series))
        used = np.arange(_ROOM) < filled[:, None]
        recent._seconds = np.zeros((len(series), _ROOM), np.int64)
        recent._values = np.zeros((len(series), _ROOM), np.int64)
        recent._seconds[used], recent._values[used] = seconds, values
        return recent
