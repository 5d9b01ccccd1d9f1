"""
Backpressure: input stops before the log discards messages that a reader lacks.

The log discards its oldest messages when it is full, whether or not every reader has read them. So ``measure`` asks how
much each reader still has to read, every two seconds and earlier while much is published. When that reaches 90 % of the
log's size limit, input waits: HTTP requests get 503 with ``Retry-After``, and reporters' batches stay in ``TT_RAW``.

The broker tells the sizes of the whole log only. So two figures are taken for what a reader still has to read, and the
larger one counts: its share of the messages, and what this process has published since the measurement at which the
reader had read everything. What is published between two measurements is added to the last one. If the log grows by
more than this process publishes, there are other ingest processes, and each takes as many times of its own bytes.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Mapping

import structlog

from tokentrace.bus import Bus, Entry, StreamState, subjects
from tokentrace.errors import Unavailable
from tokentrace.service.reader_positions import backlog, read_positions

log = structlog.stdlib.get_logger(__name__)

#: Input stops when what a reader still has to read is this fraction of the log's size limit.
_STOP_AT = 0.9
#: Nothing is published that would bring a reader further behind than this: what is in progress when input stops.
_FULL_AT = 0.95
#: Seconds between two measurements, and the fewest of them.
_INTERVAL_S = 2.0
_LEAST_INTERVAL_S = 0.1
#: The next measurement is made early when the log has grown by this fraction of its size limit.
_EARLY_AT = 0.02
#: Most measurements that are remembered: two hours of them.
_MOST_CHECKPOINTS = 3600
#: Most ingest processes that one process allows for.
_MOST_PROCESSES = 64.0


class Backpressure:
    """
    Knows how far each reader is behind.

    Attributes:
        behind: Reader -> what it still had to read at the last measurement, as a fraction of the log's size limit.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.behind: Mapping[str, float] = {}
        self._worst = 0.0
        self._published = 0
        self._measured_at = 0
        self._state: StreamState | None = None
        self._processes = 1.0
        self._checkpoints: list[tuple[int, int]] = []
        self._early = asyncio.Event()
        self._was_blocked = False

    @property
    def blocked(self) -> str:
        """Why input has to wait; "" = it need not."""
        worst = self._worst + self._growth()
        if not self.behind or worst < _STOP_AT:
            return ""
        reader = max(self.behind, key=lambda name: self.behind[name])
        consequence = "input waits so that this reader loses no message"
        return f"{reader} is behind by {worst:.0%} of the log's size limit; {consequence}"

    def check(self) -> None:
        """
        Refuse input while a reader is too far behind.

        Raises:
            Unavailable: A reader is too far behind; the text names it. Try again after 5 seconds.
        """
        if reason := self.blocked:
            self._early.set()
            raise Unavailable(reason, retry_after_s=5)

    def take(self, size_bytes: int) -> None:
        """
        Count *size_bytes* that this process is about to publish to the log.

        Raises:
            Unavailable: A reader may lose messages by it; nothing is counted.
        """
        growth = self._growth(size_bytes)
        if growth >= _EARLY_AT:
            self._early.set()
        if self.behind and self._worst + growth > _FULL_AT:
            self._early.set()
            raise Unavailable("the log has no room before what a reader still has to read", retry_after_s=5)
        self._published += size_bytes

    async def wait_for_turn(self) -> None:
        """Return when the next measurement is due."""
        await asyncio.sleep(_LEAST_INTERVAL_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._early.wait(), _INTERVAL_S - _LEAST_INTERVAL_S)
        self._early.clear()

    async def measure(self, entries: Mapping[str, Entry]) -> None:
        """
        Ask how far each reader is behind.

        Args:
            entries: The entries of ``tt_meta``.

        Raises:
            Unavailable: The broker is unreachable.
        """
        # What is published while the question is under way may be in the answer or not: it counts as if it were not.
        published = self._published
        state = await self._bus.state(subjects.SPANS)
        self._processes = _processes(self._state, state, published - self._measured_at)
        self._state, self._measured_at = state, published
        self.behind = self._behind(state, entries)
        self._worst = max(self.behind.values(), default=0.0)
        reason = self.blocked
        if reason and not self._was_blocked:
            log.error(reason)
        self._was_blocked = bool(reason)

    def _behind(self, state: StreamState, entries: Mapping[str, Entry]) -> dict[str, float]:
        """Return reader -> what it still has to read, and note how much was published up to the end of the log."""
        positions = read_positions(entries, self._bus.set_aside)
        behind = backlog(state, positions, self._bus.clock.now_ns())
        if self._checkpoints and self._checkpoints[-1][0] > state.last_sequence:
            self._checkpoints.clear()  # the log was made anew
        self._checkpoints.append((state.last_sequence, self._measured_at))
        read = {reader: positions[reader][1] if positions[reader][0] == state.created_ns else 0 for reader in behind}
        for reader, sequence in read.items():
            at = bisect.bisect_right(self._checkpoints, sequence, key=lambda checkpoint: checkpoint[0]) - 1
            own = self._measured_at - self._checkpoints[max(at, 0)][1]
            behind[reader] = max(behind[reader], own * self._processes / state.max_bytes)
        slowest = min(read.values(), default=state.last_sequence)
        at = bisect.bisect_right(self._checkpoints, slowest, key=lambda checkpoint: checkpoint[0]) - 1
        del self._checkpoints[: max(at, len(self._checkpoints) - _MOST_CHECKPOINTS, 0)]
        return behind

    def _growth(self, more_bytes: int = 0) -> float:
        """Return by how much the log has grown since the last measurement, as a fraction of its size limit."""
        if self._state is None or self._state.max_bytes <= 0:
            return 0.0
        return (self._published + more_bytes - self._measured_at) * self._processes / self._state.max_bytes


def _processes(before: StreamState | None, now: StreamState, own_bytes: int) -> float:
    """Return the growth of the log in units of what this process published between two measurements, at least 1."""
    if before is None or before.created_ns != now.created_ns or own_bytes <= 0 or not now.messages:
        return 1.0
    grown = (now.last_sequence - before.last_sequence) * (now.bytes / now.messages)
    return min(max(grown / own_bytes, 1.0), _MOST_PROCESSES)
