"""
The operations of one process that wait to be stored, and what is known about each. Pure: no clock, no I/O.

All operations that wait are decided together and stored by one write, so a process needs no more writes when many
threads share the budget. The caller reads the ledger, asks ``decide``, writes, and says how the write ended:
``confirm``, ``conflict`` or ``unsure``.
"""

from __future__ import annotations

from typing import NamedTuple

from tokentrace.client.money.shared_budget.ledger import Kind, Ledger, Operation, Outcome, Rules, apply

#: Most operations in one write; fewer than the ledger remembers, so that a lost acknowledgement can be resolved.
_MAX_TOGETHER = 256


class Decision(NamedTuple):
    """
    What to do after a read.

    Attributes:
        write: The ledger to store; None = nothing has to be stored.
        finished: The operations that are finished without a write, with their outcomes.
        other_limit: The limit that was stored, nano-dollars, if it is another one than that of the rules.
    """

    write: Ledger | None
    finished: list[tuple[Operation, Outcome]]
    other_limit: int | None


class Desk:
    """
    The waiting operations of one budget in this process.

    Args:
        rules: What this process wants of the budget.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._waiting: dict[int, Operation] = {}
        #: The operations in the write that is under way, each with its outcome and its kind when it was decided.
        self._in_write: list[tuple[Operation, Outcome, Kind]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, operation: Operation) -> None:
        """Let *operation* wait."""
        self._waiting[id(operation)] = operation

    def waiting(self) -> list[Operation]:
        """Return the operations that wait, oldest first."""
        return list(self._waiting.values())

    def forget(self, operation: Operation) -> None:
        """Stop waiting for *operation*; a write that is under way may still contain it."""
        self._waiting.pop(id(operation), None)

    def withdraw(self, operation: Operation) -> None:
        """Take a reservation back that may or may not be stored: it becomes a release."""
        if id(operation) in self._waiting:
            under_way = any(one is operation for one, *_ in self._in_write)
            operation.kind = "release"
            if not (operation.sent or under_way):
                self.forget(operation)

    def decide(self, stored: Ledger | None, now_ns: int) -> Decision:
        """
        Return what the waiting operations, at most 256 of them, make of *stored*.

        Args:
            now_ns: The time on this machine, Unix nanoseconds.
        """
        operations = self.waiting()[:_MAX_TOGETHER]
        applied = apply(stored, operations, self._rules, now_ns)
        decided = list(zip(operations, applied.outcomes, strict=True))
        if applied.changed:
            self._in_write = [(operation, outcome, operation.kind) for operation, outcome in decided]
            return Decision(applied.ledger, [], applied.other_limit)
        return Decision(None, [self._finish(*one) for one in decided], applied.other_limit)

    def confirm(self) -> list[tuple[Operation, Outcome]]:
        """Note that the write was stored, and return what is finished."""
        finished = []
        for operation, outcome, kind in self._take():
            # A reservation that was withdrawn meanwhile is stored now, and has to be released.
            if outcome.answer != "again" and operation.kind == kind:
                finished.append(self._finish(operation, outcome))
        return finished

    def conflict(self) -> None:
        """Note that the write was not stored, because another one was first."""
        self._take()

    def unsure(self) -> None:
        """Note that the write may or may not be stored."""
        for operation, outcome, _ in self._take():
            operation.sent |= outcome.written

    def _take(self) -> list[tuple[Operation, Outcome, Kind]]:
        taken, self._in_write = self._in_write, []
        return taken

    def _finish(self, operation: Operation, outcome: Outcome) -> tuple[Operation, Outcome]:
        self.forget(operation)
        return operation, outcome
