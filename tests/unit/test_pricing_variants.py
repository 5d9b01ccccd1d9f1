"""
Every model of genai-prices, in every period, variant and unit that it prices: the cost is what ``calc_price`` says.

``calc_price`` computes in decimals with a context; here it has 60 digits, so that its results are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from functools import cache
from itertools import chain

import pytest
from genai_prices import Usage
from genai_prices.data_units import unit_data
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import ModelInfo, Provider, StartDateConstraint
from genai_prices.units import UnitRegistry
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.examples import examples
from kit.prices import PAIRS, call, draw_pair, instants_of, is_found, priced_units, pricer, starts_of, to_nusd
from tokentrace.pricing import Pricer, Rate
from tokentrace.records import MAX_COST_NUSD

UNITS = UnitRegistry(unit_data).units
NOTHING = (0, 0, 0, 0, 0, 0)
#: Before the list has a price for batches of Anthropic.
EARLY = datetime(2026, 10, 13, tzinfo=UTC)
LATE = datetime(2026, 11, 29, 12, tzinfo=UTC)


@cache
def found_pairs() -> list[tuple[Provider, ModelInfo]]:
    """Return the pairs of a provider and a model of which a look-up finds this model."""
    return [pair for pair in PAIRS if is_found(pair[0].id, pair[1].id)]


def exact(provider: Provider, model: ModelInfo, counts: dict[str, int], at: datetime, context: dict[str, str]) -> int:
    """Return the price in nano-dollars, as genai-prices computes it."""
    with localcontext() as decimals:
        decimals.prec = 60
        found = model.calc_price(
            Usage(**counts), provider, genai_request_timestamp=at, price_context=context or None
        ).total_price
    return to_nusd(found)


def contexts_of(model: ModelInfo, at: datetime) -> list[dict[str, str]]:
    """Return the contexts whose variants are active at *at*, and the empty one."""
    active = [
        variant.when
        for variant in model.price_variants or ()
        if variant.constraint is None or variant.constraint.active(at)
    ]
    both = [{**one, **other} for one in active for other in active if one.keys() != other.keys()]
    return [{}, *active, *both]


def moments_of(model: ModelInfo) -> list[datetime]:
    """Return times around the changes of the prices and of the variants of *model*, and a late one."""
    starts = [
        datetime.combine(variant.constraint.start_date, datetime.min.time(), UTC)
        for variant in model.price_variants or ()
        if isinstance(variant.constraint, StartDateConstraint) and variant.constraint.start_date > date(2000, 1, 1)
    ]
    return sorted({*instants_of(model), *starts, LATE})


def with_wholes(counts: dict[str, int]) -> dict[str, int]:
    """Return *counts* with the units that include them, as large as the sum of what they include."""
    wholes = dict(counts)
    for name, count in counts.items():
        for whole in UNITS.values():
            if whole.usage_key != name and is_descendant_or_self(whole, UNITS[name]):
                wholes[whole.usage_key] = wholes.get(whole.usage_key, 0) + count
    return wholes


def cases() -> Iterator[tuple[Provider, ModelInfo, datetime, dict[str, str], str]]:
    for provider, model in found_pairs():
        for at in moments_of(model):
            for context in contexts_of(model, at):
                for unit in priced_units(model.get_prices(at, context)):
                    yield provider, model, at, context, unit


@pytest.mark.story
@pytest.mark.long
def test_every_unit_of_every_variant_of_every_model_costs_what_calc_price_says() -> None:
    checked = 0
    units: set[str] = set()
    variants: set[tuple[str, str]] = set()
    for provider, model, at, context, unit in cases():
        counts = {} if unit == "requests" else with_wholes({unit: 1_000_003})
        counts = counts or with_wholes({"input_tokens": 7})
        expected = exact(provider, model, counts, at, context)
        quote = pricer.quote(call(provider.id, model.id, NOTHING, at, usage=counts, pricing_context=context or None))
        case = (provider.id, model.id, unit, at, context, quote)
        assert quote.cost_nusd == expected, case
        assert quote.source in ("priced", "partly_priced"), case
        checked += 1
        units.add(unit)
        variants |= context.items()
    assert checked > 15_000
    assert {"requests", "audio_seconds", "cache_audio_read_tokens", "web_searches", "output_image_tokens"} <= units
    priced = {
        item for _, model in found_pairs() for variant in model.price_variants or () for item in variant.when.items()
    }
    assert variants == priced
    assert len(priced) >= 9


@settings(max_examples=examples(1500), deadline=None)
@given(st.data())
def test_any_usage_in_any_variant_costs_what_calc_price_says(data: st.DataObject) -> None:
    found = found_pairs()
    rich = [pair for pair in found if pair[1].price_variants] if data.draw(st.booleans()) else found
    provider, model = draw_pair(data, rich)
    at = data.draw(st.sampled_from(moments_of(model)))
    context = data.draw(st.sampled_from(contexts_of(model, at)))
    units = [unit for unit in priced_units(model.get_prices(at, context)) if unit != "requests"]
    assume(units)
    sizes = st.one_of(st.integers(0, 1000), st.integers(0, 2**33))
    if starts := starts_of(model):
        sizes = st.one_of(
            sizes, st.sampled_from(sorted(starts)).flatmap(lambda start: st.integers(start - 1, start + 1))
        )
    leaves = {unit: data.draw(sizes, label=unit) for unit in units}
    # Every overlap that has a price is given, also as 0, so that nothing is ambiguous.
    counts = {**dict.fromkeys(units, 0), **with_wholes(leaves)}
    assume(any(counts.values()))
    expected = exact(provider, model, counts, at, context)
    quote = pricer.quote(call(provider.id, model.id, NOTHING, at, usage=counts, pricing_context=context or None))
    if expected > MAX_COST_NUSD:
        assert (quote.cost_nusd, quote.reason) == (None, "over_bounds")
    else:
        assert (quote.cost_nusd, quote.source, quote.reason) == (expected, "priced", "")


# --- what a call says of itself --------------------------------------------------------------------------------------

HUNDRED_TEN = (100_000, 10_000, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("provider", "model", "context", "nusd"),
    [
        ("openai", "gpt-5.4", {}, 400_000_000),
        ("openai", "gpt-5.4", {"service_tier": "flex"}, 200_000_000),
        ("openai", "gpt-5.4", {"processing": "batch"}, 200_000_000),
        ("openai", "gpt-5.4", {"service_tier": "batch"}, 200_000_000),
        ("openai", "gpt-5.4", {"service_tier": "priority"}, 800_000_000),
        ("openai", "gpt-5.4", {"service_tier": "default"}, 400_000_000),
        ("openai", "gpt-5.4", {"service_tier": "auto"}, 400_000_000),
        ("openai", "gpt-5.4", {"Service_Tier": " FLEX "}, 200_000_000),
        ("openai", "gpt-5.4", {"service_tier": ""}, 400_000_000),
        ("anthropic", "claude-sonnet-4-5", {}, 450_000_000),
        ("anthropic", "claude-sonnet-4-5", {"processing": "batch"}, 225_000_000),
        ("anthropic", "claude-sonnet-4-5", {"service_tier": "standard"}, 450_000_000),
        ("anthropic", "claude-sonnet-4-5", {"service_tier": "batch", "inference_geo": "global"}, 225_000_000),
    ],
)
def test_a_service_tier_has_the_published_price(provider: str, model: str, context: dict[str, str], nusd: int) -> None:
    quote = pricer.quote(call(provider, model, HUNDRED_TEN, LATE, pricing_context=context))
    assert quote[:2] == (nusd, "priced")


@pytest.mark.parametrize(
    ("provider", "model", "context", "at", "unknown"),
    [
        ("openai", "gpt-5.4", {"service_tier": "gold"}, LATE, "service_tier=gold"),
        ("openai", "gpt-5.4", {"service_tier": "flex", "speed": "fast"}, LATE, "speed=fast"),
        ("openai", "gpt-3.5-turbo", {"service_tier": "flex"}, LATE, "service_tier=flex"),
        ("anthropic", "claude-sonnet-4-5", {"service_tier": "priority"}, LATE, "service_tier=priority"),
        ("anthropic", "claude-sonnet-4-5", {"inference_geo": "us"}, LATE, "inference_geo=us"),
        (
            "anthropic",
            "claude-sonnet-4-5",
            {"processing": "batch"},
            datetime(2026, 10, 13, tzinfo=UTC),
            "processing=batch",
        ),
        # Azure sells models of OpenAI at the price of OpenAI, but no source says so of the tiers.
        ("azure", "gpt-5.4", {"service_tier": "flex"}, LATE, "service_tier=flex"),
    ],
)
def test_a_tier_without_a_known_price_is_unpriced_and_not_standard(
    provider: str, model: str, context: dict[str, str], at: datetime, unknown: str
) -> None:
    quote = pricer.quote(call(provider, model, HUNDRED_TEN, at, pricing_context=context))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", f"unknown_variant:{unknown}")


def test_a_receipt_names_the_variant_or_the_assumption() -> None:
    for context, variant, assumed in (
        (None, "", "standard price: no service tier, processing or speed was reported"),
        ({"service_tier": "flex"}, "service_tier=flex", ""),
        ({"service_tier": "default"}, "", ""),
        ({"service_tier": "batch"}, "processing=batch", ""),
    ):
        span = call("openai", "gpt-5.4", HUNDRED_TEN, LATE, pricing_context=context)
        quote = pricer.quote(span)
        stored = replace(span, cost_nusd=quote.cost_nusd, cost_source=quote.source, cost_model=quote.model)
        receipt = pricer.receipt(stored)
        assert receipt.explained
        assert (receipt.variant, receipt.assumed) == (variant, assumed)


def test_a_configured_price_holds_for_every_tier_and_its_receipt_says_so() -> None:
    configured = Pricer({"gpt-5.4": Rate(Decimal(1), Decimal(1))})
    span = call("openai", "gpt-5.4", HUNDRED_TEN, LATE, pricing_context={"service_tier": "flex"})
    assert configured.quote(span)[:2] == (110_000_000, "overridden")
    notes = configured.work(span).notes
    assert notes == ("the configured price holds for every call, also with service_tier=flex",)


def test_a_free_or_local_call_is_free_in_every_tier() -> None:
    for provider, model in (("ollama", "llama3"), ("openai", "omni-moderation-latest")):
        quote = pricer.quote(call(provider, model, pricing_context={"service_tier": "gold"}))
        assert quote[:2] == (0, "free")


def test_all_contexts_of_the_list_are_known() -> None:
    whens = {key for pair in PAIRS for key in chain.from_iterable(v.when for v in pair[1].price_variants or ())}
    assert whens == {"processing", "service_tier", "speed", "search_type", "route"}
