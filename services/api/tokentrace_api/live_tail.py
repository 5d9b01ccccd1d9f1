"""The live tail: spans as they arrive, to whoever follows; whoever is too slow is told how many passed by."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from weakref import WeakSet

from tokentrace.records import Span
from tokentrace_api.reads import Search

#: Spans that wait for a follower to take them.
_WAITING = 1000


class Tail:
    """
    One follower.

    Args:
        search: Which spans.
        rate: Spans a second at most; what comes faster is counted and passed over.
        since_ns: What arrived before is no news.

    Attributes:
        search: As given.
        dropped: Spans passed over.
    """

    def __init__(self, search: Search, rate: int, since_ns: int) -> None:
        self.search, self._rate, self._since_ns = search, rate, since_ns
        self._waiting: deque[Span] = deque()
        self._wake = asyncio.Event()
        self._second = 0
        self._given = 0
        self.dropped = 0

    def offer(self, spans: Sequence[Span], now_s: int) -> int:
        """Take what there is room for of *spans*, which match; returns how many had to be dropped."""
        if now_s != self._second:
            self._second, self._given = now_s, 0
        fresh = [span for span in spans if span.arrived_ns >= self._since_ns]
        room = max(min(self._rate - self._given, _WAITING - len(self._waiting)), 0)
        taken = fresh[:room]
        self._given += len(taken)
        self._waiting += taken
        dropped = len(fresh) - len(taken)
        self.dropped += dropped
        if self._waiting or dropped:
            self._wake.set()
        return dropped

    async def take(self, timeout_s: float) -> list[Span]:
        """Everything that waits; empty when nothing came within *timeout_s*."""
        if not self._waiting:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class Tails:
    """All followers there are."""

    def __init__(self) -> None:
        # Weak, because an answer whose client went away before its first byte is never begun, and so never ends.
        self._tails: WeakSet[Tail] = WeakSet()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._tails)

    def add(self, tail: Tail) -> None:
        """*tail* hears from now on of what arrives."""
        self._tails.add(tail)

    def discard(self, tail: Tail) -> None:
        """*tail* hears of nothing any more."""
        self._tails.discard(tail)

    async def offer(self, spans: Sequence[Span], now_s: int) -> None:
        """Tell everybody of *spans*, which have just been stored; those who ask for the same are looked at once."""
        alike: dict[str, list[Tail]] = {}
        for tail in self._tails if spans else ():
            alike.setdefault(repr(tail.search), []).append(tail)
        for tails in alike.values():
            found = [span for span in spans if tails[0].search.matches(span)]
            for tail in tails:
                self.dropped += tail.offer(found, now_s)
            # A hundred who ask for different things may take a second: others wait for this loop.
            await asyncio.sleep(0)
