"""
Tiered rollups in event time: what any window is answered from.

Every row of a batch is kept in five tiers at once, from buckets of one second to buckets of one hour. A window reads
the coarsest buckets that fit and finer ones at its edges, so it covers exactly an interval that it can name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sortedcontainers import SortedDict

from tokentrace.cell import ARRIVED, CELL, FIELDS, SECOND_OF, WIDTH, Sums, Table, add_by, sums_of
from tokentrace.lifetime import Lifetime
from tokentrace.quantile import RAW_LIMIT, Ints, Summary, add_up, bins_of, tally
from tokentrace.units import DAY, SECOND


class Tier(NamedTuple):
    """Buckets of *width_s* seconds, kept for *keep_s* seconds."""

    width_s: int
    keep_s: int


TIERS = (
    Tier(1, 20 * 60),
    Tier(10, 3 * 3600),
    Tier(60, 36 * 3600),
    Tier(600, 8 * 86400),
    Tier(3600, 31 * 86400),
)
HORIZON_NS = 31 * DAY
#: Rows wait until there are this many, or somebody asks: grouping a few thousand at once is what makes folding cheap.
MAX_PENDING = 8192
_BIN_BITS = 16
_BIN_ZERO = 1 << (_BIN_BITS - 1)
#: Buckets outlive what their tier promises by this much: a question fixes its interval a moment before it arrives.
_SLACK_S = 600
#: How many raw values come in before a sketch looks which cells have more than they may keep.
_CHECK_RAW = 20 * RAW_LIMIT


class _Sketch:
    """The distribution of one field in one bucket, for all its cells."""

    __slots__ = ("bin_counts", "bin_keys", "check_at", "raw_cells", "raw_values")

    def __init__(self) -> None:
        self.raw_cells: Ints = np.empty(0, np.int64)
        self.raw_values: Ints = np.empty(0, np.int64)
        self.bin_keys: Ints = np.empty(0, np.int64)
        self.bin_counts: Ints = np.empty(0, np.int64)
        self.check_at = _CHECK_RAW

    def add(self, cells: Ints, values: Ints) -> None:
        self.raw_cells = np.concatenate([self.raw_cells, cells])
        self.raw_values = np.concatenate([self.raw_values, values])
        if len(self.raw_cells) >= self.check_at:
            self._bin_crowded()

    def _bin_crowded(self) -> None:
        crowded = np.bincount(self.raw_cells) > RAW_LIMIT
        moving = crowded[self.raw_cells]
        if moving.any():
            keys = (self.raw_cells[moving] << _BIN_BITS) + bins_of(self.raw_values[moving]) + _BIN_ZERO
            keys, counts = tally(keys)
            if len(self.bin_keys):
                keys, counts = add_up(np.concatenate([self.bin_keys, keys]), np.concatenate([self.bin_counts, counts]))
            self.bin_keys, self.bin_counts = keys, counts
            self.raw_cells, self.raw_values = self.raw_cells[~moving], self.raw_values[~moving]
        self.check_at = len(self.raw_cells) + _CHECK_RAW

    def arrays(self) -> list[bytes]:
        return [array.tobytes() for array in (self.raw_cells, self.raw_values, self.bin_keys, self.bin_counts)]

    @classmethod
    def of(cls, arrays: Sequence[bytes]) -> _Sketch:
        sketch = cls()
        sketch.raw_cells, sketch.raw_values, sketch.bin_keys, sketch.bin_counts = map(_ints, arrays)
        sketch.check_at = len(sketch.raw_cells) + _CHECK_RAW
        return sketch


class _Bucket:
    """One stretch of time of one tier: sums and distributions of the cells that occurred in it."""

    __slots__ = ("cells", "sketches", "sums")

    def __init__(self) -> None:
        self.cells: Ints = np.empty(0, np.int64)
        self.sums: Ints = np.empty((0, WIDTH), np.int64)
        self.sketches: dict[str, _Sketch] = {}

    def add(self, rows: Ints, sums: Ints) -> None:
        """Take in *rows* and what each adds; both ordered by cell."""
        cells = rows[:, CELL]
        starts = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))
        self._add_sums(cells[starts], np.add.reduceat(sums, starts, axis=0))
        for name, (column, least) in FIELDS.items():
            values = rows[:, column]
            counted = values >= least
            if counted.any():
                sketch = self.sketches.get(name)
                if sketch is None:
                    sketch = self.sketches[name] = _Sketch()
                sketch.add(cells[counted], values[counted])

    def _add_sums(self, cells: Ints, sums: Ints) -> None:
        if not len(self.cells):
            self.cells, self.sums = cells.copy(), sums
            return
        at = np.searchsorted(self.cells, cells)
        known = self.cells[np.minimum(at, len(self.cells) - 1)] == cells
        if not known.all():
            everything = np.union1d(self.cells, cells)
            wider = np.zeros((len(everything), WIDTH), np.int64)
            wider[np.searchsorted(everything, self.cells)] = self.sums
            self.cells, self.sums = everything, wider
            at = np.searchsorted(everything, cells)
        self.sums[at] += sums


class Stretch(NamedTuple):
    """A run of whole buckets of one tier: [start_s, end_s)."""

    tier: int
    start_s: int
    end_s: int


def plan(from_s: int, to_s: int, now_s: int) -> list[Stretch]:
    """
    The fewest buckets that cover [from_s, to_s), widened to the finest buckets still kept at each edge.

    Args:
        from_s, to_s, now_s: Unix seconds; from_s < to_s; from_s no older than the last tier keeps.

    Returns:
        Stretches in order, without gap or overlap.
    """
    edge = _finest(from_s, now_s)
    start = from_s // TIERS[edge].width_s * TIERS[edge].width_s
    # The last stretch begins where a coarser bucket would no longer fit: all of it has to be kept still.
    end_edge = next(
        (
            index
            for index, (fine, coarse) in enumerate(pairwise(TIERS))
            if max(start, to_s // coarse.width_s * coarse.width_s) >= now_s - fine.keep_s
        ),
        len(TIERS) - 1,
    )
    end = -(-to_s // TIERS[end_edge].width_s) * TIERS[end_edge].width_s
    stretches: list[Stretch] = []

    def cover(tier: int, low: int, high: int) -> None:
        if low >= high:
            return
        if tier == 0 or low % TIERS[tier].width_s == 0 == high % TIERS[tier].width_s:
            stretches.append(Stretch(tier, low, high))
            return
        width = TIERS[tier].width_s
        inner_low, inner_high = -(-low // width) * width, high // width * width
        if inner_low >= inner_high:
            cover(tier - 1, low, high)
            return
        cover(tier - 1, low, inner_low)
        cover(tier, inner_low, inner_high)
        cover(tier - 1, inner_high, high)

    cover(len(TIERS) - 1, start, end)
    return stretches


def _finest(at_s: int, now_s: int) -> int:
    for index, tier in enumerate(TIERS):
        if at_s >= now_s - tier.keep_s:
            return index
    return len(TIERS) - 1


class Reading(msgspec.Struct):
    """What some cells come to in an interval: sums, and the distributions that were asked for."""

    sums: Sums
    summaries: dict[str, Summary]


class Rollup:
    """
    Buckets of the cells of *table* in several tiers.

    Args:
        tiers: Which; a rule keeps a single one.
    """

    def __init__(self, table: Table, tiers: Sequence[Tier] = TIERS) -> None:
        self._table, self._kept = table, tuple(tiers)
        self._tiers: list[SortedDict] = [SortedDict() for _ in tiers]
        self._pending: list[Ints] = []
        self._pending_rows = 0
        self._clock_s = 0
        self.lifetime = Lifetime()
        self.late = 0

    def fold(self, rows: Ints) -> None:
        """Take in *rows* as ``cell.rows_of`` makes them."""
        if not len(rows):
            return
        self._pending.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Put the rows that wait into their buckets."""
        if not self._pending:
            return
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending, self._pending_rows = [], 0
        order = np.lexsort((rows[:, CELL], rows[:, SECOND_OF]))
        rows = rows[order]
        sums = sums_of(rows, self._table)
        self._clock_s = max(self._clock_s, int(rows[:, ARRIVED].max()))
        self.late += int((rows[:, SECOND_OF] < rows[:, ARRIVED] - self._kept[-1].keep_s).sum())
        self.lifetime.add(rows, sums, len(self._table))
        for index, tier in enumerate(self._kept):
            self._settle_tier(index, tier, rows, sums)
        self.evict(self._clock_s * SECOND)

    def _settle_tier(self, index: int, tier: Tier, rows: Ints, sums: Ints) -> None:
        bucket = rows[:, SECOND_OF] // tier.width_s
        kept = (bucket + 1) * tier.width_s > rows[:, ARRIVED] - tier.keep_s
        if not kept.all():
            rows, sums, bucket = rows[kept], sums[kept], bucket[kept]
            if not len(rows):
                return
        if tier.width_s > 1:
            order = np.lexsort((rows[:, CELL], bucket))
            rows, sums, bucket = rows[order], sums[order], bucket[order]
        starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
        ends = np.append(starts[1:], len(bucket))
        buckets = self._tiers[index]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            at = int(bucket[start]) * tier.width_s
            held = buckets.get(at)
            if held is None:
                held = buckets[at] = _Bucket()
            held.add(rows[start:end], sums[start:end])

    def evict(self, now_ns: int) -> None:
        """Forget the buckets that lie wholly behind what their tier keeps."""
        for tier, buckets in zip(self._kept, self._tiers, strict=True):
            floor = now_ns // SECOND - tier.keep_s - tier.width_s - _SLACK_S
            while buckets and buckets.peekitem(0)[0] <= floor:
                buckets.popitem(0)

    def read(self, stretches: Sequence[Stretch], groups: Ints, size: int, fields: Sequence[str]) -> list[Reading]:
        """
        What the cells of each group come to over *stretches*.

        Args:
            groups: Group number of every cell of the table, -1 = none; shape (cells,).
            size: How many groups there are.
            fields: Which distributions to give, of ``cell.FIELDS``.

        Returns:
            One reading per group.
        """
        self.settle()
        buckets = list(self._buckets(stretches))
        if not buckets:
            return [Reading(Sums(), {name: Summary() for name in fields}) for _ in range(size)]
        cells = np.concatenate([bucket.cells for bucket in buckets])
        sums = add_by(groups[cells], np.concatenate([bucket.sums for bucket in buckets]), size)
        summaries = {name: _summaries(name, buckets, groups, size) for name in fields}
        return [Reading(Sums.of(sums[n]), {name: summaries[name][n] for name in fields}) for n in range(size)]

    def _buckets(self, stretches: Sequence[Stretch]) -> Iterator[_Bucket]:
        for stretch in stretches:
            buckets = self._tiers[stretch.tier]
            for at in buckets.irange(stretch.start_s, stretch.end_s, inclusive=(True, False)):
                yield buckets[at]

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data for ``restore``."""
        self.settle()
        return {
            "late": self.late,
            "lifetime": self.lifetime.snapshot(),
            "clock_s": self._clock_s,
            "tiers": [
                [
                    (
                        at,
                        bucket.cells.tobytes(),
                        bucket.sums.tobytes(),
                        {n: s.arrays() for n, s in bucket.sketches.items()},
                    )
                    for at, bucket in buckets.items()
                ]
                for buckets in self._tiers
            ],
        }

    @classmethod
    def restore(cls, table: Table, state: Mapping[str, Any], tiers: Sequence[Tier] = TIERS) -> Rollup:
        """A rollup from ``snapshot``."""
        rollup = cls(table, tiers)
        rollup.late = state["late"]
        rollup.lifetime = Lifetime.restore(state["lifetime"])
        rollup._clock_s = state["clock_s"]
        for buckets, saved in zip(rollup._tiers, state["tiers"], strict=True):
            for at, cells, sums, sketches in saved:
                bucket = buckets[at] = _Bucket()
                bucket.cells, bucket.sums = _ints(cells), _ints(sums).reshape(-1, WIDTH)
                bucket.sketches = {name: _Sketch.of(arrays) for name, arrays in sketches.items()}
        return rollup


def _ints(data: bytes) -> Ints:
    return np.frombuffer(data, np.int64).copy()


def _summaries(name: str, buckets: Sequence[_Bucket], groups: Ints, size: int) -> list[Summary]:
    sketches = [bucket.sketches[name] for bucket in buckets if name in bucket.sketches]
    if not sketches:
        return [Summary()] * size
    raw_groups = groups[np.concatenate([sketch.raw_cells for sketch in sketches])]
    raw_values = np.concatenate([sketch.raw_values for sketch in sketches])
    bin_keys = np.concatenate([sketch.bin_keys for sketch in sketches])
    bin_counts = np.concatenate([sketch.bin_counts for sketch in sketches])
    bin_groups = groups[bin_keys >> _BIN_BITS]
    bins = (bin_keys & ((1 << _BIN_BITS) - 1)) - _BIN_ZERO
    if size == 1:
        raw, binned = raw_groups >= 0, bin_groups >= 0
        return [Summary.merged([raw_values[raw]], [(bins[binned], bin_counts[binned])])]
    raw_order, bin_order = np.argsort(raw_groups, kind="stable"), np.argsort(bin_groups, kind="stable")
    raw_groups, raw_values = raw_groups[raw_order], raw_values[raw_order]
    bin_groups, bins, bin_counts = bin_groups[bin_order], bins[bin_order], bin_counts[bin_order]
    numbers = np.arange(size)
    raw_from, raw_to = np.searchsorted(raw_groups, numbers), np.searchsorted(raw_groups, numbers, side="right")
    bin_from, bin_to = np.searchsorted(bin_groups, numbers), np.searchsorted(bin_groups, numbers, side="right")
    return [
        Summary.merged([raw_values[a:b]], [(bins[c:d], bin_counts[c:d])])
        for a, b, c, d in zip(raw_from, raw_to, bin_from, bin_to, strict=True)
    ]
