"""``Budget``: sums that are exact to the nano-dollar, and a limit that reservations never pass, in any threads."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace import Budget, BudgetExceeded, ConfigError, Lease, Rate, Rejected, Span
from tokentrace.records import ROLLUP_KINDS
from tokentrace.units import nusd_to_usd

CALL = Span(model="gpt-4o", prompt_tokens=512, completion_tokens=128)
#: Whole nano-dollars, as the amounts of which a float has at most nine decimals.
NUSD = st.integers(0, 3 * 10**9)


def nearest_nusd(usd: float | Decimal) -> Fraction:
    """Return the written decimal *usd* rounded half to even to nano-dollars, as a fraction of US dollars."""
    exact = Fraction(repr(usd) if isinstance(usd, float) else str(usd))
    return Fraction(round(exact * 10**9), 10**9)


def error_of(use: Callable[..., None], amount: object) -> BudgetExceeded | None:
    """Return the error that *use* raises with *amount*, if any."""
    try:
        use(amount)
    except BudgetExceeded as exc:
        return exc
    return None


@given(
    st.integers(0, 5 * 10**9),
    st.lists(st.tuples(st.sampled_from(["add", "span", "reserve", "commit", "release"]), NUSD, st.integers(0, 9))),
)
def test_spent_and_reserved_are_exact_sums(limit: int, steps: list[tuple[str, int, int]]) -> None:
    budget = Budget(Decimal(limit).scaleb(-9))
    spent, held, bound = Fraction(0), list[tuple[Lease, Fraction]](), Fraction(limit, 10**9)
    for what, nusd, place in steps:
        usd = Fraction(nusd, 10**9)
        if what in ("add", "span"):
            spent += usd
            given = Span(cost_nusd=nusd, cost_source="reported") if what == "span" else nusd / 10**9
            error = error_of(budget.add, given)
            assert (error is None) is (spent <= bound)
            assert error is None or (error.spent_usd, error.max_usd) == (float(spent), float(bound))
        elif what == "reserve":
            fits = spent + sum(amount for _, amount in held) + usd <= bound
            leases: list[Lease] = []
            error = error_of(lambda amount, new=leases: new.append(budget.reserve(amount)), Decimal(nusd).scaleb(-9))
            held += [(lease, usd) for lease in leases]
            assert (error is None) is fits
            assert error is None or error.asked_usd == float(usd)
        elif held:
            lease, _ = held.pop(place % len(held))
            if what == "commit":
                lease.commit(Decimal(nusd).scaleb(-9))
                spent += usd
            else:
                lease.release()
            assert lease.ended
        reserved = sum((amount for _, amount in held), Fraction(0))
        assert (budget.spent, budget.reserved) == (float(spent), float(reserved))
        assert budget.remaining == float(max(bound - spent - reserved, Fraction(0)))
        assert budget.exceeded is (spent > bound)


@given(st.lists(st.floats(0, 1000) | st.decimals(0, 1000, allow_nan=False, places=12), max_size=30))
def test_each_amount_is_rounded_once_to_nano_dollars(amounts: list[float | Decimal]) -> None:
    budget = Budget(1_000_000)
    for amount in amounts:
        budget.add(amount)
    assert budget.spent == float(sum(map(nearest_nusd, amounts), Fraction(0)))


def test_a_tenth_ten_times_is_exactly_one_dollar_and_a_nano_dollar_more_is_too_much() -> None:
    budget = Budget(1.0)
    for _ in range(10):
        budget.add(0.1)
    assert (budget.spent, budget.remaining, budget.exceeded) == (1.0, 0.0, False)
    with pytest.raises(BudgetExceeded, match=r"budget: 1\.000000001 USD spent, the limit is 1\.00 USD"):
        budget.add(0.000000001)
    assert budget.exceeded


def test_a_span_without_a_cost_is_priced_and_one_without_a_price_is_counted_as_unpriced() -> None:
    budget = Budget(1)
    budget.add(CALL)
    assert budget.spent == 0.00256
    budget.add(Span(model="gpt-4o", prompt_tokens=512, completion_tokens=128, cost_nusd=0))
    assert budget.spent == 0.00512
    budget.add(Span(model="no-such-model", prompt_tokens=5))
    assert (budget.spent, budget.unpriced) == (0.00512, 1)
    budget.add(Span(kind="tool", name="search"))
    assert (budget.spent, budget.unpriced) == (0.00512, 1)


def test_own_prices_apply() -> None:
    budget = Budget(1, prices={"gpt-4o": Rate(prompt_per_1m=1000, completion_per_1m=0)})
    budget.add(CALL)
    assert budget.spent == 0.512


@pytest.mark.parametrize("kind", sorted(ROLLUP_KINDS))
def test_a_span_that_sums_up_others_adds_nothing(kind: Any) -> None:
    budget = Budget(1)
    budget.add(Span(kind=kind, cost_nusd=5 * 10**9))
    assert budget.spent == 0.0


@pytest.mark.parametrize(
    "usd", [-0.1, float("nan"), float("inf"), Decimal("nan"), Decimal("sNaN"), 10**10, True, "1", None]
)
def test_what_is_no_amount_is_refused_and_changes_nothing(usd: Any) -> None:
    budget = Budget(1)
    lease = budget.reserve(0.5)
    for use in (budget.add, budget.reserve, lease.commit):
        with pytest.raises(Rejected, match="usd: "):
            use(usd)
    with pytest.raises(ConfigError, match="max_usd"):
        Budget(usd)
    assert (budget.spent, budget.reserved, lease.ended) == (0.0, 0.5, False)


def test_the_first_end_of_a_lease_counts() -> None:
    budget = Budget(1)
    lease = budget.reserve(0.5)
    assert lease.usd == 0.5
    lease.commit(0.75)
    lease.commit(0.1)
    lease.release()
    assert (budget.spent, budget.reserved) == (0.75, 0.0)


def test_a_block_that_does_not_end_its_lease_spends_what_was_reserved_unless_it_failed() -> None:
    budget = Budget(1)
    with budget.call(0.1):
        pass
    assert budget.spent == 0.1
    with budget.call(0.1) as lease:
        lease.commit(0.05)
    assert budget.spent == 0.15
    with pytest.raises(KeyError), budget.call(0.1):
        raise KeyError
    assert budget.spent == 0.15
    with pytest.raises(KeyboardInterrupt), budget.call(0.1):
        raise KeyboardInterrupt
    assert (budget.spent, budget.reserved) == (0.25, 0.0)


async def test_a_cancelled_call_spends_what_was_reserved() -> None:
    budget = Budget(1)

    async def call() -> None:
        async with budget.acall(0.4):
            await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    lease = await budget.areserve(0.6)
    await lease.arelease()
    async with budget.acall(0.6) as lease:
        await lease.acommit(0.5)
    assert (budget.spent, budget.reserved) == (0.9, 0.0)


def test_threads_never_pass_the_limit_and_lose_no_nano_dollar() -> None:
    budget, each, threads = Budget(0.9), 2000, 8
    granted, refused = [0] * threads, [0] * threads

    def work(number: int) -> None:
        for _ in range(each):
            try:
                lease = budget.reserve(0.0001)
            except BudgetExceeded:
                refused[number] += 1
            else:
                lease.commit(0.0001)
                granted[number] += 1

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    assert (sum(granted), sum(refused)) == (9000, each * threads - 9000)
    assert (budget.spent, budget.reserved, budget.exceeded) == (0.9, 0.0, False)


def test_a_budget_pickles_as_its_arguments_and_its_error_with_all_it_says() -> None:
    budget = Budget(1.5, prices={"m": Rate(1, 2)})
    budget.add(1)
    again = pickle.loads(pickle.dumps(budget))
    assert (again.max, again.spent) == (1.5, 0.0)
    again.add(Span(model="m", prompt_tokens=1_000_000))
    assert again.spent == 1.0
    with pytest.raises(BudgetExceeded) as error:
        again.reserve(2)
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value) == "budget: 1.00 USD spent, the limit is 1.50 USD: 2.00 USD more do not fit"
    assert vars(copy) == vars(error.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_use_a_budget_whose_lock_was_held() -> None:
    budget = Budget(1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with budget._lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        budget.add(0.25)
        os._exit(0 if budget.spent == 0.25 else 1)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_amounts_of_a_budget_are_floats_of_whole_nano_dollars() -> None:
    budget = Budget(Decimal("0.3"))
    budget.add(Decimal("0.1"))
    budget.add(0.2)
    assert (budget.spent, budget.max) == (0.3, nusd_to_usd(300_000_000))
