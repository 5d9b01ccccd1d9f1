"""
Rates of one model as vectors of integers, so that the price of a call is one exact sum.

A vector has one rate in nano-dollars for each priced unit. Many published rates are not whole nano-dollars, so the
rates are numerators over one common denominator. The sum is exact and rounded once, half to even.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from tokentrace.pricing.tables import Rate, Unit, includes, rate_at, starts_of
from tokentrace.units import NUSD_PER_USD

#: Units that are counted in fields of a span, in the order of a rate vector.
FIELD_UNITS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_reasoning_tokens",
)
#: The unit of which every span is one.
REQUESTS = "requests"


#: A number of units: whole, or a fraction of seconds.
Amount = int | Fraction


class Vector(NamedTuple):
    """
    Rates of one tier, as numerators over ``denominator``, in nano-dollars.

    Attributes:
        fields: What a token of each field in ``FIELD_UNITS`` adds to the price. A rate may be negative: the prompt
            count includes cached tokens, so a cached token adds its price minus that of a prompt token.
        units: The same for every priced unit by its name, the fields included.
        constant: Price of the request itself.
        prices_input, prices_output: Whether input tokens, and whether output tokens, have a price.
    """

    fields: tuple[int, int, int, int, int, int]
    units: dict[str, int]
    constant: int
    denominator: int
    prices_input: bool
    prices_output: bool


class Sheet:
    """
    The rates of a model that apply at one time, for one kind of call.

    Args:
        rates: Unit -> rate in US dollars for ``per`` of it.
        units: The definitions of these units.
        per: Unit -> number of units that its rate is for, where it is not ``Unit.per``.

    Attributes:
        starts: Input token counts above which the next tier applies, ascending.
        vectors: One for each tier; ``vectors[0]`` is the base, ``vectors[i]`` applies above ``starts[i - 1]``.
        order: The priced units, those that are parts of others first; without ``requests``.
        parts: Unit -> priced units that are counted in it too.
        joins: (One unit, another, the unit of what is counted in both), all of them priced.
    """

    def __init__(
        self, rates: Mapping[str, Rate], units: Mapping[str, Unit], per: Mapping[str, int] | None = None
    ) -> None:
        self.rates, self.units, self._per = rates, units, per or {}
        self._covered: frozenset[str] | None = None
        self.order = sorted((name for name in rates if name != REQUESTS), key=lambda name: -len(units[name].dimensions))
        self.parts = {
            name: [part for part in self.order if part != name and includes(units[name], units[part])]
            for name in self.order
        }
        self.joins = list(self._find_joins())
        self.starts = tuple(sorted({start for rate in rates.values() for start in starts_of(rate)}))
        # A tier applies to counts above its start, so the base applies to counts up to the first start.
        self.vectors = tuple(self._vector(tokens) for tokens in (0, *(start + 1 for start in self.starts)))

    def vector(self, input_tokens: int) -> Vector:
        """Return the rates of the tier that *input_tokens* reaches."""
        return self.vectors[bisect_left(self.starts, input_tokens)] if self.starts else self.vectors[0]

    def per(self, unit: str) -> int:
        """Return the number of units that the rate of *unit* is for."""
        return self._per.get(unit) or self.units[unit].per

    def rate(self, unit: str, input_tokens: int) -> Decimal:
        """Return the rate of *unit* in US dollars for ``per`` of it."""
        return rate_at(self.rates[unit], input_tokens)

    def tier(self, input_tokens: int) -> int | None:
        """Return the number of input tokens above which the rates apply; 0 = the base, None = there are no tiers."""
        return max((start for start in self.starts if input_tokens > start), default=0) if self.starts else None

    def has_rate(self, unit: str) -> bool:
        """Return True if *unit*, or a unit that it is a part of, has a rate."""
        if self._covered is None:
            rated = [self.units[priced] for priced in self.rates]
            self._covered = frozenset(
                name for name, known in self.units.items() if any(includes(whole, known) for whole in rated)
            )
        return unit in self._covered

    def charged(self, counts: Mapping[str, Amount]) -> dict[str, Amount]:
        """
        Return unit -> amount charged at the rate of this unit: its count less the amounts of more specific units.

        Args:
            counts: Unit -> count, which includes the counts of more specific units. An amount is negative if they
                contradict each other.
        """
        charged: dict[str, Amount] = {}
        for name in self.order:
            charged[name] = counts.get(name, 0) - sum(charged[part] for part in self.parts[name])
        if REQUESTS in self.rates:
            charged[REQUESTS] = 1
        return charged

    def _vector(self, input_tokens: int) -> Vector:
        """
        Return the rates of the tier that *input_tokens* reaches.

        The charge is linear in the counts (see ``charged``), so the charge for one of a unit, with nothing else, is the
        rate of the unit.
        """
        price_of = {
            name: Fraction(rate_at(rate, input_tokens)) * NUSD_PER_USD / self.per(name)
            for name, rate in self.rates.items()
        }
        added = {name: self._alone(name, price_of) for name in dict.fromkeys((*FIELD_UNITS, *self.order))}
        constant = price_of.get(REQUESTS, Fraction(0))
        denominator = math.lcm(*(rate.denominator for rate in [*added.values(), constant]))
        units = {name: int(rate * denominator) for name, rate in added.items()}
        first, second, third, fourth, fifth, sixth = (units[name] for name in FIELD_UNITS)
        return Vector(
            fields=(first, second, third, fourth, fifth, sixth),
            units={name: rate for name, rate in units.items() if rate},
            constant=int(constant * denominator),
            denominator=denominator,
            prices_input=self.has_rate("input_tokens"),
            prices_output=self.has_rate("output_tokens"),
        )

    def _alone(self, unit: str, price_of: Mapping[str, Fraction]) -> Fraction:
        charged = self.charged({unit: 1})
        return sum((count * price_of[name] for name, count in charged.items() if name != REQUESTS), Fraction(0))

    def _find_joins(self) -> Iterable[tuple[str, str, str]]:
        by_dimensions = {frozenset(self.units[name].dimensions.items()): name for name in self.order}
        for index, one in enumerate(self.order):
            for other in self.order[index + 1 :]:
                first, second = self.units[one].dimensions, self.units[other].dimensions
                if any(second.get(key, value) != value for key, value in first.items()):
                    continue
                join = by_dimensions.get(frozenset(first.items() | second.items()))
                if join is not None and join not in (one, other):
                    yield one, other, join


def round_half_even(total: Amount, denominator: int) -> int:
    """Return *total* / *denominator* rounded to a whole number, half to even."""
    whole, rest = divmod(total, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and whole & 1):
        whole += 1
    return whole
