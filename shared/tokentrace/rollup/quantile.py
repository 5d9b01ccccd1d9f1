"""
Quantiles of integers: exact below 100 values, then a mergeable histogram with a stated error.

Values may be taken away where they were never added: summaries are differences, and right once everything is merged.

The histogram's buckets are those of OpenTelemetry's exponential and Prometheus' native histograms at scale 6: bucket i
holds the values in (2**((i-1)/64), 2**(i/64)]. Zero has a bucket of its own, negatives mirror the positives, and two
histograms merge by adding counts, so the order of merging never matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SCALE = 6
_PER_OCTAVE = 2**SCALE
#: A value read from a bucket differs from the true one by at most this fraction: (b - 1) / (b + 1), b = 2**(1/64).
RELATIVE_ERROR = (2 ** (1 / _PER_OCTAVE) - 1) / (2 ** (1 / _PER_OCTAVE) + 1)
#: A summary keeps its raw values up to here.
RAW_LIMIT = 100
#: |bin| of the largest int64.
MAX_BIN = 63 * _PER_OCTAVE + 1


def bins_of(values: Ints) -> Ints:
    """The bucket of each value: 0 for 0, 1 for 1, negative for negative; |bin| <= MAX_BIN."""
    size = np.abs(values.astype(np.float64))
    exponent = np.ceil(np.log2(np.maximum(size, 1.0)) * _PER_OCTAVE)
    bins: Ints = (np.sign(values) * (exponent + 1) * (size > 0)).astype(np.int64)
    return bins


def _middles() -> NDArray[np.float64]:
    edges = 2.0 ** (np.arange(-1, MAX_BIN, dtype=np.float64) / _PER_OCTAVE)
    middles = 2 * edges[:-1] * edges[1:] / (edges[:-1] + edges[1:])
    # Bucket 1 holds the integer 1 and nothing else.
    middles[0] = 1.0
    return np.concatenate([[0.0], middles])


_MIDDLES = _middles()


def values_of(bins: Ints) -> NDArray[np.float64]:
    """The value that stands for each bucket, within RELATIVE_ERROR of everything in it."""
    return np.sign(bins) * _MIDDLES[np.abs(bins)]


def percentile(ascending: Sequence[float] | NDArray[np.float64], q: float) -> float:
    """
    Value below which a fraction *q* of the data lies, by linear interpolation.

    Args:
        ascending: Sorted values, any unit, length n >= 1.
        q: 0 <= q <= 1.

    Returns:
        Same unit as *ascending*.

    Raises:
        ValueError: *ascending* is empty.

    Source:
        SPEC C.2 (exact below 100 values); the definition is numpy's default, ``linear``.
    """
    if not len(ascending):
        raise ValueError("no values")
    rank = q * (len(ascending) - 1)
    low = int(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """
    What is known of the distribution of some integers.

    Attributes:
        values: Raw values, ascending, int64 little endian; empty once there are buckets.
        bins: Buckets in use, ascending, int16 little endian.
        counts: How many values each holds, int64 little endian; below 0 where more were taken away than added.
        gone: Raw values that were taken away and are not among *values*; they are added in another summary.
    """

    values: bytes = b""
    bins: bytes = b""
    counts: bytes = b""
    gone: bytes = b""

    @classmethod
    def of(cls, values: Ints | Sequence[int]) -> Summary:
        """The summary of *values*: raw up to RAW_LIMIT of them, buckets beyond."""
        array = np.asarray(values, dtype=np.int64)
        return cls.merged([array], [])

    @classmethod
    def merged(cls, raw: Iterable[Ints], binned: Iterable[tuple[Ints, Ints]], gone: Iterable[Ints] = ()) -> Summary:
        """The summary of raw values and (ascending bins, counts) together, without the raw values *gone*."""
        values, away = np.concatenate([np.empty(0, np.int64), *raw]), np.concatenate([np.empty(0, np.int64), *gone])
        if len(away):
            values, away = _difference(values, away)
        histograms = [pair for pair in binned if len(pair[0])]
        if len(histograms) == 1 and not len(values) and not len(away):
            return cls._of_histogram(*histograms[0])
        if not histograms and max(len(values), len(away)) <= RAW_LIMIT:
            return cls(values=np.sort(values).astype("<i8").tobytes(), gone=np.sort(away).astype("<i8").tobytes())
        added, taken = tally(bins_of(values)), tally(bins_of(away))
        bins = np.concatenate([added[0], taken[0], *(pair[0] for pair in histograms)])
        counts = np.concatenate([added[1], -taken[1], *(pair[1] for pair in histograms)])
        # A bucket that comes to nothing stays: of what it held nobody knows that it was the same values.
        return cls._of_histogram(*add_up(bins, counts))

    @classmethod
    def _of_histogram(cls, bins: Ints, counts: Ints) -> Summary:
        return cls(bins=bins.astype("<i2").tobytes(), counts=counts.astype("<i8").tobytes())

    def raw(self) -> Ints:
        """The raw values, ascending."""
        return np.frombuffer(self.values, "<i8").astype(np.int64)

    def taken(self) -> Ints:
        """The raw values that were taken away, ascending."""
        return np.frombuffer(self.gone, "<i8").astype(np.int64)

    def histogram(self) -> tuple[Ints, Ints]:
        """(bins, counts)."""
        return np.frombuffer(self.bins, "<i2").astype(np.int64), np.frombuffer(self.counts, "<i8").astype(np.int64)

    @property
    def count(self) -> int:
        """How many values were summarised, less those taken away."""
        return (len(self.values) - len(self.gone)) // 8 + int(self.histogram()[1].sum())

    @property
    def exact(self) -> bool:
        """True when a quantile of it has no error."""
        return not self.bins and not self.gone

    def quantile(self, q: float) -> float | None:
        """
        The *q* quantile, linearly interpolated between ranks; None when empty; see RELATIVE_ERROR.

        Where more was taken away than added, the rest was added in what is not merged yet; it counts as nothing.
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
    """One summary of everything that *summaries* summarise."""
    parts = list(summaries)
    if len(parts) == 1:
        return parts[0]
    return Summary.merged(
        [part.raw() for part in parts], [part.histogram() for part in parts], [part.taken() for part in parts]
    )


def _difference(values: Ints, away: Ints) -> tuple[Ints, Ints]:
    """(What of *values* is not in *away*, what of *away* is not in *values*), as multisets."""
    ones = np.repeat(np.array([1, -1], np.int64), [len(values), len(away)])
    keys, counts = add_up(np.concatenate([values, away]), ones)
    return np.repeat(keys, np.maximum(counts, 0)), np.repeat(keys, np.maximum(-counts, 0))


def starts_of(ascending: Ints) -> Ints:
    """Where each run of equal numbers begins."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def tally(keys: Ints) -> tuple[Ints, Ints]:
    """Ascending distinct *keys* and how often each occurs."""
    if not len(keys):
        return keys, keys
    keys = np.sort(keys)
    starts = starts_of(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def add_up(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ascending distinct *keys* and the sum of the counts of each."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = starts_of(keys)
    return keys[starts], np.add.reduceat(counts, starts)


def check_summaries(summaries: Iterable[Summary]) -> None:
    """
    Whether *summaries* that came from elsewhere can be computed with.

    Raises:
        ValueError: Their columns do not fit together, or name a bucket that does not exist.
    """
    bins = []
    for one in summaries:
        if len(one.values) % 8 or len(one.gone) % 8 or len(one.counts) % 8 or len(one.bins) * 4 != len(one.counts):
            raise ValueError("a distribution of it has columns that do not fit together")
        bins.append(one.bins)
    every = np.frombuffer(b"".join(bins), "<i2")
    if len(every) and max(int(every.max()), -int(every.min())) > MAX_BIN:
        raise ValueError("a distribution of it names a bucket that does not exist")
