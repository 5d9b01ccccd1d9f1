"""The buckets of one resolution: adding rows, eviction and snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from sortedcontainers import SortedDict

from tokentrace.rollup.bucket import Bucket, decode_bucket, encode_bucket
from tokentrace.rollup.int_sums import IntSums
from tokentrace.rollup.quantile import Ints, starts_of
from tokentrace.rollup.resolutions import Resolution
from tokentrace.state import Part

#: Seconds that buckets are kept longer than ``Resolution.keep_s``: a query fixes its interval before it arrives here.
_SLACK_S = 600
#: A bucket is packed this many seconds after its end; later rows can still be added.
_COMPACT_AFTER_S = 30


class ResolutionBuckets:
    """
    The buckets of one resolution.

    Attributes:
        resolution: The width of the buckets, and how long they are kept.
        buckets: Start of a bucket, Unix seconds -> the bucket, ascending.
    """

    def __init__(self, resolution: Resolution) -> None:
        self.resolution = resolution
        self.buckets: SortedDict = SortedDict()
        #: Starts of the buckets that are not packed.
        self._open: set[int] = set()
        #: Number of a piece of a snapshot -> its revision, as in ``Part``.
        self._revisions: dict[int, int] = {}
        self._changes = 0

    def add(
        self,
        clock_s: int,
        starts_s: Ints,
        series: Ints,
        totals: IntSums,
        extremes: Ints,
        values: tuple[Ints, Ints],
    ) -> None:
        """
        Add sums, extremes and values to the buckets; ignore those for buckets that are not kept any more at *clock_s*.

        Args:
            clock_s: The latest arrival, Unix seconds.
            starts_s, series: Start of the bucket and series of each row of *totals*, as distinct ascending pairs.
            extremes: Extremes, one row for each of *totals*.
            values: (Seconds, keys) of the values for the distributions, in order of the seconds.
        """
        width_s, floor_s = self.resolution.width_s, self._floor_s(clock_s)
        firsts = starts_of(starts_s)
        ends = np.append(firsts[1:], len(starts_s)).tolist()
        times = starts_s[firsts]
        seconds, keys = values
        lows, highs = np.searchsorted(seconds, times).tolist(), np.searchsorted(seconds, times + width_s).tolist()
        buckets, low, high = self.buckets, totals.low, totals.high
        for number, (first, end, start_s) in enumerate(zip(firsts.tolist(), ends, times.tolist(), strict=True)):
            if start_s <= floor_s:
                continue
            bucket = buckets.get(start_s)
            if bucket is None:
                bucket = buckets[start_s] = Bucket()
            # The bucket may keep and change the arrays, so pass copies.
            bucket.add(
                series[first:end].copy(),
                IntSums(low[first:end].copy(), None if high is None else high[first:end].copy()),
                extremes[first:end].copy(),
            )
            if lows[number] < highs[number]:
                bucket.add_keys(keys[lows[number] : highs[number]].copy())
            self._open.add(start_s)
            self._changes += 1
            self._revisions[start_s // self.resolution.segment_s] = self._changes

    def within(self, start_s: int, end_s: int) -> Iterator[Bucket]:
        """Yield the buckets that start in [start_s, end_s), ascending."""
        for at in self.buckets.irange(start_s, end_s, inclusive=(True, False)):
            yield self.buckets[at]

    def evict(self, now_s: int, clock_s: int) -> None:
        """Drop the buckets that are not kept any more at *now_s*; pack those that ended 30 seconds before *clock_s*."""
        buckets, segment_s, floor_s = self.buckets, self.resolution.segment_s, self._floor_s(now_s)
        while buckets and buckets.peekitem(0)[0] <= floor_s:
            at, _ = buckets.popitem(0)
            self._open.discard(at)
            if not buckets or buckets.peekitem(0)[0] // segment_s != at // segment_s:
                self._revisions.pop(at // segment_s, None)
        ended = [at for at in self._open if at + self.resolution.width_s <= clock_s - _COMPACT_AFTER_S]
        for at in ended:
            buckets[at].compact()
            self._open.discard(at)

    def _floor_s(self, now_s: int) -> int:
        return now_s - self.resolution.keep_s - _SLACK_S - self.resolution.width_s

    def renumber(self, numbers: Ints, distributions: Ints) -> None:
        """Replace series n by numbers[n] and distribution n by distributions[n] in all buckets; revisions stay."""
        for bucket in self.buckets.values():
            bucket.renumber(numbers, distributions)

    def snapshot(self, prefix: str, saved: Mapping[str, int]) -> dict[str, Part]:
        """
        Return the pieces of a snapshot by name.

        Args:
            prefix: Beginning of the names.
            saved: Name of a piece -> revision that is saved already; an equal revision is not encoded again.
        """
        parts: dict[str, Part] = {}
        segment_s = self.resolution.segment_s
        for segment, revision in self._revisions.items():
            name = f"{prefix}{segment}"
            if saved.get(name) == revision:
                parts[name] = Part(revision, None)
                continue
            times = self.buckets.irange(segment * segment_s, (segment + 1) * segment_s, (True, False))
            captured = [(at, self.buckets[at].capture()) for at in times]
            parts[name] = Part(revision, partial(_encode_segment, captured))
        return parts

    def restore(self, segment: int, buckets: Sequence[tuple[int, Bucket]]) -> None:
        """
        Take over one piece of a snapshot.

        Args:
            segment: The number after the prefix in the name of the piece.
            buckets: What ``decode_segment`` returned.
        """
        self._revisions[segment] = 0
        self.buckets.update(buckets)


def decode_segment(data: bytes, width: int, fields: int, stride: int) -> list[tuple[int, Bucket]]:
    """
    Return (start, Unix seconds; bucket) of each bucket in a piece of a snapshot.

    Args:
        width, fields, stride: As for ``decode_bucket``.

    Raises:
        ValueError, TypeError, msgspec.DecodeError: *data* is not a piece of a snapshot.
    """
    return [(at, decode_bucket(bucket, width, fields, stride)) for at, bucket in msgspec.msgpack.decode(data)]


def _encode_segment(captured: Sequence[tuple[int, Any]]) -> bytes:
    return msgspec.msgpack.encode([(at, encode_bucket(bucket)) for at, bucket in captured])
