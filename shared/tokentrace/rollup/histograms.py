"""
Distributions of many series in one block: how many values of each lie in each bin of ``quantile.bins_of``.

An *owner* is the number of what a distribution belongs to: of (series, field) when stored, of a group when read. A
*key* is the integer owner * 2**13 + bin + 4096. An *entry* is a key and the number of values with this key. New values
wait as keys. They are then merged into a block, where most entries take three bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokentrace.rollup.quantile import Ints, add_up, bins_of, count_distinct, starts_of

_BITS = 13
_ZERO = 1 << (_BITS - 1)
_SPAN = 1 << _BITS
#: Waiting keys are merged when there are more than this and more than the block has entries: a merge sorts all entries.
_MAX_WAITING = 4096
#: Up to this many runs of entries are copied run by run; more are copied with a mask.
_MAX_SLICES = 64
#: Up to this many pairs of group and bin, counting in an array with a place for each pair is faster than sorting.
_MAX_DENSE = 1 << 21
_INT16, _INT32 = np.dtype(np.int16), np.dtype(np.int32)


def keys_of(owners: Ints, values: Ints) -> Ints:
    """Return the key of each of *values*, where values[i] belongs to owners[i]."""
    return (owners << _BITS) + (bins_of(values) + _ZERO)


def split(keys: Ints) -> tuple[Ints, Ints]:
    """Return (owners, bins) of *keys*."""
    return keys >> _BITS, (keys & (_SPAN - 1)) - _ZERO


def moved(keys: Ints, by: int) -> Ints:
    """Return *keys* with *by* added to every owner."""
    return keys + (by << _BITS) if by else keys


class HistogramBlock(NamedTuple):
    """
    Entries in ascending order of owner, then bin; immutable.

    Attributes:
        owners: The owners that have entries, ascending, int32.
        ends: Index after the last entry of each of ``owners``, int32.
        bins: Bin of each entry, int16.
        counts: Number of values of each entry, in the narrowest unsigned integers that hold all of them.
    """

    owners: NDArray[np.int32]
    ends: NDArray[np.int32]
    bins: NDArray[np.int16]
    counts: NDArray[Any]

    def entries(self) -> tuple[Ints, Ints]:
        """Return (keys, counts) of all entries."""
        owners = np.repeat(self.owners.astype(np.int64), np.diff(self.ends, prepend=0))
        return (owners << _BITS) + (self.bins.astype(np.int64) + _ZERO), self.counts.astype(np.int64)

    def by_group(self, groups: Ints) -> tuple[Ints, NDArray[Any]]:
        """
        Return (keys, counts) with the group as owner; a key may occur more than once.

        Args:
            groups: Group of every owner; owners of group < 0 are left out.
        """
        own = groups[self.owners]
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
                runs = [slice(*edges) for edges in zip(starts[firsts].tolist(), ends[lasts].tolist(), strict=True)]
                bins, counts = (
                    np.concatenate([bins[run] for run in runs]),
                    np.concatenate([counts[run] for run in runs]),
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
    """Return (ascending distinct *keys*, sum of the counts of each); all owners must be below *size*."""
    places = size << _BITS
    if places > _MAX_DENSE or places > 64 * len(keys):
        return add_up(keys, counts.astype(np.int64))
    # bincount adds floats; the sums are exact, because no bin counts 2**53 values.
    dense = np.bincount(keys, weights=counts, minlength=places)
    distinct = np.flatnonzero(dense)
    return distinct, dense[distinct].astype(np.int64)


def _block(keys: Ints, counts: Ints) -> HistogramBlock:
    owners, bins = split(keys)
    starts = starts_of(owners)
    most = int(counts.max(initial=0))
    narrow = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if most <= np.iinfo(kind).max)
    return HistogramBlock(
        owners[starts].astype(np.int32),
        np.append(starts[1:], len(owners))[: len(starts)].astype(np.int32),
        bins.astype(np.int16),
        counts.astype(narrow),
    )


def renumbered(block: HistogramBlock, numbers: Ints) -> HistogramBlock:
    """Return *block* with owner n replaced by numbers[n]; entries of equal numbers are added up."""
    keys, counts = block.entries()
    owners, bins = split(keys)
    return _block(*add_up((numbers[owners] << _BITS) + bins + _ZERO, counts))


def merged(block: HistogramBlock, waiting: tuple[Ints, ...] | list[Ints]) -> HistogramBlock:
    """Return *block* with the keys in *waiting* added."""
    if not waiting:
        return block
    keys, counts = count_distinct(waiting[0] if len(waiting) == 1 else np.concatenate(waiting))
    if len(block.bins):
        old_keys, old_counts = block.entries()
        keys, counts = add_up(np.concatenate([old_keys, keys]), np.concatenate([old_counts, counts]))
    return _block(keys, counts)


class Histograms:
    """All distributions of one bucket of time: a block, and the keys that wait to be merged into it."""

    __slots__ = ("_size", "block", "waiting")

    def __init__(self, block: HistogramBlock = _EMPTY) -> None:
        self.block = block
        self.waiting: list[Ints] = []
        self._size = 0

    def add(self, keys: Ints) -> None:
        """Add values, given by their *keys*; the array is kept."""
        self.waiting.append(keys)
        self._size += len(keys)
        if self._size > max(_MAX_WAITING, len(self.block.bins)):
            self.settle()

    def settle(self) -> HistogramBlock:
        """Merge the waiting keys into the block and return it."""
        if self.waiting:
            self.block, self.waiting, self._size = merged(self.block, self.waiting), [], 0
        return self.block


def encode_block(block: HistogramBlock) -> list[bytes | str]:
    """Return *block* as plain data: four arrays and the type of the counts."""
    owners, ends, bins, counts = block
    return [owners.tobytes(), ends.tobytes(), bins.tobytes(), counts.tobytes(), counts.dtype.str]


def decode_block(data: list[Any]) -> HistogramBlock:
    """
    Return the block that ``encode_block`` encoded.

    Raises:
        ValueError: The counts are not unsigned integers, or an array has a length that does not fit its type.
    """
    owners, ends, bins, counts, kind = data
    dtype = np.dtype(kind)
    if dtype.kind != "u":
        raise ValueError(f"histogram counts have the type {kind}, expected unsigned integers")
    return HistogramBlock(
        np.frombuffer(owners, _INT32),
        np.frombuffer(ends, _INT32),
        np.frombuffer(bins, _INT16),
        np.frombuffer(counts, dtype),
    )
