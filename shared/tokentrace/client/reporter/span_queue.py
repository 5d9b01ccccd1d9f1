"""
The queue between the threads that report spans and the thread that sends them, with the counters of a reporter.

Every span that ``put`` gets is counted exactly once at the end: as acked, dropped, failed or rejected. Until then it
counts in the depth of the queue, whether it still waits or is part of a batch that is being sent. One limit applies to
this depth, the other to the bytes of the waiting spans.

One lock guards the queue and also the state of the sender thread. A finalizer or a signal handler may report a span at
any point of the code, in a thread that holds the lock already. Therefore the lock is re-entrant, and there is only one:
two threads could take two locks in opposite orders.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import Enum
from typing import NamedTuple

from tokentrace.client import native
from tokentrace.client.reporter.stats import Stats
from tokentrace.records import ReporterStats

#: A batch is sent once it has this many spans or bytes, or its first span has waited for this many seconds.
BATCH_SPANS = 256
BATCH_BYTES = 512 * 1024
BATCH_AGE_S = 0.2


class Unencodable(NamedTuple):
    """A span that cannot be encoded; *reason* says why."""

    reason: str


class Put(Enum):
    """What ``SpanQueue.put`` did with a span; WOKEN = it was queued and the sender has to be woken."""

    QUEUED = 0
    WOKEN = 1
    DROPPED = 2


class TakenBatch(NamedTuple):
    """
    Spans that were taken from the queue to be sent together.

    Attributes:
        spans: Encoded spans, and those that cannot be encoded, oldest first.
        sequence: The number of the batch, from 1.
        stats: The reporter's counters; ``sent`` includes these spans.
    """

    spans: list[bytes | Unencodable]
    sequence: int
    stats: ReporterStats

    @property
    def size(self) -> int:
        """Number of spans."""
        return len(self.spans)


class SpanQueue:
    """
    Encoded spans in the order in which they were reported. All methods are thread-safe.

    Args:
        max_spans: Most spans that wait or are being sent; further spans are dropped.
        max_bytes: Most bytes of waiting spans; further spans are dropped.

    Attributes:
        lock: Guards the queue and the state of the sender thread.
    """

    def __init__(self, max_spans: int, max_bytes: int) -> None:
        self._max_spans, self._max_bytes = max_spans, max_bytes
        self.reset()

    def reset(self) -> None:
        """Empty the queue, set all counters to 0 and make a new lock: another thread may hold the old one at a fork."""
        self.lock = native.make_rlock()
        self._empty = threading.Condition(self.lock)
        self._spans: deque[bytes | Unencodable] = deque()
        self._bytes = 0
        self._depth = 0
        self._sent = self._acked = self._dropped = self._failed = self._rejected = self._truncated = self._spooled = (
            self._adopted
        ) = 0
        #: The parts of dropped and failed that the batches so far have reported to the pipeline.
        self._reported_dropped = self._reported_failed = 0
        self._sequence = 0
        #: True while the sender waits without a timeout, so that the next span has to wake it.
        self._sender_idle = True
        self._flushing = False
        #: Monotonic seconds at which the sender first saw the oldest waiting span, or took the batch before it; None
        #: until then.
        self._waiting_since: float | None = None
        self._closed = False
        self._abandoned = False

    # -- used by the threads that report

    def put(self, span: bytes | Unencodable) -> Put:
        """Append an encoded span or one that cannot be encoded; drop and count it if the queue is full or closed."""
        size = _size(span)
        with self.lock:
            if self._closed or self._depth >= self._max_spans or self._bytes + size > self._max_bytes:
                self._dropped += 1
                return Put.DROPPED
            self._spans.append(span)
            self._bytes += size
            self._depth += 1
            wake = self._sender_idle or len(self._spans) % BATCH_SPANS == 0
            self._sender_idle = False
            return Put.WOKEN if wake else Put.QUEUED

    def wake_at_next(self) -> None:
        """Let the next ``put`` wake the sender, because no thread could be started."""
        with self.lock:
            self._sender_idle = True

    def begin_flush(self) -> bool:
        """
        Make all waiting spans due at once.

        Returns:
            False if there is nothing to wait for.
        """
        with self.lock:
            self._flushing = self._depth > 0
            return self._flushing

    def wait_until_empty(self, timeout: float | None) -> bool:
        """
        Wait until no span waits or is being sent.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        if native.patched_by():
            return native.wait_for(lambda: self._depth == 0, timeout)
        with self._empty:
            return self._empty.wait_for(lambda: self._depth == 0, timeout)

    def stats(self) -> Stats:
        """Return the counters."""
        with self.lock:
            return Stats(
                self._sent,
                self._acked,
                self._dropped,
                self._failed,
                self._depth,
                self._rejected,
                self._truncated,
                self._spooled,
                self._adopted,
            )

    @property
    def depth(self) -> int:
        """How many spans wait or are being sent."""
        return self._depth

    @property
    def crowded(self) -> bool:
        """True if the queue is closed or more than half full, so that the sender should hurry."""
        return self._closed or self._depth * 2 > self._max_spans or self._bytes * 2 > self._max_bytes

    # -- closing

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Drop all spans reported from now on, and make all waiting spans due at once."""
        with self.lock:
            self._closed = True

    def abandon(self) -> None:
        """Count everything that waits or is being sent as dropped; later results of ``finish`` are ignored."""
        with self._empty:
            self._abandoned = True
            self._dropped += self._depth
            self._depth = self._bytes = 0
            self._spans.clear()
            self._empty.notify_all()

    # -- used by the sender thread

    @property
    def has_waiting(self) -> bool:
        """True if a span waits that no batch has taken."""
        return bool(self._spans)

    def batch_is_due(self) -> bool:
        """Return True if a batch is full or old enough, or spans wait while the reporter is flushing or closing."""
        with self.lock:
            if not self._spans:
                self._flushing = False
                return False
            full = len(self._spans) >= BATCH_SPANS or self._bytes >= BATCH_BYTES
            return full or self._flushing or self._closed or self._age() >= BATCH_AGE_S

    def seconds_until_due(self) -> float | None:
        """Return how long the sender may sleep, seconds; None = until a ``put`` returns True."""
        with self.lock:
            self._sender_idle = not self._spans
            if self._sender_idle:
                self._waiting_since = None
                return None
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            return max(BATCH_AGE_S - self._age(), 0.0)

    def _age(self) -> float:
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    def take_batch(self) -> TakenBatch:
        """Take the oldest spans, at most ``BATCH_SPANS`` and, unless one span alone is larger, ``BATCH_BYTES``."""
        with self.lock:
            spans: list[bytes | Unencodable] = []
            size = 0
            while self._spans and len(spans) < BATCH_SPANS:
                size += _size(self._spans[0])
                if spans and size > BATCH_BYTES:
                    break
                spans.append(self._spans.popleft())
            self._waiting_since = time.monotonic() if self._spans else None
            self._bytes -= sum(map(_size, spans))
            self._sequence += 1
            self._sent += len(spans)
            stats = ReporterStats(
                sent=self._sent,
                acked=self._acked,
                dropped=self._dropped,
                failed=self._failed,
                queue_depth=len(self._spans),
                newly_dropped=self._dropped - self._reported_dropped,
                newly_failed=self._failed - self._reported_failed,
            )
            self._reported_dropped, self._reported_failed = self._dropped, self._failed
            return TakenBatch(spans, self._sequence, stats)

    def finish(
        self, *, acked: int = 0, failed: int = 0, rejected: int = 0, truncated: int = 0, spooled: int = 0
    ) -> None:
        """Count the spans of a taken batch by what became of them; *truncated* are among the acked or spooled ones."""
        with self._empty:
            if self._abandoned:
                return
            self._acked += acked
            self._failed += failed
            self._rejected += rejected
            self._truncated += truncated
            self._spooled += spooled
            self._depth -= acked + failed + rejected + spooled
            if self._depth == 0:
                self._empty.notify_all()

    def settle_spooled(self, *, acked: int = 0, failed: int = 0, dropped: int = 0) -> None:
        """Count spooled spans by what became of them."""
        with self.lock:
            self._acked += acked
            self._failed += failed
            self._dropped += dropped
            self._spooled -= acked + failed + dropped

    def count_adopted(self, spans: int) -> None:
        """Count accepted spans that a dead process left in the spool."""
        with self.lock:
            self._adopted += spans

    def reject_acked(self, count: int) -> None:
        """Count *count* acked spans as rejected, because ingest found them invalid after it had accepted the batch."""
        with self.lock:
            moved = min(count, self._acked)
            self._acked -= moved
            self._rejected += moved

    def restore_unreported(self, stats: ReporterStats) -> None:
        """Let a later batch report the new losses in *stats*, because its own batch never reaches the pipeline."""
        with self.lock:
            self._reported_dropped -= stats.newly_dropped
            self._reported_failed -= stats.newly_failed


def _size(span: bytes | Unencodable) -> int:
    return len(span) if isinstance(span, bytes) else len(span.reason)
