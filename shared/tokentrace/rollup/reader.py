"""Reads a rollup: sums and distributions of an interval, by step and by group of series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tokentrace.rollup.bucket import Bucket
from tokentrace.rollup.extremes import NOTHING, least_by
from tokentrace.rollup.histograms import HistogramBlock, count_up, moved, split
from tokentrace.rollup.int_sums import IntSums, Packed, add_together
from tokentrace.rollup.quantile import RAW_LIMIT, Histogram, Ints, Summary, starts_of
from tokentrace.rollup.recent_values import RecentValues
from tokentrace.rollup.resolution_buckets import ResolutionBuckets
from tokentrace.rollup.resolutions import Resolution, Stretch
from tokentrace.rollup.rows import Schema

#: Buckets at least this wide cache their groupings, because most of them do not change any more.
_CACHE_WIDTH_S = 86400
#: Rows of buckets to read at once: enough for numpy to be fast, few enough to let other queries run in between.
_PORTION_ROWS = 8192
#: Time that a step takes besides reading its rows, as a number of rows.
_STEP_ROWS = 32
#: Suffix of the name of the distribution for the values removed from another one; it is separate because counts are
#: unsigned. Snapshots contain the suffix, so it must not change.
REMOVED = "_gone"
_NONE = np.empty(0, np.int64)

#: The steps of an interval, in order and without gaps; each is a list of stretches as ``cover`` returns it.
Steps = Sequence[Sequence[Stretch]]


class Distributions(NamedTuple):
    """
    The distributions of some buckets at one time.

    Attributes:
        blocks: (Step, histograms) of each bucket.
        extremes: (Step, series, extremes) of every series in every bucket.
    """

    blocks: list[tuple[int, HistogramBlock]]
    extremes: tuple[Ints, Ints, Ints]


class BucketReader:
    """
    Reads the buckets of a rollup, which must have no waiting rows.

    Args:
        levels: The buckets of each resolution.
        distributions: Name of a distribution -> its number among the distributions of a series.
        schema: What the rollup keeps of a row.
        recent, ahead: Name of a distribution -> its unrounded values; ahead = those with an event time after their
            arrival.
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
        """Yield *steps* in consecutive runs, each with about as many rows as should be read at once."""
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
        Return the sums of each series in each of *steps*.

        Args:
            size: Number of series.

        Returns:
            (Step, series, sums) of every series that occurred in a step, ascending by step, then series.
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

    def distributions(self, steps: Steps) -> Distributions:
        """Return all distributions in *steps*; later rows do not change the result."""
        blocks = [(step, bucket.histograms.settle()) for step, _, bucket in self._buckets(steps)]
        return Distributions(blocks, self._extremes(steps))

    def _extremes(self, steps: Steps) -> tuple[Ints, Ints, Ints]:
        """Return (step, series, extremes) of every series in every bucket in *steps*."""
        parts = [(step, bucket) for step, _, bucket in self._buckets(steps) if len(bucket.series)]
        if not parts:
            return _NONE, _NONE, np.empty((0, 2 * len(self._schema.fields)), np.int64)
        return (
            np.repeat([step for step, _ in parts], [len(bucket.series) for _, bucket in parts]),
            np.concatenate([bucket.series for _, bucket in parts]),
            np.concatenate([bucket.unpacked_extremes() for _, bucket in parts]),
        )

    def summaries(
        self,
        steps: Steps,
        groups: Mapping[str, Ints],
        size: int,
        distributions: Distributions | None = None,
    ) -> dict[str, dict[int, Summary]]:
        """
        Return the distributions of each group of series in each of *steps*, less the removed values.

        Args:
            groups: Name of a distribution -> group of every series, -1 = none; shape (series,).
            size: Number of groups.
            distributions: Result of an earlier call of ``distributions``, which is read in place of the present ones.

        Returns:
            Name of a distribution -> step * size + group -> summary, for each group with added or removed values.
        """
        wanted = dict(groups)
        if self._schema.changing in groups and self._schema.changing in self._distributions:
            wanted[self._schema.changing + REMOVED] = groups[self._schema.changing]
        held = self._held(steps, wanted, size, None if distributions is None else distributions.blocks)
        extremes = None if distributions is None else distributions.extremes
        summaries = {}
        for field in groups:
            added, removed = held[field], held.get(field + REMOVED, {})
            pairs = {
                number: (added.get(number, _NOTHING), removed.get(number, _NOTHING))
                for number in dict.fromkeys([*added, *removed])
            }
            ranges: dict[int, tuple[int, int]] = {}
            if any(not _is_raw(*pair) for pair in pairs.values()):
                extremes = self._extremes(steps) if extremes is None else extremes
                ranges = self._ranges(extremes, groups[field], size, field)
            summaries[field] = {
                number: _summary(*pair, *ranges.get(number, (None, None))) for number, pair in pairs.items()
            }
        return summaries

    def _ranges(
        self, extremes: tuple[Ints, Ints, Ints], groups: Ints, size: int, field: str
    ) -> dict[int, tuple[int, int]]:
        """Return step * size + group -> (smallest value, largest value) of the distribution *field*."""
        steps, series, matrix = extremes
        width, number = len(self._schema.fields), self._distributions[field]
        # Series may have been added after the groups were made.
        own = np.where(series < len(groups), groups[np.minimum(series, len(groups) - 1)], -1)
        kept = np.flatnonzero((own >= 0) & (matrix[:, number] != NOTHING))
        owners, least = least_by(steps[kept] * size + own[kept], matrix[kept][:, [number, width + number]])
        return {owner: (low, ~high) for owner, (low, high) in zip(owners.tolist(), least.tolist(), strict=True)}

    def _held(
        self,
        steps: Steps,
        wanted: Mapping[str, Ints],
        size: int,
        blocks: Sequence[tuple[int, HistogramBlock]] | None,
    ) -> dict[str, dict[int, _Distribution]]:
        """Return name of a distribution -> step * size + group -> its values; removed values are separate."""
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
        Return owner -> its unrounded values, for each owner with at most RAW_LIMIT values if all of them are known.

        Args:
            groups: Group of every series, -1 = none.
            owners: Numbers step * size + group, ascending.
            sizes: Number of values of each owner, according to the histograms.
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
        """Yield (step, resolution, bucket) for every bucket in *steps*."""
        for step, stretches in enumerate(steps):
            for stretch in stretches:
                level = self._levels[stretch.resolution]
                for bucket in level.within(stretch.start_s, stretch.end_s):
                    yield step, level.resolution, bucket


class _Distribution(NamedTuple):
    """
    The values of one distribution of a group in a step.

    Attributes:
        bins, counts: The histogram.
        raw: The unrounded values; None if they are too many or not all known.
    """

    bins: Ints
    counts: Ints
    raw: Ints | None


_NOTHING = _Distribution(_NONE, _NONE, _NONE)


def _is_raw(added: _Distribution, removed: _Distribution) -> bool:
    return added.raw is not None and removed.raw is not None


def _summary(added: _Distribution, removed: _Distribution, low: int | None, high: int | None) -> Summary:
    if added.raw is not None and removed.raw is not None:
        return Summary.merged([added.raw], [], [removed.raw])
    return Summary.merged(
        [], [Histogram(added.bins, added.counts, low, high), Histogram(removed.bins, -removed.counts)]
    )
