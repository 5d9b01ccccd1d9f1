"""
Which batches a reader has folded: what makes a redelivery, a resend or a replay count once.

A reporter numbers its batches from 1, so what has been seen of it is a few intervals however many batches there
were. A batch of an HTTP request stands alone and is remembered by its id for a day.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from tokentrace.records import Batch
from tokentrace.units import DAY

REPORTER_NS = 8 * DAY
REQUEST_NS = DAY
#: A reporter has few batches under way at once: a hole this many holes ago was given up by its sender.
MAX_INTERVALS = 4096


class _Reporter(msgspec.Struct, array_like=True):
    """Numbers seen: [starts[i], ends[i]], ascending, never touching."""

    last_ns: int
    starts: list[int]
    ends: list[int]


class FoldedBatches:
    """
    The batches folded so far.

    Args:
        stride: Numbers of one reporter arrive this far apart, because they are spread over that many shards.
    """

    def __init__(self, stride: int = 1) -> None:
        self._stride = stride
        self._reporters: dict[str, _Reporter] = {}
        self._requests: dict[str, int] = {}
        self.given_up = 0

    def add(self, batch: Batch, now_ns: int) -> bool:
        """
        Take note of *batch*.

        Args:
            now_ns: Stream time of the message that carries it, so that a replay forgets alike.

        Returns:
            True when it is new and has to be folded.
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
        """Drop reporters silent for 8 days and requests older than a day, measured in stream time."""
        for reporter in [key for key, state in self._reporters.items() if state.last_ns < now_ns - REPORTER_NS]:
            del self._reporters[reporter]
        # Requests were added in stream order, so the old ones stand first.
        old = []
        for request, at_ns in self._requests.items():
            if at_ns >= now_ns - REQUEST_NS:
                break
            old.append(request)
        for request in old:
            del self._requests[request]

    def reporters(self) -> set[str]:
        """The ids of the reporters that are remembered."""
        return {key.rpartition("#")[0] for key in self._reporters}

    def __len__(self) -> int:
        """How many intervals and ids are held."""
        return sum(len(reporter.starts) for reporter in self._reporters.values()) + len(self._requests)

    def snapshot(self) -> bytes:
        """Everything above as bytes for ``restore``."""
        return msgspec.msgpack.encode([self._stride, self.given_up, self._reporters, self._requests])

    @classmethod
    def restore(cls, state: bytes) -> FoldedBatches:
        """A reader's memory from ``snapshot``."""
        stride, given_up, reporters, requests = msgspec.msgpack.decode(
            state, type=tuple[int, int, dict[str, _Reporter], dict[str, int]]
        )
        seen = cls(stride)
        seen.given_up = given_up
        seen._reporters = reporters
        seen._requests = requests
        return seen

    def note(self, rows: Iterable[tuple[str, int, int, int]]) -> None:
        """Take note of (id, sequence, part, stream time) of batches that were folded after the last snapshot."""
        for key, sequence, part, now_ns in rows:
            self.add(Batch(id=key, sequence=sequence, part=part), now_ns)


def _key(batch: Batch) -> str:
    """Each part of a split batch is a sequence of its own, so that the numbers of the first ones stay without holes."""
    return f"{batch.id}#{batch.part}"
