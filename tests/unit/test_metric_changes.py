"""Changes between two groups of spans equal those of fractions that are computed from the spans one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.metrics import GROUPS, Aggregates, Calls, change, group_changes, metric_leaf
from tokentrace.rollup import Sums


class Paid(NamedTuple):
    """A call: its cost in nano-dollars or None, its tokens, whether it failed, and its latency in nanoseconds."""

    nusd: int | None
    tokens: int
    failed: bool
    latency_ns: int


PAID = st.builds(
    Paid,
    st.none() | st.integers(0, 10**19),
    st.integers(0, 10**9),
    st.booleans(),
    st.integers(0, 10**12),
)
SIDES = st.lists(PAID, max_size=8)


def aggregated(calls: Sequence[Paid]) -> Aggregates:
    cost, unpriced = sum(call.nusd or 0 for call in calls), sum(call.nusd is None for call in calls)
    sums = Sums(
        spans=len(calls),
        errors=sum(call.failed for call in calls),
        unpriced=unpriced,
        latency_n=sum(call.latency_ns > 0 for call in calls),
        cost=cost,
        total=sum(call.tokens for call in calls),
        latency=sum(call.latency_ns for call in calls),
    )
    return Aggregates(sums=sums, paid=len(calls), calls=Calls(len(calls), cost, unpriced))


def cost(calls: Sequence[Paid]) -> Fraction | None:
    known = [Fraction(call.nusd, 10**9) for call in calls if call.nusd is not None]
    return sum(known, Fraction(0)) if known or not calls else None


def mean_cost(calls: Sequence[Paid]) -> Fraction | None:
    known = [Fraction(call.nusd, 10**9) for call in calls if call.nusd is not None]
    return sum(known, Fraction(0)) / len(known) if known else None


def error_rate(calls: Sequence[Paid]) -> Fraction | None:
    return Fraction(sum(call.failed for call in calls), len(calls)) if calls else None


def latency(calls: Sequence[Paid]) -> Fraction | None:
    timed = [Fraction(call.latency_ns, 10**6) for call in calls if call.latency_ns]
    return sum(timed, Fraction(0)) / len(timed) if timed else None


NUMBERS: dict[str, tuple[Callable[[Sequence[Paid]], Fraction | None], bool]] = {
    "total_cost": (cost, True),
    "cost_per_call": (mean_cost, False),
    "total_tokens": (lambda calls: Fraction(sum(call.tokens for call in calls)), True),
    "error_rate": (error_rate, False),
    "error_count": (lambda calls: Fraction(sum(call.failed for call in calls)), False),
    "span_count": (lambda calls: Fraction(len(calls)), False),
    "latency_avg": (latency, False),
}


def is_rounded(shown: float | int | None, exact: Fraction) -> bool:
    """Return whether a whole number is shown exactly and any other one as the nearest float."""
    return shown == (int(exact) if exact.denominator == 1 else float(exact))


@given(SIDES, SIDES)
def test_a_change_is_the_rounded_difference_of_exact_numbers(now: list[Paid], before: list[Paid]) -> None:
    for name, (recount, is_sum) in NUMBERS.items():
        shown = metric_leaf(name).change(aggregated(now), aggregated(before))
        after, earlier = recount(now), recount(before)
        if after is None or earlier is None or (is_sum and not now and not before):
            assert shown == {"absolute": None, "ratio": None}, name
            continue
        assert is_rounded(shown["absolute"], after - earlier), name
        if earlier:
            assert is_rounded(shown["ratio"], (after - earlier) / earlier), name
        else:
            assert shown["ratio"] == (0 if after == earlier else None), name


@given(SIDES, SIDES)
def test_every_number_of_a_group_has_a_change_and_none_without_the_other_side(
    now: list[Paid], before: list[Paid]
) -> None:
    after, earlier = aggregated(now), aggregated(before)
    for name, group in GROUPS.items():
        shown = group_changes(name, after, earlier)
        assert list(shown) == list(group.render(after))
        for key, leaf in shown.items():
            values = group.render(after)[key], group.render(earlier)[key]
            if None not in values:
                assert leaf["absolute"] is not None, (name, key)
                assert abs(leaf["absolute"] - (values[0] - values[1])) <= 1e-9 * max(map(abs, (*values, 1)))
        nothing = group_changes(name, after, None)
        assert all(leaf == {"absolute": None, "ratio": None} for leaf in nothing.values())


@given(st.fractions(), st.fractions().filter(bool))
def test_the_ratio_has_the_sign_of_the_change(now: Fraction, before: Fraction) -> None:
    shown = change(now, before)
    assert is_rounded(shown["ratio"], (now - before) / abs(before))
    assert ((shown["ratio"] or 0) > 0) == (now > before)
