"""Share one budget between twenty processes: together they stop before they spend more than it allows."""

import time
import uuid
from concurrent.futures import ProcessPoolExecutor

from tokentrace import BudgetExceeded, BudgetUnavailable, SharedBudget, Tracer, cost

WORKERS = 20
MAX_USD = 0.1
#: The most that a call can cost, US dollars: 512 tokens of prompt, and 160 of completion.
CALL_USD = 0.00288


def work(budget_name: str) -> int:
    """Make calls until the budget is used up; return how many were made."""
    made = 0
    budget = SharedBudget(budget_name, MAX_USD, if_unavailable="refuse")
    with budget, Tracer(source="worker") as tracer, tracer.trace("work") as trace:
        while True:
            try:
                with budget.call(CALL_USD) as lease:
                    call = trace.record(model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128)
                    lease.commit(cost("gpt-4o", call))
                    made += 1
            except BudgetExceeded:
                return made
            except BudgetUnavailable:
                time.sleep(1)  # The broker is away or too busy, and nothing may be spent without it.


def main() -> None:
    # A budget of this run. A constant name and period="day" would make it one of each day.
    name = f"run-{uuid.uuid4()}"
    with ProcessPoolExecutor(WORKERS) as workers:
        calls = sum(workers.map(work, [name] * WORKERS))
    with SharedBudget(name, MAX_USD, if_unavailable="refuse") as budget:
        print(f"{calls} calls spent {budget.state().spent_usd:.5f} of {MAX_USD} USD")


if __name__ == "__main__":
    main()
