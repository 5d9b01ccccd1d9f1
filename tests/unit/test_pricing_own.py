"""Own prices of every unit, in tiers, for patterns of names and single providers, and models that are free."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.examples import examples
from kit.prices import Counts, call, pricer
from tokentrace.config import build, parse_yaml
from tokentrace.errors import ConfigError
from tokentrace.pricing import Pattern, Pricer, Rate, TierRate, UnitRate
from tokentrace.records import MAX_COST_NUSD, Span

NOTHING: Counts = (0, 0, 0, 0, 0, 0)


def rate(prompt: str, completion: str, read: str | None = None, **more: Any) -> Rate:
    """Return a price with the rates of prompt, completion and cached tokens."""
    return Rate(Decimal(prompt), Decimal(completion), None if read is None else Decimal(read), **more)


def notes_of(own: Pricer, span: Span) -> str:
    """Return what the receipt of *span* says that was assumed."""
    quote = own.quote(span)
    stored = replace(span, cost_nusd=quote.cost_nusd, cost_source=quote.source, cost_model=quote.model)
    receipt = own.receipt(stored)
    assert receipt.explained
    return receipt.assumed


# --- which calls a price covers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "provider", "model"),
    [
        ("gpt-4o", "openai", "gpt-4o-2024-08-06"),
        ("gpt-4o", "azure", "GPT-4o-2024-11-20"),
        ("gpt-4o", "", "openai/gpt-4o"),
        ("gpt-4o", "openrouter", "openai/gpt-4o:nitro"),
        ("gpt-4o", "litellm", "azure/gpt-4o-20240806"),
        ("openai/gpt-4o", "openrouter", "openai/gpt-4o"),
        ("llama3", "ollama", "llama3:latest"),
        ("llama3", "", "llama3:latest"),
        ("llama3", "", "ollama/llama3"),
        ("llama3", "vllm", "llama3"),
        ("claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4", "vertex_ai", "claude-sonnet-4@20250514"),
        ("in-house", "no-such-provider", "In-House"),
    ],
)
def test_a_price_covers_dated_versions_tags_and_prefixes(key: str, provider: str, model: str) -> None:
    quote = Pricer({key: rate("1", "1")}).quote(call(provider, model, (1000, 0, 0, 0, 0, 0)))
    assert quote == (1_000_000, "overridden", f"{key}@configuration", "")


@pytest.mark.parametrize(
    ("key", "provider", "model"),
    [
        ("gpt-4o", "openai", "gpt-4o-mini"),
        ("gpt-4o", "openai", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o", "openai", "chatgpt-4o-latest"),
        ("gpt-4o", "openai", "ft:gpt-4o-2024-08-06:acme::x"),
        ("llama3", "", "llama3:70b"),
        ("deepseek-r1", "openrouter", "deepseek/deepseek-r1:free"),
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
    ],
)
def test_a_price_covers_no_other_model(key: str, provider: str, model: str) -> None:
    assert Pricer({key: rate("1", "1")}).quote(call(provider, model)) == pricer.quote(call(provider, model))


def test_patterns_cover_names_in_any_case_and_in_the_order_of_the_configuration() -> None:
    own = Pricer(
        {
            "all of us": rate("1", "1", match=Pattern("prefix", "acme-")),
            "the small ones": rate("2", "2", match=Pattern("regex", r"-(small|tiny)$")),
            "acme-7b-small": rate("3", "3"),
            "any": rate("4", "4", match=Pattern("equals", "Other")),
        }
    )
    for model, usd in (("ACME-7b", 1), ("acme-8b-small", 1), ("my-tiny", 2), ("acme-7b-small", 3), ("other", 4)):
        assert own.quote(call("", model, (1_000_000, 0, 0, 0, 0, 0))).cost_nusd == usd * 10**9, model
    assert own.quote(call("", "the small ones")).reason == "unknown_model"
    span = call("openrouter", "openrouter/acme-7b", (1, 0, 0, 0, 0, 0))
    assert own.work(span).plan.matched.endswith("pattern of the configured price all of us")  # type: ignore[union-attr]


def test_a_price_of_one_provider_covers_no_other_and_wins_over_a_price_of_all() -> None:
    own = Pricer(
        {
            "ours": rate("5", "5", provider="azure", match=Pattern("equals", "gpt-4o")),
            "gpt-4o": rate("1", "1"),
            "mini": rate("7", "7", provider="My-Gateway", match=Pattern("prefix", "gpt-4o-mini")),
        }
    )
    for provider, usd in (("azure", 5), ("azure.ai.openai", 5), ("Azure", 5), ("openai", 1), ("", 1)):
        assert own.quote(call(provider, "gpt-4o", (1_000_000, 0, 0, 0, 0, 0))).cost_nusd == usd * 10**9, provider
    assert own.quote(call("my-gateway", "gpt-4o-mini", (1_000_000, 0, 0, 0, 0, 0))).cost_nusd == 7 * 10**9
    assert own.quote(call("openai", "gpt-4o-mini")).source == "priced"


def test_an_own_price_wins_over_free_and_local() -> None:
    own = Pricer({"llama3": rate("1", "1"), "deepseek/deepseek-r1:free": rate("2", "2")})
    assert own.quote(call("ollama", "llama3", (1_000_000, 0, 0, 0, 0, 0))).cost_nusd == 10**9
    assert own.quote(call("openrouter", "deepseek/deepseek-r1:free", (10**6, 0, 0, 0, 0, 0))).cost_nusd == 2 * 10**9


def test_a_free_model_costs_nothing_whatever_it_used() -> None:
    own = Pricer({"gpt-4o": Rate(free=True)})
    for span in (call("openai", "gpt-4o"), call("openai", "gpt-4o", NOTHING), call("", "gpt-4o", usage={"bananas": 3})):
        assert own.quote(span) == (0, "free", "gpt-4o@configuration", "free_model")


# --- rates -----------------------------------------------------------------------------------------------------------


def test_writes_for_an_hour_without_a_rate_cost_twice_the_prompt_rate() -> None:
    own = Pricer({"claude-sonnet-4-5": rate("3", "15", "0.3"), "mine": rate("3", "15", "0.3")})
    for model in ("claude-sonnet-4-5", "mine"):
        span = call("", model, (100_000, 0, 0, 100_000, 100_000, 0))
        assert own.quote(span)[:2] == (600_000_000, "overridden")
        assert "charged at 2 times the prompt rate: the configured price has no cache_write_1h" in notes_of(own, span)


def test_writes_without_a_rate_cost_the_prompt_rate_and_a_quarter_more_for_claude() -> None:
    own = Pricer({"claude-sonnet-4-5": rate("3", "15"), "mine": rate("3", "15")})
    claude, mine = (call("", model, (100_000, 0, 0, 100_000, 0, 0)) for model in ("claude-sonnet-4-5", "mine"))
    assert own.quote(claude).cost_nusd == 375_000_000
    assert "cache writes were charged at 1.25 times the prompt rate" in notes_of(own, claude)
    assert own.quote(mine).cost_nusd == 300_000_000
    assert "cache writes were charged at the prompt rate" in notes_of(own, mine)


def test_the_receipt_says_that_cached_tokens_have_no_rate_only_if_there_are_some() -> None:
    own = Pricer({"mine": rate("3", "15")})
    assert notes_of(own, call("", "mine", (100, 10, 0, 0, 0, 0))) == ""
    said = "cached tokens were charged at the prompt rate: the configured price has no cache_read_per_1m"
    assert notes_of(own, call("", "mine", (100, 10, 40, 0, 0, 0))) == said
    assert notes_of(Pricer({"mine": rate("3", "15", "1")}), call("", "mine", (100, 10, 40, 0, 0, 0))) == ""


def test_every_unit_can_have_a_rate_also_one_that_no_list_knows() -> None:
    units = {
        "web_searches": UnitRate(Decimal(10), 1000),
        "audio_seconds": UnitRate(Decimal("0.006"), 60),
        "requests": UnitRate(Decimal("0.01"), 1),
        "bananas": UnitRate(Decimal("0.25"), 1),
        "input_audio_tokens": UnitRate(Decimal(40), 10**6),
    }
    own = Pricer({"mine": rate("2", "8", units=units)})
    usage = {"web_searches": 3, "audio_seconds": 90, "bananas": 2, "input_audio_tokens": 400}
    span = call("", "mine", (1000, 100, 0, 0, 0, 0), usage=usage)
    expected = 600 * 2000 + 400 * 40_000 + 100 * 8000 + 30_000_000 + 9_000_000 + 500_000_000 + 10_000_000
    assert own.quote(span)[:2] == (expected, "overridden")
    assert notes_of(own, span) == ""
    only = Pricer({"voice": Rate(units={"audio_seconds": UnitRate(Decimal("0.006"), 60)})})
    assert only.quote(call("", "voice", NOTHING, usage={"audio_seconds": 60}))[:2] == (6_000_000, "overridden")
    assert (
        only.quote(call("", "voice", (5, 0, 0, 0, 0, 0), usage={"audio_seconds": 60})).reason == "no_rate:input_tokens"
    )


money = st.decimals(0, 1000, places=4)
FIELDS = ("prompt", "completion", "cache_read", "cache_write", "cache_write_1h", "reasoning")


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(st.tuples(*([money] * 6)), min_size=1, max_size=3),
    st.lists(st.integers(1, 5000), min_size=2, max_size=2, unique=True),
    st.integers(0, 6000),
    st.data(),
)
def test_tiers_of_every_rate_are_exact_and_rounded_once(
    steps: list[tuple[Decimal, ...]], starts: list[int], prompt: int, data: st.DataObject
) -> None:
    starts = sorted(starts)[: len(steps) - 1]
    named = [{f"{name}_per_1m": usd for name, usd in zip(FIELDS, step, strict=True)} for step in steps]
    tiers = tuple(TierRate(start, **step) for start, step in zip(starts, named[1:], strict=True))
    own = Pricer({"mine": Rate(**named[0], tiers=tiers)})  # type: ignore[arg-type]
    read = data.draw(st.integers(0, prompt))
    write = data.draw(st.integers(0, prompt - read))
    hour, out = data.draw(st.integers(0, write)), data.draw(st.integers(0, 10**6))
    thought = data.draw(st.integers(0, out))
    quote = own.quote(call("", "mine", (prompt, out, read, write, hour, thought)))
    if not prompt and not out:
        assert quote.reason == "no_usage"
        return
    in_rate, out_rate, read_rate, write_rate, hour_rate, thought_rate = steps[sum(prompt > start for start in starts)]
    charged = (
        (prompt - read - write, in_rate),
        (read, read_rate),
        (write - hour, write_rate),
        (hour, hour_rate),
        (out - thought, out_rate),
        (thought, thought_rate),
    )
    expected = round(sum(count * Fraction(usd) * 1000 for count, usd in charged))
    assert quote.cost_nusd == (expected if expected <= MAX_COST_NUSD else None)


def test_a_rate_that_a_tier_does_not_give_is_that_of_the_tier_below() -> None:
    tiers = (TierRate(100, prompt_per_1m=Decimal(2)), TierRate(200, completion_per_1m=Decimal(9)))
    own = Pricer({"mine": rate("1", "5", tiers=tiers)})
    for prompt, usd in ((100, 100 * 1 + 5), (101, 101 * 2 + 5), (201, 201 * 2 + 9)):
        assert own.quote(call("", "mine", (prompt, 1, 0, 0, 0, 0))).cost_nusd == usd * 1000


@settings(max_examples=examples(200), deadline=None)
@given(money, money, money, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_the_receipt_of_an_own_price_of_any_units_adds_up(
    one: Decimal, two: Decimal, three: Decimal, prompt: int, out: int, seconds: int
) -> None:
    units = {"audio_seconds": UnitRate(three, 64), "bananas": UnitRate(one, 5)}
    own = Pricer({"mine": Rate(one, two, units=units)})
    span = call("", "mine", (prompt, out, prompt // 3, prompt // 3, prompt // 9, 0), usage={"audio_seconds": seconds})
    quote = own.quote(span)
    if quote.cost_nusd is None:
        return
    receipt = own.receipt(replace(span, cost_nusd=quote.cost_nusd, cost_source=quote.source))
    assert receipt.explained
    with localcontext() as context:
        context.prec = 200
        added = sum((line.cost_usd for line in receipt.lines), receipt.rounding_usd)
        assert added == Decimal(quote.cost_nusd) / 10**9


# --- the configuration -----------------------------------------------------------------------------------------------

TEXT = """
pricing:
  local_providers: [my-box]
  trust_zero: [my-cache]
  models:
    claude-sonnet-4-5:
      prompt_per_1m: 3
      completion_per_1m: 15
      cache_read_per_1m: 0.3
      cache_write_per_1m: 3.75
      cache_write_1h_per_1m: 6
      reasoning_per_1m: 15
      units: {web_searches: {usd: 10, per: 1000}, bananas: {usd: 0.25}}
      tiers: [{above_prompt_tokens: 200000, prompt_per_1m: 6, completion_per_1m: 22.5}]
    house: {match: {prefix: house-}, provider: my-gateway, free: true}
"""


def test_the_configuration_gives_every_part_of_a_price() -> None:
    own = build(parse_yaml(TEXT, "test.yml", {}), "test.yml").pricing.pricer()
    span = call("anthropic", "claude-sonnet-4-5", (200_001, 10, 0, 0, 0, 0), usage={"web_searches": 1, "bananas": 1})
    assert own.quote(span).cost_nusd == 200_001 * 6000 + 10 * 22_500 + 10_000_000 + 250_000_000
    assert own.quote(call("my-gateway", "house-7b"))[:2] == (0, "free")
    assert own.quote(call("my-box", "llama3"))[:2] == (0, "free")
    assert own.quote(call("ollama", "llama3")).source == "unpriced"
    assert own.quote(call("my-cache", "gpt-4o", cost_nusd=0))[:2] == (0, "reported")


@pytest.mark.parametrize(
    ("price", "error"),
    [
        ("{}", "m.completion_per_1m: required"),
        ("{prompt_per_1m: 1}", "m.completion_per_1m: required"),
        ("{completion_per_1m: 1}", "m.prompt_per_1m: required"),
        ("{cache_read_per_1m: 1}", "m.prompt_per_1m: required"),
        ("{free: true, prompt_per_1m: 1, completion_per_1m: 1}", "m.free: a model that is free has no rates"),
        ("{units: {web_searches: {usd: -1}}}", "m.units.web_searches.usd: must be a price"),
        (
            "{prompt_per_1m: 1, completion_per_1m: 1, tiers: [{above_prompt_tokens: 9, prompt_per_1m: .nan}]}",
            "m.tiers[0]",
        ),
        (
            "{prompt_per_1m: 1, completion_per_1m: 1, tiers: [{above_prompt_tokens: 9}, {above_prompt_tokens: 9}]}",
            "m.tiers: above_prompt_tokens must ascend",
        ),
        ("{free: true, match: {}}", "m.match: needs exactly one of equals, prefix and regex"),
        ("{free: true, match: {equals: a, prefix: b}}", "m.match: needs exactly one"),
        ("{free: true, match: {regex: '('}}", "m.match.regex: "),
    ],
)
def test_a_price_that_breaks_a_rule_is_refused_with_its_key(price: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(parse_yaml(f"pricing: {{models: {{m: {price}}}}}", "test.yml", {}), "test.yml")
    assert f"pricing.models.{error}" in str(caught.value)
