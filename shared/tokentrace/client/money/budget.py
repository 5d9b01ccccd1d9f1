"""A budget of one process. It counts whole nano-dollars, so that sums are exact."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any

from tokentrace.client.money.amounts import Usd, limit_of, nusd_of
from tokentrace.client.money.errors import BudgetExceeded
from tokentrace.client.money.lease import aending, ending
from tokentrace.client.money.prices import Prices
from tokentrace.records import Span, counts_as_cost
from tokentrace.units import nusd_to_usd

if TYPE_CHECKING:
    from tokentrace.pricing import Rate

_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


class Budget:
    """
    Counts what calls cost and says when a limit is exceeded. Any number of threads may use it.

    Args:
        max_usd: The limit, US dollars. Spending exactly this much is allowed.
        prices: Own prices for spans without a cost, by model; they must be those of ``pricing.models``.

    Raises:
        ConfigError: *max_usd* is not an amount from 0 to 1e9, or a price is not usable.
    """

    def __init__(self, max_usd: Usd, *, prices: Mapping[str, Rate] | None = None) -> None:
        self._max = limit_of(max_usd, "budget: max_usd")
        self._arguments = (max_usd, prices)
        self._prices = Prices(prices)
        self._lock = threading.RLock()
        self._spent = 0
        self._reserved = 0
        self._unpriced = 0
        _budgets.add(self)

    def add(self, cost: Span | Usd) -> None:
        """
        Add the cost of a call that has been made.

        A span without a cost, or with a cost of 0 that it does not explain, is priced as ingest would price it now. A
        span whose kind sums up the calls below it (http, agent, workflow, chain) adds nothing.

        Args:
            cost: The span of the call, or its cost in US dollars.

        Raises:
            BudgetExceeded: More than the limit is spent now. The cost was added.
            Rejected: *cost* is not an amount from 0 to 1e9, or the counts of the span contradict each other. Nothing
                was added.
        """
        nusd: int | None = 0
        if not isinstance(cost, Span):
            nusd = nusd_of(cost)
        elif counts_as_cost(cost.kind):
            nusd = self._prices.quote(cost).cost_nusd
        with self._lock:
            self._unpriced += nusd is None
            self._spent += nusd or 0
            if self._spent > self._max:
                raise BudgetExceeded(nusd_to_usd(self._spent), nusd_to_usd(self._max))

    def reserve(self, usd: Usd) -> BudgetLease:
        """
        Hold back an amount for a call that is about to be made.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A lease; ``commit`` it with the cost of the call, or ``release`` it.

        Raises:
            BudgetExceeded: Less than *usd* is left. Nothing was reserved.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        nusd = nusd_of(usd)
        with self._lock:
            if self._spent + self._reserved + nusd > self._max:
                spent, limit, reserved = map(nusd_to_usd, (self._spent, self._max, self._reserved))
                raise BudgetExceeded(spent, limit, reserved_usd=reserved, asked_usd=nusd_to_usd(nusd))
            self._reserved += nusd
        return BudgetLease(self, nusd)

    async def areserve(self, usd: Usd) -> BudgetLease:
        """
        Do what ``reserve`` does; it never blocks.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A lease.

        Raises:
            BudgetExceeded: Less than *usd* is left.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        return self.reserve(usd)

    def call(self, usd: Usd) -> AbstractContextManager[BudgetLease]:
        """
        Reserve an amount for the call that the block makes.

        The block calls ``commit`` with the cost. If it does not, the reserved amount counts as spent, or nothing if an
        exception ended the block.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A context manager whose value is the lease.

        Raises:
            BudgetExceeded: Less than *usd* is left; the block does not run.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        return ending(self.reserve(usd))

    def acall(self, usd: Usd) -> AbstractAsyncContextManager[BudgetLease]:
        """
        Do what ``call`` does, for ``async with``.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A context manager whose value is the lease.

        Raises:
            BudgetExceeded: Less than *usd* is left; the block does not run.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        return aending(self.reserve(usd))

    @property
    def prices(self) -> Prices:
        """What spans without a cost are priced with."""
        return self._prices

    @property
    def max(self) -> float:
        """The limit, US dollars."""
        return nusd_to_usd(self._max)

    @property
    def spent(self) -> float:
        """What was added and committed so far, US dollars."""
        return nusd_to_usd(self._spent)

    @property
    def reserved(self) -> float:
        """What is held back for calls that are under way, US dollars."""
        return nusd_to_usd(self._reserved)

    @property
    def remaining(self) -> float:
        """What can still be reserved, US dollars; never below 0."""
        with self._lock:
            return nusd_to_usd(max(self._max - self._spent - self._reserved, 0))

    @property
    def exceeded(self) -> bool:
        """True if more than the limit was spent."""
        return self._spent > self._max

    @property
    def unpriced(self) -> int:
        """How many spans were added whose cost is not known; they added nothing."""
        return self._unpriced

    def __reduce__(self) -> tuple[Any, ...]:
        return _budget, self._arguments

    def _end(self, reserved: int, cost: int) -> None:
        with self._lock:
            self._reserved -= reserved
            self._spent += cost


class BudgetLease:
    """``Lease`` of a ``Budget``; nothing here blocks."""

    def __init__(self, budget: Budget, nusd: int) -> None:
        self._budget, self._nusd = budget, nusd
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
        self._end(nusd_of(usd))

    def release(self, *, wait: bool = True) -> None:
        """As ``Lease.release``."""
        self._end(0)

    async def acommit(self, usd: Usd) -> None:
        """As ``Lease.acommit``."""
        self.commit(usd)

    async def arelease(self) -> None:
        """As ``Lease.arelease``."""
        self.release()

    def _end(self, cost: int) -> None:
        try:
            self._open.pop()
        except IndexError:
            return  # it was ended before
        self._budget._end(self._nusd, cost)


def _budget(max_usd: Usd, prices: Mapping[str, Rate] | None) -> Budget:
    return Budget(max_usd, prices=prices)


def _renew_locks() -> None:
    """Replace locks that another thread of the parent may have held at a fork."""
    for budget in list(_budgets):
        budget._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
