"""Prices of spans: they equal what genai-prices computes in exact arithmetic, rounded once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from random import Random
from typing import Any

import genai_prices
import pytest
from genai_prices.types import (
    ModelInfo,
    Provider,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_span
from kit.examples import examples
from kit.prices import (
    NOON,
    PAIRS,
    SOME,
    Counts,
    call,
    conditions,
    counts_of,
    draw_pair,
    exact,
    has_rate,
    instants_of,
    is_found,
    pricer,
    starts_of,
    to_nusd,
)
from tokentrace.pricing import Pricer, plans
from tokentrace.records import MAX_COST_NUSD


def assert_agrees(provider: Provider, model: ModelInfo, counts: Counts, at: datetime) -> None:
    """Check a quote: the exact price, rounded once; 0 without tokens; unpriced without a rate or over the limit."""
    quote = pricer.quote(call(provider.id, model.id, counts, at))
    prices = model.get_prices(at)
    case = (provider.id, model.id, counts, at, quote)
    prompt, completion = counts[:2]
    if quote.reason == "free_model":
        assert (quote.cost_nusd, quote.source) == (0, "free"), case
        assert to_nusd(exact(provider, model, counts, at)) == 0, case
    elif not prompt and not completion:
        assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_usage"), case
    elif not has_rate(prices, "input_mtok", "output_mtok"):
        assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_token_rate"), case
    elif not (prompt and has_rate(prices, "input_mtok")) and not (completion and has_rate(prices, "output_mtok")):
        assert (quote.cost_nusd, quote.source) == (None, "unpriced"), case
        assert quote.reason.startswith("no_rate:"), case
    else:
        expected = to_nusd(exact(provider, model, counts, at))
        if expected > MAX_COST_NUSD:
            assert (quote.cost_nusd, quote.source) == (None, "unpriced"), case
            return
        assert quote.cost_nusd == expected, case
        missing = (prompt and not has_rate(prices, "input_mtok")) or (
            completion and not has_rate(prices, "output_mtok")
        )
        assert quote.source == ("partly_priced" if missing else "priced"), case
        assert bool(quote.reason) is bool(missing), case


def test_over_90_percent_of_models_are_found_under_their_own_name() -> None:
    counts = Counter(is_found(provider.id, model.id) for provider, model in PAIRS)
    assert counts[True] > 0.9 * len(PAIRS)


@pytest.mark.long
def test_every_model_that_is_found_costs_what_calc_price_says() -> None:
    for provider, model in PAIRS:
        if is_found(provider.id, model.id):
            for counts in (SOME, (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (7, 5, 7, 0, 0, 5), (9, 1, 0, 9, 9, 0)):
                assert_agrees(provider, model, counts, NOON)


def test_a_tier_begins_one_token_above_its_start_and_applies_to_every_token() -> None:
    checked = 0
    for provider, model in PAIRS:
        if is_found(provider.id, model.id):
            for start in starts_of(model):
                for prompt in (start - 1, start, start + 1, 2 * start):
                    checked += 1
                    assert_agrees(provider, model, (prompt, 999, prompt // 3, prompt // 5, prompt // 7, 99), NOON)
    assert checked > 100


def test_a_price_changes_in_the_second_in_which_its_period_begins() -> None:
    checked = 0
    for provider, model in PAIRS:
        if len(conditions(model)) > 1 and is_found(provider.id, model.id):
            for at in instants_of(model):
                checked += 1
                assert_agrees(provider, model, SOME, at)
    assert checked > 100


moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@settings(max_examples=examples(1500), deadline=None)
@given(st.data())
def test_any_tokens_at_any_time_cost_what_calc_price_says(data: st.DataObject) -> None:
    provider, model = draw_pair(data, PAIRS)
    assume(is_found(provider.id, model.id))
    counts = data.draw(counts_of(starts_of(model)))
    at = data.draw(st.one_of(moments, st.sampled_from(instants_of(model))))
    assert_agrees(provider, model, counts, at)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_models_with_unusual_prices_cost_what_calc_price_says(data: st.DataObject) -> None:
    usual = {"input_mtok", "output_mtok", "cache_read_mtok"}
    odd = [pair for pair in PAIRS if any(vars(price.prices).keys() - usual for price in conditions(pair[1]))]
    provider, model = draw_pair(data, odd)
    assume(is_found(provider.id, model.id))
    assert_agrees(
        provider, model, data.draw(counts_of(starts_of(model))), data.draw(st.sampled_from(instants_of(model)))
    )


def test_the_order_of_quotes_changes_none_of_them() -> None:
    sample = Random(1).sample(PAIRS, 300)
    spans = [call(provider.id, model.id, at=at) for provider, model in sample for at in instants_of(model)[:3]]
    forward = [Pricer().quote(span) for span in spans[:50]] + [pricer.quote(span) for span in spans[50:]]
    fresh = Pricer()
    assert [fresh.quote(span) for span in reversed(spans)] == forward[::-1]


def test_a_price_is_that_of_the_event_time() -> None:
    # claude-opus-4-6 lost its long-context tier on 2026-03-13.
    before, after = datetime(2026, 3, 12, 23, 59, 59, tzinfo=UTC), datetime(2026, 3, 13, tzinfo=UTC)
    counts = (200_001, 0, 0, 0, 0, 0)
    dear = pricer.quote(call("anthropic", "claude-opus-4-6", counts, before)).cost_nusd
    cheap = pricer.quote(call("anthropic", "claude-opus-4-6", counts, after)).cost_nusd
    assert (dear, cheap) == (200_001 * 10_000, 200_001 * 5_000)


def test_a_span_from_a_clock_far_ahead_has_the_price_of_its_arrival() -> None:
    arrived = call(
        "anthropic", "claude-opus-4-6", (200_001, 0, 0, 0, 0, 0), datetime(2026, 3, 12, tzinfo=UTC)
    ).arrived_ns
    span = call("anthropic", "claude-opus-4-6", (200_001, 0, 0, 0, 0, 0), datetime(2027, 1, 1, tzinfo=UTC))
    span = make_span(
        **{name: getattr(span, name) for name in span.__struct_fields__ if name != "arrived_ns"}, arrived_ns=arrived
    )
    assert pricer.quote(span).cost_nusd == 200_001 * 10_000


@pytest.mark.parametrize(
    ("provider", "model", "counts", "nusd"),
    [
        ("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), 2_560_000),  # 0.00256 dollars
        ("openai", "gpt-4o", (512, 128, 512, 0, 0, 128), 1_920_000),
        ("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), 2_500),
        ("openai", "gpt-4o-mini", (1, 1, 1, 0, 0, 0), 675),
        ("openai", "text-embedding-3-small", (3, 0, 0, 0, 0, 0), 60),
        ("anthropic", "claude-sonnet-4-5", (200_000, 10, 0, 0, 0, 0), 200_000 * 3000 + 10 * 15_000),
        ("anthropic", "claude-sonnet-4-5", (200_001, 10, 0, 0, 0, 0), 200_001 * 6000 + 10 * 22_500),
        ("anthropic", "claude-sonnet-4-0", (100, 0, 20, 50, 10, 0), 30 * 3000 + 20 * 300 + 40 * 3750 + 10 * 6000),
    ],
)
def test_a_known_price_is_the_published_one(provider: str, model: str, counts: Counts, nusd: int) -> None:
    assert pricer.quote(call(provider, model, counts))[:2] == (nusd, "priced")


def test_a_quote_names_the_model_and_the_table_that_it_used() -> None:
    quote = pricer.quote(call("openai", "gpt-4o"))
    assert quote.model == f"openai:gpt-4o@genai-prices-{genai_prices.__version__}"
    assert quote.reason == ""


def test_a_model_is_found_in_any_case_and_without_a_provider() -> None:
    cost = pricer.quote(call("openai", "gpt-4o")).cost_nusd
    for provider, model in (("OpenAI", "GPT-4o"), ("", "gpt-4o"), ("openai", "gpt-4o-2024-08-06")):
        assert pricer.quote(call(provider, model)).cost_nusd == cost


@pytest.mark.parametrize("provider", ["openai", "no-such-provider"])
def test_a_reported_cost_wins_over_the_table(provider: str) -> None:
    quote = pricer.quote(call(provider, "gpt-4o", cost_nusd=7, cost_model="gpt-4o@2025-01"))
    assert quote == (7, "reported", "gpt-4o@2025-01", "")


def test_a_reported_cost_of_zero_with_tokens_is_ignored() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), cost_nusd=0))
    assert quote[:2] == (2_560_000, "zero_ignored")
    assert quote.model.startswith("openai:gpt-4o@")


def test_a_reported_cost_of_zero_for_an_unknown_model_is_unpriced() -> None:
    assert pricer.quote(call("", "no-such-model", cost_nusd=0)) == (None, "unpriced", "", "unknown_model")
    assert pricer.quote(make_span(cost_nusd=0, prompt_tokens=0, completion_tokens=0, total_tokens=5)).cost_nusd is None


def test_a_reported_cost_of_zero_without_tokens_is_kept() -> None:
    span = make_span(kind="tool", cost_nusd=0, prompt_tokens=0, completion_tokens=0)
    assert pricer.quote(span)[:2] == (0, "reported")


@pytest.mark.parametrize("listed", ["my-proxy", "My-Proxy", "MY-PROXY"])
@pytest.mark.parametrize("sent", ["my-proxy", "My-Proxy"])
def test_a_reported_cost_of_zero_of_a_trusted_provider_is_kept(listed: str, sent: str) -> None:
    trusting = Pricer(trust_zero=[listed])
    assert trusting.quote(call(sent, "llama3", cost_nusd=0))[:2] == (0, "reported")
    assert trusting.quote(call(sent, "llama3")).source == "unpriced"
    assert trusting.quote(call("openai", "gpt-4o", cost_nusd=0)).source == "zero_ignored"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"provider": "openai", "model": "no-such-model"}, "unknown_model"),
        ({"provider": "no-such-provider", "model": "gpt-4o"}, "unknown_model"),
        ({"provider": "", "model": "no-such-model"}, "unknown_model"),
        ({"provider": "openai", "model": ""}, "no_model"),
        ({"provider": "", "model": "", "status": "error"}, "no_model"),
        ({"provider": "litellm", "model": "/"}, "unknown_model"),
        ({"provider": "litellm", "model": "openai/"}, "unknown_model"),
        ({"provider": " ", "model": " "}, "no_model"),
        ({"provider": "", "model": "\x00" * 256}, "unknown_model"),
        ({"provider": "", "model": "(((" * 80}, "unknown_model"),
    ],
)
def test_an_unknown_model_is_unpriced(fields: dict[str, Any], reason: str) -> None:
    quote = pricer.quote(make_span(**fields))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", reason)


def test_a_span_with_only_a_total_is_unpriced() -> None:
    quote = pricer.quote(make_span(prompt_tokens=0, completion_tokens=0, total_tokens=640))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_split")


@pytest.mark.parametrize("status", ["ok", "error", "timeout"])
@pytest.mark.parametrize("reported", [None, 0])
@pytest.mark.parametrize("model", ["gpt-4o", "no-such-model", ""])
@pytest.mark.parametrize("usage", [None, {}, {"web_searches": 0}])
def test_a_model_call_without_usage_has_an_unknown_cost(
    status: str, reported: int | None, model: str, usage: dict[str, int] | None
) -> None:
    span = make_span(
        prompt_tokens=0, completion_tokens=0, status=status, cost_nusd=reported, model=model, provider="", usage=usage
    )
    quote = pricer.quote(span)
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_usage")
    refused = pricer.quote(replace(span, usage_state="none"))
    assert (refused.cost_nusd, refused.source, refused.reason) == (0, "free", "no_tokens_used")


@pytest.mark.parametrize("kind", ["tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain"])
def test_a_span_that_is_no_model_call_costs_nothing_unless_it_says_so(kind: str) -> None:
    span = make_span(kind=kind, model="", provider="", prompt_tokens=0, completion_tokens=0)
    assert pricer.quote(span) == (0, "", "", "")
    assert pricer.quote(replace(span, prompt_tokens=4000, completion_tokens=1000)) == (0, "", "", "")
    assert pricer.quote(replace(span, cost_nusd=7))[:2] == (7, "reported")
    assert pricer.quote(replace(span, model="gpt-4o", prompt_tokens=1))[:2] == (2500, "priced")


def test_output_of_a_model_with_only_input_prices_is_partly_priced() -> None:
    quote = pricer.quote(call("openai", "text-embedding-3-small", (3, 1, 0, 0, 0, 0)))
    assert quote[:2] == (60, "partly_priced")
    assert quote.reason == "no_rate:output_tokens"


def test_tokens_of_a_model_with_a_price_by_the_hour_are_unpriced() -> None:
    quote = pricer.quote(call("openai", "whisper-1"))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_token_rate")


def test_a_cost_over_the_limit_is_unpriced() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", (2**40, 2**40, 0, 0, 0, 0)))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "over_bounds")


def test_the_caches_of_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MAX_PLANS", 50)
    fresh = Pricer()
    for number in range(2_000):
        fresh.quote(call("", f"model-of-user-{number}"))
        fresh.quote(call("openai", f"gpt-4o-{number}"))
        fresh.quote(call(f"provider-{number}", "gpt-4o"))
    held = [*vars(fresh).values(), *vars(fresh._plans).values()]
    sizes = [len(cache) for cache in held if isinstance(cache, (dict, set, frozenset))]
    assert max(sizes) <= 200
