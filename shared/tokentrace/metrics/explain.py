"""
Why a cost changed: the split of a difference into calls, tokens a call, mix of models, and price.

The cost of a side is calls x tokens a call x cost a token. The parts change one factor after the other, in this order:

* calls: the earlier cost, times the calls of now over the earlier calls, less the earlier cost.
* tokens_per_call: what more or fewer tokens a call add to it, at the earlier cost of a token.
* price: for each model with tokens on both sides, its tokens of now times the difference of its cost of a token.
* mix: the rest, because the tokens went to other models: each at its earlier cost of a token, new ones at their cost.
* other_kinds: the difference of the costs of other kinds of spans, such as tools.

All sums are integers and all parts fractions. Each part is rounded to whole nano-dollars and the mix takes what
rounding leaves, so the parts add up to the difference exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from tokentrace.metrics.result import Aggregates

#: Names of the parts, in the order in which they are shown.
PARTS = ("calls", "tokens_per_call", "mix", "price", "other_kinds")


class Split(NamedTuple):
    """
    The parts of a difference of costs, nano-dollars.

    Attributes:
        parts: Name of a part -> its nano-dollars.
        by_model: Model -> (its share of the mix, its share of the price).
    """

    parts: dict[str, int]
    by_model: dict[str, tuple[int, int]]


def split_change(
    now: Aggregates, before: Aggregates, models: Mapping[str, Aggregates], earlier: Mapping[str, Aggregates]
) -> Split:
    """
    Return the parts of the difference between the costs of *now* and *before*.

    Args:
        models, earlier: Model -> aggregates of both sides.
    """
    calls, calls_before = now.calls, before.calls
    by_model: dict[str, tuple[int, int]] = {}
    if calls_before.spans:
        as_many = Fraction(calls.spans, calls_before.spans)
        as_large = Fraction(now.sums.total, before.sums.total) if before.sums.total else as_many
        volume, size = round(calls_before.cost * (as_many - 1)), round(calls_before.cost * (as_large - as_many))
        price = Fraction(0)
        for name in sorted({*models, *earlier}):
            mine, own_price = _of_model(models.get(name), earlier.get(name), as_large)
            price += own_price
            by_model[name] = round(mine), round(own_price)
    else:
        volume, size, price = calls.cost - calls_before.cost, 0, Fraction(0)
    paid = round(price)
    parts = {
        "calls": volume,
        "tokens_per_call": size,
        "mix": calls.cost - calls_before.cost - volume - size - paid,
        "price": paid,
        "other_kinds": (now.sums.cost - calls.cost) - (before.sums.cost - calls_before.cost),
    }
    return Split(parts, by_model)


def _of_model(now: Aggregates | None, before: Aggregates | None, as_large: Fraction) -> tuple[Fraction, Fraction]:
    """
    Return what one model adds to the mix and to the price.

    Args:
        as_large: All tokens of now over all tokens of before.
    """
    now, before = now or Aggregates(), before or Aggregates()
    cost, cost_before = Fraction(now.calls.cost), Fraction(before.calls.cost)
    price = Fraction(0)
    if now.sums.total and before.sums.total:
        price = cost - cost_before * now.sums.total / before.sums.total
    return cost - price - cost_before * as_large, price
