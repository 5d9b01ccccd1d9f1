"""Budgets that many processes share. The docstrings of ``ledger``, ``desk``, ``account`` and ``link`` say how."""

from tokentrace.client.money.shared_budget.budget import SharedBudget
from tokentrace.client.money.shared_budget.figures import BudgetState, BudgetStats
from tokentrace.client.money.shared_budget.lease import SharedLease

__all__ = ["BudgetState", "BudgetStats", "SharedBudget", "SharedLease"]
