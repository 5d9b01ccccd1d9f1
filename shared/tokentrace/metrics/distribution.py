"""
Distributions as numbers of values in intervals, for histograms and heatmaps.

The intervals are runs of the bins of ``rollup.quantile``, so that distributions of other times and shards have the same
edges. Widths are powers of two of a bin, and runs begin at fixed places.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tokentrace.rollup import SCALE, Ints, Summary, bins_of

_PER_OCTAVE = 2**SCALE


class Layout(NamedTuple):
    """
    The intervals of a histogram.

    Attributes:
        width: Number of bins of an interval.
        first: Number of the first interval; interval n holds the values above 2**((n - 1) * width / 64), up to and
            including 2**(n * width / 64).
        size: Number of intervals; 0 = there are no values over 0.
    """

    width: int
    first: int
    size: int

    def edges(self, unit: int) -> list[float]:
        """Return the edges of the intervals, ``size`` + 1 numbers, ascending; *unit* integers are 1 in the answer."""
        if not self.size:
            return []
        numbers = range(self.first - 1, self.first + self.size)
        return [2.0 ** (number * self.width / _PER_OCTAVE) / unit for number in numbers]

    def counts(self, summary: Summary) -> tuple[list[int], int]:
        """Return (number of values in each interval, number of values that are 0)."""
        bins, numbers = bins_in_use(summary)
        counts = np.zeros(self.size, np.int64)
        positive = bins > 0
        np.add.at(counts, _intervals(bins[positive], self.width) - self.first, numbers[positive])
        return counts.tolist(), int(numbers[bins == 0].sum())


def layout_of(summaries: Iterable[Summary], most: int) -> Layout:
    """Return the narrowest intervals of which at most *most* hold all values of *summaries*; most >= 2."""
    used = [bins[bins > 0] for bins, _ in map(bins_in_use, summaries)]
    bins = np.concatenate([np.empty(0, np.int64), *used])
    if not len(bins):
        return Layout(1, 0, 0)
    width = 1
    while True:
        low, high = (int(number) for number in _intervals(np.array([bins.min(), bins.max()]), width))
        if high - low < most:
            return Layout(width, low, high - low + 1)
        width *= 2


def _intervals(bins: Ints, width: int) -> Ints:
    """Return the interval of each of *bins*, which are over 0."""
    return -(-(bins - 1) // width)


def bins_in_use(summary: Summary) -> tuple[Ints, Ints]:
    """Return (bins, number of values in each); without the bins from which more was removed than is known."""
    bins, counts = summary.histogram()[:2]
    if not summary.bins:
        bins, counts = np.unique(bins_of(summary.raw()), return_counts=True)
    kept = counts > 0
    return bins[kept], counts[kept]
