"""Pricing of the units in a span's ``usage`` map, which no other field holds: they have a rate, or they are named."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from genai_prices import Usage
from genai_prices.data_units import unit_data
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    Provider,
)
from genai_prices.units import UnitRegistry
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.prices import (
    NOON,
    PAIRS,
    Counts,
    call,
    counts_of,
    draw_pair,
    exact,
    has_rate,
    is_found,
    priced_units,
    pricer,
    starts_of,
    to_nusd,
)
from tokentrace.pricing import FIELD_UNITS, Pricer, Rate
from tokentrace.records import MAX_COST_NUSD

RATE = Rate(Decimal("2.00"), Decimal("8.00"), Decimal("0.50"))


def test_searches_are_priced_in_addition_to_tokens() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (2_560_000 + 3 * 10_000_000, "priced")
    assert quote.reason == ""


def test_searches_are_priced_without_tokens() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", (0, 0, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (30_000_000, "priced")


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_searches_cost_what_calc_price_says(data: st.DataObject) -> None:
    searching = [
        pair
        for pair in PAIRS
        if isinstance(pair[1].prices, ModelPrice) and has_rate(pair[1].prices, "web_searches_kcount")
    ]
    provider, model = draw_pair(data, searching)
    prices = model.prices
    assert isinstance(prices, ModelPrice)
    assume(is_found(provider.id, model.id) and has_rate(prices, "input_mtok") and has_rate(prices, "output_mtok"))
    rate = prices.web_searches_kcount
    assert isinstance(rate, Decimal)
    counts, searches = data.draw(counts_of(starts_of(model))), data.draw(st.integers(1, 10**6))
    quote = pricer.quote(call(provider.id, model.id, counts, usage={"web_searches": searches}))
    with localcontext() as context:
        context.prec = 60
        expected = to_nusd(exact(provider, model, counts, NOON) + rate * searches / 1000)
    assert quote[:2] == ((expected, "priced") if expected <= MAX_COST_NUSD else (None, "unpriced"))


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_a_usage_map_with_a_count_of_zero_changes_no_price(data: st.DataObject) -> None:
    # A span with a usage map is priced by calc_price, another one by a vector of rates; both must agree.
    provider, model = draw_pair(data, PAIRS)
    counts = data.draw(counts_of(starts_of(model)))
    assume(counts[0] + counts[1] > 0)
    plain = pricer.quote(call(provider.id, model.id, counts))
    assume(plain.reason != "over_bounds")
    # A span of which nothing has a rate is tested separately below.
    assume(plain.cost_nusd != 0 or not plain.reason)
    quote = pricer.quote(call(provider.id, model.id, counts, usage={"web_searches": 0}))
    assert (*quote[:3], bool(quote.reason)) == (*plain[:3], bool(plain.reason))


@pytest.mark.parametrize("unit", ["bananas", "web_search", "", "input_mtok", "requests", "__class__", "é" * 100])
def test_a_unit_without_a_rate_is_named_and_the_tokens_are_priced(unit: str) -> None:
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage={unit: 3}))
    assert quote[:2] == (2_560_000, "partly_priced")
    assert quote.reason == f"no_rate:{unit}"


def test_units_without_a_rate_are_named_in_order_and_cut_to_256_characters() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", usage={"b": 1, "a": 1, "web_searches": 1}))
    assert quote.reason == "no_rate:a,b"
    quote = pricer.quote(call("openai", "gpt-4o", usage={f"unit-{number}": 1 for number in range(1000)}))
    assert len(quote.reason) <= 256
    quote = Pricer({"m": RATE}).quote(call("", "m", usage={f"unit-{number}": 1 for number in range(1000)}))
    assert len(quote.reason) <= 256


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("whisper-1", (512, 128, 0, 0, 0, 0)), ("whisper-1", (0, 0, 0, 0, 0, 0)), ("gpt-4o", (0, 0, 0, 0, 0, 0))],
)
def test_a_span_of_which_nothing_has_a_rate_is_unpriced_and_not_zero(model: str, tokens: Counts) -> None:
    quote = pricer.quote(call("openai", model, tokens, usage={"bananas": 3}))
    assert (quote.cost_nusd, quote.source) == (None, "unpriced")


def test_usage_that_contradicts_itself_is_unpriced() -> None:
    audio = next(
        (provider, model)
        for provider, model in PAIRS
        if isinstance(model.prices, ModelPrice)
        and has_rate(model.prices, "input_audio_mtok")
        and has_rate(model.prices, "input_mtok")
        and is_found(provider.id, model.id)
    )
    quote = pricer.quote(call(audio[0].id, audio[1].id, (10, 0, 0, 0, 0, 0), usage={"input_audio_tokens": 11}))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "usage_contradicts_itself")
    quote = pricer.quote(call(audio[0].id, audio[1].id, (10, 0, 0, 0, 0, 0), usage={"input_audio_tokens": 10}))
    assert quote.source == "priced"


def test_an_hour_of_audio_is_priced() -> None:
    quote = pricer.quote(call("openai", "whisper-1", (0, 0, 0, 0, 0, 0), usage={"audio_seconds": 3600}))
    assert quote[:2] == (360_000_000, "priced")


def test_usage_may_name_the_fields_of_a_span_but_not_contradict_them() -> None:
    tokens = {"input_tokens": 1000, "output_tokens": 500}
    for counts, usage in (
        ((0, 0, 0, 0, 0, 0), tokens),
        ((1000, 0, 0, 0, 0, 0), {"output_tokens": 500}),
        ((1000, 500, 0, 0, 0, 0), tokens),
    ):
        assert pricer.quote(call("openai", "gpt-4o", counts, usage=usage))[:2] == (7_500_000, "priced")
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage=tokens))
    assert (quote.cost_nusd, quote.reason) == (None, "usage_contradicts_itself")


#: Units that the price tables name and for which no model has a price.
UNPRICED_UNITS = {
    "cache_audio_write_1h_tokens",
    "cache_audio_write_5m_tokens",
    "cache_audio_write_tokens",
    "cache_image_write_1h_tokens",
    "cache_image_write_5m_tokens",
    "cache_image_write_tokens",
    "cache_text_read_tokens",
    "cache_text_write_1h_tokens",
    "cache_text_write_5m_tokens",
    "cache_text_write_tokens",
    "cache_video_read_tokens",
    "cache_video_write_1h_tokens",
    "cache_video_write_5m_tokens",
    "cache_video_write_tokens",
    "cache_write_5m_tokens",
    "code_executions",
    "input_audio_tool_tokens",
    "input_image_tool_tokens",
    "input_pixels",
    "input_text_tokens",
    "input_text_tool_tokens",
    "input_tool_tokens",
    "input_video_tool_tokens",
    "output_audio_citation_tokens",
    "output_audio_reasoning_tokens",
    "output_audio_seconds",
    "output_image_citation_tokens",
    "output_image_reasoning_tokens",
    "output_text_citation_tokens",
    "output_text_reasoning_tokens",
    "output_text_tokens",
    "output_video_citation_tokens",
    "output_video_reasoning_tokens",
    "rerank_searches",
    "social_searches",
}


def test_every_unit_with_a_price_is_priced_and_the_others_are_listed() -> None:
    units = UnitRegistry(unit_data).units
    priced_by: dict[str, list[tuple[Provider, ModelInfo, ModelPrice]]] = {}
    for provider, model in PAIRS:
        if isinstance(model.prices, ModelPrice) and is_found(provider.id, model.id):
            for unit in priced_units(model.prices):
                priced_by.setdefault(unit, []).append((provider, model, model.prices))
    wrong: dict[str, list[object]] = {}
    for name, pairs in priced_by.items():
        if name in (*FIELD_UNITS, "requests"):
            continue
        for provider, model, prices in pairs:
            prompt = 5000 if has_rate(prices, "input_mtok") else 0
            completion = 5000 if has_rate(prices, "output_mtok") else 0
            counts = {name: 7, "input_tokens": prompt, "output_tokens": completion}
            # The count of a unit is part of the counts of its more general units.
            parents = [other for other in units.values() if is_descendant_or_self(other, units[name])]
            counts |= {other.usage_key: max(counts.get(other.usage_key, 0), 7) for other in parents}
            extra = {key: count for key, count in counts.items() if key not in FIELD_UNITS and count}
            span = call(
                provider.id,
                model.id,
                (counts["input_tokens"], counts["output_tokens"], counts.get("cache_read_tokens", 0), 0, 0, 0),
                usage=extra,
            )
            try:
                with localcontext() as context:
                    context.prec = 60
                    expected = model.calc_price(Usage(**counts), provider, genai_request_timestamp=NOON).total_price
            except ValueError:
                continue
            quote = pricer.quote(span)
            if quote.cost_nusd != to_nusd(expected):
                wrong.setdefault(name, []).append((provider.id, model.id, quote, expected))
    print({name: cases[0] for name, cases in wrong.items()})
    assert not wrong
    unpriced = set(units) - set(priced_by) - set(FIELD_UNITS)
    print("no model has a price for:", ", ".join(sorted(unpriced)))
    assert unpriced == UNPRICED_UNITS
