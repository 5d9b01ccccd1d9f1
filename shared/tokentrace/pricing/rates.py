"""
Rates of one model as vectors of integers, so that the price of a span is one exact sum.

A vector has one rate in nano-dollars per token for each token field of a span (``FIELD_UNITS``). Many published rates
are not whole nano-dollars, so the rates are numerators over one common denominator. The sum is exact and rounded once,
half to even.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import StartDateConstraint, TieredPrices, TimeOfDateConstraint
from genai_prices.units import UnitDef, UnitRegistry

from tokentrace.records import Span
from tokentrace.units import NUSD_PER_USD, SECOND

#: Units that are counted in fields of a span, in the order of a rate vector.
FIELD_UNITS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_reasoning_tokens",
)


@dataclass(frozen=True)
class Rate:
    """
    A price from the configuration, in US dollars per million tokens.

    Attributes:
        cache_read_per_1m: Price of prompt tokens that were read from a cache; None = ``prompt_per_1m``.
    """

    prompt_per_1m: Decimal
    completion_per_1m: Decimal
    cache_read_per_1m: Decimal | None = None


class RateVector(NamedTuple):
    """
    Rates of one tier, as numerators over ``denominator``, in nano-dollars.

    Attributes:
        rates: What a token of each field in ``FIELD_UNITS`` adds to the price. A rate may be negative: the prompt count
            includes cached tokens, so a cached token adds its price minus that of a prompt token.
        constant: Price of the request itself.
        prices_input, prices_output: Whether input tokens, and whether output tokens, have a price.
    """

    rates: tuple[int, int, int, int, int, int]
    constant: int
    denominator: int
    prices_input: bool
    prices_output: bool


class PriceVersion(NamedTuple):
    """
    The rates that apply from a start date or at a time of day.

    Attributes:
        constraint: When the rates apply; None = always.
        starts: Prompt token counts above which the next tier applies, ascending.
        vectors: One for each tier; ``vectors[0]`` is the base, ``vectors[i]`` applies above ``starts[i - 1]``.
    """

    constraint: StartDateConstraint | TimeOfDateConstraint | None
    starts: tuple[int, ...]
    vectors: tuple[RateVector, ...]


def field_amounts(span: Span) -> tuple[int, int, int, int, int, int]:
    """Return the token counts of *span* in the order of ``FIELD_UNITS``."""
    return (
        span.prompt_tokens,
        span.completion_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )


def price_by_vector(version: PriceVersion, span: Span) -> tuple[int | None, str]:
    """
    Return the price of the token fields of *span*.

    Returns:
        (Nano-dollars, reason as in ``Span.unpriced_reason``). Nano-dollars are None if the price would be negative, or
        if the span has tokens and neither input nor output tokens have a price.
    """
    prompt, completion = span.prompt_tokens, span.completion_tokens
    vector = version.vectors[bisect_left(version.starts, prompt) if version.starts else 0]
    rates = vector.rates
    total = rates[0] * prompt + rates[1] * completion + vector.constant
    if span.cache_read_tokens or span.cache_write_tokens or span.reasoning_tokens:
        total += sum(rate * count for rate, count in zip(rates[2:], field_amounts(span)[2:], strict=True))
    if total < 0:
        return None, "usage_contradicts_itself"
    reason = ""
    if (prompt and not vector.prices_input) or (completion and not vector.prices_output):
        if not vector.prices_input and not vector.prices_output:
            return None, "no_token_rate"
        reason = "no_rate:input_tokens" if prompt and not vector.prices_input else "no_rate:output_tokens"
    whole, rest = divmod(total, vector.denominator)
    twice = 2 * rest
    if twice > vector.denominator or (twice == vector.denominator and whole & 1):
        whole += 1
    return whole, reason


def active_version(versions: tuple[PriceVersion, ...], at_ns: int) -> PriceVersion:
    """Return the last of *versions* that applies at *at_ns*, Unix nanoseconds; the first one if none applies."""
    at = datetime.fromtimestamp(at_ns // SECOND, tz=UTC)
    for version in reversed(versions):
        if version.constraint is None or version.constraint.active(at):
            return version
    return versions[0]


def rate_vector(
    priced: list[tuple[UnitDef, Decimal | TieredPrices]], registry: UnitRegistry, prompt_tokens: int
) -> RateVector:
    """
    Return the rate vector for the prices in *priced*, in the tier that *prompt_tokens* reaches.

    The charge is linear in the token counts (see ``charged_amounts``), so the charge for one token of a field, with no
    other tokens, is the rate of the field.
    """
    units = [unit for unit, _ in priced if unit.usage_key != "requests"]
    price_of = {
        unit.usage_key: Fraction(rate_at(value, prompt_tokens)) * NUSD_PER_USD / unit.per for unit, value in priced
    }
    rates = []
    for field in FIELD_UNITS:
        charged = charged_amounts(units, {field: 1})
        rates.append(sum((count * price_of[name] for name, count in charged.items()), Fraction(0)))
    constant = price_of.get("requests", Fraction(0))
    denominator = math.lcm(*(rate.denominator for rate in [*rates, constant]))
    numerators = [int(rate * denominator) for rate in rates]
    return RateVector(
        rates=(numerators[0], numerators[1], numerators[2], numerators[3], numerators[4], numerators[5]),
        constant=int(constant * denominator),
        denominator=denominator,
        prices_input=any(is_descendant_or_self(unit, registry.units["input_tokens"]) for unit in units),
        prices_output=any(is_descendant_or_self(unit, registry.units["output_tokens"]) for unit in units),
    )


def override_version(rate: Rate) -> PriceVersion:
    """Return the rates of a configured price: one tier that always applies."""
    prompt = Fraction(rate.prompt_per_1m) * NUSD_PER_USD / 1_000_000
    completion = Fraction(rate.completion_per_1m) * NUSD_PER_USD / 1_000_000
    cached = prompt if rate.cache_read_per_1m is None else Fraction(rate.cache_read_per_1m) * NUSD_PER_USD / 1_000_000
    denominator = math.lcm(prompt.denominator, completion.denominator, cached.denominator)
    vector = RateVector(
        rates=(int(prompt * denominator), int(completion * denominator), int((cached - prompt) * denominator), 0, 0, 0),
        constant=0,
        denominator=denominator,
        prices_input=True,
        prices_output=True,
    )
    return PriceVersion(None, (), (vector,))


def charged_amounts(units: list[UnitDef], counts: Mapping[str, int]) -> dict[str, int]:
    """
    Return unit -> amount charged at the rate of this unit: its count less the amounts of more specific units.

    Args:
        units: Units that have a price.
        counts: Unit -> count, which includes the counts of more specific units.
    """
    charged: dict[str, int] = {}
    for unit in sorted(units, key=lambda unit: -len(unit.dimensions)):
        if unit.usage_key == "requests":
            charged["requests"] = 1
            continue
        parts = [other for other in units if other.usage_key in charged and is_descendant_or_self(unit, other)]
        charged[unit.usage_key] = counts.get(unit.usage_key, 0) - sum(charged[part.usage_key] for part in parts)
    return charged


def rate_at(value: Decimal | TieredPrices, prompt_tokens: int) -> Decimal:
    """Return the rate of the tier that *prompt_tokens* reaches; a tier applies above its start."""
    if not isinstance(value, TieredPrices):
        return value
    price = value.base
    for tier in value.tiers:
        if prompt_tokens > tier.start:
            price = tier.price
    return price
