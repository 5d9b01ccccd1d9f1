"""
The batches that a reader has folded, so that a batch that is delivered, sent or replayed again is skipped as a whole.

A reporter numbers its batches from 1, so the numbers folded so far are a few intervals, however many batches there
were. They are remembered until the reporter has been silent for 8 days, or until 50,000 others have sent a batch after
it; ``forgotten_ns`` says since when no reporter was forgotten early. What a forgotten reporter sends again is known by
the memory of calls, span by span, as far as that reaches. So the memory is bounded, whatever reporters there are.

Batches without a number are not remembered here: their spans are known by the memory of calls. An earlier version
remembered their ids for a day; ids from its snapshots are still honoured until that day is over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from tokentrace.records import Batch
from tokentrace.units import DAY

#: How long the numbers of a silent reporter are remembered, nanoseconds of stream time.
REPORTER_NS = 8 * DAY
#: How long the id of a request in a snapshot of an earlier version is honoured, nanoseconds of stream time.
REQUEST_NS = DAY
#: Most keys that are remembered, one for each reporter and part; the key that was silent the longest is forgotten.
MAX_REPORTERS = 50_000
#: Most intervals kept for each key. A reporter has few batches in flight, so the oldest gap will not be filled.
MAX_INTERVALS = 4096
#: Most gaps between the intervals of all keys together. Beyond it, a key that gets another gap begins anew with its
#: newest number: to drop its oldest gap would skip a batch that is still on its way.
MAX_GAPS = 200_000


class _Reporter(msgspec.Struct, array_like=True):
    """
    The folded batch numbers of one key: intervals [starts[i], ends[i]], ascending, with a gap between each two.

    Attributes:
        last_ns: Stream time of the newest batch, Unix nanoseconds.
    """

    last_ns: int
    starts: list[int]
    ends: list[int]


class _Saved(msgspec.Struct, array_like=True):
    """A snapshot; *requests* is id -> stream time, of an earlier version."""

    stride: int
    given_up: int
    reporters: dict[str, _Reporter]
    requests: dict[str, int]
    forgotten_ns: int = 0


class FoldedBatches:
    """
    The batches that one reader has folded.

    Args:
        stride: Number of shards: with layout 0, a shard gets every *stride*-th batch number of a reporter.

    Attributes:
        given_up: How many batch numbers were in gaps that were dropped; a batch with such a number counts as folded.
        forgotten_ns: Stream time of the newest batch of a key that was forgotten early, because there were too many
            keys or gaps, Unix nanoseconds; 0 = none was. Every key with a later batch is remembered.
    """

    def __init__(self, stride: int = 1) -> None:
        self._stride = stride
        self._reporters: OrderedDict[str, _Reporter] = OrderedDict()
        self._requests: dict[str, int] = {}
        self._gaps = 0
        self.given_up = self.forgotten_ns = 0

    def add(self, batch: Batch, now_ns: int) -> bool:
        """
        Record the numbered *batch*.

        Args:
            now_ns: Stream time of the batch's message, Unix nanoseconds. It does not depend on when the message is
                read, so a replay forgets the same batches.

        Returns:
            True if the batch is new and must be folded.
        """
        self.forget(now_ns)
        number = batch.sequence if batch.layout else batch.sequence // self._stride
        return self._add_number(_key(batch), number, now_ns)

    def holds_request(self, batch: Batch) -> bool:
        """Return True if an earlier version folded *batch*, which has no number, less than a day ago."""
        return bool(self._requests) and _key(batch) in self._requests

    def _add_number(self, key: str, number: int, now_ns: int) -> bool:
        # The keys stand in the order of their last batch, so that the first one was silent the longest.
        reporter = self._reporters.get(key)
        if reporter is None:
            self._reporters[key] = _Reporter(now_ns, [number], [number])
            if len(self._reporters) > MAX_REPORTERS:
                self._give_up(next(iter(self._reporters)))
            return True
        self._reporters.move_to_end(key)
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
            self._gaps -= 1
        elif joins_left:
            ends[at] = number
        elif joins_right:
            starts[at + 1] = number
        else:
            starts.insert(at + 1, number)
            ends.insert(at + 1, number)
            self._gaps += 1
            if len(starts) > MAX_INTERVALS:
                self.given_up += starts[1] - ends[0] - 1
                starts.pop(1)
                ends.pop(0)
                self._gaps -= 1
            elif self._gaps > MAX_GAPS:
                self._give_up(key)
                self._reporters[key] = _Reporter(reporter.last_ns, [number], [number])
        return True

    def _give_up(self, key: str) -> None:
        """Forget *key* although it was not silent for 8 days."""
        self.forgotten_ns = max(self.forgotten_ns, self._reporters[key].last_ns)
        self._drop(key)

    def _drop(self, key: str) -> None:
        self._gaps -= len(self._reporters.pop(key).starts) - 1

    def forget(self, now_ns: int) -> None:
        """Forget reporters that were silent for 8 days, and requests older than a day, in stream time."""
        while self._reporters:
            key, reporter = next(iter(self._reporters.items()))
            if reporter.last_ns >= now_ns - REPORTER_NS:
                break
            self._drop(key)
        # Requests were added in stream order, so the oldest come first.
        while self._requests:
            request, at_ns = next(iter(self._requests.items()))
            if at_ns >= now_ns - REQUEST_NS:
                break
            del self._requests[request]

    def reporters(self) -> set[str]:
        """Return the ids of the reporters that are remembered."""
        return {key.rpartition("#")[0] for key in self._reporters}

    @property
    def reporter_count(self) -> int:
        """Number of keys, one for each reporter and part, that are remembered."""
        return len(self._reporters)

    def __len__(self) -> int:
        """Return the number of intervals and request ids held."""
        return sum(len(reporter.starts) for reporter in self._reporters.values()) + len(self._requests)

    def snapshot(self) -> bytes:
        """Return the state as bytes for ``restore``."""
        saved = _Saved(self._stride, self.given_up, dict(self._reporters), self._requests, self.forgotten_ns)
        return msgspec.msgpack.encode(saved)

    @classmethod
    def restore(cls, state: bytes) -> FoldedBatches:
        """Return the ``FoldedBatches`` whose ``snapshot`` is *state*."""
        saved = msgspec.msgpack.decode(state, type=_Saved)
        folded = cls(saved.stride)
        folded.given_up, folded.forgotten_ns = saved.given_up, saved.forgotten_ns
        folded._reporters = OrderedDict(saved.reporters)
        folded._gaps = sum(len(reporter.starts) - 1 for reporter in saved.reporters.values())
        folded._requests = saved.requests
        return folded

    def note(self, rows: Iterable[tuple[str, int, int, int, int]]) -> None:
        """
        Record batches that were folded after the last snapshot.

        Args:
            rows: (Id, sequence, part, layout, stream time) of each; sequence 0 = the id of a request that an earlier
                version has folded.
        """
        for batch_id, sequence, part, layout, now_ns in rows:
            batch = Batch(id=batch_id, sequence=sequence, part=part, layout=layout)
            if sequence:
                self.add(batch, now_ns)
            else:
                self._requests[_key(batch)] = now_ns


def _key(batch: Batch) -> str:
    """Return the id and part of *batch*: later parts are rare and have gaps, and part 0 must not have these gaps."""
    return f"{batch.id}#{batch.part}" if batch.layout == 0 else f"{batch.id}#{batch.layout}:{batch.part}"
