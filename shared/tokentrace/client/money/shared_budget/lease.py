"""The lease of a shared budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError

from tokentrace.client.money.amounts import Usd, nusd_of
from tokentrace.client.money.shared_budget.ledger import Operation
from tokentrace.client.money.shared_budget.ticket import Answer
from tokentrace.units import nusd_to_usd

#: How long a caller waits for a thread that does not run, seconds; all other waits end before.
_STUCK_S = 10.0


class SharedLease:
    """
    ``Lease`` of a ``SharedBudget``.

    Args:
        id: 128 random bits.
        nusd: The reserved amount, nano-dollars.
        hand_over: Takes the operation that ends the lease; its future ends within little more than two seconds.
        is_stored: Whether the reservation is stored; False = the broker was away and the call was allowed.
    """

    def __init__(
        self, id: str, nusd: int, hand_over: Callable[[Operation], Future[Answer]], *, is_stored: bool = True
    ) -> None:
        self.id, self._nusd, self._hand_over, self._is_stored = id, nusd, hand_over, is_stored
        #: Holds one item until the lease is ended; taking it is atomic.
        self._open = [True]

    @property
    def usd(self) -> float:
        """As ``Lease.usd``."""
        return nusd_to_usd(self._nusd)

    @property
    def ended(self) -> bool:
        """As ``Lease.ended``."""
        return not self._open

    def commit(self, usd: Usd, *, wait: bool = True) -> None:
        """As ``Lease.commit``."""
        future = self._end("commit", nusd_of(usd))
        if wait and future is not None:
            wait_for(future)

    def release(self, *, wait: bool = True) -> None:
        """As ``Lease.release``."""
        future = self._end("release", 0)
        if wait and future is not None:
            wait_for(future)

    async def acommit(self, usd: Usd) -> None:
        """As ``Lease.acommit``."""
        future = self._end("commit", nusd_of(usd))
        if future is not None:
            await await_for(future)

    async def arelease(self) -> None:
        """As ``Lease.arelease``."""
        future = self._end("release", 0)
        if future is not None:
            await await_for(future)

    def _end(self, kind: str, nusd: int) -> Future[Answer] | None:
        try:
            self._open.pop()
        except IndexError:
            return None  # it was ended before
        if kind == "commit":
            return self._hand_over(Operation("commit", self.id, nusd))
        # A reservation that was not acknowledged may still arrive.
        return self._hand_over(Operation("release", self.id, sent=not self._is_stored))


def wait_for(future: Future[Answer]) -> Answer | None:
    """Return the answer; None if the thread that answers does not run."""
    try:
        return future.result(_STUCK_S)
    except TimeoutError:
        return None


async def await_for(future: Future[Answer]) -> Answer:
    """Return the answer without blocking the event loop. The loop may end before the answer comes."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not answered.done():
            answered.set_result(None)

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    future.add_done_callback(wake)
    await answered
    return future.result()
