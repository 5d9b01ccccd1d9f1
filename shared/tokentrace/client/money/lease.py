"""What a budget gives for a reservation."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

from tokentrace.client.money.amounts import Usd

#: How long ``commit`` and ``release`` wait at most for a shared budget, seconds.
MAX_WAIT_S = 2.0


class Lease(Protocol):
    """
    An amount that a budget holds back for one call. Either ``commit`` or ``release`` ends it; the first one counts.

    Both may be called from any thread. A lease that is not ended counts as ``on_lost`` of a shared budget says, and is
    held back for ever by a ``Budget``.
    """

    @property
    def usd(self) -> float:
        """The reserved amount, US dollars."""
        ...

    def commit(self, usd: Usd, *, wait: bool = True) -> None:
        """
        Count what the call has cost, and free the rest. A cost above the reserved amount counts in full.

        Args:
            usd: The cost, US dollars.
            wait: Whether to wait, for at most two seconds, until a shared budget has stored the cost. False returns at
                once. Either way the cost is sent again until it is stored.

        Raises:
            Rejected: *usd* is not an amount from 0 to 1e9; the lease stays.
        """
        ...

    def release(self, *, wait: bool = True) -> None:
        """
        Free the reserved amount: the call did not happen or cost nothing.

        Args:
            wait: As for ``commit``.
        """
        ...

    async def acommit(self, usd: Usd) -> None:
        """
        Do what ``commit`` does without blocking the event loop.

        Args:
            usd: The cost, US dollars.

        Raises:
            Rejected: *usd* is not an amount from 0 to 1e9; the lease stays.
        """
        ...

    async def arelease(self) -> None:
        """Do what ``release`` does without blocking the event loop."""
        ...

    @property
    def ended(self) -> bool:
        """True once the lease was committed or released."""
        ...


L = TypeVar("L", bound=Lease)


@contextlib.contextmanager
def ending(lease: L) -> Iterator[L]:
    """
    End *lease* with the block, if the block did not.

    An ``Exception`` releases it, because a call that failed is not charged. Without one, the reserved amount counts as
    spent, and so it does when the block was stopped from outside (cancelled, interrupted): the provider charges that.
    """
    try:
        yield lease
    except Exception:
        if not lease.ended:
            lease.release()
        raise
    except BaseException:
        if not lease.ended:
            lease.commit(lease.usd, wait=False)
        raise
    if not lease.ended:
        lease.commit(lease.usd)


@contextlib.asynccontextmanager
async def aending(lease: L) -> AsyncIterator[L]:
    """Do what ``ending`` does without blocking the event loop."""
    try:
        yield lease
    except Exception:
        if not lease.ended:
            await lease.arelease()
        raise
    except BaseException:
        if not lease.ended:
            lease.commit(lease.usd, wait=False)
        raise
    if not lease.ended:
        await lease.acommit(lease.usd)
