"""What a call used: totals beyond their parts, reasoning beside the completion, parts that overlap, reported zeros."""

from __future__ import annotations

from decimal import localcontext

import pytest
from genai_prices import Usage
from genai_prices.types import ModelInfo, Provider
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_span
from kit.examples import examples
from kit.prices import NOON, PAIRS, Counts, call, is_found, priced_units, pricer, to_nusd
from tokentrace.pricing import Pricer, Quote
from tokentrace.records import FREE_REASONS

NOTHING: Counts = (0, 0, 0, 0, 0, 0)


def tokens(prompt: int, completion: int, reasoning: int = 0) -> Counts:
    return (prompt, completion, 0, 0, 0, reasoning)


# --- totals and reasoning --------------------------------------------------------------------------------------------


def test_tokens_of_a_total_that_nobody_explains_make_the_cost_a_lower_bound() -> None:
    quote = pricer.quote(call("openai", "gpt-4o", tokens(1000, 200), total_tokens=1500))
    assert quote[:2] == (4_500_000, "partly_priced")
    assert quote.reason == "unclassified_tokens:300"
    assert pricer.quote(call("openai", "gpt-4o", tokens(1000, 200), total_tokens=1200))[:2] == (4_500_000, "priced")


@pytest.mark.parametrize("provider", ["google", "gcp.gen_ai", "vertex_ai", ""])
def test_the_total_of_gemini_contains_thoughts(provider: str) -> None:
    span = call(provider, "gemini-2.5-pro", tokens(20, 424), total_tokens=1016)
    assert pricer.quote(span)[:2] == (9_985_000, "priced")
    assert "572 tokens of the total beyond prompt and completion are thoughts" in pricer.work(span).notes[-1]
    # Claude at Google has no such total.
    other = call("google", "claude-sonnet-4-5", tokens(20, 424), total_tokens=1016)
    assert pricer.quote(other).reason == "unclassified_tokens:572"


@pytest.mark.parametrize("total", [0, 1016])
@pytest.mark.parametrize(("provider", "model"), [("google", "gemini-2.5-pro"), ("openrouter", "google/gemini-2.5-pro")])
def test_reasoning_beside_the_completion_is_output(provider: str, model: str, total: int) -> None:
    quote = pricer.quote(call(provider, model, tokens(20, 424, 572), total_tokens=total))
    assert quote[:2] == (9_985_000, "priced")


def test_reasoning_that_only_the_total_shows_beside_the_completion_is_output() -> None:
    quote = pricer.quote(call("google", "gemini-2.5-pro", tokens(20, 900, 100), total_tokens=1020))
    assert quote[:2] == (20 * 1250 + 1000 * 10_000, "priced")


def test_a_total_of_a_model_without_output_is_input() -> None:
    quote = pricer.quote(call("openai", "text-embedding-3-small", NOTHING, kind="embedding", total_tokens=1000))
    assert quote[:2] == (20_000, "priced")
    assert pricer.quote(call("openai", "gpt-4o", NOTHING, total_tokens=1000)).reason == "no_split"


@settings(max_examples=examples(300), deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_larger_total_never_makes_a_call_cheaper(prompt: int, out: int, reasoning: int, rest: int) -> None:
    assume(prompt + out > 0)
    for provider, model in (("openai", "gpt-4o"), ("google", "gemini-2.5-pro"), ("anthropic", "claude-sonnet-4-5")):
        whole = pricer.quote(call(provider, model, tokens(prompt, out, min(reasoning, out))))
        more = pricer.quote(
            call(provider, model, tokens(prompt, out, min(reasoning, out)), total_tokens=prompt + out + rest)
        )
        assert whole.cost_nusd is not None
        assert more.cost_nusd is not None
        assert more.cost_nusd >= whole.cost_nusd
        assert more.source == "partly_priced" or more.cost_nusd > whole.cost_nusd


# --- what the state of the usage says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"), [("partial", "partial_usage"), ("missing", "partial_usage"), ("estimated", "estimated_usage")]
)
def test_an_incomplete_usage_makes_the_cost_a_lower_bound(state: str, reason: str) -> None:
    quote = pricer.quote(call("openai", "gpt-4o", tokens(1000, 500), usage_state=state))
    assert quote[:2] == (7_500_000, "partly_priced")
    assert quote.reason == reason
    unknown = pricer.quote(call("openai", "gpt-4o", NOTHING, usage_state=state))
    assert (unknown.cost_nusd, unknown.reason) == (None, "no_usage")


# --- reported costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", FREE_REASONS)
def test_a_zero_that_a_span_means_is_kept_with_its_reason(reason: str) -> None:
    span = call("openai", "gpt-4o", tokens(1000, 500), cost_nusd=0, cost_source="reported", unpriced_reason=reason)
    assert pricer.quote(span) == (0, "reported", "", reason)


def test_a_zero_that_a_span_means_needs_no_reason_and_keeps_no_foreign_one() -> None:
    span = call("openai", "gpt-4o", tokens(1000, 500), cost_nusd=0, cost_source="reported")
    assert pricer.quote(span) == Quote(0, "reported", "", "")
    assert pricer.quote(replace(span, unpriced_reason="no_rate:bananas")).reason == ""
    assert pricer.quote(replace(span, cost_source=""))[:2] == (7_500_000, "zero_ignored")


def test_a_zero_of_a_trusted_provider_is_kept_without_usage_too() -> None:
    trusting = Pricer(trust_zero=["my-cache"])
    for counts in (NOTHING, tokens(5, 5)):
        assert trusting.quote(call("my-cache", "gpt-4o", counts, cost_nusd=0))[:2] == (0, "reported")


# --- parts that overlap ----------------------------------------------------------------------------------------------

#: Models with a price for audio, for cached tokens and for cached audio.
CACHED_AUDIO = [
    (provider, model)
    for provider, model in PAIRS
    if {"input_tokens", "input_audio_tokens", "cache_read_tokens", "cache_audio_read_tokens"}
    <= set(priced_units(model.get_prices(NOON)))
    and is_found(provider.id, model.id)
]


def cost_with(provider: Provider, model: ModelInfo, usage: dict[str, int]) -> int | None:
    """Return the price in nano-dollars as genai-prices computes it; None if the counts contradict each other."""
    with localcontext() as context:
        context.prec = 60
        try:
            return to_nusd(model.calc_price(Usage(**usage), provider, genai_request_timestamp=NOON).total_price)
        except ValueError:
            return None


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(range(len(CACHED_AUDIO))), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_audio_beside_unsplit_cached_tokens_has_the_lowest_price_that_fits(
    index: int, prompt: int, audio: int, cached: int
) -> None:
    """The oracle tries every number of cached audio tokens."""
    provider, model = CACHED_AUDIO[index]
    given_usage = {"input_tokens": prompt, "input_audio_tokens": audio, "cache_read_tokens": cached}
    possible = [
        cost
        for overlap in range(min(audio, cached) + 1)
        if (cost := cost_with(provider, model, {**given_usage, "cache_audio_read_tokens": overlap})) is not None
    ]
    quote = pricer.quote(
        call(provider.id, model.id, tokens(prompt, 0), usage={"input_audio_tokens": audio, "cache_read_tokens": cached})
    )
    if not possible:
        assert (quote.cost_nusd, quote.reason) == (None, "usage_contradicts_itself")
        return
    assert quote.cost_nusd == min(possible)
    if min(possible) == max(possible):
        assert quote.source in ("priced", "partly_priced")
    else:
        assert (quote.source, quote.reason) == ("partly_priced", "ambiguous_usage")


def test_a_known_overlap_is_exact() -> None:
    provider, model = CACHED_AUDIO[0]
    usage = {"input_audio_tokens": 40, "cache_read_tokens": 30, "cache_audio_read_tokens": 0}
    quote = pricer.quote(call(provider.id, model.id, tokens(100, 0), usage=usage))
    assert quote[:2] == (cost_with(provider, model, {"input_tokens": 100, **usage}), "priced")


def test_parts_without_their_whole_are_their_own_whole() -> None:
    provider, model = CACHED_AUDIO[0]
    quote = pricer.quote(call(provider.id, model.id, NOTHING, usage={"input_audio_tokens": 40}))
    whole = {"input_tokens": 40, "input_audio_tokens": 40}
    assert quote[:2] == (cost_with(provider, model, whole), "priced")


def test_searches_leave_the_tokens_of_a_call_alone() -> None:
    plain = pricer.quote(call("anthropic", "claude-sonnet-4-5", tokens(1000, 500)))
    for counts, usage in (
        (tokens(1000, 500), {"web_searches": 2}),
        (NOTHING, {"web_searches": 2, "input_tokens": 1000, "output_tokens": 500}),
    ):
        quote = pricer.quote(call("anthropic", "claude-sonnet-4-5", counts, usage=usage))
        assert quote[:2] == ((plain.cost_nusd or 0) + 20_000_000, "priced")


def test_cached_tokens_are_charged_once_wherever_they_are_named() -> None:
    for span in (
        make_span(prompt_tokens=1000, completion_tokens=500, cache_read_tokens=800),
        make_span(prompt_tokens=1000, completion_tokens=500, usage={"cache_read_tokens": 800}),
        make_span(
            prompt_tokens=0,
            completion_tokens=0,
            usage={"input_tokens": 1000, "output_tokens": 500, "cache_read_tokens": 800},
        ),
    ):
        assert pricer.quote(span)[:2] == (6_500_000, "priced")
