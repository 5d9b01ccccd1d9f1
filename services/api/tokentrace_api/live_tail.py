"""Live tails: each queues the spans that are stored for one client, and counts the spans that it drops."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from weakref import WeakSet

from tokentrace.records import Span
from tokentrace_api.reads import Search

#: Maximum number of spans that wait for one client.
_MAX_WAITING = 1000


class Tail:
    """
    The live tail of one client.

    Args:
        search: The filter of the client.
        rate: Maximum number of spans per second; further spans are dropped.
        since_ns: Spans that arrived before this time are ignored, Unix nanoseconds.

    Attributes:
        search: The filter of the client.
        dropped: Number of spans that were dropped because of *rate* or because too many were waiting.
    """

    def __init__(self, search: Search, rate: int, since_ns: int) -> None:
        self.search, self._rate, self._since_ns = search, rate, since_ns
        self._waiting: deque[Span] = deque()
        self._wake = asyncio.Event()
        self._second = 0
        self._taken_this_second = 0
        self.dropped = 0

    def offer(self, spans: Sequence[Span], now_s: int) -> int:
        """
        Queue as many of *spans* as the rate and the length of the queue allow; drop the others.

        Args:
            spans: Spans that match the filter.
            now_s: Time of a monotonic clock, seconds.

        Returns:
            Number of spans that were dropped.
        """
        if now_s != self._second:
            self._second, self._taken_this_second = now_s, 0
        fresh = [span for span in spans if span.arrived_ns >= self._since_ns]
        room = max(min(self._rate - self._taken_this_second, _MAX_WAITING - len(self._waiting)), 0)
        taken = fresh[:room]
        self._taken_this_second += len(taken)
        self._waiting += taken
        dropped = len(fresh) - len(taken)
        self.dropped += dropped
        if self._waiting or dropped:
            self._wake.set()
        return dropped

    async def take(self, timeout_s: float) -> list[Span]:
        """
        Wait until spans are queued or dropped, at most *timeout_s* seconds; remove and return the queued spans.

        The list is empty if the time ran out or if all spans were dropped.
        """
        if not self._waiting:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class Tails:
    """
    The live tails of all clients.

    Attributes:
        dropped: Number of spans that all tails together have dropped, closed tails included.
    """

    def __init__(self) -> None:
        # Weak references, because a response whose client disconnects before the first byte never runs its cleanup.
        self._tails: WeakSet[Tail] = WeakSet()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._tails)

    def add(self, tail: Tail) -> None:
        """Offer to *tail* the spans that are stored from now on."""
        self._tails.add(tail)

    def discard(self, tail: Tail) -> None:
        """Stop offering spans to *tail*."""
        self._tails.discard(tail)

    async def offer(self, spans: Sequence[Span], now_s: int) -> None:
        """Offer *spans*, which were just stored, to every tail; each distinct filter is evaluated once."""
        by_filter: dict[str, list[Tail]] = {}
        for tail in self._tails if spans else ():
            by_filter.setdefault(repr(tail.search), []).append(tail)
        for tails in by_filter.values():
            matching = [span for span in spans if tails[0].search.matches(span)]
            for tail in tails:
                self.dropped += tail.offer(matching, now_s)
            # A hundred different filters may take a second; other tasks of the loop run in between.
            await asyncio.sleep(0)
