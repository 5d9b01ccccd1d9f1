"""
The thread of this process that talks to brokers for all shared budgets.

It starts with the first operation and runs an event loop of its own, so that a budget may be used from any thread and
any event loop, also from several that come and go. At the end of the program it has the same five seconds as reporters
to store what waits. A forked child starts over: without thread, connection and waiting operations, which are the
parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

from tokentrace.client import lifecycle
from tokentrace.client.money.shared_budget.account import Account
from tokentrace.client.money.shared_budget.connection import Connection
from tokentrace.client.money.shared_budget.ledger import Rules
from tokentrace.client.money.shared_budget.settings import Server
from tokentrace.client.money.shared_budget.ticket import Away, Ticket

log = logging.getLogger("tokentrace.budget")

_POLL_S = 0.02
_STOP_GRACE_S = 0.5
_CLOSED = "the program ends"


class Place(NamedTuple):
    """
    Where the operations of one budget go.

    Attributes:
        budget: Identifies the object of the application.
        server: Of the bucket.
        key, old_key: In the bucket.
        name, rules, if_unavailable: As ``Account`` takes them.
    """

    budget: int
    server: Server
    key: str
    old_key: str
    name: str
    rules: Rules
    if_unavailable: Literal["allow", "refuse"]


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that can resolve names when the interpreter ends and its thread pool is closed."""

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        """Do what ``loop.getaddrinfo`` does; without a thread pool, block the loop meanwhile."""
        try:
            return await super().getaddrinfo(host, port, **kwargs)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **kwargs)


class Link:
    """The thread, its connections and its accounts."""

    def __init__(self) -> None:
        self._start_over()
        lifecycle.register(self)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loop: _Loop | None = None
        self._deadline = 0.0
        self._closing = False
        self._connections: dict[Server, Connection] = {}
        self._accounts: dict[Place, Account] = {}
        #: Tasks that nothing else refers to.
        self._tasks: set[asyncio.Task[None]] = set()

    def reset(self) -> None:
        """Discard the thread and all that waits, in a forked child."""
        self._start_over()

    # -- called from other threads

    def submit(self, place: Place, ticket: Ticket) -> None:
        """Hand *ticket* over; its future ends within little more than two seconds."""
        if not self._call(lambda: self._account(place).submit(ticket)):
            ticket.future.set_result(Away(_CLOSED))

    def hold(self, place: Place, lease: Any) -> None:
        """Renew *lease* until it is ended or forgotten."""
        self._call(lambda: self._account(place).renewals.hold(lease))

    def figures(self, budget: int) -> tuple[int, int, int, int]:
        """Return waiting operations, allowed calls, lost costs and their nano-dollars of a budget."""
        accounts = [account for place, account in list(self._accounts.items()) if place.budget == budget]
        return (
            sum(account.waiting for account in accounts),
            sum(account.allowed for account in accounts),
            sum(account.lost for account in accounts),
            sum(account.lost_nusd for account in accounts),
        )

    def close_budget(self, budget: int, wait_s: float = 0.0) -> None:
        """
        Forget the accounts of a budget, and close a connection that no budget uses; what waits is lost.

        Args:
            wait_s: How long to wait until this is done, seconds.
        """
        done = threading.Event()

        def forget() -> None:
            self._forget(budget)
            done.set()

        if self._loop is not None and self._call(forget) and wait_s:
            done.wait(wait_s)

    def begin_close(self, timeout: float) -> None:
        """Give the thread *timeout* seconds to store what waits; return at once."""
        with self._lock:
            if self._loop is None or self._closing:
                return
            self._closing, self._deadline = True, time.monotonic() + timeout
            loop = self._loop
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: self._keep(loop.create_task(self._end(loop))))

    def finish_close(self) -> None:
        """Wait for the end of the thread, until half a second after the deadline at most."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
            thread.join(max(self._deadline - time.monotonic(), 0.0) + _STOP_GRACE_S)

    def _call(self, work: Callable[[], None]) -> bool:
        """Run *work* in the thread, which starts if there is none; False if there can be none."""
        with self._lock:
            try:
                if self._closing:
                    return False
                if self._loop is None:
                    lifecycle.close_at_exit_of_child()
                    loop = _Loop()
                    thread = threading.Thread(target=self._run, args=(loop,), name="tokentrace-budget", daemon=True)
                    thread.start()
                    self._loop, self._thread = loop, thread
                self._loop.call_soon_threadsafe(work)
            except RuntimeError as exc:
                log.debug("budgets: %s", exc)
                return False
        return True

    # -- in the thread

    def _run(self, loop: _Loop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

    def _account(self, place: Place) -> Account:
        account = self._accounts.get(place)
        if account is None:
            connection = self._connections.get(place.server)
            if connection is None:
                connection = self._connections[place.server] = Connection(place.server)
            connection.users += 1
            account = Account(connection, place.key, place.old_key, place.name, place.rules, place.if_unavailable)
            self._accounts[place] = account
        return account

    def _forget(self, budget: int) -> None:
        for place in [place for place in self._accounts if place.budget == budget]:
            self._accounts.pop(place).abandon()
            connection = self._connections[place.server]
            connection.users -= 1
            if not connection.users:
                del self._connections[place.server]
                self._keep(asyncio.get_running_loop().create_task(connection.close()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, loop: _Loop) -> None:
        while any(account.waiting for account in self._accounts.values()) and time.monotonic() < self._deadline:
            await asyncio.sleep(_POLL_S)
        for account in self._accounts.values():
            account.abandon()
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))
        loop.stop()


@cache
def link() -> Link:
    """Return the link of this process."""
    return Link()
