"""
Tiered rollups in event time: what any window is answered from.

Every row of a batch is kept in six tiers at once, from buckets of one second to buckets of one day. A window reads
the coarsest buckets that fit and finer ones at its edges, so it covers exactly an interval that it can name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedDict

from tokentrace.rollup.bucket import Bucket, decode_bucket, encode_bucket
from tokentrace.rollup.cumulative import Counters
from tokentrace.rollup.histograms import HistogramBlock, count_up, keys_of, moved, split
from tokentrace.rollup.int_sums import IntSums, Packed, add_by, add_runs, add_together
from tokentrace.rollup.quantile import RAW_LIMIT, Ints, Summary, starts_of
from tokentrace.rollup.recent_values import RecentValues
from tokentrace.rollup.resolutions import RESOLUTIONS, Resolution, Stretch
from tokentrace.rollup.series import ARRIVED, CHANGED, SECOND_OF, SERIES, SIGN, SPAN_SCHEMA, Schema, SeriesTable
from tokentrace.state import Part
from tokentrace.units import SECOND

#: Rows wait until there are this many, or somebody asks: grouping a few thousand at once is what makes folding cheap.
MAX_PENDING = 8192
#: Buckets outlive what their tier promises by this much: a question fixes its interval a moment before it arrives.
_SLACK_S = 600
#: A bucket that ended this long ago is put away in little room; what comes later still finds its place.
_SETTLED_S = 30
#: Wide buckets remember what they came to for the last few groupings asked for; they hardly ever change.
_REMEMBERS_S = 86400
_CELL_BITS = 24
#: Rows of buckets that are read in one go: enough that numpy pays, few enough that others get their turn.
_PORTION_ROWS = 8192
#: What a step costs besides its rows, in rows.
_STEP_ROWS = 32
#: After a distribution's name: the values that were taken away from it. Apart, so that counts stay unsigned.
_GONE = "_gone"


#: Parts of an interval, in order and without gaps, each as ``plan`` has it.
Steps = Sequence[Sequence[Stretch]]


class Rollup:
    """
    Buckets of the cells of *table* in several tiers.

    Args:
        tiers: Which; a rule keeps a single one.
        schema: What is kept of a row.
        lifetime: Counts everything as well; None = nobody asks.
    """

    def __init__(
        self,
        table: SeriesTable,
        tiers: Sequence[Resolution] = RESOLUTIONS,
        schema: Schema = SPAN_SCHEMA,
        lifetime: Counters | None = None,
    ) -> None:
        self._table, self._kept, self._schema, self._lifetime = table, tuple(tiers), schema, lifetime
        #: Distribution -> its place among those of a cell. They share a sketch: a bucket is read once for all of them.
        self._places = {name: place for place, name in enumerate(_distributions(schema))}
        self._tiers: list[SortedDict] = [SortedDict() for _ in tiers]
        self._open: list[set[int]] = [set() for _ in tiers]
        self._revisions: list[dict[int, int]] = [{} for _ in tiers]
        self._changes = 0
        self._newest: dict[str, RecentValues] = {}
        #: The same of values that a clock ahead of ours dated: they must not push out those of windows that end now.
        self._ahead: dict[str, RecentValues] = {}
        self._pending: list[Ints] = []
        self._pending_rows = 0
        self._changing: list[Ints] = []
        self._clock_s = 0
        self._late = 0

    @property
    def late(self) -> int:
        """Rows that lay behind every tier when they arrived."""
        self.settle()
        return self._late

    def fold(self, rows: Ints) -> None:
        """Take in *rows* as the schema has them."""
        if not len(rows):
            return
        self._pending.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= MAX_PENDING:
            self.settle()

    def change(self, rows: Ints) -> None:
        """Take in *rows* of changes: values that come or go where a row was counted, here or in another shard."""
        if not len(rows):
            return
        self._changing.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Put the rows that wait into their buckets."""
        pending, changing = self._pending, self._changing
        if not pending and not changing:
            return
        self._pending, self._changing, self._pending_rows = [], [], 0
        self._clock_s = max(self._clock_s, *(int(rows[:, ARRIVED].max()) for rows in (*pending, *changing)))
        if pending:
            rows, keys = _ordered(pending)
            self._late += int((rows[:, SECOND_OF] < rows[:, ARRIVED] - self._kept[-1].keep_s).sum())
            self._put(keys, IntSums.of(self._schema.sums_of(rows)), self._values(rows))
            if self._lifetime is not None:
                self._lifetime.count(rows, len(self._table))
        if changing:
            rows, keys = _ordered(changing)
            self._put(keys, IntSums.of(self._schema.changes_of(rows)), self._changed(rows))
        self.evict(self._clock_s * SECOND)

    def _put(self, keys: Ints, totals: IntSums, values: tuple[Ints, Ints]) -> None:
        """Add up *totals*, one row for each of the ascending *keys*, and *values* in every tier."""
        starts_s = keys >> _CELL_BITS
        for index, tier in enumerate(self._kept):
            # Each tier is added up from the one before: most rows meet others of their cell in the first step.
            starts_s, keys, totals = _coarser(keys, totals, tier.width_s)
            self._settle_tier(index, tier, starts_s, keys, totals, values)
        if self._lifetime is not None:
            cells = keys & ((1 << _CELL_BITS) - 1)
            distinct = np.unique(cells)
            by_cell = add_by(np.searchsorted(distinct, cells), totals, len(distinct))
            self._lifetime.add(distinct, by_cell, len(self._table))

    def _values(self, rows: Ints) -> tuple[Ints, Ints]:
        """(Seconds, keys) of the values of every distribution, by second; the newest of them are kept raw."""
        found = []
        all_cells, all_seconds = rows[:, SERIES].copy(), rows[:, SECOND_OF].copy()
        all_ahead = all_seconds > rows[:, ARRIVED]
        for field, (column, least) in self._schema.fields.items():
            values = np.ascontiguousarray(rows[:, column])
            counted = values >= least
            cells, seconds, ahead = all_cells, all_seconds, all_ahead
            if not counted.all():
                cells, seconds, values, ahead = cells[counted], seconds[counted], values[counted], ahead[counted]
            if len(values):
                found.append(self._noted(field, cells, seconds, values, ahead))
        return _by_second(found)

    def _changed(self, rows: Ints) -> tuple[Ints, Ints]:
        """As ``_values``, of rows of changes: what comes, and apart from it what goes."""
        field, found = self._schema.changing, []
        for name, sign in ((field, 1), (field + _GONE, -1)):
            some = rows[rows[:, SIGN] == sign]
            if name in self._places and len(some):
                cells, seconds, values = some[:, SERIES].copy(), some[:, SECOND_OF].copy(), some[:, CHANGED].copy()
                found.append(self._noted(name, cells, seconds, values, seconds > some[:, ARRIVED]))
        return _by_second(found)

    def _noted(
        self, field: str, cells: Ints, seconds: Ints, values: Ints, ahead: NDArray[np.bool_]
    ) -> tuple[Ints, Ints]:
        self._keep_newest(field, cells, seconds, values, ahead)
        return seconds, keys_of(cells * len(self._places) + self._places[field], values)

    def _keep_newest(self, field: str, cells: Ints, seconds: Ints, values: Ints, ahead: NDArray[np.bool_]) -> None:
        if ahead.any():
            self._ahead.setdefault(field, RecentValues()).add(cells[ahead], seconds[ahead], values[ahead])
            cells, seconds, values = cells[~ahead], seconds[~ahead], values[~ahead]
        if len(values):
            self._newest.setdefault(field, RecentValues()).add(cells, seconds, values)

    def _settle_tier(
        self,
        index: int,
        tier: Resolution,
        starts_s: Ints,
        keys: Ints,
        totals: IntSums,
        values: tuple[Ints, Ints],
    ) -> None:
        floor_s = self._clock_s - tier.keep_s - _SLACK_S - tier.width_s
        changes = starts_of(starts_s)
        ends = np.append(changes[1:], len(starts_s)).tolist()
        times = starts_s[changes]
        seconds, found = values
        lows, highs = np.searchsorted(seconds, times).tolist(), np.searchsorted(seconds, times + tier.width_s).tolist()
        buckets, revisions, open_ = self._tiers[index], self._revisions[index], self._open[index]
        for number, (start, end, at) in enumerate(zip(changes.tolist(), ends, times.tolist(), strict=True)):
            if at <= floor_s:
                continue
            bucket = buckets.get(at)
            if bucket is None:
                bucket = buckets[at] = Bucket()
            cells = keys[start:end] & ((1 << _CELL_BITS) - 1)
            high = totals.high
            bucket.add(cells, IntSums(totals.low[start:end].copy(), None if high is None else high[start:end].copy()))
            if lows[number] < highs[number]:
                bucket.add_keys(found[lows[number] : highs[number]].copy())
            open_.add(at)
            self._changes += 1
            revisions[at // tier.segment_s] = self._changes

    def evict(self, now_ns: int) -> None:
        """Forget the buckets that lie wholly behind what their tier keeps; put away those that have ended."""
        now_s = now_ns // SECOND
        for tier, buckets, open_, revisions in zip(self._kept, self._tiers, self._open, self._revisions, strict=True):
            floor = now_s - tier.keep_s - tier.width_s - _SLACK_S
            while buckets and buckets.peekitem(0)[0] <= floor:
                at, _ = buckets.popitem(0)
                open_.discard(at)
                if not buckets or buckets.peekitem(0)[0] // tier.segment_s != at // tier.segment_s:
                    revisions.pop(at // tier.segment_s, None)
            ended = [at for at in open_ if at + tier.width_s <= self._clock_s - _SETTLED_S]
            for at in ended:
                buckets[at].put_away()
                open_.discard(at)

    def renumber(self, table: SeriesTable, numbers: Ints) -> None:
        """Cell n is cell numbers[n] of *table* from now on; several may become one."""
        self.settle()
        self._table = table
        stride = len(self._places)
        places = (numbers[:, None] * stride + np.arange(stride)).ravel()
        for buckets in self._tiers:
            for bucket in buckets.values():
                bucket.renumber(numbers, places)
        for newest in (*self._newest.values(), *self._ahead.values()):
            newest.renumber(numbers)

    def portions(self, steps: Steps) -> Iterator[Steps]:
        """*steps* in runs of about as many rows as are well read at once."""
        self.settle()
        first, rows = 0, 0
        for number, stretches in enumerate(steps):
            rows += sum(len(bucket.cells) for _, _, bucket in self._buckets([stretches])) + _STEP_ROWS
            if rows >= _PORTION_ROWS:
                yield steps[first : number + 1]
                first, rows = number + 1, 0
        if first < len(steps):
            yield steps[first:]

    def totals(self, steps: Steps) -> tuple[Ints, Ints, IntSums]:
        """
        What the cells come to in each of *steps*.

        Returns:
            (Step, cell, what it comes to) of those that have any, ascending.
        """
        self.settle()
        size, width = len(self._table), self._schema.width
        found = [(step * size, bucket) for step, _, bucket in self._buckets(steps)]
        if not found:
            return _NONE, _NONE, IntSums.zeros(0, width)
        low = np.zeros((sum(len(bucket.cells) for _, bucket in found), width), np.int64)
        high: Ints | None = None
        at = 0
        for _, bucket in found:
            held, end = bucket.totals, at + len(bucket.cells)
            if isinstance(held, Packed):
                held.into(low[at:end])
            elif held is not None:
                low[at:end] = held.low
            if held is not None and held.high is not None:
                high = np.zeros_like(low) if high is None else high
                high[at:end] = held.high
            at = end
        keys, totals = add_together(
            np.concatenate([bucket.cells + first for first, bucket in found]), IntSums(low, high)
        )
        return *np.divmod(keys, size), totals

    def puts(self, steps: Steps) -> list[tuple[int, HistogramBlock]]:
        """(Step, distributions of a bucket) as they are now, whatever comes later."""
        self.settle()
        return [(step, bucket.sketch.settle()) for step, _, bucket in self._buckets(steps)]

    def summaries(
        self,
        steps: Steps,
        asked: Mapping[str, Ints],
        size: int,
        puts: Sequence[tuple[int, HistogramBlock]] | None = None,
    ) -> dict[str, dict[int, Summary]]:
        """
        Distributions of each group of cells in each of *steps*, without what was taken away from them.

        Args:
            asked: Distribution -> group number of every cell of the table, -1 = none; shape (cells,).
            size: How many groups there are.
            puts: As they were then; None = as they are now, with what buckets remember.

        Returns:
            Distribution -> step * size + group -> its summary, of those that have any.
        """
        self.settle()
        groups = dict(asked)
        if self._schema.changing in asked and self._schema.changing in self._places:
            groups[self._schema.changing + _GONE] = asked[self._schema.changing]
        held = self._held(steps, groups, size, puts)
        found = {}
        for field in asked:
            added, gone = held[field], held.get(field + _GONE, {})
            found[field] = {
                number: _summary(added.get(number, _NOTHING), gone.get(number, _NOTHING))
                for number in dict.fromkeys([*added, *gone])
            }
        return found

    def _held(
        self, steps: Steps, asked: Mapping[str, Ints], size: int, puts: Sequence[tuple[int, HistogramBlock]] | None
    ) -> dict[str, dict[int, _Held]]:
        """What each group holds of each distribution in each step."""
        if not asked:
            return {}
        stride, places = len(self._places), size * len(asked)
        cells = len(next(iter(asked.values())))
        numbers = np.full(cells * stride, -1, np.int64)
        for number, (field, groups) in enumerate(asked.items()):
            numbers[self._places[field] :: stride] = np.where(groups >= 0, groups + number * size, -1)
        if puts is None:
            reduced = (
                (step, bucket.reduced(numbers, places, remember=tier.width_s >= _REMEMBERS_S))
                for step, tier, bucket in self._buckets(steps)
            )
        else:
            reduced = ((step, put.by_group(numbers)) for step, put in puts)
        found = [(moved(keys, step * places), counts) for step, (keys, counts) in reduced]
        keys, counts = _NONE, _NONE
        if found:
            keys, counts = count_up(
                np.concatenate([one for one, _ in found]),
                np.concatenate([one for _, one in found]),
                places * len(steps),
            )
        own, bins = split(keys)
        starts = starts_of(own)
        ends = np.append(starts[1:], len(own))[: len(starts)]
        sizes = np.diff(np.concatenate([[0], np.cumsum(counts)])[np.append(starts, len(own))])
        owners, fields = own[starts] // places * size + own[starts] % size, own[starts] % places // size
        held = {}
        for number, (field, groups) in enumerate(asked.items()):
            mine = np.flatnonzero(fields == number)
            raw = self._raw(steps, groups, size, owners[mine], sizes[mine], field)
            held[field] = {
                owner: _Held(bins[low:high], counts[low:high], raw.get(owner))
                for owner, low, high in zip(*(one[mine].tolist() for one in (owners, starts, ends)), strict=True)
            }
        return held

    def _raw(self, steps: Steps, groups: Ints, size: int, owners: Ints, sizes: Ints, field: str) -> dict[int, Ints]:
        """The values of those ascending *owners*, step * size + group, with few of them, all of which are known."""
        few = sizes <= RAW_LIMIT
        owners, sizes = owners[few], sizes[few]
        held = [newest[field] for newest in (self._newest, self._ahead) if field in newest]
        if not held or not len(owners):
            return {}
        wanted = np.zeros(size, bool)
        wanted[owners % size] = True
        asked = np.where((groups >= 0) & wanted[np.maximum(groups, 0)], groups, -1)
        starts_s = np.array([stretches[0].start_s for stretches in steps])
        found = [newest.within(steps[0][0].start_s, steps[-1][-1].end_s, asked) for newest in held]
        own, seconds, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        own = (np.searchsorted(starts_s, seconds, side="right") - 1) * size + own
        order = np.argsort(own, kind="stable")
        own, values = own[order], values[order]
        lows, highs = np.searchsorted(own, owners), np.searchsorted(own, owners, side="right")
        whole = highs - lows == sizes
        edges = (one[whole].tolist() for one in (owners, lows, highs))
        return {owner: values[low:high] for owner, low, high in zip(*edges, strict=True)}

    def _buckets(self, steps: Steps) -> Iterator[tuple[int, Resolution, Bucket]]:
        """(Step, tier, bucket) of everything that lies in *steps*."""
        for step, stretches in enumerate(steps):
            for stretch in stretches:
                tier, buckets = self._kept[stretch.tier], self._tiers[stretch.tier]
                for at in buckets.irange(stretch.start_s, stretch.end_s, inclusive=(True, False)):
                    yield step, tier, buckets[at]

    def snapshot(self, saved: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Part]]:
        """
        Everything for ``restore``: a little plain data, and the buckets in parts of which most never change again.

        Args:
            saved: Part -> the revision of it that needs no saving.
        """
        self.settle()
        state = {
            "late": self._late,
            "clock_s": self._clock_s,
            "newest": {field: newest.snapshot() for field, newest in self._newest.items()},
            "ahead": {field: newest.snapshot() for field, newest in self._ahead.items()},
        }
        parts: dict[str, Part] = {}
        for index, (tier, buckets, revisions) in enumerate(zip(self._kept, self._tiers, self._revisions, strict=True)):
            for segment, revision in revisions.items():
                name = f"{index}-{segment}"
                if saved.get(name) == revision:
                    parts[name] = Part(revision, None)
                    continue
                times = buckets.irange(segment * tier.segment_s, (segment + 1) * tier.segment_s, (True, False))
                captured = [(at, buckets[at].capture()) for at in times]
                parts[name] = Part(revision, partial(_encode_segment, captured))
        return state, parts

    @classmethod
    def restore(
        cls,
        table: SeriesTable,
        state: Mapping[str, Any],
        parts: Mapping[str, bytes],
        tiers: Sequence[Resolution] = RESOLUTIONS,
        schema: Schema = SPAN_SCHEMA,
        lifetime: Counters | None = None,
    ) -> Rollup:
        """A rollup from ``snapshot``, *lifetime* restored already."""
        rollup = cls(table, tiers, schema, lifetime)
        rollup._late, rollup._clock_s = state["late"], state["clock_s"]
        rollup._newest = {field: RecentValues.restore(saved) for field, saved in state["newest"].items()}
        rollup._ahead = {field: RecentValues.restore(saved) for field, saved in state["ahead"].items()}
        for name, data in parts.items():
            index, _, segment = name.partition("-")
            rollup._revisions[int(index)][int(segment)] = 0
            for at, bucket in msgspec.msgpack.decode(data):
                rollup._tiers[int(index)][at] = decode_bucket(bucket, schema.width)
        return rollup


class _Held(NamedTuple):
    """
    What a group holds of a distribution.

    Attributes:
        bins, counts: Its histogram.
        raw: The values themselves; None when not all are known.
    """

    bins: Ints
    counts: Ints
    raw: Ints | None


_NONE = np.empty(0, np.int64)
_NOTHING = _Held(_NONE, _NONE, _NONE)


def _summary(added: _Held, gone: _Held) -> Summary:
    if added.raw is not None and gone.raw is not None:
        return Summary.merged([added.raw], [], [gone.raw])
    return Summary.merged([], [(added.bins, added.counts), (gone.bins, -gone.counts)])


def _distributions(schema: Schema) -> list[str]:
    gone = [schema.changing + _GONE] if schema.changing in schema.fields else []
    return [*schema.fields, *gone]


def _by_second(found: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """(Seconds, keys) of several that are in order already."""
    if len(found) < 2:
        return found[0] if found else (_NONE, _NONE)
    seconds, keys = np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])
    order = np.argsort(seconds, kind="stable")
    return seconds[order], keys[order]


def _ordered(pending: Sequence[Ints]) -> tuple[Ints, Ints]:
    """(Rows in order of second and cell, their keys)."""
    rows = pending[0] if len(pending) == 1 else np.concatenate(pending)
    keys = (rows[:, SECOND_OF] << _CELL_BITS) + rows[:, SERIES]
    order = np.argsort(keys, kind="stable")
    return rows[order], keys[order]


def _encode_segment(held: Sequence[tuple[int, Any]]) -> bytes:
    return msgspec.msgpack.encode([(at, encode_bucket(captured)) for at, captured in held])


def _coarser(keys: Ints, totals: IntSums, width_s: int) -> tuple[Ints, Ints, IntSums]:
    """(Start, key, totals) of every distinct (bucket of *width_s*, cell), ascending."""
    starts_s = keys >> _CELL_BITS
    if width_s > 1:
        starts_s = starts_s // width_s * width_s
        keys = (starts_s << _CELL_BITS) + (keys & ((1 << _CELL_BITS) - 1))
        order = np.argsort(keys, kind="stable")
        keys, totals = keys[order], totals.take(order)
    firsts = starts_of(keys)
    if len(firsts) < len(keys):
        keys, totals = keys[firsts], add_runs(totals, firsts)
    return keys >> _CELL_BITS, keys, totals
