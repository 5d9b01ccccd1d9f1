"""Tokens to money, against ``genai_prices.calc_price`` in Decimal, rounded once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache
from random import Random

import genai_prices
import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.pricing import FIELD_UNITS, Pricer, Rate, match
from tokentrace.pricing.match import PriceTables
from tokentrace.records import MAX_COST_NUSD, Span
from tokentrace.units import SECOND

pricer = Pricer()
TABLES = PriceTables({})
PAIRS: list[tuple[Provider, ModelInfo]] = [(provider, model) for provider in providers for model in provider.models]
NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
#: prompt, completion, cache read, cache write, cache write 1h, reasoning
Counts = tuple[int, int, int, int, int, int]
SOME: Counts = (1003, 517, 301, 203, 101, 57)


def exact(provider: Provider, model: ModelInfo, counts: Counts, at: datetime) -> Decimal:
    """The oracle: US dollars, exactly."""
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
    with localcontext() as context:
        context.prec = 60
        return int((usd * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def call(provider: str, model: str, counts: Counts = SOME, at: datetime = NOON, **fields: object) -> Span:
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
    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


@cache
def is_found(provider: str, model: str) -> bool:
    """True when asking for *model* of *provider* finds that very model and not a namesake."""
    return pricer.quote(call(provider, model)).model.startswith(f"{provider}:{model}@")


def has_rate(prices: ModelPrice, *keys: str) -> bool:
    return any(vars(prices).get(key) is not None for key in keys)


def assert_agrees(provider: Provider, model: ModelInfo, counts: Counts, at: datetime) -> None:
    """A quote is the exact price rounded once; without any rate for tokens it is none at all."""
    quote = pricer.quote(call(provider.id, model.id, counts, at))
    prices = model.get_prices(at)
    what = (provider.id, model.id, counts, at, quote)
    prompt, completion = counts[:2]
    if not prompt and not completion:
        assert (quote.cost_nusd, quote.source) == (0, ""), what
    elif not has_rate(prices, "input_mtok", "output_mtok"):
        assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_token_rate"), what
    else:
        want = to_nusd(exact(provider, model, counts, at))
        if want > MAX_COST_NUSD:
            assert (quote.cost_nusd, quote.source) == (None, "unpriced"), what
            return
        assert quote.cost_nusd == want, what
        missing = (prompt and not has_rate(prices, "input_mtok")) or (
            completion and not has_rate(prices, "output_mtok")
        )
        assert quote.source == ("partly_priced" if missing else "priced"), what
        assert bool(quote.reason) is bool(missing), what


def instants_of(model: ModelInfo) -> list[datetime]:
    """Around every moment at which the price of *model* changes, and between them."""
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
    tiered = (
        value for price in conditions(model) for value in vars(price.prices).values() if isinstance(value, TieredPrices)
    )
    return {tier.start for value in tiered for tier in value.tiers}


def draw_pair(data: st.DataObject, pairs: list[tuple[Provider, ModelInfo]]) -> tuple[Provider, ModelInfo]:
    """One of *pairs*, drawn by its names: a whole provider would fill the screen when a test fails."""
    by_name = {f"{provider.id}:{model.id}": (provider, model) for provider, model in pairs}
    return by_name[data.draw(st.sampled_from(sorted(by_name)))]


# --- every model of the bundled tables -------------------------------------------------------------------------------


def test_nearly_every_model_is_found_under_its_own_name():
    found = Counter(is_found(provider.id, model.id) for provider, model in PAIRS)
    assert found[True] > 0.9 * len(PAIRS)


def test_every_model_costs_what_calc_price_says():
    for provider, model in PAIRS:
        if is_found(provider.id, model.id):
            for counts in (SOME, (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (7, 5, 7, 0, 0, 5), (9, 1, 0, 9, 9, 0)):
                assert_agrees(provider, model, counts, NOON)


def test_a_tier_begins_one_above_its_start_and_holds_for_every_token():
    met = 0
    for provider, model in PAIRS:
        if is_found(provider.id, model.id):
            for start in starts_of(model):
                for prompt in (start - 1, start, start + 1, 2 * start):
                    met += 1
                    assert_agrees(provider, model, (prompt, 999, prompt // 3, prompt // 5, prompt // 7, 99), NOON)
    assert met > 100


def test_a_price_changes_at_the_very_second_its_period_begins():
    met = 0
    for provider, model in PAIRS:
        if len(conditions(model)) > 1 and is_found(provider.id, model.id):
            for at in instants_of(model):
                met += 1
                assert_agrees(provider, model, SOME, at)
    assert met > 100


@st.composite
def counts_of(draw, around: set[int]) -> Counts:
    sizes = st.one_of(st.integers(0, 10), st.integers(0, 3_000_000), st.integers(0, 2**40))
    if around:
        sizes = st.one_of(sizes, st.sampled_from(sorted(around)).flatmap(lambda at: st.integers(at - 1, at + 1)))
    prompt, completion = draw(sizes), draw(sizes)
    read = draw(st.integers(0, prompt))
    write = draw(st.integers(0, prompt - read))
    return prompt, completion, read, write, draw(st.integers(0, write)), draw(st.integers(0, completion))


moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_any_tokens_at_any_moment_cost_what_calc_price_says(data):
    provider, model = draw_pair(data, PAIRS)
    assume(is_found(provider.id, model.id))
    counts = data.draw(counts_of(starts_of(model)))
    at = data.draw(st.one_of(moments, st.sampled_from(instants_of(model))))
    assert_agrees(provider, model, counts, at)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_models_with_odd_prices_cost_what_calc_price_says(data):
    usual = {"input_mtok", "output_mtok", "cache_read_mtok"}
    odd = [pair for pair in PAIRS if any(vars(price.prices).keys() - usual for price in conditions(pair[1]))]
    provider, model = draw_pair(data, odd)
    assume(is_found(provider.id, model.id))
    assert_agrees(
        provider, model, data.draw(counts_of(starts_of(model))), data.draw(st.sampled_from(instants_of(model)))
    )


def test_the_order_of_questions_does_not_change_an_answer():
    sample = Random(1).sample(PAIRS, 300)
    spans = [call(provider.id, model.id, at=at) for provider, model in sample for at in instants_of(model)[:3]]
    forward = [Pricer().quote(span) for span in spans[:50]] + [pricer.quote(span) for span in spans[50:]]
    fresh = Pricer()
    assert [fresh.quote(span) for span in reversed(spans)] == forward[::-1]


def test_a_price_is_that_of_the_event_and_not_of_today():
    # claude-opus-4-6 lost its long-context tier on 2026-03-13.
    before, after = datetime(2026, 3, 12, 23, 59, 59, tzinfo=UTC), datetime(2026, 3, 13, tzinfo=UTC)
    counts = (200_001, 0, 0, 0, 0, 0)
    dear = pricer.quote(call("anthropic", "claude-opus-4-6", counts, before)).cost_nusd
    cheap = pricer.quote(call("anthropic", "claude-opus-4-6", counts, after)).cost_nusd
    assert (dear, cheap) == (200_001 * 10_000, 200_001 * 5_000)


def test_a_clock_that_runs_far_ahead_gets_the_price_of_its_arrival():
    arrived = call(
        "anthropic", "claude-opus-4-6", (200_001, 0, 0, 0, 0, 0), datetime(2026, 3, 12, tzinfo=UTC)
    ).arrived_ns
    span = call("anthropic", "claude-opus-4-6", (200_001, 0, 0, 0, 0, 0), datetime(2027, 1, 1, tzinfo=UTC))
    span = make_span(
        **{name: getattr(span, name) for name in span.__struct_fields__ if name != "arrived_ns"}, arrived_ns=arrived
    )
    assert pricer.quote(span).cost_nusd == 200_001 * 10_000


# --- prices one can compute by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "counts", "nusd"),
    [
        ("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), 2_560_000),  # SPEC H-30: 0.00256
        ("openai", "gpt-4o", (512, 128, 512, 0, 0, 128), 1_920_000),
        ("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), 2_500),
        ("openai", "gpt-4o-mini", (1, 1, 1, 0, 0, 0), 675),
        ("openai", "text-embedding-3-small", (3, 0, 0, 0, 0, 0), 60),
        ("anthropic", "claude-sonnet-4-5", (200_000, 10, 0, 0, 0, 0), 200_000 * 3000 + 10 * 15_000),
        ("anthropic", "claude-sonnet-4-5", (200_001, 10, 0, 0, 0, 0), 200_001 * 6000 + 10 * 22_500),
        ("anthropic", "claude-sonnet-4-0", (100, 0, 20, 50, 10, 0), 30 * 3000 + 20 * 300 + 40 * 3750 + 10 * 6000),
    ],
)
def test_a_known_price_is_the_published_one(provider, model, counts, nusd):
    assert pricer.quote(call(provider, model, counts))[:2] == (nusd, "priced")


def test_a_quote_names_the_model_and_the_table_it_used():
    quote = pricer.quote(call("openai", "gpt-4o"))
    assert quote.model == f"openai:gpt-4o@genai-prices-{genai_prices.__version__}"
    assert quote.reason == ""


def test_a_model_is_found_in_any_case_and_without_its_provider():
    cost = pricer.quote(call("openai", "gpt-4o")).cost_nusd
    for provider, model in (("OpenAI", "GPT-4o"), ("", "gpt-4o"), ("openai", "gpt-4o-2024-08-06")):
        assert pricer.quote(call(provider, model)).cost_nusd == cost


# --- what a caller reports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "nobody"])
def test_a_reported_cost_is_kept_whatever_the_table_says(provider):
    quote = pricer.quote(call(provider, "gpt-4o", cost_nusd=7, cost_model="gpt-4o@2025-01"))
    assert quote == (7, "reported", "gpt-4o@2025-01", "")


def test_a_cost_of_zero_with_tokens_means_not_given():
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), cost_nusd=0))
    assert quote[:2] == (2_560_000, "zero_ignored")
    assert quote.model.startswith("openai:gpt-4o@")


def test_a_cost_of_zero_for_an_unknown_model_is_unpriced_and_never_zero():
    assert pricer.quote(call("", "no-such-model", cost_nusd=0)) == (None, "unpriced", "", "unknown_model")
    assert pricer.quote(make_span(cost_nusd=0, prompt_tokens=0, completion_tokens=0, total_tokens=5)).cost_nusd is None


def test_a_cost_of_zero_without_tokens_is_kept():
    span = make_span(kind="tool", cost_nusd=0, prompt_tokens=0, completion_tokens=0)
    assert pricer.quote(span)[:2] == (0, "reported")


@pytest.mark.parametrize("listed", ["ollama", "Ollama", "OLLAMA"])
@pytest.mark.parametrize("given_as", ["ollama", "Ollama"])
def test_a_trusted_provider_may_be_free(listed, given_as):
    trusting = Pricer(trust_zero=[listed])
    assert trusting.quote(call(given_as, "llama3", cost_nusd=0))[:2] == (0, "reported")
    assert trusting.quote(call(given_as, "llama3")).cost_nusd is None
    assert trusting.quote(call("openai", "gpt-4o", cost_nusd=0)).source == "zero_ignored"


# --- what nobody can price -------------------------------------------------------------------------------------------


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
        ({"provider": " ", "model": " "}, "unknown_model"),
        ({"provider": "", "model": "\x00" * 256}, "unknown_model"),
        ({"provider": "", "model": "(((" * 80}, "unknown_model"),
    ],
)
def test_a_model_nobody_knows_is_unpriced(fields, reason):
    quote = pricer.quote(make_span(**fields))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", reason)


def test_only_a_total_cannot_be_priced():
    quote = pricer.quote(make_span(prompt_tokens=0, completion_tokens=0, total_tokens=640))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_split")


def test_a_call_without_any_usage_costs_nothing():
    assert pricer.quote(make_span(prompt_tokens=0, completion_tokens=0, status="error")).cost_nusd == 0


def test_output_of_a_model_that_is_priced_for_input_only_is_flagged():
    quote = pricer.quote(call("openai", "text-embedding-3-small", (3, 1, 0, 0, 0, 0)))
    assert quote[:2] == (60, "partly_priced")
    assert quote.reason == "no_rate:output_tokens"


def test_tokens_of_a_model_that_is_priced_by_the_hour_are_unpriced():
    quote = pricer.quote(call("openai", "whisper-1"))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "no_token_rate")


def test_a_cost_beyond_all_bounds_is_unpriced():
    quote = pricer.quote(call("openai", "gpt-4o", (2**40, 2**40, 0, 0, 0, 0)))
    assert (quote.cost_nusd, quote.source, quote.reason) == (None, "unpriced", "over_bounds")


def test_what_is_remembered_about_models_is_bounded(monkeypatch):
    monkeypatch.setattr(match, "MAX_PLANS", 50)
    curious = Pricer()
    for number in range(2_000):
        curious.quote(call("", f"model-of-user-{number}"))
        curious.quote(call("openai", f"gpt-4o-{number}"))
        curious.quote(call(f"provider-{number}", "gpt-4o"))
    tables = curious._tables
    held = [*vars(curious).values(), *vars(tables).values(), *vars(tables._tables).values()]
    sizes = [len(thing) for thing in held if isinstance(thing, (dict, set, frozenset))]
    assert max(sizes) <= 200


# --- prices of one's own ---------------------------------------------------------------------------------------------

OWN = Rate(Decimal("2.00"), Decimal("8.00"), Decimal("0.50"))
money = st.decimals(0, 1000, places=6)


def test_a_price_from_configuration_wins_whatever_the_provider_and_the_case():
    own = Pricer({"My-Model": OWN, "gpt-4o": OWN})
    for provider, model in (("openai", "gpt-4o"), ("azure", "GPT-4O"), ("", "my-model"), ("nobody", "MY-MODEL")):
        quote = own.quote(call(provider, model, (1_000_000, 1_000_000, 500_000, 0, 0, 0)))
        assert quote[:2] == (1_000_000_000 + 250_000_000 + 8_000_000_000, "overridden")
        assert quote.reason == ""
    assert own.quote(call("openai", "gpt-4o-mini")).source == "priced"


@settings(deadline=None)
@given(money, money, st.none() | money, st.integers(0, 2**30), st.integers(0, 2**30), st.data())
@example(Decimal("0.0005"), Decimal(0), None, 1, 0, None)
@example(Decimal("0.0015"), Decimal(0), None, 1, 0, None)
def test_a_price_from_configuration_is_exact_and_rounded_once(
    prompt_rate, completion_rate, read_rate, prompt, out, data
):
    read = 0 if data is None else data.draw(st.integers(0, prompt))
    quote = Pricer({"mine": Rate(prompt_rate, completion_rate, read_rate)}).quote(
        call("", "mine", (prompt, out, read, 0, 0, 0))
    )
    with localcontext() as context:
        context.prec = 60
        cached = prompt_rate if read_rate is None else read_rate
        want = to_nusd(((prompt - read) * prompt_rate + read * cached + out * completion_rate) / 10**6)
    assert quote.cost_nusd == (want if want <= MAX_COST_NUSD else None)


def test_cached_tokens_cost_what_others_do_unless_configuration_says_more():
    own = Pricer({"m": Rate(Decimal(2), Decimal(8))})
    assert own.quote(call("", "m", (100, 0, 100, 0, 0, 0))).cost_nusd == 100 * 2000
    assert own.quote(call("", "m", (100, 0, 40, 60, 60, 0))).cost_nusd == 100 * 2000


def test_a_price_of_one_s_own_replaces_a_cost_of_zero_but_not_a_reported_one():
    own = Pricer({"gpt-4o": OWN})
    assert own.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), cost_nusd=0)).cost_nusd == 2000
    assert own.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), cost_nusd=5))[:2] == (5, "reported")


def test_a_unit_that_one_s_own_price_does_not_know_is_flagged():
    own = Pricer({"gpt-4o": OWN})
    quote = own.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (2000, "partly_priced")
    assert quote.reason == "no_rate:web_searches"


@pytest.mark.parametrize("usage", [{"web_searches": 0}, {"bananas": 0}])
def test_a_unit_that_was_not_used_needs_no_rate(usage):
    tokens = (1, 0, 0, 0, 0, 0)
    assert pricer.quote(call("openai", "gpt-4o", tokens, usage=usage))[:2] == (2500, "priced")
    assert Pricer({"gpt-4o": OWN}).quote(call("openai", "gpt-4o", tokens, usage=usage))[:2] == (2000, "overridden")


# --- units without a field of their own ------------------------------------------------------------------------------


def test_a_search_is_priced_on_top_of_tokens():
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (2_560_000 + 3 * 10_000_000, "priced")
    assert quote.reason == ""


def test_a_search_is_priced_without_tokens():
    quote = pricer.quote(call("openai", "gpt-4o", (0, 0, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (30_000_000, "priced")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_searches_cost_what_calc_price_says(data):
    searching = [
        pair
        for pair in PAIRS
        if isinstance(pair[1].prices, ModelPrice) and has_rate(pair[1].prices, "web_searches_kcount")
    ]
    provider, model = draw_pair(data, searching)
    assume(
        is_found(provider.id, model.id)
        and has_rate(model.prices, "input_mtok")
        and has_rate(model.prices, "output_mtok")
    )
    counts, searches = data.draw(counts_of(starts_of(model))), data.draw(st.integers(1, 10**6))
    quote = pricer.quote(call(provider.id, model.id, counts, usage={"web_searches": searches}))
    with localcontext() as context:
        context.prec = 60
        want = to_nusd(exact(provider, model, counts, NOON) + model.prices.web_searches_kcount * searches / 1000)
    assert quote[:2] == ((want, "priced") if want <= MAX_COST_NUSD else (None, "unpriced"))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_usage_of_nothing_changes_nothing(data):
    # The two ways to a price, by vector and by table, are one.
    provider, model = draw_pair(data, PAIRS)
    counts = data.draw(counts_of(starts_of(model)))
    assume(counts[0] + counts[1] > 0)
    plain = pricer.quote(call(provider.id, model.id, counts))
    assume(plain.reason != "over_bounds")
    # Input-only models and the like: what nothing at all is priced of has a promise of its own below.
    assume(plain.cost_nusd != 0 or not plain.reason)
    quote = pricer.quote(call(provider.id, model.id, counts, usage={"web_searches": 0}))
    assert (*quote[:3], bool(quote.reason)) == (*plain[:3], bool(plain.reason))


@pytest.mark.parametrize("unit", ["bananas", "web_search", "", "input_mtok", "requests", "__class__", "é" * 100])
def test_a_unit_nobody_prices_is_flagged_and_the_rest_is_priced(unit):
    quote = pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage={unit: 3}))
    assert quote[:2] == (2_560_000, "partly_priced")
    assert quote.reason == f"no_rate:{unit}"


def test_units_nobody_prices_are_named_in_order_and_not_without_end():
    quote = pricer.quote(call("openai", "gpt-4o", usage={"b": 1, "a": 1, "web_searches": 1}))
    assert quote.reason == "no_rate:a,b"
    quote = pricer.quote(call("openai", "gpt-4o", usage={f"unit-{number}": 1 for number in range(1000)}))
    assert len(quote.reason) <= 256
    quote = Pricer({"m": OWN}).quote(call("", "m", usage={f"unit-{number}": 1 for number in range(1000)}))
    assert len(quote.reason) <= 256


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("whisper-1", (512, 128, 0, 0, 0, 0)), ("whisper-1", (0, 0, 0, 0, 0, 0)), ("gpt-4o", (0, 0, 0, 0, 0, 0))],
)
def test_what_nobody_can_price_at_all_is_never_a_cost_of_zero(model, tokens):
    quote = pricer.quote(call("openai", model, tokens, usage={"bananas": 3}))
    assert (quote.cost_nusd, quote.source) == (None, "unpriced")


def test_usage_that_contradicts_itself_is_unpriced():
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


def test_an_hour_of_audio_is_priced_where_audio_is():
    quote = pricer.quote(call("openai", "whisper-1", (0, 0, 0, 0, 0, 0), usage={"audio_seconds": 3600}))
    assert quote[:2] == (360_000_000, "priced")


def test_usage_cannot_replace_the_fields_of_a_span():
    usage = {"input_tokens": 10**9, "output_tokens": 10**9, "web_searches": 0}
    assert pricer.quote(call("openai", "gpt-4o", (512, 128, 0, 0, 0, 0), usage=usage)).cost_nusd == 2_560_000


#: Units that the tables know by name and no model has a price for: a span that reports them is partly priced.
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


def test_every_unit_that_any_model_has_a_price_for_is_priced_and_the_others_are_known():
    units = TABLES.registry.units
    priced_by: dict[str, list[tuple[Provider, ModelInfo]]] = {}
    for provider, model in PAIRS:
        if isinstance(model.prices, ModelPrice) and is_found(provider.id, model.id):
            for unit, _ in TABLES.priced_units(model.prices):
                priced_by.setdefault(unit.usage_key, []).append((provider, model))
    wrong: dict[str, list[object]] = {}
    for name, pairs in priced_by.items():
        if name in (*FIELD_UNITS, "requests"):
            continue
        for provider, model in pairs:
            prompt = 5000 if has_rate(model.prices, "input_mtok") else 0
            completion = 5000 if has_rate(model.prices, "output_mtok") else 0
            counts = {name: 7, "input_tokens": prompt, "output_tokens": completion}
            # A part of a part is counted in the part as well.
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
                    want = model.calc_price(Usage(**counts), provider, genai_request_timestamp=NOON).total_price
            except ValueError:
                continue
            quote = pricer.quote(span)
            if quote.cost_nusd != to_nusd(want):
                wrong.setdefault(name, []).append((provider.id, model.id, quote, want))
    print({name: found[0] for name, found in wrong.items()})
    assert not wrong
    unpriced = set(units) - set(priced_by) - set(FIELD_UNITS)
    print("no model has a price for:", ", ".join(sorted(unpriced)))
    assert unpriced == UNPRICED_UNITS
