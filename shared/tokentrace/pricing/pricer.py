"""
Computes the cost of spans, without opening a network connection.

How it works. The rates of a model are looked up once, in the configuration first and then in the tables that
``genai-prices`` bundles, and become vectors of integers (``rates``). The cost of a span is one exact sum over its token
fields, rounded once, half to even, to nano-dollars. This takes less than 2 microseconds, while
``genai_prices.calc_price`` takes 17 to 105. So ``calc_price`` is used only for spans with a ``usage`` map of other
units, which are rare. Property tests compare the vectors with it.

The result has one of these sources:

* ``reported``: the cost that the span reports is kept. A reported 0 with tokens is ignored, because clients report 0
  for models that they do not know, unless the provider is in ``trust_zero``.
* ``overridden``: a configured price. ``priced``: a price of the tables, used if no price is configured.
* ``zero_ignored``: as the two before, for a span whose reported cost of 0 was ignored.
* ``partly_priced``: some units have no rate. The cost lacks their part, and the reason names them (``no_rate:...``).
* ``unpriced``: no cost. Reasons: ``no_model``, ``unknown_model``, ``no_split`` (only a total is known),
  ``no_token_rate``, ``no_rate:<units>``, ``usage_contradicts_itself`` and ``over_bounds``.
* "": the span has no cost, no tokens and no usage; its cost is 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, localcontext
from typing import NamedTuple

from genai_prices import Usage
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import ModelPrice

from tokentrace.pricing.match import PricePlan, PriceTables
from tokentrace.pricing.rates import Rate, active_version, price_by_vector
from tokentrace.pricing.receipt import Receipt, unit_counts, write_receipt
from tokentrace.records import MAX_COST_NUSD, Span, event_time
from tokentrace.units import NUSD_PER_USD, SECOND

_MAX_REASON = 256


class Quote(NamedTuple):
    """
    The cost of a span and how it was found.

    Attributes:
        cost_nusd: Cost in nano-dollars; None if the span cannot be priced.
        source: Value for ``Span.cost_source``.
        model: Value for ``Span.cost_model``.
        reason: Value for ``Span.unpriced_reason``.
    """

    cost_nusd: int | None
    source: str
    model: str
    reason: str


class Pricer:
    """
    Prices spans.

    Args:
        overrides: Model name in any case -> configured price; it takes precedence over the tables, for all providers.
        trust_zero: Providers, in any case, whose reported cost of 0 is kept.
    """

    def __init__(self, overrides: Mapping[str, Rate] | None = None, trust_zero: Collection[str] = ()) -> None:
        self._tables = PriceTables(overrides or {})
        self._trust_zero = frozenset(provider.lower() for provider in trust_zero)

    def quote(self, span: Span, at_ns: int | None = None) -> Quote:
        """
        Return the cost that *span* reports, or the price of its tokens and usage if it reports none or an ignored 0.

        Args:
            at_ns: Time whose prices apply, Unix nanoseconds; None = the span's event time.
        """
        reported = span.cost_nusd
        prompt, completion = span.prompt_tokens, span.completion_tokens
        has_tokens = prompt or completion or span.total_tokens
        if reported is not None and (reported > 0 or not has_tokens or span.provider.lower() in self._trust_zero):
            return Quote(reported, "reported", span.cost_model, "")
        if not has_tokens and not span.usage:
            return Quote(0, "", "", "")
        plan = self._tables.plan(span.provider, span.model)
        if plan is None:
            return Quote(None, "unpriced", "", "unknown_model" if span.model else "no_model")
        if not prompt and not completion and span.total_tokens:
            return Quote(None, "unpriced", plan.model, "no_split")
        if span.usage:
            cost, reason = self._price_by_table(plan, span, event_time(span) if at_ns is None else at_ns)
        else:
            version = plan.versions[0]
            if len(plan.versions) > 1:
                version = active_version(plan.versions, event_time(span) if at_ns is None else at_ns)
            cost, reason = price_by_vector(version, span)
        if cost is None or cost > MAX_COST_NUSD:
            return Quote(None, "unpriced", plan.model, reason or "over_bounds")
        source = "partly_priced" if reason else ("zero_ignored" if reported == 0 else plan.source)
        return Quote(cost, source, plan.model, reason)

    def receipt(self, span: Span) -> Receipt:
        """Return the receipt for the cost of *span*, which was priced before, here or by another ingest."""
        return write_receipt(self._tables, span)

    def _price_by_table(self, plan: PricePlan, span: Span, at_ns: int) -> tuple[int | None, str]:
        """Return (nano-dollars or None, reason) for a span with ``usage``: by ``calc_price`` or a configured price."""
        if plan.info is None or plan.provider is None:
            cost, reason = price_by_vector(plan.versions[0], span)
            return cost, reason or _no_rate(sorted(name for name, count in (span.usage or {}).items() if count))
        counts = unit_counts(span)
        at = datetime.fromtimestamp(at_ns // SECOND, tz=UTC)
        # Each span is one request. genai-prices adds this count itself, and warns if the caller passes it.
        units = self._tables.registry.units
        known = {name: count for name, count in counts.items() if name in units and name != "requests"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                price = plan.info.calc_price(Usage(**known), plan.provider, genai_request_timestamp=at)
        except (ValueError, UserWarning):
            return None, "usage_contradicts_itself"
        unpriced = self._units_without_rate(counts, plan.info.get_prices(at))
        if unpriced and len(unpriced) == sum(1 for count in counts.values() if count):
            return None, _no_rate(unpriced)
        with localcontext() as context:
            context.prec = 60
            nusd = int((price.total_price * NUSD_PER_USD).to_integral_value(rounding=ROUND_HALF_EVEN))
        return nusd, _no_rate(unpriced)

    def _units_without_rate(self, counts: Mapping[str, int], prices: ModelPrice) -> list[str]:
        priced = [unit for unit, _ in self._tables.priced_units(prices)]
        missing = []
        for name, count in counts.items():
            unit = self._tables.registry.units.get(name)
            if count and (unit is None or not any(is_descendant_or_self(rate, unit) for rate in priced)):
                missing.append(name)
        return sorted(missing)


def _no_rate(units: list[str]) -> str:
    """Return the reason that names *units*, which have no rate; "" if there are no such units."""
    return f"no_rate:{','.join(units)}"[:_MAX_REASON] if units else ""
