"""Prices of genai-prices' tables, computed by genai-prices itself, and spans to price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache

from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.pricing import Pricer
from tokentrace.records import Span
from tokentrace.units import SECOND

pricer = Pricer()


def priced_units(prices: ModelPrice) -> list[str]:
    """Return the units that have a price in *prices*."""
    names = {unit.get("price_key", name): name for name, unit in unit_data.items()}
    return [names[key] for key, value in vars(prices).items() if value is not None and not key.startswith("_")]


PAIRS: list[tuple[Provider, ModelInfo]] = [(provider, model) for provider in providers for model in provider.models]


NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


#: Token counts: (prompt, completion, cache read, cache write, cache write 1h, reasoning).
Counts = tuple[int, int, int, int, int, int]


SOME: Counts = (1003, 517, 301, 203, 101, 57)


def exact(provider: Provider, model: ModelInfo, counts: Counts, at: datetime) -> Decimal:
    """Return the exact price of *counts* at the time *at* in US dollars, as genai-prices computes it."""
    prompt, completion, read, write, write_1h, reasoning = counts
    usage = Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write_1h,
        output_reasoning_tokens=reasoning,
    )
    with localcontext() as context:
        context.prec = 60
        return model.calc_price(usage, provider, genai_request_timestamp=at).total_price


def to_nusd(usd: Decimal) -> int:
    """Return *usd* in nano-dollars, rounded half to even."""
    with localcontext() as context:
        context.prec = 60
        return int((usd * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def call(provider: str, model: str, counts: Counts = SOME, at: datetime = NOON, **fields: object) -> Span:
    """Return a span of *model* that ended and arrived at *at*."""
    prompt, completion, read, write, write_1h, reasoning = counts
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    ended = (since.days * 86_400 + since.seconds) * SECOND + since.microseconds * 1000
    return make_span(
        **{
            "provider": provider,
            "model": model,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cache_read_tokens": read,
            "cache_write_tokens": write,
            "cache_write_1h_tokens": write_1h,
            "reasoning_tokens": reasoning,
            "ended_ns": ended,
            "arrived_ns": ended,
            **fields,
        }
    )


def conditions(model: ModelInfo) -> list[ConditionalPrice]:
    """Return the prices of *model*, each with the condition (start date or time of day) under which it applies."""
    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


@cache
def is_found(provider: str, model: str) -> bool:
    """Return True if a look-up of *model* at *provider* finds this model and not another one with a similar name."""
    return pricer.quote(call(provider, model)).model.startswith(f"{provider}:{model}@")


def has_rate(prices: ModelPrice, *keys: str) -> bool:
    """Return True if *prices* has a price for any of *keys*."""
    return any(vars(prices).get(key) is not None for key in keys)


def instants_of(model: ModelInfo) -> list[datetime]:
    """Return times just before, at and after the changes of the prices of *model*, and NOON."""
    moments = {NOON}
    for price in conditions(model):
        if isinstance(price.constraint, StartDateConstraint):
            day = datetime.combine(price.constraint.start_date, datetime.min.time(), UTC)
            moments |= {day, day - timedelta(seconds=1), day - timedelta(microseconds=1), day + timedelta(hours=23)}
        elif isinstance(price.constraint, TimeOfDateConstraint):
            for moment in (price.constraint.start_time, price.constraint.end_time):
                edge = datetime.combine(NOON.date(), moment.replace(tzinfo=None), moment.tzinfo or UTC).astimezone(UTC)
                moments |= {
                    edge,
                    edge - timedelta(seconds=1),
                    edge - timedelta(microseconds=1),
                    edge + timedelta(hours=1),
                }
    return sorted(moment for moment in moments if moment.year >= 2000)


def starts_of(model: ModelInfo) -> set[int]:
    """Return the prompt token counts above which a tier of *model* begins."""
    tiered = (
        value for price in conditions(model) for value in vars(price.prices).values() if isinstance(value, TieredPrices)
    )
    return {tier.start for value in tiered for tier in value.tiers}


def draw_pair(data: st.DataObject, pairs: list[tuple[Provider, ModelInfo]]) -> tuple[Provider, ModelInfo]:
    """Draw one of *pairs* by its name, so that the report of a failure shows a name and not a whole provider."""
    by_name = {f"{provider.id}:{model.id}": (provider, model) for provider, model in pairs}
    return by_name[data.draw(st.sampled_from(sorted(by_name)))]


@st.composite
def counts_of(draw: st.DrawFn, around: set[int]) -> Counts:
    """Draw token counts that a span may have; prompt and completion are often next to one of *around*."""
    sizes = st.one_of(st.integers(0, 10), st.integers(0, 3_000_000), st.integers(0, 2**40))
    if around:
        sizes = st.one_of(sizes, st.sampled_from(sorted(around)).flatmap(lambda at: st.integers(at - 1, at + 1)))
    prompt, completion = draw(sizes), draw(sizes)
    read = draw(st.integers(0, prompt))
    write = draw(st.integers(0, prompt - read))
    return prompt, completion, read, write, draw(st.integers(0, write)), draw(st.integers(0, completion))
