"""The rollup: adds rows to the buckets of all resolutions. The docstring of the package says how it works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokentrace.rollup.bucket import Bucket
from tokentrace.rollup.cumulative import Counters
from tokentrace.rollup.extremes import extremes_of, extremes_of_changes, least_of_runs
from tokentrace.rollup.histograms import keys_of
from tokentrace.rollup.int_sums import IntSums, add_by, add_runs
from tokentrace.rollup.quantile import Ints, Summary, starts_of
from tokentrace.rollup.reader import REMOVED, BucketReader, Distributions, Steps
from tokentrace.rollup.recent_values import RecentValues
from tokentrace.rollup.resolution_buckets import ResolutionBuckets, decode_segment
from tokentrace.rollup.resolutions import RESOLUTIONS, Resolution
from tokentrace.rollup.rows import ARRIVED, CHANGED, SECOND_OF, SERIES, SIGN, SPAN_SCHEMA, Schema
from tokentrace.rollup.series import SeriesTable
from tokentrace.state import Part
from tokentrace.units import SECOND

#: Waiting rows are added to their buckets when there are this many, because grouping thousands at once is fast.
MAX_PENDING = 8192
#: Rows are sorted by a key, second * 2**24 + series.
_SERIES_BITS = 24
_SERIES_MASK = (1 << _SERIES_BITS) - 1
_NONE = np.empty(0, np.int64)


class Rollup:
    """
    Sums and distributions of the series of *table* in buckets of several resolutions.

    Args:
        table: The table in which the series of the rows are numbered.
        resolutions: Ascending; each width is a multiple of the one before, and the last is kept longest.
        schema: What is kept of a row.
        cumulative: Counters to which all rows are added as well; None = no counters.
    """

    def __init__(
        self,
        table: SeriesTable,
        resolutions: Sequence[Resolution] = RESOLUTIONS,
        schema: Schema = SPAN_SCHEMA,
        cumulative: Counters | None = None,
    ) -> None:
        self._table, self._schema, self._cumulative = table, schema, cumulative
        self._keep_s = resolutions[-1].keep_s
        self._levels = [ResolutionBuckets(resolution) for resolution in resolutions]
        #: Name of a distribution -> its number among the distributions of a series.
        self._distributions = {name: number for number, name in enumerate(_distributions(schema))}
        self._recent: dict[str, RecentValues] = {}
        #: Values with an event time after their arrival, from a clock that is ahead; separate, so that they do not
        #: displace other recent values.
        self._ahead: dict[str, RecentValues] = {}
        self._reader = BucketReader(self._levels, self._distributions, schema, self._recent, self._ahead)
        self._pending: list[Ints] = []
        self._pending_changes: list[Ints] = []
        self._pending_rows = 0
        self._clock_s = 0
        self._late = 0

    @property
    def late(self) -> int:
        """Number of rows of ``fold`` for whose second no bucket was kept any more when they arrived."""
        self.settle()
        return self._late

    def fold(self, rows: Ints) -> None:
        """Add *rows*, whose columns are those of the schema; they may wait until they are needed."""
        if not len(rows):
            return
        self._pending.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= MAX_PENDING:
            self.settle()

    def change(self, rows: Ints) -> None:
        """Add rows from ``change_rows``: values to remove or add for spans that this or another shard has counted."""
        if not len(rows):
            return
        self._pending_changes.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Add the waiting rows to their buckets."""
        pending, changes = self._pending, self._pending_changes
        if not pending and not changes:
            return
        self._pending, self._pending_changes, self._pending_rows = [], [], 0
        self._clock_s = max(self._clock_s, *(int(rows[:, ARRIVED].max()) for rows in (*pending, *changes)))
        if pending:
            rows, keys = _ordered(pending)
            self._late += int((rows[:, SECOND_OF] < rows[:, ARRIVED] - self._keep_s).sum())
            extremes = extremes_of(rows, self._schema.fields)
            self._add(keys, IntSums.of(self._schema.sums_of(rows)), extremes, self._values(rows))
            if self._cumulative is not None:
                self._cumulative.count(rows, len(self._table))
        if changes:
            rows, keys = _ordered(changes)
            number = self._distributions.get(self._schema.changing, -1)
            added = np.flatnonzero(rows[:, SIGN] == 1)
            extremes = extremes_of_changes(rows[:, CHANGED], added, number, len(self._schema.fields))
            self._add(keys, IntSums.of(self._schema.changes_of(rows)), extremes, self._changed_values(rows))
        self.evict(self._clock_s * SECOND)

    def _add(self, keys: Ints, totals: IntSums, extremes: Ints, values: tuple[Ints, Ints]) -> None:
        """
        Add to the buckets of all resolutions.

        Args:
            keys: Ascending keys.
            totals, extremes: Sums and extremes, one row for each of *keys*.
            values: (Seconds, keys) of the values for the distributions.
        """
        for level in self._levels:
            # Use the sums of the resolution before, so that most rows are grouped only once.
            starts_s, keys, totals, extremes = _coarser(keys, totals, extremes, level.resolution.width_s)
            level.add(self._clock_s, starts_s, keys & _SERIES_MASK, totals, extremes, values)
        if self._cumulative is not None:
            series = keys & _SERIES_MASK
            distinct = np.unique(series)
            by_series = add_by(np.searchsorted(distinct, series), totals, len(distinct))
            self._cumulative.add(distinct, by_series, len(self._table))

    def _values(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return (seconds, keys) of all values, in order of the seconds, and keep the values unrounded too."""
        parts = []
        all_series, all_seconds = rows[:, SERIES].copy(), rows[:, SECOND_OF].copy()
        all_ahead = all_seconds > rows[:, ARRIVED]
        for name, field in self._schema.fields.items():
            values = np.ascontiguousarray(rows[:, field.column])
            counted = field.counted(rows)
            series, seconds, ahead = all_series, all_seconds, all_ahead
            if not counted.all():
                series, seconds, values, ahead = series[counted], seconds[counted], values[counted], ahead[counted]
            if len(values):
                parts.append(self._keys(name, series, seconds, values, ahead))
        return _by_second(parts)

    def _changed_values(self, rows: Ints) -> tuple[Ints, Ints]:
        """Do the same as ``_values`` for rows of changes; removed values go into a separate distribution."""
        field, parts = self._schema.changing, []
        for name, sign in ((field, 1), (field + REMOVED, -1)):
            some = rows[rows[:, SIGN] == sign]
            if name in self._distributions and len(some):
                series, seconds, values = some[:, SERIES].copy(), some[:, SECOND_OF].copy(), some[:, CHANGED].copy()
                parts.append(self._keys(name, series, seconds, values, seconds > some[:, ARRIVED]))
        return _by_second(parts)

    def _keys(
        self, field: str, series: Ints, seconds: Ints, values: Ints, ahead: NDArray[np.bool_]
    ) -> tuple[Ints, Ints]:
        """Return (seconds, keys) of the values of one distribution, and keep the values unrounded too."""
        keys = keys_of(series * len(self._distributions) + self._distributions[field], values)
        all_seconds = seconds
        if ahead.any():
            self._ahead.setdefault(field, RecentValues()).add(series[ahead], seconds[ahead], values[ahead])
            series, seconds, values = series[~ahead], seconds[~ahead], values[~ahead]
        if len(values):
            self._recent.setdefault(field, RecentValues()).add(series, seconds, values)
        return all_seconds, keys

    def evict(self, now_ns: int) -> None:
        """Drop the buckets not kept any more at *now_ns*; pack those that ended 30 seconds before the last arrival."""
        for level in self._levels:
            level.evict(now_ns // SECOND, self._clock_s)

    def renumber(self, table: SeriesTable, numbers: Ints) -> None:
        """Use *table*, in which series n has the number numbers[n], from now on; the caller renumbers the counters."""
        self.settle()
        self._table = table
        stride = len(self._distributions)
        distributions = (numbers[:, None] * stride + np.arange(stride)).ravel()
        for level in self._levels:
            level.renumber(numbers, distributions)
        for recent in (*self._recent.values(), *self._ahead.values()):
            recent.renumber(numbers)

    def portions(self, steps: Steps) -> Iterator[Steps]:
        """Do the same as ``BucketReader.portions``, waiting rows included."""
        self.settle()
        return self._reader.portions(steps)

    def totals(self, steps: Steps) -> tuple[Ints, Ints, IntSums]:
        """Do the same as ``BucketReader.totals``, waiting rows included."""
        self.settle()
        return self._reader.totals(steps, len(self._table))

    def distributions(self, steps: Steps) -> Distributions:
        """Do the same as ``BucketReader.distributions``, waiting rows included."""
        self.settle()
        return self._reader.distributions(steps)

    def summaries(
        self,
        steps: Steps,
        groups: Mapping[str, Ints],
        size: int,
        distributions: Distributions | None = None,
    ) -> dict[str, dict[int, Summary]]:
        """Do the same as ``BucketReader.summaries``, waiting rows included."""
        self.settle()
        return self._reader.summaries(steps, groups, size, distributions)

    def snapshot(self, saved: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Part]]:
        """
        Return (plain data, name -> piece with some of the buckets) for ``restore``.

        Args:
            saved: Name of a piece -> revision that is saved already; an equal revision is not encoded again.
        """
        self.settle()
        state = {
            "late": self._late,
            "clock_s": self._clock_s,
            "newest": {field: recent.snapshot() for field, recent in self._recent.items()},
            "ahead": {field: recent.snapshot() for field, recent in self._ahead.items()},
        }
        parts: dict[str, Part] = {}
        for index, level in enumerate(self._levels):
            parts |= level.snapshot(f"{index}-", saved)
        return state, parts

    @classmethod
    def restore(
        cls,
        table: SeriesTable,
        state: Mapping[str, Any],
        parts: Mapping[str, Any],
        resolutions: Sequence[Resolution] = RESOLUTIONS,
        schema: Schema = SPAN_SCHEMA,
        cumulative: Counters | None = None,
    ) -> Rollup:
        """
        Return the rollup that ``snapshot`` saved; *cumulative* must be restored already.

        Args:
            parts: Name of a piece -> its bytes, or what ``decode_part`` returned for them.
        """
        rollup = cls(table, resolutions, schema, cumulative)
        rollup._late, rollup._clock_s = state["late"], state["clock_s"]
        rollup._recent.update({field: RecentValues.restore(saved) for field, saved in state["newest"].items()})
        rollup._ahead.update({field: RecentValues.restore(saved) for field, saved in state["ahead"].items()})
        for name, part in parts.items():
            index, _, segment = name.partition("-")
            buckets = decode_part(part, schema) if isinstance(part, bytes) else part
            rollup._levels[int(index)].restore(int(segment), buckets)
        return rollup


def decode_part(data: bytes, schema: Schema = SPAN_SCHEMA) -> list[tuple[int, Bucket]]:
    """
    Return what ``Rollup.restore`` takes over of a piece of a snapshot.

    Raises:
        ValueError, TypeError, msgspec.DecodeError: *data* is not a piece of a snapshot.
    """
    return decode_segment(data, schema.width, len(schema.fields), len(_distributions(schema)))


def _distributions(schema: Schema) -> list[str]:
    """Return the names of all distributions of *schema*; the one that may change has another for removed values."""
    removed = [schema.changing + REMOVED] if schema.changing in schema.fields else []
    return [*schema.fields, *removed]


def _by_second(parts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Return all (seconds, keys) of *parts* in order of the seconds; each part is in order already."""
    if len(parts) < 2:
        return parts[0] if parts else (_NONE, _NONE)
    seconds, keys = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(seconds, kind="stable")
    return seconds[order], keys[order]


def _ordered(pending: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Return (all rows in order of second and series, the key of each row)."""
    rows = pending[0] if len(pending) == 1 else np.concatenate(pending)
    keys = (rows[:, SECOND_OF] << _SERIES_BITS) + rows[:, SERIES]
    order = np.argsort(keys, kind="stable")
    return rows[order], keys[order]


def _coarser(keys: Ints, totals: IntSums, extremes: Ints, width_s: int) -> tuple[Ints, Ints, IntSums, Ints]:
    """Return (start of the bucket, key, sums, extremes) of every pair of bucket of *width_s* and series, ascending."""
    starts_s = keys >> _SERIES_BITS
    if width_s > 1:
        starts_s = starts_s // width_s * width_s
        keys = (starts_s << _SERIES_BITS) + (keys & _SERIES_MASK)
        order = np.argsort(keys, kind="stable")
        keys, totals, extremes = keys[order], totals.take(order), extremes[order]
    firsts = starts_of(keys)
    if len(firsts) < len(keys):
        keys, totals, extremes = keys[firsts], add_runs(totals, firsts), least_of_runs(extremes, firsts)
    return keys >> _SERIES_BITS, keys, totals, extremes
