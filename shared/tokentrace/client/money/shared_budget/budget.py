"""A budget that any number of processes share, kept by the broker."""

from __future__ import annotations

import itertools
import secrets
import time
import weakref
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Self, Unpack

from tokentrace.client.money.amounts import Usd, nusd_of
from tokentrace.client.money.lease import aending, ending
from tokentrace.client.money.shared_budget.answers import granted, is_grant, state_of
from tokentrace.client.money.shared_budget.figures import BudgetState, BudgetStats
from tokentrace.client.money.shared_budget.lease import SharedLease, await_for, wait_for
from tokentrace.client.money.shared_budget.ledger import OnLost, Operation
from tokentrace.client.money.shared_budget.link import Place, link
from tokentrace.client.money.shared_budget.settings import AccessFields, IfUnavailable, Period, Settings
from tokentrace.client.money.shared_budget.ticket import Answer, Ticket
from tokentrace.units import nusd_to_usd

_POLL_S = 0.02
#: How long ``close`` waits for the thread to forget the budget, seconds.
_FORGET_S = 2.0

_numbers = itertools.count(1)


class SharedBudget:
    """
    A budget that processes on any number of machines share: all that give the same name, project and broker.

    What is committed stays within the limit as long as no call costs more than was reserved for it. It may be used from
    any thread and any event loop. A process that is killed between ``reserve`` and ``commit`` leaves a lease, which
    expires. A forked child connects anew; pickled, a budget is its arguments.

    Args:
        name: The name of the budget, of 1 to 128 characters.
        max_usd: The limit, US dollars. If another process gave another one, the smaller counts, with a warning.
        url: ``nats://host:port`` or ``tls://host:port``, or several of them separated by commas; None reads the
            environment variable ``TOKENTRACE_URL``.
        if_unavailable: What ``reserve`` does if the broker is away for half a second, or connected and silent for two:
            ``allow`` the call, count it here and commit it later; or ``refuse`` it with ``BudgetUnavailable``.
        period: When the budget starts again at 0: each ``hour``, ``day`` or ``month`` of UTC; "" = never.
        lease_s: How long the reservation of a process that was killed is kept, seconds, 10 to 86,400; a minute more is
            allowed for clocks that differ. A process that lives renews its leases.
        on_lost: What such a reservation counts as then: ``spent`` in full, or ``released``.
        project: The project that the budget belongs to; None reads ``TOKENTRACE_PROJECT``, else it is ``default``.
        access: ``token``, ``user``, ``password``, ``creds``, ``nkey``, ``ca``, ``cert``, ``key`` and ``inbox_prefix``,
            as ``Reporter`` takes them, with the same variables.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(
        self,
        name: str,
        max_usd: Usd,
        *,
        url: str | None = None,
        if_unavailable: IfUnavailable,
        period: Period = "",
        lease_s: float = 600,
        on_lost: OnLost = "spent",
        project: str | None = None,
        **access: Unpack[AccessFields],
    ) -> None:
        self.name = name
        self._settings = Settings(name, max_usd, url, if_unavailable, period, lease_s, on_lost, project, access)
        self._server, self._project, self._rules = self._settings.check()
        self._number = next(_numbers)
        # A budget that is no longer used needs no connection. Its leases keep it referenced.
        self._finalizer = weakref.finalize(self, link().close_budget, self._number)
        self._finalizer.atexit = False

    def reserve(self, usd: Usd) -> SharedLease:
        """
        Hold back an amount for a call that is about to be made.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A lease; ``commit`` it with the cost of the call, or ``release`` it.

        Raises:
            BudgetExceeded: Less than *usd* is left. Nothing was reserved.
            BudgetUnavailable: The broker did not answer and ``if_unavailable`` is ``refuse``; or what it holds was
                written by a later version, or cannot be read.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        place, operation, future = self._ask_for(usd)
        try:
            return self._lease(place, operation, wait_for(future))
        except BaseException:
            self._give_back(place, operation, future)
            raise

    async def areserve(self, usd: Usd) -> SharedLease:
        """
        Do what ``reserve`` does without blocking the event loop.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A lease, with ``acommit`` and ``arelease``.

        Raises:
            BudgetExceeded: Less than *usd* is left. Nothing was reserved.
            BudgetUnavailable: As for ``reserve``.
            Rejected: *usd* is not an amount from 0 to 1e9.
        """
        place, operation, future = self._ask_for(usd)
        try:
            return self._lease(place, operation, await await_for(future))
        except BaseException:
            self._give_back(place, operation, future)
            raise

    def call(self, usd: Usd) -> AbstractContextManager[SharedLease]:
        """
        Reserve an amount for the call that the block makes.

        The block calls ``commit`` with the cost. If it does not, the reserved amount counts as spent, or nothing if an
        exception ended the block.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A context manager whose value is the lease. It reserves when the block is entered, and raises then what
            ``reserve`` raises.
        """
        return _call(self, usd)

    def acall(self, usd: Usd) -> AbstractAsyncContextManager[SharedLease]:
        """
        Do what ``call`` does, for ``async with`` and without blocking the event loop.

        Args:
            usd: The most that the call can cost, US dollars.

        Returns:
            A context manager whose value is the lease.
        """
        return _acall(self, usd)

    def state(self) -> BudgetState:
        """
        Ask the broker what is spent and reserved in this period, by all processes.

        Returns:
            Amounts in US dollars.

        Raises:
            BudgetUnavailable: The broker did not answer, or what it holds cannot be read.
        """
        return state_of(self.name, wait_for(self._hand_over(self._place(), Operation("read", ""))))

    async def astate(self) -> BudgetState:
        """
        Do what ``state`` does without blocking the event loop.

        Returns:
            Amounts in US dollars.

        Raises:
            BudgetUnavailable: The broker did not answer, or what it holds cannot be read.
        """
        return state_of(self.name, await await_for(self._hand_over(self._place(), Operation("read", ""))))

    def reset_limit(self) -> None:
        """
        Make ``max_usd`` of this object the limit, although another process has given a smaller one.

        Call it once after a limit was raised everywhere: a process that still gives the smaller one lowers it again.

        Raises:
            BudgetUnavailable: The broker did not answer, or what it holds cannot be read. The limit may be set or not.
        """
        state_of(self.name, wait_for(self._hand_over(self._place(), Operation("limit", ""))))

    def stats(self) -> BudgetStats:
        """
        Return what this process knows of its calls, without asking the broker.

        Returns:
            Numbers of calls, and US dollars.
        """
        waiting, allowed, lost, lost_nusd = link().figures(self._number)
        return BudgetStats(waiting, allowed, lost, nusd_to_usd(lost_nusd))

    def flush(self, timeout: float = 5.0) -> bool:
        """
        Wait until everything that leases have ended with is stored.

        Args:
            timeout: Seconds.

        Returns:
            False if *timeout* passed first.
        """
        deadline = time.monotonic() + timeout
        while self.stats().waiting:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def close(self, timeout: float = 5.0) -> None:
        """
        Store what waits, and close the connection if no other budget uses it. Costs not stored by then are lost.

        Args:
            timeout: Seconds.
        """
        self.flush(timeout)
        link().close_budget(self._number, _FORGET_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def if_unavailable(self) -> IfUnavailable:
        """What happens to calls in doubt: allow or refuse."""
        return self._settings.if_unavailable

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, tuple(self._settings)

    def _place(self) -> Place:
        settings, now = self._settings, datetime.now(UTC)
        key, old_key = settings.key(self._project, now), settings.old_key(self._project, now)
        return Place(self._number, self._server, key, old_key, self.name, self._rules, settings.if_unavailable)

    def _hand_over(self, place: Place, operation: Operation) -> Future[Answer]:
        ticket = Ticket(operation)
        link().submit(place, ticket)
        return ticket.future

    def _ask_for(self, usd: Usd) -> tuple[Place, Operation, Future[Answer]]:
        place = self._place()
        operation = Operation("reserve", secrets.token_urlsafe(16), nusd_of(usd))
        return place, operation, self._hand_over(place, operation)

    def _lease(self, place: Place, operation: Operation, answer: Answer | None) -> SharedLease:
        is_stored = granted(self.name, operation.nusd, answer)
        lease = SharedLease(operation.id, operation.nusd, lambda end: self._hand_over(place, end), is_stored=is_stored)
        if is_stored:
            link().hold(place, lease)
        return lease

    def _give_back(self, place: Place, operation: Operation, future: Future[Answer]) -> None:
        """Release what was granted to a caller that does not wait any longer."""

        def release(answered: Future[Answer]) -> None:
            if is_grant(answered.result()):
                self._hand_over(place, Operation("release", operation.id, sent=True))

        future.add_done_callback(release)


@contextmanager
def _call(budget: SharedBudget, usd: Usd) -> Any:
    with ending(budget.reserve(usd)) as lease:
        yield lease


@asynccontextmanager
async def _acall(budget: SharedBudget, usd: Usd) -> Any:
    async with aending(await budget.areserve(usd)) as lease:
        yield lease


def _rebuild(name: str, max_usd: Usd, *others: Any) -> SharedBudget:
    arguments = Settings(name, max_usd, *others)._asdict()
    return SharedBudget(arguments.pop("name"), arguments.pop("max_usd"), **arguments.pop("access"), **arguments)
