"""``pricing``: rates that take precedence over the bundled price tables."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from tokentrace.config.section import Section
from tokentrace.errors import ConfigError

if TYPE_CHECKING:
    from tokentrace.pricing import Rate

_MAX_RATE_USD = 1_000_000


class ModelRate(Section, frozen=True, kw_only=True):
    """Rates of a model, in US dollars per million tokens."""

    prompt_per_1m: Annotated[Decimal, Meta(description="Rate of prompt tokens, USD per million.")]
    completion_per_1m: Annotated[Decimal, Meta(description="Rate of completion tokens, USD per million.")]
    cache_read_per_1m: Annotated[
        Decimal | None,
        Meta(description="Rate of prompt tokens read from a cache, USD per million; unset = prompt_per_1m."),
    ] = None


class Pricing(Section, frozen=True, kw_only=True):
    """Rates that take precedence over the bundled price tables."""

    models: Annotated[dict[str, ModelRate], Meta(description="Rates by model name.")] = msgspec.field(
        default_factory=dict
    )
    trust_zero: Annotated[
        list[str], Meta(description="Providers whose reported cost of 0 is believed: the call was free.")
    ] = msgspec.field(default_factory=list)

    def check(self) -> None:
        """
        Check that each rate is a finite number from 0 to 1,000,000 USD per million tokens.

        Raises:
            ConfigError: A rate is not such a number; the message names its key.
        """
        for model, model_rate in self.models.items():
            for key, rate in msgspec.structs.asdict(model_rate).items():
                if rate is not None and not (rate.is_finite() and 0 <= rate <= _MAX_RATE_USD):
                    raise ConfigError(f"pricing.models.{model}.{key}: must be a price of 0 to {_MAX_RATE_USD} USD")

    @property
    def rates(self) -> dict[str, Rate]:
        """The rates as ``pricing.Pricer`` takes them, by model name."""
        from tokentrace.pricing import Rate

        return {
            model: Rate(rate.prompt_per_1m, rate.completion_per_1m, rate.cache_read_per_1m)
            for model, rate in self.models.items()
        }
