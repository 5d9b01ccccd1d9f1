"""What callers make of the answers to their operations."""

from __future__ import annotations

from tokentrace.client.money.errors import BudgetExceeded, BudgetUnavailable
from tokentrace.client.money.shared_budget.figures import BudgetState
from tokentrace.client.money.shared_budget.ledger import Outcome
from tokentrace.client.money.shared_budget.ticket import Allowed, Answer, Away
from tokentrace.units import nusd_to_usd


def is_grant(answer: Answer) -> bool:
    """Return True if *answer* grants a reservation, or allows a call while the broker is away."""
    return isinstance(answer, Allowed) or (isinstance(answer, Outcome) and answer.answer == "granted")


def granted(name: str, nusd: int, answer: Answer | None) -> bool:
    """
    Return True if the reservation of *nusd* is stored, False if the call is allowed while the broker is away.

    Args:
        answer: None = the thread that answers does not run.

    Raises:
        BudgetExceeded: It was refused.
        BudgetUnavailable: The budget *name* could not be asked.
    """
    if answer is None or isinstance(answer, Away):
        raise _unavailable(name, answer)
    if not is_grant(answer):
        assert isinstance(answer, Outcome)
        spent, reserved, limit = map(nusd_to_usd, answer.sums)
        raise BudgetExceeded(spent, limit, reserved_usd=reserved, asked_usd=nusd_to_usd(nusd), name=name)
    return isinstance(answer, Outcome)


def state_of(name: str, answer: Answer | None) -> BudgetState:
    """Return the state that *answer* tells; BudgetUnavailable if the budget *name* could not be asked."""
    if not isinstance(answer, Outcome):
        raise _unavailable(name, answer)
    return BudgetState(*map(nusd_to_usd, answer.sums))


def _unavailable(name: str, answer: Answer | None) -> BudgetUnavailable:
    reason = answer.reason if isinstance(answer, Away) else "its thread does not run"
    return BudgetUnavailable(f"shared budget {name}: {reason}")
