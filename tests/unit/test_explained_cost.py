"""The parts of a change of cost add up to it, and each is what its name says."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.metrics import Aggregates, Calls, Split, merge_aggregates, split_change
from tokentrace.rollup import Sums

MODELS = ("a", "b", "c", "unknown")


class Used(NamedTuple):
    """What a model was used for: calls, their tokens, their cost and the cost of other kinds, nano-dollars."""

    calls: int
    tokens: int
    nusd: int
    others_nusd: int


USED = st.builds(
    Used,
    st.integers(0, 10**6),
    st.integers(0, 10**12),
    st.integers(0, 10**15),
    st.integers(0, 10**12),
)
SIDES = st.dictionaries(st.sampled_from(MODELS), USED)


def aggregated(used: Used) -> Aggregates:
    sums = Sums(spans=used.calls, total=used.tokens, cost=used.nusd + used.others_nusd)
    return Aggregates(sums=sums, paid=used.calls, calls=Calls(used.calls, used.nusd))


def split(now: dict[str, Used], before: dict[str, Used]) -> Split:
    models, earlier = ({name: aggregated(used) for name, used in side.items()} for side in (now, before))
    return split_change(merge_aggregates(models.values()), merge_aggregates(earlier.values()), models, earlier)


def total(side: dict[str, Used], field: str) -> int:
    return sum(getattr(used, field) for used in side.values())


@given(SIDES, SIDES)
def test_the_parts_add_up_to_the_change_exactly(now: dict[str, Used], before: dict[str, Used]) -> None:
    parts = split(now, before).parts
    changes = [total(now, field) - total(before, field) for field in ("nusd", "others_nusd")]
    assert sum(parts.values()) == sum(changes)
    assert parts["other_kinds"] == changes[1]
    assert all(isinstance(nusd, int) for nusd in parts.values())


@given(SIDES, SIDES)
def test_each_part_changes_one_factor(now: dict[str, Used], before: dict[str, Used]) -> None:
    parts, by_model = split(now, before)
    calls, earlier = total(now, "calls"), total(before, "calls")
    cost, tokens = Fraction(total(before, "nusd")), total(before, "tokens")
    if not earlier:
        assert (parts["tokens_per_call"], parts["mix"], parts["price"]) == (0, 0, 0)
        return
    more_calls = cost / earlier * calls
    assert abs(parts["calls"] - (more_calls - cost)) <= Fraction(1, 2)
    if tokens:
        at_earlier_price = cost / tokens * total(now, "tokens")
        assert abs(parts["tokens_per_call"] - (at_earlier_price - more_calls)) <= Fraction(1, 2)
    else:
        assert parts["tokens_per_call"] == 0
    prices = Fraction(0)
    for name in set(now) & set(before):
        mine, its = now[name], before[name]
        if mine.tokens and its.tokens:
            own = mine.tokens * (Fraction(mine.nusd, mine.tokens) - Fraction(its.nusd, its.tokens))
            assert abs(by_model[name][1] - own) <= Fraction(1, 2)
            prices += own
    assert abs(parts["price"] - prices) <= Fraction(1, 2)
    # Every model's share is rounded on its own.
    assert abs(sum(mix for mix, _ in by_model.values()) - parts["mix"]) <= (len(by_model) + 3) / 2


@given(SIDES, st.integers(1, 9))
def test_more_of_the_same_is_calls_alone(side: dict[str, Used], factor: int) -> None:
    more = {name: Used(*(factor * number for number in used)) for name, used in side.items()}
    parts = split(more, side).parts
    nusd = (factor - 1) * total(side, "nusd")
    if total(side, "calls"):
        assert parts["calls"] == nusd
        assert (parts["tokens_per_call"], parts["mix"], parts["price"]) == (0, 0, 0)


@given(SIDES.filter(bool), st.integers(2, 9))
def test_the_same_calls_at_another_price_are_price_alone(side: dict[str, Used], factor: int) -> None:
    dearer = {name: used._replace(nusd=used.nusd * factor) for name, used in side.items() if used.calls and used.tokens}
    plain = {name: side[name] for name in dearer}
    parts = split(dearer, plain).parts
    assert parts["price"] == (factor - 1) * total(plain, "nusd")
    assert (parts["calls"], parts["tokens_per_call"], parts["mix"]) == (0, 0, 0)
