"""
The state of a shared budget, and how operations change it. Pure: no clock, no I/O.

How it works
------------
All processes that share a budget share one value, a ``Ledger``. A process reads it, lets ``apply`` decide, and writes
the result if the value is still the same (compare-and-set); else it begins again. A write whose acknowledgement is lost
may or may not have been stored, and the process finds out by reading: every lease and every commit has an id of its
own, so ``apply`` runs again on what was read and changes nothing a second time.

* reserve: the id is among ``leases`` = it stands. Otherwise it is added if the limit allows.
* commit: the id is in ``done`` = it stands. A lease is dropped and its cost added. A lease that was settled meanwhile
  (``lost``) is corrected: its cost replaces what was counted. If the id is nowhere, then either a commit was written
  before (``sent``), has left the short list ``done``, and stands; or nothing of it was ever written, and a lease is
  added first, so that the commit after it can be recognised for as long as a lease lives.
* release: a lease is dropped; what was counted for a settled one is taken back.

A lease that is not renewed is settled by the next reservation, a minute after it expired, because clocks differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from tokentrace.errors import Rejected
from tokentrace.units import MINUTE

VERSION = 1
#: How many ids of commits are kept, and how many of settled leases.
MAX_DONE = 512
MAX_LOST = 512
#: By how much clocks may differ, nanoseconds.
GRACE_NS = MINUTE

Kind = Literal["limit", "commit", "release", "renew", "reserve", "read"]
#: What a lease counts as that expired without an end: its whole amount, or nothing.
OnLost = Literal["spent", "released"]


class Ledger(msgspec.Struct, frozen=True):
    """
    The state of a shared budget; amounts are nano-dollars.

    Attributes:
        v: The version of this form.
        limit: What may be spent.
        spent: What was spent.
        leases: Id -> (amount, when it expires in Unix nanoseconds).
        done: Ids of the last commits, oldest first.
        lost: Id of a lease that was settled -> the amount that was counted as spent for it; the last ones.
    """

    v: int
    limit: int
    spent: int = 0
    leases: dict[str, tuple[int, int]] = {}
    done: list[str] = []
    lost: dict[str, int] = {}

    @property
    def reserved(self) -> int:
        """The sum of all leases, nano-dollars."""
        return sum(amount for amount, _ in self.leases.values())

    @property
    def sums(self) -> Sums:
        """Spent, reserved and limit."""
        return Sums(self.spent, self.reserved, self.limit)


class Sums(NamedTuple):
    """What was spent, what is reserved, and the limit; nano-dollars."""

    spent: int
    reserved: int
    limit: int


@dataclass(slots=True)
class Operation:
    """
    What one caller wants.

    Attributes:
        kind: What to do.
        id: The id of the lease.
        nusd: The amount to reserve, or the cost to commit; nano-dollars.
        sent: A write that contained the effect of this operation may have been stored.
    """

    kind: Kind
    id: str
    nusd: int = 0
    sent: bool = False


class Rules(NamedTuple):
    """
    What a process wants of the budget.

    Attributes:
        limit: Nano-dollars.
        lease_ns: How long a lease lives without being renewed, nanoseconds.
        on_lost: What a lease counts as that expired without an end.
    """

    limit: int
    lease_ns: int
    on_lost: OnLost


class Outcome(NamedTuple):
    """
    What became of one operation, if the ledger is stored.

    Attributes:
        answer: granted, refused, stands (nothing more to do), or again (the operation needs another write).
        sums: The state after it.
        written: The effect of the operation is in this write.
    """

    answer: Literal["granted", "refused", "stands", "again"]
    sums: Sums
    written: bool = False


class Applied(NamedTuple):
    """
    The result of operations.

    Attributes:
        ledger: The new state.
        changed: It must be written.
        outcomes: One for each operation, in their order.
        other_limit: The limit that was stored, if it is not the one of the rules; None = it is.
    """

    ledger: Ledger
    changed: bool
    outcomes: list[Outcome]
    other_limit: int | None


def apply(stored: Ledger | None, operations: Sequence[Operation], rules: Rules, now_ns: int) -> Applied:
    """
    Return the state after *operations*. Those that free money come before those that reserve it.

    Args:
        stored: The state; None = there is none.
        now_ns: The time on this machine, Unix nanoseconds.
    """
    before = Ledger(v=VERSION, limit=rules.limit) if stored is None else stored
    work = _Work(before, rules, now_ns)
    outcomes: dict[int, Outcome] = {}
    for reserving in (False, True):
        for place, operation in enumerate(operations):
            if (operation.kind in ("reserve", "read")) is reserving:
                outcomes[place] = work.do(operation)
    ledger = work.ledger()
    return Applied(
        ledger,
        work.must_write or (stored is not None and ledger != stored) or any(one.written for one in outcomes.values()),
        [outcomes[place] for place in range(len(operations))],
        before.limit if before.limit != rules.limit else None,
    )


class _Work:
    """A ledger while operations change it."""

    def __init__(self, before: Ledger, rules: Rules, now_ns: int) -> None:
        self._rules, self._now_ns = rules, now_ns
        self._max, self._spent = min(before.limit, rules.limit), before.spent
        self._leases, self._done, self._lost = dict(before.leases), list(before.done), dict(before.lost)
        self._settled = False
        self.must_write = False

    def ledger(self) -> Ledger:
        lost = dict(list(self._lost.items())[-MAX_LOST:])
        done = self._done[-MAX_DONE:]
        return Ledger(VERSION, self._max, self._spent, self._leases, done, lost)

    def do(self, operation: Operation) -> Outcome:
        answer, written = getattr(self, f"_{operation.kind}")(operation)
        reserved = sum(amount for amount, _ in self._leases.values())
        return Outcome(answer, Sums(self._spent, reserved, self._max), written)

    def _reserve(self, operation: Operation) -> tuple[str, bool]:
        if operation.id in self._leases:
            return "granted", False
        self._settle()
        # The same reservation, stored long ago without an acknowledgement, may have been settled.
        self._spent -= self._lost.pop(operation.id, 0)
        reserved = sum(amount for amount, _ in self._leases.values())
        if self._spent + reserved + operation.nusd > self._max:
            return "refused", False
        self._add_lease(operation)
        return "granted", True

    def _commit(self, operation: Operation) -> tuple[str, bool]:
        id = operation.id
        if id in self._done:
            return "stands", False
        if id in self._leases:
            del self._leases[id]
        elif id in self._lost:
            self._spent -= self._lost.pop(id)
        elif operation.sent:
            return "stands", False
        else:
            self._add_lease(operation)
            self.must_write = True
            return "again", False
        self._spent += operation.nusd
        self._done.append(id)
        return "stands", True

    def _release(self, operation: Operation) -> tuple[str, bool]:
        id = operation.id
        if id in self._leases:
            del self._leases[id]
            return "stands", True
        if id in self._lost:
            self._spent -= self._lost.pop(id)
            return "stands", True
        # A reservation that is still under way to the broker must not be stored after this: any write prevents it.
        self.must_write |= operation.sent
        return "stands", False

    def _renew(self, operation: Operation) -> tuple[str, bool]:
        if operation.id not in self._leases:
            return "stands", False
        amount, expires_ns = self._leases[operation.id]
        self._leases[operation.id] = amount, max(expires_ns, self._now_ns + self._rules.lease_ns)
        return "stands", True

    def _limit(self, operation: Operation) -> tuple[str, bool]:
        self._max = self._rules.limit
        return "stands", True

    def _read(self, operation: Operation) -> tuple[str, bool]:
        return "stands", False

    def _add_lease(self, operation: Operation) -> None:
        self._leases[operation.id] = operation.nusd, self._now_ns + self._rules.lease_ns

    def _settle(self) -> None:
        """Settle the leases that expired more than the grace ago."""
        if self._settled:
            return
        self._settled = True
        for id, (amount, expires_ns) in list(self._leases.items()):
            if expires_ns + GRACE_NS < self._now_ns:
                del self._leases[id]
                counted = amount if self._rules.on_lost == "spent" else 0
                self._spent += counted
                self._lost[id] = counted


class _Version(msgspec.Struct):
    v: int


def decode_ledger(data: bytes) -> Ledger:
    """
    Return the ledger that *data*, JSON, holds.

    Raises:
        Rejected: It is of a later version, or not the state of a budget.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).v
        if version > VERSION:
            raise Rejected(f"it has version {version} and this program knows version {VERSION}: upgrade tokentrace")
        return msgspec.json.decode(data, type=Ledger)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Rejected(f"it is not the state of a budget: {exc}") from exc


def encode_ledger(ledger: Ledger) -> bytes:
    """Return *ledger* in JSON."""
    return msgspec.json.encode(ledger)
