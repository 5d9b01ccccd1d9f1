"""
Quantiles of integers: exact up to 100 values, then from a mergeable histogram with a known error.

Values can be removed from a summary that does not contain them, because another shard may have added them. Such a
summary is a difference; it is right once the summaries of all shards are merged.

The bins are those of OpenTelemetry's exponential and Prometheus' native histograms at scale 6: the i-th bin holds the
values in (2**((i-1)/64), 2**(i/64)]. Zero has a separate bin, negative values mirror positive ones, and two histograms
merge by adding counts, so the order of merging does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SCALE = 6
_PER_OCTAVE = 2**SCALE
#: A value read from a bin differs from the true one by at most this fraction: (b - 1) / (b + 1), b = 2**(1/64).
RELATIVE_ERROR = (2 ** (1 / _PER_OCTAVE) - 1) / (2 ** (1 / _PER_OCTAVE) + 1)
#: A summary keeps its values unrounded up to this many.
RAW_LIMIT = 100
#: |bin| of the largest int64.
MAX_BIN = 63 * _PER_OCTAVE + 1


def bins_of(values: Ints) -> Ints:
    """The bin of each value: 0 for 0, 1 for 1, negative for negative values; |bin| <= MAX_BIN."""
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


def values_of(bins: Ints) -> NDArray[np.float64]:
    """The value that stands for each bin: the harmonic mean of its edges, within RELATIVE_ERROR of all its values."""
    return np.sign(bins) * _MIDDLES[np.abs(bins)]


def percentile(ascending: Sequence[float] | NDArray[np.float64], q: float) -> float:
    """
    The value below which a fraction *q* of the data lies, by linear interpolation.

    Args:
        ascending: Sorted values, any unit, length n >= 1.
        q: 0 <= q <= 1.

    Returns:
        Same unit as *ascending*.

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


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """
    The distribution of some integers: unrounded values, or a histogram.

    Attributes:
        values: Unrounded values, ascending, int64 little endian; empty if there are bins.
        bins: Bins in use, ascending, int16 little endian.
        counts: How many values each bin holds, int64 little endian; below 0 where more were removed than added.
        removed: Unrounded values that were removed and are not among *values*, because another summary contains them.
    """

    values: bytes = b""
    bins: bytes = b""
    counts: bytes = b""
    removed: bytes = b""

    @classmethod
    def of(cls, values: Ints | Sequence[int]) -> Summary:
        """The summary of *values*: unrounded up to RAW_LIMIT of them, otherwise a histogram."""
        array = np.asarray(values, dtype=np.int64)
        return cls.merged([array], [])

    @classmethod
    def merged(cls, raw: Iterable[Ints], binned: Iterable[tuple[Ints, Ints]], removed: Iterable[Ints] = ()) -> Summary:
        """The summary of unrounded values and of (ascending bins, counts), less the unrounded values *removed*."""
        values = np.concatenate([np.empty(0, np.int64), *raw])
        away = np.concatenate([np.empty(0, np.int64), *removed])
        if len(away):
            values, away = _difference(values, away)
        histograms = [pair for pair in binned if len(pair[0])]
        if len(histograms) == 1 and not len(values) and not len(away):
            return cls._of_histogram(*histograms[0])
        if not histograms and max(len(values), len(away)) <= RAW_LIMIT:
            return cls(values=np.sort(values).astype("<i8").tobytes(), removed=np.sort(away).astype("<i8").tobytes())
        added, subtracted = count_distinct(bins_of(values)), count_distinct(bins_of(away))
        bins = np.concatenate([added[0], subtracted[0], *(pair[0] for pair in histograms)])
        counts = np.concatenate([added[1], -subtracted[1], *(pair[1] for pair in histograms)])
        # Keep bins whose count is 0: the values added and removed may differ, so the summary is not known to be empty.
        return cls._of_histogram(*add_up(bins, counts))

    @classmethod
    def _of_histogram(cls, bins: Ints, counts: Ints) -> Summary:
        return cls(bins=bins.astype("<i2").tobytes(), counts=counts.astype("<i8").tobytes())

    def raw(self) -> Ints:
        """The unrounded values, ascending."""
        return np.frombuffer(self.values, "<i8").astype(np.int64)

    def removed_values(self) -> Ints:
        """The unrounded values that were removed, ascending."""
        return np.frombuffer(self.removed, "<i8").astype(np.int64)

    def histogram(self) -> tuple[Ints, Ints]:
        """(bins, counts)."""
        return np.frombuffer(self.bins, "<i2").astype(np.int64), np.frombuffer(self.counts, "<i8").astype(np.int64)

    @property
    def count(self) -> int:
        """How many values were added, less those removed."""
        return (len(self.values) - len(self.removed)) // 8 + int(self.histogram()[1].sum())

    @property
    def exact(self) -> bool:
        """Whether quantiles have no error."""
        return not self.bins and not self.removed

    def quantile(self, q: float) -> float | None:
        """
        The *q* quantile, linearly interpolated between ranks, with at most RELATIVE_ERROR; None when empty.

        A bin from which more was removed than added counts as empty.
        """
        if not self.bins:
            raw = self.raw().astype(np.float64)
            return float(percentile(raw, q)) if len(raw) else None
        bins, counts = self.histogram()
        upto = np.cumsum(np.maximum(counts, 0))
        if not upto[-1]:
            return None
        rank = q * (int(upto[-1]) - 1)
        low = int(rank)
        at = np.searchsorted(upto, [low, min(low + 1, int(upto[-1]) - 1)], side="right")
        below, above = values_of(bins[at])
        return float(below + (above - below) * (rank - low))


def merge(summaries: Iterable[Summary]) -> Summary:
    """One summary of the values of all *summaries*."""
    parts = list(summaries)
    if len(parts) == 1:
        return parts[0]
    return Summary.merged(
        [part.raw() for part in parts], [part.histogram() for part in parts], [part.removed_values() for part in parts]
    )


def _difference(values: Ints, away: Ints) -> tuple[Ints, Ints]:
    """(*values* without *away*, *away* without *values*), as multisets."""
    ones = np.repeat(np.array([1, -1], np.int64), [len(values), len(away)])
    keys, counts = add_up(np.concatenate([values, away]), ones)
    return np.repeat(keys, np.maximum(counts, 0)), np.repeat(keys, np.maximum(-counts, 0))


def starts_of(ascending: Ints) -> Ints:
    """Index at which each run of equal numbers begins."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def count_distinct(keys: Ints) -> tuple[Ints, Ints]:
    """(Ascending distinct *keys*, how often each occurs)."""
    if not len(keys):
        return keys, keys
    keys = np.sort(keys)
    starts = starts_of(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def add_up(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """(Ascending distinct *keys*, the sum of the counts of each)."""
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
        ValueError: Columns of different length, or a bin that does not exist.
    """
    bins = []
    for summary in summaries:
        integers = (summary.values, summary.removed, summary.counts)
        if any(len(column) % 8 for column in integers) or len(summary.bins) * 4 != len(summary.counts):
            raise ValueError("a distribution has columns that do not fit together")
        bins.append(summary.bins)
    all_bins = np.frombuffer(b"".join(bins), "<i2")
    if len(all_bins) and max(int(all_bins.max()), -int(all_bins.min())) > MAX_BIN:
        raise ValueError(f"a distribution has a bin beyond {MAX_BIN}")
