"""
Tokens to money: rates from the bundled ``genai-prices`` tables, overrides from configuration, exact integers.

``genai_prices.calc_price`` takes tens of microseconds a call, so each model's rates become integer vectors once; a
span's cost is one exact sum rounded once, half to even. ``calc_price`` stays the oracle of the property tests and
prices the rare span with a ``usage`` map itself. Nothing here ever opens a network connection.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

import genai_prices
from genai_prices import Usage
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.units import UnitDef, UnitRegistry

from tokentrace.records import MAX_COST_NUSD, Span, event_time
from tokentrace.units import NUSD_PER_USD, SECOND

#: The units a span carries as fields of its own, in the order of a rate vector.
FIELD_UNITS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_reasoning_tokens",
)
_MAX_PLANS = 10_000
#: Digits that money is computed with before it is rounded.
_DIGITS = 100


@dataclass(frozen=True)
class Rate:
    """
    A price from configuration, in USD per million tokens.

    Attributes:
        cache_read_per_1m: For cached input; None = the prompt rate.
    """

    prompt_per_1m: Decimal
    completion_per_1m: Decimal
    cache_read_per_1m: Decimal | None = None


class Quote(NamedTuple):
    """
    What a span costs and why.

    Attributes:
        cost_nusd: Nano-dollars; None = nobody could price it.
        source: As ``Span.cost_source``.
        model: As ``Span.cost_model``.
        reason: As ``Span.unpriced_reason``.
    """

    cost_nusd: int | None
    source: str
    model: str
    reason: str


class Line(NamedTuple):
    """
    One line of a receipt.

    Attributes:
        unit: As genai-prices names it; ``reported`` for a cost that came with the span.
        amount: How many of them were charged at this rate: what more specific lines leave over.
        per: The rate is for so many of them.
        rate_usd, cost_usd: US dollars, exact.
    """

    unit: str
    amount: int
    per: int
    rate_usd: Decimal
    cost_usd: Decimal


class Receipt(NamedTuple):
    """
    How a cost came about.

    Attributes:
        lines: They add up to cost_usd together with the rounding to a whole nano-dollar.
        tier: The rates hold above so many prompt tokens; 0 = the base, None = no tiers.
        explained: False when the price tables have changed since, and one line stands for all.
    """

    lines: list[Line]
    rounding_usd: Decimal
    cost_usd: Decimal | None
    tier: int | None
    explained: bool


class _Vector(NamedTuple):
    """Nano-dollars per unit as numerators over one denominator, for one tier; constant is per request."""

    rates: tuple[int, int, int, int, int, int]
    constant: int
    denominator: int
    prices_input: bool
    prices_output: bool


class _Version(NamedTuple):
    """The rates of one period: vectors[i] holds above starts[i - 1] prompt tokens."""

    constraint: StartDateConstraint | TimeOfDateConstraint | None
    starts: tuple[int, ...]
    vectors: tuple[_Vector, ...]


class _Plan(NamedTuple):
    versions: tuple[_Version, ...]  # the last active one wins; the first is the fallback
    source: str
    model: str
    provider: Provider | None
    info: ModelInfo | None


class Pricer:
    """
    Prices spans.

    Args:
        overrides: Model name, any case -> rate; wins over the tables, whatever the provider.
        trust_zero: Providers whose reported cost of 0 is kept.
    """

    def __init__(self, overrides: Mapping[str, Rate] | None = None, trust_zero: Collection[str] = ()) -> None:
        self._tables = _bundled_tables()
        self._registry = _bundled_units()
        self._overrides = {model.lower(): rate for model, rate in (overrides or {}).items()}
        self._trust_zero = frozenset(provider.lower() for provider in trust_zero)
        self._plans: dict[tuple[str, str], _Plan | None] = {}

    def quote(self, span: Span, at_ns: int | None = None) -> Quote:
        """
        The cost that *span* reports, else what its model's rates make of its tokens.

        Args:
            at_ns: When it counts, Unix nanoseconds, which decides between prices; None = its event time.
        """
        reported = span.cost_nusd
        prompt, completion = span.prompt_tokens, span.completion_tokens
        has_tokens = prompt or completion or span.total_tokens
        if reported is not None and (reported > 0 or not has_tokens or span.provider.lower() in self._trust_zero):
            return Quote(reported, "reported", span.cost_model, "")
        if not has_tokens and not span.usage:
            return Quote(0, "", "", "")
        key = (span.provider, span.model)
        try:
            plan = self._plans[key]
        except KeyError:
            plan = self._remember(key)
        if plan is None:
            return Quote(None, "unpriced", "", "unknown_model" if span.model else "no_model")
        if not prompt and not completion and span.total_tokens:
            return Quote(None, "unpriced", plan.model, "no_split")
        if span.usage:
            cost, reason = self._by_table(plan, span, event_time(span) if at_ns is None else at_ns)
        else:
            version = plan.versions[0]
            if len(plan.versions) > 1:
                version = _active(plan.versions, event_time(span) if at_ns is None else at_ns)
            cost, reason = _by_vector(version, span)
        if cost is None or cost > MAX_COST_NUSD:
            return Quote(None, "unpriced", plan.model, reason or "over_bounds")
        source = "partly_priced" if reason else ("zero_ignored" if reported == 0 else plan.source)
        return Quote(cost, source, plan.model, reason)

    def receipt(self, span: Span) -> Receipt:
        """How the cost that *span* carries came about; it was priced before, here or elsewhere."""
        with localcontext() as context:
            context.prec = _DIGITS
            return self._receipt(span)

    def _receipt(self, span: Span) -> Receipt:
        if span.cost_nusd is None:
            return Receipt([], Decimal(0), None, None, True)
        cost = Decimal(span.cost_nusd).scaleb(-9)
        lines, tier = ([], None) if span.cost_source in ("", "reported") else self._lines(span)
        added = sum((line.cost_usd for line in lines), Decimal(0))
        # Rounding moves a cost by half a nano-dollar at most; more than that is another price.
        explained = span.cost_source in ("", "reported") or abs(cost - added) * 2 <= Decimal(1).scaleb(-9)
        if span.cost_source == "reported" or not explained:
            lines = [Line("reported" if explained else "as_priced_then", 1, 1, cost, cost)]
            added = cost
        return Receipt(lines, cost - added, cost, tier, explained)

    def _lines(self, span: Span) -> tuple[list[Line], int | None]:
        override = self._overrides.get(span.model.lower())
        if override is not None:
            return _override_lines(override, span), None
        plan = self._plans.get((span.provider, span.model)) or self._remember((span.provider, span.model))
        if plan is None or plan.info is None:
            return [], None
        prices = plan.info.get_prices(datetime.fromtimestamp(event_time(span) // SECOND, tz=UTC))
        priced = self._priced_units(prices)
        counts: dict[str, Any] = {**(span.usage or {}), **_field_counts(span)}
        left = _left_over([unit for unit, _ in priced], counts)
        lines = []
        for unit, value in priced:
            rate, amount = _rate(value, span.prompt_tokens), left[unit.usage_key]
            if amount:
                lines.append(Line(unit.usage_key, amount, unit.per, rate, _exactly(rate, amount, unit.per)))
        starts = [tier.start for _, value in priced if isinstance(value, TieredPrices) for tier in value.tiers]
        reached = max((start for start in starts if span.prompt_tokens > start), default=0)
        return lines, reached if starts else None

    def _remember(self, key: tuple[str, str]) -> _Plan | None:
        if len(self._plans) >= _MAX_PLANS:
            # The tables remember every name they were asked for, too.
            self._plans.clear()
            self._tables = _bundled_tables()
        plan = self._plans[key] = self._plan(*key)
        return plan

    def _plan(self, provider_id: str, model: str) -> _Plan | None:
        override = self._overrides.get(model.lower())
        if override is not None:
            return _Plan((_override_version(override),), "overridden", f"{model}@configuration", None, None)
        if not model:
            return None
        try:
            provider, info = self._tables.find_provider_model(model, None, provider_id or None, None)
        except LookupError:
            return None
        prices = info.prices if isinstance(info.prices, list) else [ConditionalPrice(prices=info.prices)]
        versions = tuple(self._version(price) for price in prices)
        name = f"{provider.id}:{info.id}@genai-prices-{genai_prices.__version__}"
        return _Plan(versions, "priced", name, provider, info)

    def _version(self, price: ConditionalPrice) -> _Version:
        priced = self._priced_units(price.prices)
        starts = sorted({tier.start for _, value in priced if isinstance(value, TieredPrices) for tier in value.tiers})
        # A tier holds for counts strictly above its start; the base for everything up to the first one.
        vectors = tuple(_vector(priced, self._registry, tokens) for tokens in [0, *(start + 1 for start in starts)])
        return _Version(price.constraint, tuple(starts), vectors)

    def _priced_units(self, prices: ModelPrice) -> list[tuple[UnitDef, Decimal | TieredPrices]]:
        return [
            (self._registry.unit_for_price_key(key), value)
            for key, value in vars(prices).items()
            if value is not None and not key.startswith("_")
        ]

    def _by_table(self, plan: _Plan, span: Span, at_ns: int) -> tuple[int | None, str]:
        """A span with a ``usage`` map: the package's own arithmetic, and which of its units have no price."""
        if plan.info is None or plan.provider is None:
            cost, reason = _by_vector(plan.versions[0], span)
            unpriced = sorted(name for name, count in (span.usage or {}).items() if count)
            return cost, reason or (f"no_rate:{','.join(unpriced)}"[:256] if unpriced else "")
        counts: dict[str, Any] = {**(span.usage or {}), **_field_counts(span)}
        at = datetime.fromtimestamp(at_ns // SECOND, tz=UTC)
        # Every span is one request: the package counts it by itself and warns of being told.
        known = {name: count for name, count in counts.items() if name in self._registry.units and name != "requests"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                price = plan.info.calc_price(Usage(**known), plan.provider, genai_request_timestamp=at)
        except (ValueError, UserWarning):
            return None, "usage_contradicts_itself"
        unpriced = self._without_rate(counts, plan.info.get_prices(at))
        if unpriced and len(unpriced) == sum(1 for count in counts.values() if count):
            return None, f"no_rate:{','.join(unpriced)}"[:256]
        with localcontext() as context:
            context.prec = 60
            nusd = int((price.total_price * NUSD_PER_USD).to_integral_value(rounding=ROUND_HALF_EVEN))
        return nusd, f"no_rate:{','.join(unpriced)}"[:256] if unpriced else ""

    def _without_rate(self, counts: Mapping[str, int], prices: ModelPrice) -> list[str]:
        priced = [unit for unit, _ in self._priced_units(prices)]
        missing = []
        for name, count in counts.items():
            unit = self._registry.units.get(name)
            if count and (unit is None or not any(is_descendant_or_self(rate, unit) for rate in priced)):
                missing.append(name)
        return sorted(missing)


def _bundled_tables() -> DataSnapshot:
    from genai_prices.data import providers

    return DataSnapshot(providers=providers, from_auto_update=False)


def _bundled_units() -> UnitRegistry:
    from genai_prices.data_units import unit_data

    return UnitRegistry(unit_data)


def _field_counts(span: Span) -> dict[str, int]:
    counts = dict(zip(FIELD_UNITS, _amounts(span), strict=True))
    return {name: count for name, count in counts.items() if count or name in FIELD_UNITS[:2]}


def _amounts(span: Span) -> tuple[int, int, int, int, int, int]:
    return (
        span.prompt_tokens,
        span.completion_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )


def _by_vector(version: _Version, span: Span) -> tuple[int | None, str]:
    prompt, completion = span.prompt_tokens, span.completion_tokens
    vector = version.vectors[bisect_left(version.starts, prompt) if version.starts else 0]
    rates = vector.rates
    total = rates[0] * prompt + rates[1] * completion + vector.constant
    if span.cache_read_tokens or span.cache_write_tokens or span.reasoning_tokens:
        total += sum(rate * count for rate, count in zip(rates[2:], _amounts(span)[2:], strict=True))
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


def _active(versions: tuple[_Version, ...], at_ns: int) -> _Version:
    at = datetime.fromtimestamp(at_ns // SECOND, tz=UTC)
    for version in reversed(versions):
        if version.constraint is None or version.constraint.active(at):
            return version
    return versions[0]


def _vector(
    priced: list[tuple[UnitDef, Decimal | TieredPrices]], registry: UnitRegistry, prompt_tokens: int
) -> _Vector:
    """
    What one more of each field's unit adds, in nano-dollars.

    A unit is charged for what its more specific priced units leave over, which is linear in the counts: so the
    charge for one of a unit alone is that unit's rate, and may be a difference of two prices.
    """
    units = [unit for unit, _ in priced if unit.usage_key != "requests"]
    price_of = {
        unit.usage_key: Fraction(_rate(value, prompt_tokens)) * NUSD_PER_USD / unit.per for unit, value in priced
    }
    rates = []
    for field in FIELD_UNITS:
        left = _left_over(units, {field: 1})
        rates.append(sum((count * price_of[name] for name, count in left.items()), Fraction(0)))
    constant = price_of.get("requests", Fraction(0))
    denominator = math.lcm(*(rate.denominator for rate in [*rates, constant]))
    numerators = [int(rate * denominator) for rate in rates]
    return _Vector(
        rates=(numerators[0], numerators[1], numerators[2], numerators[3], numerators[4], numerators[5]),
        constant=int(constant * denominator),
        denominator=denominator,
        prices_input=any(is_descendant_or_self(unit, registry.units["input_tokens"]) for unit in units),
        prices_output=any(is_descendant_or_self(unit, registry.units["output_tokens"]) for unit in units),
    )


def _left_over(units: list[UnitDef], counts: Mapping[str, int]) -> dict[str, int]:
    """How many of each priced unit are charged as such: all but those that a more specific one charges."""
    left: dict[str, int] = {}
    for unit in sorted(units, key=lambda unit: -len(unit.dimensions)):
        if unit.usage_key == "requests":
            left["requests"] = 1
            continue
        below = [other for other in units if other.usage_key in left and is_descendant_or_self(unit, other)]
        left[unit.usage_key] = counts.get(unit.usage_key, 0) - sum(left[other.usage_key] for other in below)
    return left


def _rate(value: Decimal | TieredPrices, prompt_tokens: int) -> Decimal:
    if not isinstance(value, TieredPrices):
        return value
    price = value.base
    for tier in value.tiers:
        if prompt_tokens > tier.start:
            price = tier.price
    return price


def _exactly(rate: Decimal, amount: int, per: int) -> Decimal:
    """The cost of a line; a price for 3,600 of something may not end, and is cut far behind the nano-dollar."""
    total = rate * amount
    cost = total / per
    return cost if cost * per == total else cost.quantize(Decimal(1).scaleb(-30), rounding=ROUND_HALF_EVEN)


def _override_lines(rate: Rate, span: Span) -> list[Line]:
    cached = 0 if rate.cache_read_per_1m is None else span.cache_read_tokens
    charged = (
        ("input_tokens", span.prompt_tokens - cached, rate.prompt_per_1m),
        ("cache_read_tokens", cached, rate.cache_read_per_1m or Decimal(0)),
        ("output_tokens", span.completion_tokens, rate.completion_per_1m),
    )
    return [
        Line(unit, amount, 1_000_000, price, _exactly(price, amount, 1_000_000))
        for unit, amount, price in charged
        if amount
    ]


def _override_version(rate: Rate) -> _Version:
    prompt = Fraction(rate.prompt_per_1m) * NUSD_PER_USD / 1_000_000
    completion = Fraction(rate.completion_per_1m) * NUSD_PER_USD / 1_000_000
    cached = prompt if rate.cache_read_per_1m is None else Fraction(rate.cache_read_per_1m) * NUSD_PER_USD / 1_000_000
    denominator = math.lcm(prompt.denominator, completion.denominator, cached.denominator)
    vector = _Vector(
        rates=(int(prompt * denominator), int(completion * denominator), int((cached - prompt) * denominator), 0, 0, 0),
        constant=0,
        denominator=denominator,
        prices_input=True,
        prices_output=True,
    )
    return _Version(None, (), (vector,))
