"""Reading a rollup: sums and distributions of intervals, by step and by group of series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tokentrace.rollup.bucket import Bucket
from tokentrace.rollup.histograms import HistogramBlock, count_up, moved, split
from tokentrace.rollup.int_sums import IntSums, Packed, add_together
from tokentrace.rollup.quantile import RAW_LIMIT, Ints, Summary, starts_of
from tokentrace.rollup.recent_values import RecentValues
from tokentrace.rollup.resolution_buckets import ResolutionBuckets
from tokentrace.rollup.resolutions import Resolution, Stretch
from tokentrace.rollup.rows import Schema

#: Buckets at least this wide cache their last groupings, because they hardly ever change.
_CACHE_WIDTH_S = 86400
#: Rows of buckets that are read at once: enough for numpy to be quick, few enough for other queries to get a turn.
_PORTION_ROWS = 8192
#: Cost of a step besides its rows, in rows.
_STEP_ROWS = 32
#: Suffix of the distribution with the values that were removed from another; separate, so that counts stay unsigned.
#: Snapshots hold this suffix, so it stays as it is.
REMOVED = "_gone"
_NONE = np.empty(0, np.int64)

#: Consecutive parts of an interval, without gaps, each as ``cover`` returns it.
Steps = Sequence[Sequence[Stretch]]


class BucketReader:
    """
    Reads the buckets of a rollup; the rollup adds waiting rows first.

    Args:
        levels: The buckets of each resolution.
        distributions: Distribution -> its number among those of a series.
        schema: What is kept of a row.
        recent, ahead: Distribution -> its unrounded values, and those dated after their arrival.
    """

    def __init__(
        self,
        levels: Sequence[ResolutionBuckets],
        distributions: Mapping[str, int],
        schema: Schema,
        recent: Mapping[str, RecentValues],
        ahead: Mapping[str, RecentValues],
    ) -> None:
        self._levels, self._distributions, self._schema = levels, distributions, schema
        self._recent, self._ahead = recent, ahead

    def portions(self, steps: Steps) -> Iterator[Steps]:
        """*steps* in consecutive runs, each with about as many rows as are read efficiently at once."""
        first, rows = 0, 0
        for number, stretches in enumerate(steps):
            rows += sum(len(bucket.series) for _, _, bucket in self._buckets([stretches])) + _STEP_ROWS
            if rows >= _PORTION_ROWS:
                yield steps[first : number + 1]
                first, rows = number + 1, 0
        if first < len(steps):
            yield steps[first:]

    def totals(self, steps: Steps, size: int) -> tuple[Ints, Ints, IntSums]:
        """
        Sums of each series in each of *steps*.

        Args:
            size: How many series there are.

        Returns:
            (Step, series, sums) of every series that occurred in a step, ascending.
        """
        width = self._schema.width
        parts = [(step * size, bucket) for step, _, bucket in self._buckets(steps)]
        if not parts:
            return _NONE, _NONE, IntSums.zeros(0, width)
        low = np.zeros((sum(len(bucket.series) for _, bucket in parts), width), np.int64)
        high: Ints | None = None
        start = 0
        for _, bucket in parts:
            held, end = bucket.totals, start + len(bucket.series)
            if isinstance(held, Packed):
                held.into(low[start:end])
            elif held is not None:
                low[start:end] = held.low
            if held is not None and held.high is not None:
                high = np.zeros_like(low) if high is None else high
                high[start:end] = held.high
            start = end
        keys, totals = add_together(
            np.concatenate([bucket.series + first for first, bucket in parts]), IntSums(low, high)
        )
        return *np.divmod(keys, size), totals

    def blocks(self, steps: Steps) -> list[tuple[int, HistogramBlock]]:
        """(Step, distributions) of each bucket as they are now; later rows do not change them."""
        return [(step, bucket.histograms.settle()) for step, _, bucket in self._buckets(steps)]

    def summaries(
        self,
        steps: Steps,
        groups: Mapping[str, Ints],
        size: int,
        blocks: Sequence[tuple[int, HistogramBlock]] | None = None,
    ) -> dict[str, dict[int, Summary]]:
        """
        Distributions of each group of series in each of *steps*, without the values that were removed.

        Args:
            groups: Distribution -> group of every series, -1 = none; shape (series,).
            size: How many groups there are.
            blocks: Result of an earlier call of ``blocks``, to be read in place of the present distributions.

        Returns:
            Distribution -> step * size + group -> summary, of the groups that have values.
        """
        wanted = dict(groups)
        if self._schema.changing in groups and self._schema.changing in self._distributions:
            wanted[self._schema.changing + REMOVED] = groups[self._schema.changing]
        held = self._held(steps, wanted, size, blocks)
        summaries = {}
        for field in groups:
            added, removed = held[field], held.get(field + REMOVED, {})
            summaries[field] = {
                number: _summary(added.get(number, _NOTHING), removed.get(number, _NOTHING))
                for number in dict.fromkeys([*added, *removed])
            }
        return summaries

    def _held(
        self,
        steps: Steps,
        wanted: Mapping[str, Ints],
        size: int,
        blocks: Sequence[tuple[int, HistogramBlock]] | None,
    ) -> dict[str, dict[int, _Distribution]]:
        """Distribution -> step * size + group -> its values."""
        if not wanted:
            return {}
        stride, places = len(self._distributions), size * len(wanted)
        series = len(next(iter(wanted.values())))
        numbers = np.full(series * stride, -1, np.int64)
        for number, (field, groups) in enumerate(wanted.items()):
            numbers[self._distributions[field] :: stride] = np.where(groups >= 0, groups + number * size, -1)
        if blocks is None:
            grouped = (
                (step, bucket.grouped(numbers, places, cache=resolution.width_s >= _CACHE_WIDTH_S))
                for step, resolution, bucket in self._buckets(steps)
            )
        else:
            grouped = ((step, block.by_group(numbers)) for step, block in blocks)
        parts = [(moved(keys, step * places), counts) for step, (keys, counts) in grouped]
        keys, counts = _NONE, _NONE
        if parts:
            keys, counts = count_up(
                np.concatenate([part_keys for part_keys, _ in parts]),
                np.concatenate([part_counts for _, part_counts in parts]),
                places * len(steps),
            )
        own, bins = split(keys)
        starts = starts_of(own)
        ends = np.append(starts[1:], len(own))[: len(starts)]
        sizes = np.diff(np.concatenate([[0], np.cumsum(counts)])[np.append(starts, len(own))])
        owners, fields = own[starts] // places * size + own[starts] % size, own[starts] % places // size
        held = {}
        for number, (field, groups) in enumerate(wanted.items()):
            mine = np.flatnonzero(fields == number)
            raw = self._raw(steps, groups, size, owners[mine], sizes[mine], field)
            runs = (column[mine].tolist() for column in (owners, starts, ends))
            held[field] = {
                owner: _Distribution(bins[low:high], counts[low:high], raw.get(owner))
                for owner, low, high in zip(*runs, strict=True)
            }
        return held

    def _raw(self, steps: Steps, groups: Ints, size: int, owners: Ints, sizes: Ints, field: str) -> dict[int, Ints]:
        """
        The unrounded values of the owners that have few values, all of which are known.

        Args:
            owners: Ascending, step * size + group.
            sizes: Number of values of each owner according to the histograms.
        """
        few = sizes <= RAW_LIMIT
        owners, sizes = owners[few], sizes[few]
        sources = [recent[field] for recent in (self._recent, self._ahead) if field in recent]
        if not sources or not len(owners):
            return {}
        wanted = np.zeros(size, bool)
        wanted[owners % size] = True
        wanted_groups = np.where((groups >= 0) & wanted[np.maximum(groups, 0)], groups, -1)
        starts_s = np.array([stretches[0].start_s for stretches in steps])
        parts = [source.within(steps[0][0].start_s, steps[-1][-1].end_s, wanted_groups) for source in sources]
        own, seconds, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        own = (np.searchsorted(starts_s, seconds, side="right") - 1) * size + own
        order = np.argsort(own, kind="stable")
        own, values = own[order], values[order]
        lows, highs = np.searchsorted(own, owners), np.searchsorted(own, owners, side="right")
        complete = highs - lows == sizes
        edges = (column[complete].tolist() for column in (owners, lows, highs))
        return {owner: values[low:high] for owner, low, high in zip(*edges, strict=True)}

    def _buckets(self, steps: Steps) -> Iterator[tuple[int, Resolution, Bucket]]:
        """(Step, resolution, bucket) of every bucket in *steps*."""
        for step, stretches in enumerate(steps):
            for stretch in stretches:
                level = self._levels[stretch.resolution]
                for bucket in level.within(stretch.start_s, stretch.end_s):
                    yield step, level.resolution, bucket


class _Distribution(NamedTuple):
    """
    The values of one distribution of a group.

    Attributes:
        bins, counts: Its histogram.
        raw: Its unrounded values; None when not all are known.
    """

    bins: Ints
    counts: Ints
    raw: Ints | None


_NOTHING = _Distribution(_NONE, _NONE, _NONE)


def _summary(added: _Distribution, removed: _Distribution) -> Summary:
    if added.raw is not None and removed.raw is not None:
        return Summary.merged([added.raw], [], [removed.raw])
    return Summary.merged([], [(added.bins, added.counts), (removed.bins, -removed.counts)])
