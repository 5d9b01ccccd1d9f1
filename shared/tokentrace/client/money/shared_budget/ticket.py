"""An operation on its way from the thread of a caller to the thread of ``link``, and the answers to it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from tokentrace.client.money.shared_budget.ledger import Operation, Outcome


class Away(NamedTuple):
    """The broker could not be asked, or what it holds could not be read."""

    reason: str


class Allowed(NamedTuple):
    """The broker could not be asked, and the call is allowed and counted here until it can be."""


Answer = Outcome | Away | Allowed


@dataclass(eq=False)
class Ticket:
    """An operation whose caller waits for *future*; *since* is when it was handed over, in the time of the loop."""

    operation: Operation
    future: Future[Answer] = field(default_factory=Future)
    since: float = 0.0
