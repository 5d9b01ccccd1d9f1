"""Finds the price of a model: a configured price, or an entry of the price tables of genai-prices."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

import genai_prices
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, Provider, TieredPrices
from genai_prices.units import UnitDef, UnitRegistry

from tokentrace.pricing.rates import PriceVersion, Rate, override_version, rate_vector

#: Most pairs of provider and model whose plans are cached; a full cache is cleared.
MAX_PLANS = 10_000


class PricePlan(NamedTuple):
    """
    How spans of one provider and model are priced.

    Attributes:
        versions: Prices in the order of the tables; see ``active_version`` for which one applies.
        source: ``priced`` = from the tables, ``overridden`` = from the configuration.
        model: ``provider:model@genai-prices-<version>`` or ``model@configuration``, for ``Span.cost_model``.
        provider, info: The entry of the tables; None for a configured price.
    """

    versions: tuple[PriceVersion, ...]
    source: str
    model: str
    provider: Provider | None
    info: ModelInfo | None


class PriceTables:
    """
    The price tables that genai-prices bundles, and configured prices, which take precedence.

    Args:
        overrides: Model name in any case -> configured price; it applies to all providers.
    """

    def __init__(self, overrides: Mapping[str, Rate]) -> None:
        self._tables = _bundled_tables()
        self.registry = _bundled_units()
        self._overrides = {model.lower(): rate for model, rate in overrides.items()}
        self._plans: dict[tuple[str, str], PricePlan | None] = {}

    def override(self, model: str) -> Rate | None:
        """Return the configured price of *model*; None if there is none."""
        return self._overrides.get(model.lower())

    def plan(self, provider_id: str, model: str) -> PricePlan | None:
        """Return how to price *model*, from a cache if possible; None if there is no price."""
        key = (provider_id, model)
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) >= MAX_PLANS:
            # A snapshot caches every name that was looked up in it, so replace the snapshot too.
            self._plans.clear()
            self._tables = _bundled_tables()
        plan = self._plans[key] = self._find(provider_id, model)
        return plan

    def _find(self, provider_id: str, model: str) -> PricePlan | None:
        override = self.override(model)
        if override is not None:
            return PricePlan((override_version(override),), "overridden", f"{model}@configuration", None, None)
        if not model:
            return None
        try:
            provider, info = self._tables.find_provider_model(model, None, provider_id or None, None)
        except LookupError:
            return None
        prices = info.prices if isinstance(info.prices, list) else [ConditionalPrice(prices=info.prices)]
        versions = tuple(self._version(price) for price in prices)
        name = f"{provider.id}:{info.id}@genai-prices-{genai_prices.__version__}"
        return PricePlan(versions, "priced", name, provider, info)

    def _version(self, price: ConditionalPrice) -> PriceVersion:
        priced = self.priced_units(price.prices)
        starts = sorted({tier.start for _, value in priced if isinstance(value, TieredPrices) for tier in value.tiers})
        # A tier applies to counts above its start, so the base applies to counts up to the first start.
        vectors = tuple(rate_vector(priced, self.registry, tokens) for tokens in [0, *(start + 1 for start in starts)])
        return PriceVersion(price.constraint, tuple(starts), vectors)

    def priced_units(self, prices: ModelPrice) -> list[tuple[UnitDef, Decimal | TieredPrices]]:
        """Return (unit, price) for each unit that has a price in *prices*."""
        return [
            (self.registry.unit_for_price_key(key), value)
            for key, value in vars(prices).items()
            if value is not None and not key.startswith("_")
        ]


def _bundled_tables() -> DataSnapshot:
    from genai_prices.data import providers

    return DataSnapshot(providers=providers, from_auto_update=False)


def _bundled_units() -> UnitRegistry:
    from genai_prices.data_units import unit_data

    return UnitRegistry(unit_data)
