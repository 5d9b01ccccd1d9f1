"""
What calls cost, by the price list of this package and own prices.

Ingest prices spans with the same code and the same list, so both come to the same cost to the nano-dollar. The list is
read when the first price is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace as replaced
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache

from tokentrace.client.money.counts import span_of, tokens_of
from tokentrace.errors import ConfigError, Rejected, quoted
from tokentrace.pricing import LOCAL_PROVIDERS, TOKEN_RATES, Pricer, Quote, Rate
from tokentrace.records import FUTURE_NS, Span, as_stated, fit_span, settle_usage
from tokentrace.units import US, nusd_to_usd

_MAX_RATE_USD = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: Characters of an English text for one token, as the documented estimate assumes.
_CHARACTERS_PER_TOKEN = 4


class Prices:
    """
    Prices calls as an ingest with the same own prices does.

    Args:
        rates: Own prices by model, which must be those of ``pricing.models``; None = only the price list.
        trust_zero: As ``pricing.trust_zero``.
        local_providers: As ``pricing.local_providers``.

    Raises:
        ConfigError: A price has no rate, or one that is not an amount from 0 to 1,000,000 US dollars.
    """

    def __init__(
        self,
        rates: Mapping[str, Rate] | None = None,
        trust_zero: Collection[str] = (),
        local_providers: Collection[str] = LOCAL_PROVIDERS,
    ) -> None:
        for model, rate in (rates or {}).items():
            _check(f"prices: {quoted(model)}", rate)
        self._pricer = Pricer(rates, trust_zero, local_providers)

    def quote(self, span: Span) -> Quote:
        """
        Return the cost that ingest would give *span* if it arrived now.

        Raises:
            Rejected: The counts of *span* contradict each other; ingest would refuse it too.
        """
        span = fit_span(settle_usage(as_stated(span)))
        now_ns = time.time_ns()
        ended_ns = span.ended_ns or (span.started_ns + span.latency_ns if span.started_ns else now_ns)
        return self._pricer.quote(span, ended_ns if ended_ns <= now_ns + FUTURE_NS else now_ns)

    def cost_or_none(
        self, model: str, usage: object, *, provider: str = "", at: datetime | None = None
    ) -> Decimal | None:
        """As the function of this name."""
        span = span_of(model, usage, provider)
        if at is None:
            nusd = self.quote(span).cost_nusd
        elif at.tzinfo is None:
            raise Rejected("at: the time names no time zone")
        else:
            span = fit_span(settle_usage(as_stated(span)))
            nusd = self._pricer.quote(span, (at - _EPOCH) // _MICROSECOND * US).cost_nusd
        return None if nusd is None else Decimal(nusd).scaleb(-9)


@cache
def _listed() -> Prices:
    return Prices()


def cost(model: str, usage: object, *, provider: str = "") -> float:
    """
    Return what a call costs now by the price list; 0.0 if its price is not known.

    ``cost_or_none`` tells an unknown price from a price of 0.

    Args:
        model: The name of the model, in any case.
        usage: As for ``cost_or_none``.
        provider: The name of the provider; "" = that of the usage, or found by the model.

    Returns:
        US dollars.

    Raises:
        Rejected: Nothing can be counted in *usage*, or its counts contradict each other.
    """
    return float(cost_or_none(model, usage, provider=provider) or 0)


def cost_or_none(model: str, usage: object, *, provider: str = "", at: datetime | None = None) -> Decimal | None:
    """
    Return what a call costs by the price list, exactly as ingest prices a span with this usage.

    Args:
        model: The name of the model, in any case.
        usage: What the call used: a mapping with the names of ``Span``'s fields (``prompt_tokens``,
            ``completion_tokens``, ``cache_read_tokens`` …), a ``Span``, a response of a provider's SDK or its JSON, or
            any object with ``prompt_tokens`` and ``completion_tokens``. A cost in it is ignored.
        provider: The name of the provider; "" = that of the usage, or found by the model.
        at: When the call ended, with a time zone; None = the end of the span, or now.

    Returns:
        US dollars in whole nano-dollars. None if the price is not known, such as that of an unknown model. If only a
        part of the usage has a price, the price of this part.

    Raises:
        Rejected: Nothing can be counted in *usage*, its counts contradict each other, or *at* has no time zone.
    """
    return _listed().cost_or_none(model, usage, provider=provider, at=at)


def cost_with_rate(rate: Rate, prompt_tokens: int, completion_tokens: int) -> float:
    """
    Return what tokens cost at an own price.

    Args:
        rate: The price; its tiers apply.
        prompt_tokens: Number of prompt tokens.
        completion_tokens: Number of completion tokens.

    Returns:
        US dollars, rounded to whole nano-dollars.

    Raises:
        Rejected: A count is not a whole number of at least 0, or *rate* has no price for one of the counts.
        ConfigError: *rate* has no price at all, or one that is not from 0 to 1,000,000 US dollars.
    """
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    span = span_of("rate", usage, "")
    if not (prompt_tokens or completion_tokens):
        return 0.0
    quote = Prices({"rate": replaced(rate, match=None, provider="")}).quote(span)
    if quote.cost_nusd is None or quote.source == "partly_priced":
        raise Rejected(f"rate: it gives no price for these tokens ({quote.reason})")
    return nusd_to_usd(quote.cost_nusd)


def estimate_cost(model: str, prompt: str | int, completion_tokens: int) -> float:
    """
    Return what a call would cost, before it is made; 0.0 if the price of the model is not known.

    Args:
        model: The name of the model, in any case.
        prompt: The prompt, of which four characters count as one token, rounded up; or its number of tokens.
        completion_tokens: The assumed number of completion tokens.

    Returns:
        US dollars.

    Raises:
        Rejected: A count is not a whole number of at least 0.
    """
    prompt_tokens = -(-len(prompt) // _CHARACTERS_PER_TOKEN) if isinstance(prompt, str) else prompt
    tokens = tokens_of("prompt", prompt_tokens), tokens_of("completion_tokens", completion_tokens)
    return cost(model, {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]})


def _check(where: str, rate: Rate) -> None:
    """Check that *rate* has prices that are amounts, as ``pricing.models`` must have."""
    prices = dict(_prices_of(rate))
    if rate.free != (not prices):
        raise ConfigError(f"{where}: " + ("a model that is free has no rates" if rate.free else "has no rate"))
    for name, usd in prices.items():
        if not (usd.is_finite() and 0 <= usd <= _MAX_RATE_USD):
            raise ConfigError(f"{where}: {name} must be a price of 0 to {_MAX_RATE_USD} USD")


def _prices_of(rate: Rate) -> Iterator[tuple[str, Decimal]]:
    for part in (rate, *rate.tiers):
        for name in TOKEN_RATES:
            if (usd := getattr(part, name)) is not None:
                yield name, usd
    for unit, (usd, _) in rate.units.items():
        yield f"units.{unit}", usd
