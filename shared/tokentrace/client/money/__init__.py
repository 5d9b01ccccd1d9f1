"""Money: what calls cost, budgets of one process, and budgets that many processes share."""

from tokentrace.client.money.budget import Budget, BudgetLease
from tokentrace.client.money.errors import BudgetExceeded, BudgetUnavailable
from tokentrace.client.money.lease import Lease
from tokentrace.client.money.prices import Prices, cost, cost_or_none, cost_with_rate, estimate_cost

__all__ = [
    "Budget",
    "BudgetExceeded",
    "BudgetLease",
    "BudgetUnavailable",
    "Lease",
    "Prices",
    "cost",
    "cost_or_none",
    "cost_with_rate",
    "estimate_cost",
]
