"""
One key of the bucket, as one process uses it: the waiting operations, and the task that stores them.

Everything here runs in the thread of ``link``. A caller hands over a ``Ticket`` and waits for its future, which always
ends: with the outcome; or without, half a second after the connection was lost, or after two seconds without success.
An operation that ends a lease goes on waiting then, until it is stored.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Literal

from tokentrace.bus.subjects import BUDGETS
from tokentrace.client.money.shared_budget.connection import AWAY_S, Connection, in_time
from tokentrace.client.money.shared_budget.desk import Desk
from tokentrace.client.money.shared_budget.ledger import (
    Ledger,
    Operation,
    Outcome,
    Rules,
    Sums,
    decode_ledger,
    encode_ledger,
)
from tokentrace.client.money.shared_budget.renewals import Renewals
from tokentrace.client.money.shared_budget.ticket import Allowed, Answer, Away, Ticket
from tokentrace.errors import Conflict, Rejected, Unavailable
from tokentrace.units import SECOND, nusd_to_usd

log = logging.getLogger("tokentrace.budget")

#: Most operations that wait until the broker is back.
MAX_WAITING = 10_000
#: How long a caller waits at most, seconds.
PATIENCE_S = 2.0
_LOOK_S = 0.05
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.1
_MAX_AWAY_PAUSE_S = 0.5


class Account:
    """
    The waiting operations of one key.

    Args:
        connection: To the broker.
        key: In the bucket ``tt_budgets``.
        old_key: The key of a period long ago, which the first write of a period removes; "" = there is none.
        name: The name of the budget, for the log.
        rules: What this process wants of the budget.
        if_unavailable: What a reservation gets while the broker is away.

    Attributes:
        renewals: Of the leases of this process.
        allowed: How many calls were allowed while the broker was away.
        lost: How many costs were never stored.
        lost_nusd: Their sum, nano-dollars.
    """

    def __init__(
        self,
        connection: Connection,
        key: str,
        old_key: str,
        name: str,
        rules: Rules,
        if_unavailable: Literal["allow", "refuse"],
    ) -> None:
        self._connection, self._name, self._rules = connection, name, rules
        self._key, self._old_key = key, old_key
        self._allows = if_unavailable == "allow"
        self._desk = Desk(rules)
        self._tickets: dict[int, Ticket] = {}
        self._task: asyncio.Task[None] | None = None
        self._answered_at = 0.0
        #: A caller waited in vain for an answer, and none has come since.
        self._silent = False
        #: The last write came after that of another process.
        self._was_second = False
        # Not the module's: an application that seeds it gets the same numbers with and without a budget.
        self._dice = random.Random()
        #: Why what the broker holds cannot be used, and when it was read; "" = it can.
        self._unreadable, self._unreadable_at = "", 0.0
        self._seen_key = False
        self._last: Ledger | None = None
        self._said: set[str] = set()
        #: Id -> nano-dollars of calls that were allowed while the broker was away and are not stored yet.
        self._local: dict[str, int] = {}
        self.renewals = Renewals(rules.lease_ns / SECOND / 3, lambda id: self._add(Operation("renew", id)))
        self.allowed = self.lost = self.lost_nusd = 0

    @property
    def waiting(self) -> int:
        """How many operations are not stored yet."""
        return len(self._desk)

    def submit(self, ticket: Ticket) -> None:
        """Take an operation; its future ends within little more than two seconds."""
        operation = ticket.operation
        ticket.since = asyncio.get_running_loop().time()
        if operation.kind in ("commit", "release"):
            self.renewals.end(operation.id)
            if operation.id in self._local:
                self._local[operation.id] = operation.nusd
            if len(self._desk) >= MAX_WAITING:
                self._lose(operation)
                self._resolve(ticket, Away("too many costs wait"))
                return
        self._tickets[id(operation)] = ticket
        self._add(operation)
        self._look(ticket)

    def abandon(self) -> None:
        """Count what is not stored as lost; called at the end."""
        self.renewals.stop()
        for operation in self._desk.waiting():
            self._desk.forget(operation)
            self._lose(operation)
        if self._task is not None:
            self._task.cancel()
        for ticket in list(self._tickets.values()):
            self._resolve(ticket, Away("the budget is closed"))
        if self.lost:
            text = "budget %s: %d costs were never stored, in all %s USD"
            log.warning(text, self._name, self.lost, nusd_to_usd(self.lost_nusd))

    # -- what callers are told

    def _look(self, ticket: Ticket) -> None:
        """Tell the caller that it is not to wait any longer, or look again later."""
        if ticket.future.done():
            return
        reason = self._why_not(ticket)
        if not reason:
            asyncio.get_running_loop().call_later(_LOOK_S, self._look, ticket)
            return
        self._tickets.pop(id(ticket.operation), None)
        self._resolve(ticket, self._without_broker(ticket.operation, reason))

    def _why_not(self, ticket: Ticket) -> str:
        if self._unreadable and self._unreadable_at >= ticket.since:
            return self._unreadable
        if away := self._connection.away():
            return away
        now = asyncio.get_running_loop().time()
        silent_s = now - max(ticket.since, self._answered_at)
        if now - ticket.since < PATIENCE_S and silent_s < (AWAY_S if self._silent else PATIENCE_S):
            return ""
        if self._was_second:
            return "too many processes write at the same time"
        self._silent = True
        return f"no answer from {BUDGETS} (is the bucket there, and may this user read and write it?)"

    def _without_broker(self, operation: Operation, reason: str) -> Answer:
        if operation.kind in ("read", "limit"):
            self._desk.forget(operation)
        if operation.kind != "reserve":
            return Away(reason)
        if self._unreadable or not self._allows:
            self._desk.withdraw(operation)
            if not self._unreadable:
                self._say("away", "budget %s: calls are refused: %s", self._name, reason)
            return Away(reason)
        self._desk.forget(operation)
        self._say(
            "away", "budget %s: calls are allowed and counted here, because it cannot be asked: %s", self._name, reason
        )
        known = Sums(0, 0, self._rules.limit) if self._last is None else self._last.sums
        here = sum(self._local.values())
        limit = min(known.limit, self._rules.limit)
        if known.spent + known.reserved + here + operation.nusd > limit:
            return Outcome("refused", Sums(known.spent, known.reserved + here, limit))
        self._local[operation.id] = operation.nusd
        self.allowed += 1
        return Allowed()

    def _resolve(self, ticket: Ticket, answer: Answer) -> None:
        self._tickets.pop(id(ticket.operation), None)
        if not ticket.future.done():
            ticket.future.set_result(answer)

    def _say(self, what: str, text: str, *values: object) -> None:
        """Warn once of *what*, until ``_unsay``."""
        if what not in self._said:
            self._said.add(what)
            log.warning(text, *values)

    def _lose(self, operation: Operation) -> None:
        self._local.pop(operation.id, None)
        if operation.kind == "commit":
            self.lost += 1
            self.lost_nusd += operation.nusd
            self._say("lost", "budget %s: more than %d costs wait, and further ones are lost", self._name, MAX_WAITING)

    # -- the task

    def _add(self, operation: Operation) -> None:
        self._desk.add(operation)
        self._begin()

    def _begin(self) -> None:
        if self._task is None and len(self._desk):
            self._task = asyncio.get_running_loop().create_task(self._store())
            self._task.add_done_callback(self._stored)

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if (fault := task.exception()) is None:
            self._begin()  # for what came after the task looked for the last time
        else:
            log.error("budget %s: storing failed and starts again", self._name, exc_info=fault)
            asyncio.get_running_loop().call_later(_MAX_AWAY_PAUSE_S, self._begin)

    async def _store(self) -> None:
        """Store the operations that wait, until none does."""
        pause, away_pause = _FIRST_PAUSE_S, _LOOK_S
        while len(self._desk):
            try:
                await self._write_once()
                self._was_second = False
                pause, away_pause = _FIRST_PAUSE_S, _LOOK_S
            except Conflict:
                self._was_second = True
                await asyncio.sleep(self._dice.uniform(0, pause))
                pause = min(pause * 2, _MAX_PAUSE_S)
            except (Unavailable, Rejected) as exc:
                self._was_second = False
                log.debug("budget %s: %s", self._name, exc)
                await asyncio.sleep(self._dice.uniform(away_pause / 2, away_pause))
                away_pause = min(away_pause * 2, _MAX_AWAY_PAUSE_S)

    async def _write_once(self) -> None:
        bus = self._connection.bus
        if bus is None:
            raise Unavailable("not connected")
        bucket = bus.kv(BUDGETS)
        entry = await in_time(bucket.get(self._key))
        self._answered()
        self._unreadable = ""
        stored = None
        if entry is not None:
            try:
                stored = decode_ledger(entry.value)
            except Rejected as exc:
                self._unreadable = f"the key {self._key} of {BUDGETS} cannot be used: {exc}"
                self._unreadable_at = self._answered_at
                self._say("unreadable", "budget %s: calls are refused: %s", self._name, self._unreadable)
                raise
        elif self._seen_key:
            log.warning("budget %s: its key %s was deleted, and it starts at 0", self._name, self._key)
        self._seen_key = entry is not None
        decision = self._desk.decide(stored, time.time_ns())
        if decision.other_limit is not None:
            own, other = nusd_to_usd(self._rules.limit), nusd_to_usd(decision.other_limit)
            text = "budget %s: the limit is %s USD here and was %s USD: the smaller one counts"
            self._say("limit", text, self._name, own, other)
        if decision.write is None:
            self._last = stored
            self._finish(decision.finished)
            return
        data = encode_ledger(decision.write)
        try:
            await in_time(
                bucket.create(self._key, data) if entry is None else bucket.update(self._key, data, entry.revision)
            )
        except Conflict:
            self._answered()
            self._desk.conflict()
            raise
        except BaseException:
            self._desk.unsure()
            raise
        self._answered()
        self._seen_key, self._last = True, decision.write
        self._finish(self._desk.confirm())
        if entry is None and self._old_key and await in_time(bucket.get(self._old_key)) is not None:
            # Buckets of this kind never forget a key, and each period has one.
            await in_time(bucket.delete(self._old_key))

    def _answered(self) -> None:
        self._answered_at, self._silent = asyncio.get_running_loop().time(), False
        if "away" in self._said:
            self._said.discard("away")
            log.info("budget %s: it can be asked again", self._name)

    def _finish(self, finished: list[tuple[Operation, Outcome]]) -> None:
        for operation, outcome in finished:
            if operation.kind in ("commit", "release"):
                self._local.pop(operation.id, None)
            elif outcome.answer == "refused" and operation.sent:
                # It may still arrive at the broker, with the write that was not acknowledged.
                self._add(Operation("release", operation.id, sent=True))
            ticket = self._tickets.get(id(operation))
            if ticket is not None:
                self._resolve(ticket, outcome)
