"""Own prices: they take precedence over the price list, for every model that they cover."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

from tokentrace.pricing import match_rules as rules
from tokentrace.pricing.matching import Name
from tokentrace.pricing.rates import Sheet
from tokentrace.pricing.tables import Rate as ListRate
from tokentrace.pricing.tables import Unit

#: US dollars, as an application may write them.
_Usd = Decimal | float | int
_PER_TOKENS = 1_000_000
#: Field of ``Rate`` -> unit, in the order in which a receipt shows them.
TOKEN_RATES = {
    "prompt_per_1m": "input_tokens",
    "cache_read_per_1m": "cache_read_tokens",
    "cache_write_per_1m": "cache_write_tokens",
    "cache_write_1h_per_1m": "cache_write_1h_tokens",
    "completion_per_1m": "output_tokens",
    "reasoning_per_1m": "output_reasoning_tokens",
}
_DATE = re.compile(r"[-@](?:20\d{2}-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01]))$")


@dataclass(frozen=True)
class TierRate:
    """
    Rates that apply above a number of prompt tokens, in US dollars per million tokens; None = as in the tier
    below. A float stands for its shortest decimal.
    """

    above_prompt_tokens: int
    prompt_per_1m: Decimal | None = None
    completion_per_1m: Decimal | None = None
    cache_read_per_1m: Decimal | None = None
    cache_write_per_1m: Decimal | None = None
    cache_write_1h_per_1m: Decimal | None = None
    reasoning_per_1m: Decimal | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            above_prompt_tokens: int,
            prompt_per_1m: _Usd | None = None,
            completion_per_1m: _Usd | None = None,
            cache_read_per_1m: _Usd | None = None,
            cache_write_per_1m: _Usd | None = None,
            cache_write_1h_per_1m: _Usd | None = None,
            reasoning_per_1m: _Usd | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        _make_exact(self)


class UnitRate(NamedTuple):
    """A rate in US dollars for *per* units."""

    usd: Decimal
    per: int


class Pattern(NamedTuple):
    """The names of models that a price covers."""

    kind: Literal["equals", "prefix", "regex"]
    text: str


@dataclass(frozen=True)
class Rate:
    """
    An own price of a model, in US dollars per million tokens. A float stands for its shortest decimal.

    Args:
        prompt_per_1m: Price of prompt tokens; None = the price is only for other units.
        completion_per_1m: Price of completion tokens; None = as before.
        cache_read_per_1m: Price of prompt tokens that were read from a cache; None = ``prompt_per_1m``.
        cache_write_per_1m: Price of prompt tokens that were written to a cache; None = 1.25 times the prompt rate for
            Claude, ``prompt_per_1m`` for others.
        cache_write_1h_per_1m: The same for writes that are kept for an hour; None = twice ``prompt_per_1m``.
        reasoning_per_1m: Price of reasoning tokens; None = ``completion_per_1m``.
        units: Other units, by the names of genai-prices or by own names.
        tiers: Prices of calls with many prompt tokens.
        match: Names that the price covers; None = the name under which it is configured, with any date or
            ``:latest`` after it, and below the prefix of a vendor.
        provider: The price covers only calls to this provider; "" = to every provider.
        free: Calls cost nothing.
    """

    prompt_per_1m: Decimal | None = None
    completion_per_1m: Decimal | None = None
    cache_read_per_1m: Decimal | None = None
    cache_write_per_1m: Decimal | None = None
    cache_write_1h_per_1m: Decimal | None = None
    reasoning_per_1m: Decimal | None = None
    units: Mapping[str, UnitRate] = field(default_factory=dict)
    tiers: tuple[TierRate, ...] = ()
    match: Pattern | None = None
    provider: str = ""
    free: bool = False

    if TYPE_CHECKING:

        def __init__(
            self,
            prompt_per_1m: _Usd | None = None,
            completion_per_1m: _Usd | None = None,
            cache_read_per_1m: _Usd | None = None,
            cache_write_per_1m: _Usd | None = None,
            cache_write_1h_per_1m: _Usd | None = None,
            reasoning_per_1m: _Usd | None = None,
            units: Mapping[str, UnitRate] = {},
            tiers: tuple[TierRate, ...] = (),
            match: Pattern | None = None,
            provider: str = "",
            free: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        _make_exact(self)
        if any(not isinstance(unit.usd, Decimal) for unit in self.units.values()):
            units = {name: UnitRate(_exact(unit.usd), unit.per) for name, unit in self.units.items()}
            object.__setattr__(self, "units", units)


def _make_exact(rate: Rate | TierRate) -> None:
    """Replace the floats and ints among the token rates of *rate* by decimals."""
    for name in TOKEN_RATES:
        usd = getattr(rate, name)
        if usd is not None and not isinstance(usd, Decimal):
            object.__setattr__(rate, name, _exact(usd))


def _exact(usd: _Usd) -> Decimal:
    return Decimal(repr(usd)) if isinstance(usd, float) else Decimal(usd)


class Own(NamedTuple):
    """
    A configured price that covers a call.

    Attributes:
        key: The name under which it is configured.
        step: How it was found, in words.
    """

    key: str
    rate: Rate
    step: str


class OwnPrices:
    """
    The configured prices.

    Args:
        rates: Name in any case -> price.
    """

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self._exact: dict[tuple[str, str], tuple[str, Rate]] = {}
        self._patterns: list[tuple[str, Rate, re.Pattern[str]]] = []
        for key, rate in rates.items():
            pattern = rate.match or Pattern("equals", key)
            if pattern.kind == "equals":
                self._exact.setdefault((rate.provider.lower(), pattern.text.lower()), (key, rate))
            else:
                text = f"^{re.escape(pattern.text)}" if pattern.kind == "prefix" else pattern.text
                self._patterns.append((key, rate, re.compile(text, re.IGNORECASE)))

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def find(self, names: list[Name], given: str) -> Own | None:
        """
        Return the price that covers a call: equal names first, then patterns in the order of the configuration.

        Args:
            names: What the call's names are reduced to.
            given: The provider as the span names it.
        """
        for name in names:
            for model, added in _covered(name.model):
                for provider in dict.fromkeys((given.strip().lower(), name.provider, "")):
                    if (hit := self._exact.get((provider, model))) is not None:
                        how = (*name.steps, added) if added else name.steps
                        return Own(*hit, "; ".join((*how, f"configured price {hit[0]}")))
        providers = {given.strip().lower(), *(name.provider for name in names), ""}
        for own_provider in (True, False):
            for key, rate, pattern in self._patterns:
                if bool(rate.provider) is own_provider and rate.provider.lower() in providers:
                    for name in names:
                        if pattern.search(name.model):
                            return Own(key, rate, "; ".join((*name.steps, f"pattern of the configured price {key}")))
        return None


def _covered(model: str) -> Iterator[tuple[str, str]]:
    """Yield the configured names that cover *model*, and how."""
    yield model, ""
    if model.endswith(":latest"):
        yield model.removesuffix(":latest"), "tag :latest"
    undated = _DATE.sub("", model)
    if undated != model:
        yield undated, f"version {model[len(undated) + 1 :]}"


def own_sheet(rate: Rate, names: list[Name], units: Mapping[str, Unit]) -> tuple[Sheet, dict[str, str]]:
    """
    Return the rates of a configured price, and what a receipt must say about units without a rate of their own.

    Args:
        names: The names of the call; a price without a rate for cache writes has other defaults for Claude.
        units: The units of the price list.

    Returns:
        (Rates, unit -> note).
    """
    is_claude = any(re.search(rules.CLAUDE, f"{name.provider} {name.model}") for name in names)
    notes: dict[str, str] = {}
    steps = [_rates_of(rate, is_claude, notes)]
    below = {name: getattr(rate, name) for name in TOKEN_RATES}
    for tier in rate.tiers:
        given = {name: value for name in TOKEN_RATES if (value := getattr(tier, name)) is not None}
        below |= given
        steps.append(_rates_of(Rate(**below), is_claude, {}))
    rates: dict[str, ListRate] = {}
    for unit in TOKEN_RATES.values():
        values = [step.get(unit) for step in steps]
        base = values[0]
        if base is None:
            continue
        starts = [tier.above_prompt_tokens for tier in rate.tiers]
        tiers = [(start, base if value is None else value) for start, value in zip(starts, values[1:], strict=True)]
        rates[unit] = [base, *sorted(tiers)] if tiers else base
    per = dict.fromkeys(rates, _PER_TOKENS)
    for unit, (usd, number) in rate.units.items():
        rates[unit], per[unit] = usd, number
    known = {**{unit: Unit(number, {"family": unit}) for unit, number in per.items() if unit not in units}, **units}
    _add_overlaps(rates, per, known)
    return Sheet(rates, known, per), notes


def _rates_of(rate: Rate, is_claude: bool, notes: dict[str, str]) -> dict[str, Decimal]:
    """Return unit -> US dollars per million tokens, with the defaults of what has no rate; fill *notes*."""
    rates = {unit: value for name, unit in TOKEN_RATES.items() if (value := getattr(rate, name)) is not None}
    prompt = rate.prompt_per_1m
    if prompt is None:
        return rates
    if rate.cache_read_per_1m is None:
        notes["cache_read_tokens"] = _at_prompt_rate("cached tokens", "cache_read_per_1m")
    if rate.cache_write_per_1m is None:
        if is_claude:
            rates["cache_write_tokens"] = prompt * Decimal(rules.CLAUDE_WRITE_FACTOR)
            notes["cache_write_tokens"] = _by_factor("cache writes", rules.CLAUDE_WRITE_FACTOR, "cache_write_per_1m")
        else:
            notes["cache_write_tokens"] = _at_prompt_rate("cache writes", "cache_write_per_1m")
    if rate.cache_write_1h_per_1m is None:
        rates.setdefault("cache_write_tokens", prompt)
        rates["cache_write_1h_tokens"] = prompt * Decimal(rules.HOUR_WRITE_FACTOR)
        notes["cache_write_1h_tokens"] = _by_factor(
            "cache writes for an hour", rules.HOUR_WRITE_FACTOR, "cache_write_1h_per_1m"
        )
    return rates


def _at_prompt_rate(what: str, key: str) -> str:
    return f"{what} were charged at the prompt rate: the configured price has no {key}"


def _by_factor(what: str, factor: str, key: str) -> str:
    return f"{what} were charged at {factor} times the prompt rate: the configured price has no {key}"


def _add_overlaps(rates: dict[str, ListRate], per: dict[str, int], units: Mapping[str, Unit]) -> None:
    """Give cached audio and the like the rate of other cached tokens, unless it has one."""
    by_dimensions = {frozenset(unit.dimensions.items()): name for name, unit in units.items()}
    for one in list(rates):
        for other in list(rates):
            first, second = units[one].dimensions, units[other].dimensions
            if "token_type" not in first or "token_type" in second:
                continue
            if any(second.get(key, value) != value for key, value in first.items()):
                continue
            join = by_dimensions.get(frozenset(first.items() | second.items()))
            if join is not None and join not in rates:
                rates[join], per[join] = rates[one], per[one]
