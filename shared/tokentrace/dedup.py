"""
Deduplication: which batches a reader has folded, so that a batch that is delivered, sent or replayed again counts once.

A reporter numbers its batches from 1, so the numbers folded so far are a few intervals, however many batches there
were. They are remembered until the reporter has been silent for 8 days. A batch that no reporter sent has no number;
its id is remembered for a day.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from tokentrace.records import Batch
from tokentrace.units import DAY

#: How long the numbers of a silent reporter and the id of a request are remembered, nanoseconds of stream time.
REPORTER_NS = 8 * DAY
REQUEST_NS = DAY
#: Most intervals kept for each key. A reporter has few batches in flight, so the oldest gap will not be filled.
MAX_INTERVALS = 4096


class _Reporter(msgspec.Struct, array_like=True):
    """
    The folded batch numbers of one key: intervals [starts[i], ends[i]], ascending, with a gap between each two.

    Attributes:
        last_ns: Stream time of the newest batch, Unix nanoseconds.
    """

    last_ns: int
    starts: list[int]
    ends: list[int]


class FoldedBatches:
    """
    The batches that one reader has folded.

    Args:
        stride: Number of shards: a shard gets every *stride*-th batch number of a reporter.

    Attributes:
        given_up: How many batch numbers were in gaps that were dropped; a batch with such a number counts as folded.
    """

    def __init__(self, stride: int = 1) -> None:
        self._stride = stride
        self._reporters: dict[str, _Reporter] = {}
        self._requests: dict[str, int] = {}
        self.given_up = 0

    def add(self, batch: Batch, now_ns: int) -> bool:
        """
        Record *batch*.

        Args:
            now_ns: Stream time of the batch's message, Unix nanoseconds. It does not depend on when the message is
                read, so a replay forgets the same batches.

        Returns:
            True if the batch is new and must be folded.
        """
        if batch.sequence == 0:
            key = _key(batch)
            if key in self._requests:
                return False
            self._requests[key] = now_ns
            return True
        return self._add_number(_key(batch), batch.sequence // self._stride, now_ns)

    def _add_number(self, key: str, number: int, now_ns: int) -> bool:
        reporter = self._reporters.get(key)
        if reporter is None:
            self._reporters[key] = _Reporter(now_ns, [number], [number])
            return True
        reporter.last_ns = max(reporter.last_ns, now_ns)
        starts, ends = reporter.starts, reporter.ends
        at = bisect_right(starts, number) - 1
        if at >= 0 and number <= ends[at]:
            return False
        joins_left = at >= 0 and ends[at] == number - 1
        joins_right = at + 1 < len(starts) and starts[at + 1] == number + 1
        if joins_left and joins_right:
            ends[at] = ends.pop(at + 1)
            starts.pop(at + 1)
        elif joins_left:
            ends[at] = number
        elif joins_right:
            starts[at + 1] = number
        else:
            starts.insert(at + 1, number)
            ends.insert(at + 1, number)
            if len(starts) > MAX_INTERVALS:
                self.given_up += starts[1] - ends[0] - 1
                starts.pop(1)
                ends.pop(0)
        return True

    def forget(self, now_ns: int) -> None:
        """Forget reporters that were silent for 8 days and requests older than a day, in stream time."""
        for reporter in [key for key, state in self._reporters.items() if state.last_ns < now_ns - REPORTER_NS]:
            del self._reporters[reporter]
        # Requests were added in stream order, so the oldest come first.
        expired = []
        for request, at_ns in self._requests.items():
            if at_ns >= now_ns - REQUEST_NS:
                break
            expired.append(request)
        for request in expired:
            del self._requests[request]

    def reporters(self) -> set[str]:
        """Return the ids of the reporters that are remembered."""
        return {key.rpartition("#")[0] for key in self._reporters}

    def __len__(self) -> int:
        """Return the number of intervals and request ids held."""
        return sum(len(reporter.starts) for reporter in self._reporters.values()) + len(self._requests)

    def snapshot(self) -> bytes:
        """Return the state as bytes for ``restore``."""
        return msgspec.msgpack.encode([self._stride, self.given_up, self._reporters, self._requests])

    @classmethod
    def restore(cls, state: bytes) -> FoldedBatches:
        """Return the ``FoldedBatches`` whose ``snapshot`` is *state*."""
        stride, given_up, reporters, requests = msgspec.msgpack.decode(
            state, type=tuple[int, int, dict[str, _Reporter], dict[str, int]]
        )
        folded = cls(stride)
        folded.given_up = given_up
        folded._reporters = reporters
        folded._requests = requests
        return folded

    def note(self, rows: Iterable[tuple[str, int, int, int]]) -> None:
        """Record batches that were folded after the last snapshot, given as (id, sequence, part, stream time)."""
        for key, sequence, part, now_ns in rows:
            self.add(Batch(id=key, sequence=sequence, part=part), now_ns)


def _key(batch: Batch) -> str:
    """Return the id and part of *batch*: later parts are rare and have gaps, and part 0 must not have these gaps."""
    return f"{batch.id}#{batch.part}"
