"""What a shared budget says of itself."""

from __future__ import annotations

from typing import NamedTuple


class BudgetState(NamedTuple):
    """
    What a shared budget holds.

    Attributes:
        spent_usd: What was committed in this period, US dollars.
        reserved_usd: What is held back for calls that are under way, in all processes, US dollars.
        max_usd: The limit, US dollars: the smallest that a process has given.
    """

    spent_usd: float
    reserved_usd: float
    max_usd: float


class BudgetStats(NamedTuple):
    """
    What this process knows of its calls.

    Attributes:
        waiting: Number of operations that are not stored yet.
        allowed: Number of calls that were allowed while the budget could not be asked.
        lost: Number of costs that were never stored.
        lost_usd: Their sum, US dollars.
    """

    waiting: int
    allowed: int
    lost: int
    lost_usd: float
