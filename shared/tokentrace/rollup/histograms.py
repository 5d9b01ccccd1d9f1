"""
Distributions of many cells at once: for each cell how many values lie in each bucket of ``quantile.bins_of``.

A key is (cell or group) * 2**13 + bin + 4096. What has come in waits as keys; put away, an entry takes three bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokentrace.rollup.quantile import Ints, add_up, bins_of, starts_of, tally

_BITS = 13
_ZERO = 1 << (_BITS - 1)
_SPAN = 1 << _BITS
#: Keys wait until there are this many, and as many as are put away already: so each is sorted only a few times.
_MAX_WAITING = 4096
#: Up to so many runs of entries are copied one by one, of more all at once.
_MAX_SLICES = 64
#: Up to this many places a dense count beats sorting.
_MAX_DENSE = 1 << 21


def keys_of(cells: Ints, values: Ints) -> Ints:
    """The key of each value in its cell."""
    return (cells << _BITS) + (bins_of(values) + _ZERO)


def split(keys: Ints) -> tuple[Ints, Ints]:
    """(Cells or groups, bins) of *keys*."""
    return keys >> _BITS, (keys & (_SPAN - 1)) - _ZERO


def moved(keys: Ints, by: int) -> Ints:
    """*keys* of groups that are called *by* more."""
    return keys + (by << _BITS) if by else keys


class HistogramBlock(NamedTuple):
    """
    Entries in ascending order of cell, then bin; never changed.

    Attributes:
        cells: Those that have any, int32.
        ends: Where the entries of each end, int32.
        bins: int16.
        counts: The narrowest unsigned integers that hold them.
    """

    cells: NDArray[np.int32]
    ends: NDArray[np.int32]
    bins: NDArray[np.int16]
    counts: NDArray[Any]

    def entries(self) -> tuple[Ints, Ints]:
        """(Keys, counts)."""
        cells = np.repeat(self.cells.astype(np.int64), np.diff(self.ends, prepend=0))
        return (cells << _BITS) + (self.bins.astype(np.int64) + _ZERO), self.counts.astype(np.int64)

    def by_group(self, groups: Ints) -> tuple[Ints, NDArray[Any]]:
        """(Keys, counts) by group instead of cell, not added up; cells of group < 0 are left out."""
        own = groups[self.cells]
        starts = np.empty_like(self.ends)
        starts[:1], starts[1:] = 0, self.ends[:-1]
        bins, counts, ends = self.bins, self.counts, self.ends
        kept = np.flatnonzero(own >= 0)
        if len(kept) < len(own):
            if len(kept) == 0:
                return _NOTHING
            gaps = np.flatnonzero(np.diff(kept) > 1)
            if len(gaps) < _MAX_SLICES:
                firsts, lasts = kept[np.append(0, gaps + 1)], kept[np.append(gaps, -1)]
                slices = [slice(*edges) for edges in zip(starts[firsts].tolist(), ends[lasts].tolist(), strict=True)]
                bins, counts = (
                    np.concatenate([bins[one] for one in slices]),
                    np.concatenate([counts[one] for one in slices]),
                )
            else:
                chosen = np.repeat(own >= 0, ends - starts)
                bins, counts = bins[chosen], counts[chosen]
            own, starts, ends = own[kept], starts[kept], ends[kept]
        keys = bins.astype(np.int64)
        keys += _ZERO
        if (own != 0).any():
            keys += np.repeat(own << _BITS, ends - starts)
        return keys, counts


_NOTHING: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))
_EMPTY = HistogramBlock(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int16), np.empty(0, np.uint8))


def count_up(keys: Ints, counts: NDArray[Any], size: int) -> tuple[Ints, Ints]:
    """Ascending distinct *keys* of *size* groups and the sum of the counts of each."""
    places = size << _BITS
    if places > _MAX_DENSE or places > 64 * len(keys):
        return add_up(keys, counts.astype(np.int64))
    # The weights are floats: exact, for no bucket ever counts 2**53 values.
    dense = np.bincount(keys, weights=counts, minlength=places)
    found = np.flatnonzero(dense)
    return found, dense[found].astype(np.int64)


def _block(keys: Ints, counts: Ints) -> HistogramBlock:
    cells, bins = split(keys)
    starts = starts_of(cells)
    most = int(counts.max(initial=0))
    narrow = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if most <= np.iinfo(kind).max)
    return HistogramBlock(
        cells[starts].astype(np.int32),
        np.append(starts[1:], len(cells))[: len(starts)].astype(np.int32),
        bins.astype(np.int16),
        counts.astype(narrow),
    )


def renumbered(put: HistogramBlock, numbers: Ints) -> HistogramBlock:
    """Cell n is called numbers[n] from now on."""
    keys, counts = put.entries()
    cells, bins = split(keys)
    return _block(*add_up((numbers[cells] << _BITS) + bins + _ZERO, counts))


def merged(put: HistogramBlock, waiting: tuple[Ints, ...] | list[Ints]) -> HistogramBlock:
    """*put* and the keys that wait, together."""
    if not waiting:
        return put
    keys, counts = tally(waiting[0] if len(waiting) == 1 else np.concatenate(waiting))
    if len(put.bins):
        old_keys, old_counts = put.entries()
        keys, counts = add_up(np.concatenate([old_keys, keys]), np.concatenate([old_counts, counts]))
    return _block(keys, counts)


class Histograms:
    """The distributions of one bucket of time, for all its cells."""

    __slots__ = ("_size", "put", "waiting")

    def __init__(self, put: HistogramBlock = _EMPTY) -> None:
        self.put = put
        self.waiting: list[Ints] = []
        self._size = 0

    def add(self, keys: Ints) -> None:
        """Take in the keys of some values."""
        self.waiting.append(keys)
        self._size += len(keys)
        if self._size > max(_MAX_WAITING, len(self.put.bins)):
            self.settle()

    def settle(self) -> HistogramBlock:
        """Put away what waits."""
        if self.waiting:
            self.put, self.waiting, self._size = merged(self.put, self.waiting), [], 0
        return self.put


def encode_block(put: HistogramBlock) -> list[bytes | str]:
    """*put* as plain data."""
    return [put.cells.tobytes(), put.ends.tobytes(), put.bins.tobytes(), put.counts.tobytes(), put.counts.dtype.str]


def decode_block(data: list[Any]) -> HistogramBlock:
    """A ``Put`` from ``encode_put``."""
    cells, ends, bins, counts, kind = data
    if np.dtype(kind).kind != "u":
        raise ValueError(f"counts of type {kind}")
    return HistogramBlock(
        np.frombuffer(cells, np.int32),
        np.frombuffer(ends, np.int32),
        np.frombuffer(bins, np.int16),
        np.frombuffer(counts, np.dtype(kind)),
    )
