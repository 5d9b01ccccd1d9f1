"""The bucket of time: sums, distributions and extremes of the series that occurred in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokentrace.rollup.extremes import (
    NOTHING,
    PackedExtremes,
    least_by,
    pack_extremes,
    saved_extremes,
    unpack_extremes,
)
from tokentrace.rollup.histograms import (
    HistogramBlock,
    Histograms,
    count_up,
    decode_block,
    encode_block,
    merged,
    renumbered,
)
from tokentrace.rollup.int_sums import IntSums, Packed, add_by, pack
from tokentrace.rollup.quantile import Ints, edges_of

#: Most groupings that a bucket caches, and most entries (key and count) of a cached grouping.
_MAX_CACHED, _MAX_ENTRIES = 32, 4096
_NO_SERIES, _NO_EXTREMES = np.empty(0, np.int64), np.empty((0, 0), np.int64)
#: A start decodes thousands of buckets, and numpy makes these of their names anew for each array.
_INT32, _UINT32, _INT64 = np.dtype(np.int32), np.dtype(np.uint32), np.dtype(np.int64)


class Bucket:
    """
    Sums and distributions of one bucket of time.

    Attributes:
        series: Numbers of the series that occurred, ascending, int64.
        totals: Sums of the series, one row for each of ``series``; ``Packed`` after ``compact`` and after decoding,
            until more is added; None = no rows yet.
        extremes: Extremes of the series, one row for each of ``series``; ``PackedExtremes`` as ``totals``.
        histograms: Distributions of the series.
        cached: The group of each distribution, as bytes -> (keys, counts) by group; a result of ``grouped``.
    """

    __slots__ = ("cached", "extremes", "histograms", "series", "totals")

    def __init__(self) -> None:
        self.series: Ints = _NO_SERIES
        self.totals: IntSums | Packed | None = None
        self.extremes: Ints | PackedExtremes = _NO_EXTREMES
        self.histograms = Histograms()
        self.cached: dict[bytes, tuple[Ints, Ints]] = {}

    def add(self, series: Ints, totals: IntSums, extremes: Ints) -> None:
        """
        Add *totals* and *extremes*, one row for each of the ascending distinct *series*.

        The bucket may keep and change the arrays, so the caller must not use them again.
        """
        self.cached.clear()
        if self.totals is None:
            self.series, self.totals, self.extremes = series, totals, extremes
            return
        held = self.totals.unpack() if isinstance(self.totals, Packed) else self.totals
        least = self.unpacked_extremes()
        rows = np.searchsorted(self.series, series)
        known = self.series[np.minimum(rows, len(self.series) - 1)] == series
        if not known.all():
            union = np.union1d(self.series, series)
            places = np.searchsorted(union, self.series)
            held = held.spread(places, len(union))
            wider = np.full((len(union), least.shape[1]), NOTHING, np.int64)
            wider[places], least = least, wider
            self.series = union
            rows = np.searchsorted(union, series)
        self.totals = held.add_at(rows, totals)
        least[rows] = np.minimum(least[rows], extremes)
        self.extremes = least

    def unpacked_extremes(self) -> Ints:
        """Return the extremes; the array may be the one that is held."""
        return unpack_extremes(self.extremes) if isinstance(self.extremes, PackedExtremes) else self.extremes

    def add_keys(self, keys: Ints) -> None:
        """Add values to the distributions; *keys* are their keys from ``histograms.keys_of``."""
        self.histograms.add(keys)

    def renumber(self, numbers: Ints, distributions: Ints) -> None:
        """Replace series n by numbers[n] and distribution n by distributions[n]; equal numbers are added up."""
        self.cached.clear()
        if self.totals is not None:
            held = self.totals.unpack() if isinstance(self.totals, Packed) else self.totals
            distinct, rows = np.unique(numbers[self.series], return_inverse=True)
            self.series, self.totals = distinct, add_by(rows, held, len(distinct))
            _, self.extremes = least_by(rows, self.unpacked_extremes())
        self.histograms = Histograms(renumbered(self.histograms.settle(), distributions))

    def compact(self) -> None:
        """Pack the sums and merge waiting values, to save memory; rows can still be added."""
        if isinstance(self.totals, IntSums):
            self.totals = pack(self.totals)
        if not isinstance(self.extremes, PackedExtremes):
            self.extremes = pack_extremes(self.extremes)
        self.histograms.settle()

    def grouped(self, groups: Ints, size: int, *, cache: bool) -> tuple[Ints, NDArray[Any]]:
        """
        Return (keys, counts) of the distributions with the group as owner; a key may occur more than once.

        Args:
            groups: Group of every distribution; distributions of group -1 are left out.
            size: Number of groups.
            cache: True = keep the result for later calls with the same groups.
        """
        block = self.histograms.settle()
        if not cache:
            return block.by_group(groups)
        name = groups[block.owners].tobytes()
        entries = self.cached.get(name)
        if entries is None:
            entries = count_up(*block.by_group(groups), size)
            if len(entries[0]) <= _MAX_ENTRIES:
                while len(self.cached) >= _MAX_CACHED:
                    del self.cached[next(iter(self.cached))]
                self.cached[name] = entries
        return entries

    def capture(self) -> Any:
        """Return the contents for ``encode_bucket``, in objects that later calls do not change."""
        totals = self.totals
        if isinstance(totals, IntSums):
            totals = IntSums(totals.low.copy(), None if totals.high is None else totals.high.copy())
        extremes = self.extremes if isinstance(self.extremes, PackedExtremes) else self.extremes.copy()
        return self.series, totals, self.histograms.block, tuple(self.histograms.waiting), extremes


def encode_bucket(captured: Any) -> list[Any]:
    """Return what ``Bucket.capture`` returned as plain data; may run in any thread."""
    series, totals, block, waiting, extremes = captured
    packed = pack(totals) if isinstance(totals, IntSums) else totals
    least = extremes if isinstance(extremes, PackedExtremes) else pack_extremes(extremes)
    return [
        series.astype(np.int32).tobytes(),
        packed.small_columns.tobytes(),
        packed.small.tobytes(),
        packed.large_columns.tobytes(),
        packed.large.tobytes(),
        None if packed.high is None else packed.high.tobytes(),
        encode_block(merged(block, waiting)),
        least.saved,
    ]


def decode_bucket(data: Sequence[Any], width: int, fields: int, stride: int) -> Bucket:
    """
    Return the bucket that ``encode_bucket`` encoded.

    Args:
        width: Number of sums of a series. Data that was saved with fewer sums has 0 for the others.
        fields: Number of distributions with extremes, which are the first ones of a series.
        stride: Number of all distributions of a series.

    Raises:
        ValueError: The arrays do not fit together, or the histogram counts are not unsigned integers.
    """
    series, small_columns, small, large_columns, large, high, block, *least = data
    bucket = Bucket()
    bucket.series = np.frombuffer(series, _INT32).astype(_INT64)
    rows = len(bucket.series)
    bucket.totals = _packed(
        (small_columns, small, large_columns, large), rows, width, None if high is None else _high(high, rows, width)
    )
    bucket.histograms = Histograms(decode_block(block))
    if least:
        bucket.extremes = saved_extremes(rows, 2 * fields, least[0])
    else:
        bucket.extremes = pack_extremes(_estimated(bucket.series, bucket.histograms.block, fields, stride))
    return bucket


def _packed(columns: Sequence[bytes], rows: int, width: int, high: Ints | None = None) -> Packed:
    small_columns, small, large_columns, large = columns
    narrow, wide = np.frombuffer(small_columns, _INT64), np.frombuffer(large_columns, _INT64)
    return Packed(
        narrow,
        np.frombuffer(small, _UINT32).reshape(rows, len(narrow)),
        wide,
        np.frombuffer(large, _INT64).reshape(rows, len(wide)),
        high,
        width,
    )


def _high(data: bytes, rows: int, width: int) -> Ints:
    saved = np.frombuffer(data, np.int64).reshape(rows, -1)
    high = np.zeros((rows, width), np.int64)
    high[:, : saved.shape[1]] = saved
    return high


def _estimated(series: Ints, block: HistogramBlock, fields: int, stride: int) -> Ints:
    """Return extremes for a bucket that was saved without them: the edges of the outermost bins."""
    extremes = np.full((len(series), 2 * fields), NOTHING, np.int64)
    owners = block.owners.astype(np.int64)
    shown = np.flatnonzero(owners % stride < fields)
    if len(shown):
        ends = block.ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        lows, _ = edges_of(block.bins[starts[shown]].astype(np.int64))
        _, highs = edges_of(block.bins[ends[shown] - 1].astype(np.int64))
        rows, field = np.searchsorted(series, owners[shown] // stride), owners[shown] % stride
        extremes[rows, field], extremes[rows, fields + field] = lows, ~highs
    return extremes
