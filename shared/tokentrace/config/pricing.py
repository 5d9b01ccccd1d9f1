"""``pricing``: own prices, which take precedence over the price list, and providers whose calls are free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from tokentrace.config.section import LARGEST, Section
from tokentrace.errors import ConfigError

if TYPE_CHECKING:
    from tokentrace.pricing import Pricer, Rate

_MAX_RATE_USD = 1_000_000
_TOKEN_RATES = (
    "prompt_per_1m",
    "completion_per_1m",
    "cache_read_per_1m",
    "cache_write_per_1m",
    "cache_write_1h_per_1m",
    "reasoning_per_1m",
)


class UnitPrice(Section, frozen=True, kw_only=True):
    """The rate of a unit that is no field of a span: US dollars for a number of units."""

    usd: Annotated[Decimal, Meta(description="US dollars for `per` units.")]
    per: Annotated[int, Meta(ge=1, le=10**12, description="Number of units that `usd` is for.")] = 1


class Tier(Section, frozen=True, kw_only=True):
    """Rates of calls with many prompt tokens; a rate that is not given is that of the tier below."""

    above_prompt_tokens: Annotated[
        int, Meta(ge=1, le=LARGEST, description="The tier holds for calls with more prompt tokens than this.")
    ]
    prompt_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None
    completion_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None
    cache_read_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None
    cache_write_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None
    cache_write_1h_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None
    reasoning_per_1m: Annotated[Decimal | None, Meta(description="As above; unset = as in the tier below.")] = None


class ModelMatch(Section, frozen=True, kw_only=True):
    """The names of models that a price covers, in any case; exactly one key is given."""

    equals: Annotated[str | None, Meta(description="The price covers this name.")] = None
    prefix: Annotated[str | None, Meta(description="The price covers names that begin with this.")] = None
    regex: Annotated[
        str | None, Meta(description="The price covers names in which this regular expression is found.")
    ] = None


class ModelRate(Section, frozen=True, kw_only=True):
    """Rates of a model, in US dollars per million tokens."""

    prompt_per_1m: Annotated[
        Decimal | None, Meta(description="Rate of prompt tokens, USD per million; given with completion_per_1m.")
    ] = None
    completion_per_1m: Annotated[
        Decimal | None, Meta(description="Rate of completion tokens, USD per million; given with prompt_per_1m.")
    ] = None
    cache_read_per_1m: Annotated[
        Decimal | None,
        Meta(description="Rate of prompt tokens read from a cache, USD per million; unset = prompt_per_1m."),
    ] = None
    cache_write_per_1m: Annotated[
        Decimal | None,
        Meta(
            description="Rate of prompt tokens written to a cache, USD per million; unset = 1.25 times prompt_per_1m "
            "for Claude, prompt_per_1m for others."
        ),
    ] = None
    cache_write_1h_per_1m: Annotated[
        Decimal | None,
        Meta(
            description="Rate of prompt tokens written to a cache for an hour, USD per million; unset = twice "
            "prompt_per_1m."
        ),
    ] = None
    reasoning_per_1m: Annotated[
        Decimal | None, Meta(description="Rate of reasoning tokens, USD per million; unset = completion_per_1m.")
    ] = None
    units: Annotated[
        dict[str, UnitPrice],
        Meta(description="Rates of other units by name, such as `web_searches` or `audio_seconds`."),
    ] = msgspec.field(default_factory=dict)
    tiers: Annotated[list[Tier], Meta(description="Rates of calls with many prompt tokens.")] = msgspec.field(
        default_factory=list
    )
    match: Annotated[
        ModelMatch | None,
        Meta(description="Names that the price covers; unset = the key, also with a date or `:latest` after it."),
    ] = None
    provider: Annotated[str, Meta(description="The price covers only this provider; empty = all.")] = ""
    free: Annotated[bool, Meta(description="Calls of the model cost nothing.")] = False

    def prices(self) -> Iterator[tuple[str, Decimal]]:
        """Yield (key, US dollars) of every rate that is given."""
        for part, prefix in ((self, ""), *((tier, f"tiers[{index}].") for index, tier in enumerate(self.tiers))):
            for key in _TOKEN_RATES:
                value = getattr(part, key)
                if value is not None:
                    yield prefix + key, value
        for name, unit in self.units.items():
            yield f"units.{name}.usd", unit.usd


class Pricing(Section, frozen=True, kw_only=True):
    """Own prices, which take precedence over the price list, and providers whose calls are free."""

    models: Annotated[dict[str, ModelRate], Meta(description="Rates by model name.")] = msgspec.field(
        default_factory=dict
    )
    trust_zero: Annotated[
        list[str], Meta(description="Providers whose reported cost of 0 is believed: the call was free.")
    ] = msgspec.field(default_factory=list)
    local_providers: Annotated[
        list[str] | None,
        Meta(
            description="Providers on your own machines, whose calls are free; unset = ollama, lmstudio, llama.cpp, "
            "vllm and others that `docs/explanation/money.md` lists."
        ),
    ] = None

    def check(self) -> None:
        """
        Check that each price has rates from 0 to 1,000,000 USD, ascending tiers and one pattern.

        Raises:
            ConfigError: A price breaks a rule; the message names its key.
        """
        for model, price in self.models.items():
            where = f"pricing.models.{model}"
            _check_rates(where, price)
            for key, usd in price.prices():
                if not (usd.is_finite() and 0 <= usd <= _MAX_RATE_USD):
                    raise ConfigError(f"{where}.{key}: must be a price of 0 to {_MAX_RATE_USD} USD")
            starts = [tier.above_prompt_tokens for tier in price.tiers]
            if starts != sorted(set(starts)):
                raise ConfigError(f"{where}.tiers: above_prompt_tokens must ascend")
            if price.match is not None:
                _check_match(f"{where}.match", price.match)

    @property
    def rates(self) -> dict[str, Rate]:
        """The prices as ``pricing.Pricer`` takes them, by model name."""
        from tokentrace.pricing import Pattern, Rate, TierRate, UnitRate

        rates = {}
        for model, price in self.models.items():
            kinds = {} if price.match is None else msgspec.structs.asdict(price.match)
            patterns = [Pattern(kind, text) for kind, text in kinds.items() if text is not None]  # type: ignore[arg-type]
            rates[model] = Rate(
                **{key: getattr(price, key) for key in _TOKEN_RATES},
                units={name: UnitRate(unit.usd, unit.per) for name, unit in price.units.items()},
                tiers=tuple(TierRate(**msgspec.structs.asdict(tier)) for tier in price.tiers),
                match=patterns[0] if patterns else None,
                provider=price.provider,
                free=price.free,
            )
        return rates

    def pricer(self) -> Pricer:
        """Return a pricer with these settings."""
        from tokentrace.pricing import LOCAL_PROVIDERS, Pricer

        local = LOCAL_PROVIDERS if self.local_providers is None else self.local_providers
        return Pricer(self.rates, self.trust_zero, local)


def _check_rates(where: str, price: ModelRate) -> None:
    """Check that *price* has rates, or is free."""
    has_rates = any(True for _ in price.prices())
    if price.free:
        if has_rates:
            raise ConfigError(f"{where}.free: a model that is free has no rates")
        return
    for given, needed in (("prompt_per_1m", "completion_per_1m"), ("completion_per_1m", "prompt_per_1m")):
        if getattr(price, needed) is None and (getattr(price, given) is not None or not has_rates):
            raise ConfigError(f"{where}.{needed}: required")
    if price.prompt_per_1m is None and any(key in _TOKEN_RATES or key[:5] == "tiers" for key, _ in price.prices()):
        raise ConfigError(f"{where}.prompt_per_1m: required")


def _check_match(where: str, match: ModelMatch) -> None:
    given = [(kind, text) for kind, text in msgspec.structs.asdict(match).items() if text]
    if len(given) != 1:
        raise ConfigError(f"{where}: needs exactly one of equals, prefix and regex")
    if match.regex:
        try:
            re.compile(match.regex)
        except re.error as exc:
            raise ConfigError(f"{where}.regex: {exc}") from exc
