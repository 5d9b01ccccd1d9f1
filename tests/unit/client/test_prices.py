"""``cost`` and its relatives: the documented prices, every form of usage, and the same cost as ingest."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from kit.builders import make_span
from kit.examples import examples
from kit.prices import PAIRS
from tokentrace import ConfigError, Rate, Rejected, Span, cost, cost_or_none, cost_with_rate, estimate_cost
from tokentrace.client.money import Prices
from tokentrace.config import build, parse_yaml
from tokentrace.pricing import TierRate, UnitRate
from tokentrace.records import KINDS
from tokentrace.redact import Redactor
from tokentrace.units import SECOND, parse_instant
from tokentrace_ingest.cleaning import Cleaner

USAGE = {"prompt_tokens": 512, "completion_tokens": 128}
#: Model -> documented US dollars for a million prompt tokens and a million completion tokens.
DOCUMENTED = {
    "gpt-4o": (2.5, 10),
    "gpt-4o-mini": (0.15, 0.6),
    "claude-3-5-haiku": (0.8, 4),
    "gpt-4-turbo": (10, 30),
    "gpt-4.1": (2, 8),
    "o1": (15, 60),
    "claude-sonnet-4-20250514": (3, 15),
    "text-embedding-3-small": (0.02, 0),
}


def test_the_documented_call_costs_what_the_documentation_says() -> None:
    assert cost("gpt-4o", USAGE) == 0.00256
    assert cost_or_none("gpt-4o", USAGE) == Decimal("0.00256")
    assert cost_with_rate(Rate(prompt_per_1m=2.5, completion_per_1m=10), 512, 128) == 0.00256


@pytest.mark.parametrize("model", DOCUMENTED)
def test_a_model_has_the_documented_price_in_any_case(model: str) -> None:
    prompt, completion = DOCUMENTED[model]
    for name in (model, model.upper()):
        assert cost(name, {"prompt_tokens": 1_000_000}) == prompt
        if completion:
            assert cost(name, {"completion_tokens": 1_000_000}) == completion


def test_costs_and_budgets_load_neither_a_network_library_nor_the_price_list_before_the_first_price() -> None:
    program = (
        "import sys\nfrom tokentrace import Budget, cost\nfrom tokentrace.pricing import load_tables\n"
        "print([name for name in ('asyncio', 'nats', 'ssl') if name in sys.modules])\n"
        "print(load_tables.cache_info().currsize)\n"
        "cost('gpt-4o', {'prompt_tokens': 1})\nprint(load_tables.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n0\n1\n"


def test_an_unknown_model_costs_zero_or_none() -> None:
    assert cost("no-such-model", USAGE) == 0.0
    assert cost_or_none("no-such-model", USAGE) is None


def test_every_form_of_usage_costs_the_same() -> None:
    forms: list[Any] = [
        USAGE,
        {**USAGE, "total_tokens": 640, "cost_usd": 9.0, "latency_ms": 5},
        {"usage": {"input_tokens": 512, "output_tokens": 128}},
        Span(prompt_tokens=512, completion_tokens=128, cost_nusd=5, cost_source="reported", model="o1"),
        SimpleNamespace(prompt_tokens=512, completion_tokens=128),
        {**USAGE, "total_tokens": 640, "prompt_tokens_details": {"cached_tokens": 0}},
        {"input_tokens": 512, "output_tokens": 128},
        SimpleNamespace(id="chatcmpl-1", model="o1", usage=SimpleNamespace(prompt_tokens=512, completion_tokens=128)),
        {"type": "message", "content": [], "usage": {"input_tokens": 512, "output_tokens": 128}},
        {"usageMetadata": {"promptTokenCount": 512, "candidatesTokenCount": 128}},
    ]
    assert {cost("gpt-4o", usage) for usage in forms} == {0.00256}


def test_cached_tokens_cost_less() -> None:
    assert cost("gpt-4o", {**USAGE, "cache_read_tokens": 512}) == 0.00192
    assert cost("gpt-4o", {"usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 512}}}) == 0.00192


def test_a_response_that_states_no_usage_has_no_price() -> None:
    assert cost_or_none("gpt-4o", {"object": "chat.completion", "choices": []}) is None


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        ("words", "usage: str: no token counts"),
        ({}, "no token counts"),
        ({"tokens": 5}, "keys '['tokens']'"),
        (SimpleNamespace(tokens=5), "SimpleNamespace"),
        ({"prompt_tokens": -1}, "prompt_tokens: -1"),
        ({"prompt_tokens": 1.5}, "prompt_tokens: 1.5"),
        ({"prompt_tokens": True}, "prompt_tokens: True"),
        ({"completion_tokens": 2**41}, "completion_tokens"),
        ({"prompt_tokens": 5, "usage": {"web_searches": -1}}, "usage.web_searches"),
        ({"prompt_tokens": 5, "usage": {"input_tokens": 6}}, "usage.input_tokens: 6 differs from prompt_tokens 5"),
    ],
)
def test_usage_that_cannot_be_read_is_an_error_that_names_it(usage: object, text: str) -> None:
    with pytest.raises(Rejected) as error:
        cost("gpt-4o", usage)
    assert text in str(error.value)


def test_the_price_of_an_earlier_day_is_asked_for_with_a_time_zone() -> None:
    day = datetime(2026, 3, 15, tzinfo=UTC)
    assert cost_or_none("gpt-4o", USAGE, at=day) == Decimal("0.00256")
    with pytest.raises(Rejected, match="time zone"):
        cost_or_none("gpt-4o", USAGE, at=datetime(2026, 3, 15))


def test_the_price_of_a_time_is_the_one_that_applied_then() -> None:
    dates = {
        (provider.id, model.id): prices
        for provider, model in PAIRS
        if isinstance(prices := model.prices, list) and len(prices) > 1
    }
    changed = 0
    for provider, model in dates:
        long_ago, now = (
            cost_or_none(model, USAGE, provider=provider, at=datetime(year, 1, 1, 12, tzinfo=UTC))
            for year in (2021, 2026)
        )
        changed += long_ago != now
    assert changed


def test_four_characters_of_a_prompt_are_estimated_as_one_token_rounded_up() -> None:
    assert estimate_cost("gpt-4o", "a" * 2045, 128) == cost("gpt-4o", USAGE)
    assert estimate_cost("gpt-4o", "a" * 2049, 128) == cost("gpt-4o", {**USAGE, "prompt_tokens": 513})
    assert estimate_cost("gpt-4o", 512, 128) == 0.00256
    with pytest.raises(Rejected, match="completion_tokens: -1"):
        estimate_cost("gpt-4o", "words", -1)


def test_a_rate_applies_its_tiers_and_names_what_it_has_no_price_for() -> None:
    rate = Rate(prompt_per_1m=1, completion_per_1m=2, tiers=(TierRate(above_prompt_tokens=1000, prompt_per_1m=3),))
    assert cost_with_rate(rate, 1000, 0) == 0.001
    assert cost_with_rate(rate, 2000, 1000) == 0.008
    assert cost_with_rate(Rate(prompt_per_1m=0.1, completion_per_1m=0.3), 0, 0) == 0.0
    with pytest.raises(Rejected, match="no price"):
        cost_with_rate(Rate(units={"web_searches": UnitRate(Decimal("0.01"), 1)}), 5, 5)


def test_a_float_rate_is_the_decimal_that_was_written() -> None:
    assert Rate(prompt_per_1m=0.1).prompt_per_1m == Decimal("0.1")
    assert Rate(prompt_per_1m=3).prompt_per_1m == Decimal(3)
    assert TierRate(1, 0.7).prompt_per_1m == Decimal("0.7")
    assert cost_with_rate(Rate(0.15, 0.6), 1, 1) == 7.5e-07


@pytest.mark.parametrize(
    "rate", [Rate(prompt_per_1m=-1, completion_per_1m=1), Rate(), Rate(1, 1, free=True), Rate(float("nan"), 1)]
)
def test_a_price_that_cannot_be_is_refused_with_its_model(rate: Rate) -> None:
    with pytest.raises(ConfigError, match="my-model"):
        Prices({"my-model": rate})


OWN = """
pricing:
  trust_zero: [ollama-cloud]
  models:
    my-model: {prompt_per_1m: 1.23456789, completion_per_1m: 9.87, cache_read_per_1m: 0.1, reasoning_per_1m: 20}
    gpt-4o: {prompt_per_1m: 3, completion_per_1m: 11, tiers: [{above_prompt_tokens: 1000, prompt_per_1m: 6}]}
    anything: {prompt_per_1m: 0.07, completion_per_1m: 0.7, match: {prefix: local-}, units: {web_searches: {usd: 0.01}}}
    gratis: {free: true}
"""
MODELS = ["my-model", "gpt-4o", "GPT-4o-2024-08-06", "local-7b", "gratis", "unknown-model", ""]
UNITS = ("web_searches", "audio_seconds", "input_audio_tokens", "input_tool_tokens", "no_such_unit")
NOW = parse_instant("2026-03-15T12:00:00Z")


def random_span(dice: random.Random) -> Span:
    """Return a span as an application might report it, with contradictions in some."""
    provider, model = dice.choice(PAIRS)
    names = (provider.id, model.id) if dice.random() < 0.6 else (dice.choice(["", "openai"]), dice.choice(MODELS))
    prompt, completion = (dice.choice([0, 1, dice.randrange(10_000), dice.randrange(2_000_000)]) for _ in range(2))
    fields: dict[str, Any] = {
        "provider": names[0],
        "model": names[1],
        "kind": dice.choice(KINDS) if dice.random() < 0.3 else "llm",
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "ended_ns": 0 if dice.random() < 0.1 else NOW - dice.randrange(3 * 365 * 86400) * SECOND,
    }
    if dice.random() < 0.3:
        fields["cache_read_tokens"] = dice.randrange(prompt + 1)
        fields["cache_write_tokens"] = dice.randrange(prompt + 1 - fields["cache_read_tokens"])
        fields["cache_write_1h_tokens"] = dice.randrange(fields["cache_write_tokens"] + 1)
        fields["reasoning_tokens"] = dice.randrange(2 * completion + 1)
    if dice.random() < 0.2:
        fields["total_tokens"] = prompt + completion + dice.choice([0, 0, 50])
    if dice.random() < 0.2:
        fields["usage"] = {name: dice.randrange(500) for name in dice.sample(UNITS, 2)}
    if dice.random() < 0.2:
        fields["cost_nusd"] = dice.choice([0, 0, 123_456])
        fields["cost_source"] = dice.choice(["", "reported", "priced"])
    if dice.random() < 0.2:
        fields["pricing_context"] = {"service_tier": dice.choice(["flex", "batch", "priority", "default", ""])}
    if dice.random() < 0.2:
        fields["usage_state"] = dice.choice(["partial", "estimated", "missing", "none"])
    return make_span(**{**fields, "session_id": None, "user_id": None})


@pytest.mark.parametrize("own", ["", OWN], ids=["price list", "own prices"])
def test_client_and_ingest_come_to_the_same_cost(own: str) -> None:
    pricing = build(parse_yaml(own, "test.yml", {}), "test.yml").pricing
    cleaner = Cleaner(Redactor(), pricing.pricer())
    prices = Prices(pricing.rates, pricing.trust_zero)
    dice, compared, priced = random.Random(14), 0, 0
    wanted = examples(10_000)
    while compared < wanted:
        span = random_span(dice)
        try:
            stored = cleaner.finish(span, "batch:1", 0, NOW + 10 * SECOND)
        except Rejected:
            continue  # ingest does not store it
        if not span.ended_ns:
            stored = replace(stored, cost_nusd=prices.quote(replace(span, ended_ns=stored.ended_ns)).cost_nusd)
        else:
            assert prices.quote(span).cost_nusd == stored.cost_nusd, span
        compared += 1
        priced += bool(stored.cost_nusd)
    assert priced > wanted / 3
