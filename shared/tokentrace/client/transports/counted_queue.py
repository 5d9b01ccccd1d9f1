"""The waiting items of a transport with their counters, guarded by the lock of their user."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from tokentrace.client.reporter import Stats

T = TypeVar("T")


class Limits(NamedTuple):
    """
    When a batch is delivered, and how much may wait.

    Attributes:
        batch_items, batch_bytes: With so much waiting, a batch is delivered at once, and it has no more, unless one
            item alone is larger.
        age_s: The longest time that an item waits for its batch, seconds.
        max_items: With so many items waiting or being delivered, new ones are dropped.
        max_bytes: With so many bytes waiting, new items are dropped.
    """

    batch_items: int
    batch_bytes: int
    age_s: float
    max_items: int
    max_bytes: int = 64 * 1024 * 1024


class Delivered(NamedTuple, Generic[T]):
    """
    What became of a batch.

    Attributes:
        acked, failed, rejected: Numbers of items, as in ``Stats``.
        truncated: How many of the acked items were cut or corrected.
        left: The other items, in order, which are delivered again after *pause_s*.
        pause_s: Seconds until the next delivery.
    """

    acked: int = 0
    failed: int = 0
    rejected: int = 0
    truncated: int = 0
    left: Sequence[tuple[T, int]] = ()
    pause_s: float = 0.0


class CountedQueue(Generic[T]):
    """
    Items in the order in which they came. Each ends in exactly one counter of ``Stats``.

    Args:
        limits: How much may wait.

    Attributes:
        waiting: (Item, its size in bytes), oldest first.
        depth: How many items wait or are being delivered.
        dropped, failed, rejected: Counters, as in ``Stats``.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.waiting: deque[tuple[T, int]] = deque()
        self._bytes = self.depth = 0
        self._sent = self._acked = self._truncated = 0
        self.dropped = self.failed = self.rejected = 0

    def put(self, item: T, size: int) -> bool:
        """Append *item*; return False if there is no room."""
        if self.depth >= self._limits.max_items or self._bytes + size > self._limits.max_bytes:
            return False
        self.waiting.append((item, size))
        self._bytes += size
        self.depth += 1
        return True

    @property
    def is_full(self) -> bool:
        """True if a whole batch waits."""
        return len(self.waiting) >= self._limits.batch_items or self._bytes >= self._limits.batch_bytes

    @property
    def is_crowded(self) -> bool:
        """True if the queue is more than half full."""
        return self.depth * 2 > self._limits.max_items or self._bytes * 2 > self._limits.max_bytes

    def take(self) -> list[tuple[T, int]]:
        """Take the oldest items, as many as a batch may have."""
        batch: list[tuple[T, int]] = []
        size = 0
        while self.waiting and len(batch) < self._limits.batch_items:
            size += self.waiting[0][1]
            if batch and size > self._limits.batch_bytes:
                break
            batch.append(self.waiting.popleft())
        # The sum first: a finalizer may put an item while it is computed.
        taken = sum(size for _, size in batch)
        self._bytes -= taken
        self._sent += len(batch)
        return batch

    def finish(self, batch: Sequence[tuple[T, int]], done: Delivered[T]) -> None:
        """Count the items of a taken *batch*, and put those that are left back in front."""
        self._acked += done.acked
        self.failed += done.failed
        self.rejected += done.rejected
        self._truncated += done.truncated
        self.waiting.extendleft(reversed(done.left))
        left = sum(size for _, size in done.left)
        self._bytes += left
        self._sent -= len(done.left)
        self.depth -= len(batch) - len(done.left)

    def abandon(self) -> None:
        """Count what waits or is being delivered as dropped."""
        self.dropped += self.depth
        self.depth = self._bytes = 0
        self.waiting.clear()

    def stats(self) -> Stats:
        """Return the counters."""
        return Stats(self._sent, self._acked, self.dropped, self.failed, self.depth, self.rejected, self._truncated)
