"""
Quantiles of integers: exact for up to 100 unrounded values, otherwise from a mergeable histogram with a known error.

A value can be removed from a summary that does not contain it, because another shard may have added the value. Such a
summary is a difference; merging the summaries of all shards gives the distribution.

The bins are those of OpenTelemetry's exponential and Prometheus' native histograms at scale 6. Bin n >= 1 holds the
values in (2**((n-2)/64), 2**((n-1)/64)], bin 0 holds 0, and bin -n holds the negatives of the values in bin n. Two
histograms merge by adding counts, so the order of merging does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SCALE = 6
_PER_OCTAVE = 2**SCALE
#: ``values_of`` differs from a value in the bin by at most this fraction of it: (b - 1) / (b + 1), b = 2**(1/64).
RELATIVE_ERROR = (2 ** (1 / _PER_OCTAVE) - 1) / (2 ** (1 / _PER_OCTAVE) + 1)
#: Most values that a summary keeps unrounded.
RAW_LIMIT = 100
#: Largest absolute value of a bin: that of the largest int64.
MAX_BIN = 63 * _PER_OCTAVE + 1


def bins_of(values: Ints) -> Ints:
    """Return the bin of each value: 0 for 0, 1 for 1, negative for a negative value; |bin| <= MAX_BIN."""
    size = np.abs(values.astype(np.float64))
    exponent = np.ceil(np.log2(np.maximum(size, 1.0)) * _PER_OCTAVE)
    bins: Ints = (np.sign(values) * (exponent + 1) * (size > 0)).astype(np.int64)
    return bins


def _middles() -> NDArray[np.float64]:
    edges = 2.0 ** (np.arange(-1, MAX_BIN, dtype=np.float64) / _PER_OCTAVE)
    middles = 2 * edges[:-1] * edges[1:] / (edges[:-1] + edges[1:])
    # Bin 1 holds the integer 1 only.
    middles[0] = 1.0
    return np.concatenate([[0.0], middles])


_MIDDLES = _middles()


def edges_of(bins: Ints) -> tuple[Ints, Ints]:
    """Return (a number that no value in the bin is below, a number that no value in the bin is above) for each bin."""
    size = np.abs(bins)
    exponent = size.astype(np.float64)
    # bins_of rounds, so a value next to an edge may be in the neighbouring bin; 1e-9 is far more than it can be off.
    near = np.where(size > 1, np.floor(2.0 ** ((exponent - 2) / _PER_OCTAVE) * (1 - 1e-9)), size)
    far = np.where(size > 1, np.ceil(2.0 ** ((exponent - 1) / _PER_OCTAVE) * (1 + 1e-9)), size)
    # The largest float below 2**63, because 2**63 - 1 is no float.
    near, far = (np.minimum(edge, 2.0**63 - 1024).astype(np.int64) for edge in (near, far))
    far = np.where(size >= MAX_BIN, 2**63 - 1, far)
    return np.where(bins < 0, np.where(size >= MAX_BIN, -(2**63), -far), near), np.where(bins < 0, -near, far)


def values_of(bins: Ints) -> NDArray[np.float64]:
    """Return a value for each bin: the harmonic mean of its edges, within RELATIVE_ERROR of all values in the bin."""
    return np.sign(bins) * _MIDDLES[np.abs(bins)]


def percentile(ascending: Sequence[float] | NDArray[np.float64], q: float) -> float:
    """
    Return the *q* quantile of *ascending*, linearly interpolated between neighbouring values.

    Args:
        ascending: Sorted values, any unit, length n >= 1.
        q: 0 <= q <= 1.

    Returns:
        A value in the unit of *ascending*.

    Raises:
        ValueError: *ascending* is empty.

    Source:
        Hyndman and Fan (1996), definition 7, which is numpy's default, ``linear``.
    """
    if not len(ascending):
        raise ValueError("no values")
    rank = q * (len(ascending) - 1)
    low = int(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


class Histogram(NamedTuple):
    """
    How many values lie in each bin.

    Attributes:
        bins: Bins in use, ascending.
        counts: Number of values in each of ``bins``; negative for removed values.
        low, high: No value is below or above these; None = unknown.
    """

    bins: Ints
    counts: Ints
    low: int | None = None
    high: int | None = None

    def range(self) -> tuple[int, int]:
        """Return (``low``, ``high``), or the edges of the outermost bins if these are unknown; there must be bins."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        lows, highs = edges_of(self.bins[[0, -1]])
        return int(lows[0]) if self.low is None else self.low, int(highs[1]) if self.high is None else self.high


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """
    The distribution of some integers: either unrounded values or a histogram.

    Attributes:
        values: Unrounded values, ascending, int64 little endian; empty if there are bins.
        bins: Bins in use, ascending, int16 little endian.
        counts: Number of values in each of ``bins``, int64 little endian; negative if more were removed than added.
        removed: Unrounded values that were removed but are in another summary, ascending, int64 little endian; empty
            if there are bins.
        low, high: No value is below or above these; they are values themselves, unless values were removed or a summary
            of an earlier version was merged. None if there are no bins.
    """

    values: bytes = b""
    bins: bytes = b""
    counts: bytes = b""
    removed: bytes = b""
    low: int | None = None
    high: int | None = None

    @classmethod
    def of(cls, values: Ints | Sequence[int]) -> Summary:
        """Return the summary of *values*: unrounded if there are at most RAW_LIMIT, otherwise a histogram."""
        array = np.asarray(values, dtype=np.int64)
        return cls.merged([array], [])

    @classmethod
    def merged(cls, raw: Iterable[Ints], binned: Iterable[Histogram], removed: Iterable[Ints] = ()) -> Summary:
        """
        Return the summary of all values in *raw* and *binned*, less those in *removed*.

        Args:
            raw: Unrounded values.
            binned: Histograms.
            removed: Unrounded values to subtract.
        """
        values = np.concatenate([np.empty(0, np.int64), *raw])
        away = np.concatenate([np.empty(0, np.int64), *removed])
        if len(away):
            values, away = _difference(values, away)
        histograms = [histogram for histogram in binned if len(histogram.bins)]
        if len(histograms) == 1 and not len(values) and not len(away):
            return cls._of_histogram(histograms[0])
        if not histograms and max(len(values), len(away)) <= RAW_LIMIT:
            return cls(values=np.sort(values).astype("<i8").tobytes(), removed=np.sort(away).astype("<i8").tobytes())
        parts = [(histogram.bins, histogram.counts) for histogram in histograms]
        if len(values):
            parts.append(count_distinct(bins_of(values)))
        if len(away):
            bins, counts = count_distinct(bins_of(away))
            parts.append((bins, -counts))
        bins, counts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        ranges = [histogram.range() for histogram in histograms if histogram.counts.max() > 0]
        if len(values):
            ranges.append((int(values.min()), int(values.max())))
        low, high = min((low for low, _ in ranges), default=None), max((high for _, high in ranges), default=None)
        # Keep bins whose count is 0: values added to and removed from a bin may differ, so they need not cancel out.
        return cls._of_histogram(Histogram(*add_up(bins, counts), low, high))

    @classmethod
    def _of_histogram(cls, histogram: Histogram) -> Summary:
        bins, counts, low, high = histogram
        return cls(bins=bins.astype("<i2").tobytes(), counts=counts.astype("<i8").tobytes(), low=low, high=high)

    def raw(self) -> Ints:
        """Return the unrounded values, ascending."""
        return np.frombuffer(self.values, "<i8").astype(np.int64)

    def removed_values(self) -> Ints:
        """Return ``removed`` as an array, ascending."""
        return np.frombuffer(self.removed, "<i8").astype(np.int64)

    def histogram(self) -> Histogram:
        """Return the histogram; empty if the values are unrounded."""
        bins, counts = np.frombuffer(self.bins, "<i2"), np.frombuffer(self.counts, "<i8")
        return Histogram(bins.astype(np.int64), counts.astype(np.int64), self.low, self.high)

    def range(self) -> tuple[int, int] | tuple[None, None]:
        """Return two numbers of which no value is below the first or above the second; None without values."""
        if self.bins:
            return self.histogram().range()
        raw = self.raw()
        return (int(raw[0]), int(raw[-1])) if len(raw) else (None, None)

    @property
    def count(self) -> int:
        """Number of values that were added, less the number removed."""
        return (len(self.values) - len(self.removed)) // 8 + int(self.histogram().counts.sum())

    @property
    def exact(self) -> bool:
        """Whether quantiles are exact: there is no histogram, and no removed value belongs to another summary."""
        return not self.bins and not self.removed

    def quantile(self, q: float) -> float | None:
        """
        Return the *q* quantile, linearly interpolated between ranks; None without values.

        With a histogram, the values interpolated between are off by at most RELATIVE_ERROR and are never outside
        ``low`` and ``high``; bins with a negative count count as empty. Without one, ``removed`` is ignored.
        """
        if not self.bins:
            raw = self.raw().astype(np.float64)
            return float(percentile(raw, q)) if len(raw) else None
        # An answer has up to thousands of quantiles: copy no column, and call methods, which cost less than functions.
        bins, counts = np.frombuffer(self.bins, "<i2"), np.frombuffer(self.counts, "<i8")
        upto = np.maximum(counts, 0).cumsum()
        total = int(upto[-1])
        if not total:
            return None
        rank = q * (total - 1)
        low = int(rank)
        at = upto.searchsorted((low, min(low + 1, total - 1)), side="right")
        below, above = values_of(bins[at])
        if self.low is not None and self.high is not None:
            below, above = max(below, self.low), max(above, self.low)
            below, above = min(below, self.high), min(above, self.high)
        return float(below + (above - below) * (rank - low))


def merge(summaries: Iterable[Summary]) -> Summary:
    """Return one summary of the values of all *summaries*."""
    parts = list(summaries)
    if len(parts) == 1:
        return parts[0]
    return Summary.merged(
        [part.raw() for part in parts], [part.histogram() for part in parts], [part.removed_values() for part in parts]
    )


def _difference(values: Ints, away: Ints) -> tuple[Ints, Ints]:
    """Return (*values* without *away*, *away* without *values*), as multisets."""
    ones = np.repeat(np.array([1, -1], np.int64), [len(values), len(away)])
    keys, counts = add_up(np.concatenate([values, away]), ones)
    return np.repeat(keys, np.maximum(counts, 0)), np.repeat(keys, np.maximum(-counts, 0))


def starts_of(ascending: Ints) -> Ints:
    """Return the index at which each run of equal numbers in *ascending* begins."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def count_distinct(keys: Ints) -> tuple[Ints, Ints]:
    """Return (ascending distinct *keys*, how often each occurs)."""
    if not len(keys):
        return keys, keys
    keys = np.sort(keys)
    starts = starts_of(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def add_up(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return (ascending distinct *keys*, the sum of the counts of each)."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = starts_of(keys)
    return keys[starts], np.add.reduceat(counts, starts)


def check_summaries(summaries: Iterable[Summary]) -> None:
    """
    Check summaries that were received from another process.

    Raises:
        ValueError: A column has an incomplete number, bins and counts differ in number, or a bin is beyond MAX_BIN.
    """
    bins = []
    for summary in summaries:
        # No loop over the columns, because the result of a series has some ten thousand summaries.
        whole = not (len(summary.values) % 8 or len(summary.removed) % 8 or len(summary.counts) % 8)
        if not whole or len(summary.bins) * 4 != len(summary.counts):
            raise ValueError("a distribution has columns that do not fit together")
        bins.append(summary.bins)
    all_bins = np.frombuffer(b"".join(bins), "<i2")
    if len(all_bins) and max(int(all_bins.max()), -int(all_bins.min())) > MAX_BIN:
        raise ValueError(f"a distribution has a bin beyond {MAX_BIN}")
