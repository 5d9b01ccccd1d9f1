"""The explanation of a price: rules, rates and costs, and what it refuses."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.prices import NOON, call, pricer
from tokentrace.errors import Rejected
from tokentrace.pricing import Pricer, Rate, explain
from tokentrace.units import SECOND
from tokentrace_api.routes.prices import PriceExplanation

AT = int(NOON.timestamp()) * SECOND


def ask(model: str, provider: str = "", used: Pricer = pricer, **rest: Any) -> dict[str, Any]:
    return explain(used, model, provider, rest.get("usage", {}), rest.get("context", {}), rest.get("at", AT))


def test_an_explanation_without_usage_shows_every_rate_and_no_cost() -> None:
    answer = ask("claude-sonnet-4-5")
    assert (answer["cost_usd"], answer["cost_source"], answer["cost_reason"], answer["lines"]) == (None, None, None, [])
    assert answer["price"]["matched"] == "model name of anthropic; anthropic:claude-sonnet-4-5"
    assert {"unit": "input_tokens", "rate_usd": "3", "per": 1_000_000, "above": 0} in answer["rates"]
    assert {"unit": "input_tokens", "rate_usd": "6", "per": 1_000_000, "above": 200_000} in answer["rates"]
    assert answer["assumed"] == "standard price: no service tier, processing or speed was reported"


@pytest.mark.parametrize("names", [("input_tokens", "output_tokens"), ("prompt_tokens", "comp_tokens")])
def test_an_explanation_with_usage_is_the_receipt_of_such_a_call(names: tuple[str, str]) -> None:
    answer = ask("gpt-4o", usage={names[0]: "512", names[1]: "128", "web_searches": "3"})
    assert (answer["cost_usd"], answer["cost_source"]) == ("0.03256", "priced")
    assert [(line["unit"], line["amount"]) for line in answer["lines"]] == [
        ("input_tokens", 512),
        ("output_tokens", 128),
        ("web_searches", 3),
    ]
    assert answer["usage"] == {"input_tokens": 512, "output_tokens": 128, "web_searches": 3}


@pytest.mark.parametrize(
    ("question", "source", "reason", "cost"),
    [
        ({"model": "deepseek-r1:8b"}, None, "local_model", None),
        ({"model": "deepseek-r1:8b", "usage": {"prompt_tokens": "5"}}, "unpriced", "local_model", None),
        ({"model": "llama3", "provider": "ollama"}, "free", "local_provider", "0"),
        ({"model": "llama3", "provider": "ollama", "usage": {"prompt_tokens": "5"}}, "free", "local_provider", "0"),
        ({"model": ""}, None, "no_model", None),
        ({"model": "gpt-4o", "context": {"service_tier": "gold"}}, None, "unknown_variant:service_tier=gold", None),
        ({"model": "gpt-4o", "usage": {"total_tokens": "9"}}, "unpriced", "no_split", None),
        ({"model": "gpt-4o", "usage": {"bananas": "9"}}, "unpriced", "no_rate:bananas", None),
        (
            {"model": "gpt-4o", "usage": {"prompt_tokens": "1", "bananas": "9"}},
            "partly_priced",
            "no_rate:bananas",
            "0.0000025",
        ),
    ],
)
def test_an_explanation_says_why_a_cost_is_unknown_or_zero(
    question: dict[str, Any], source: str | None, reason: str, cost: str | None
) -> None:
    answer = ask(**question)
    assert (answer["cost_source"], answer["cost_reason"], answer["cost_usd"]) == (source, reason, cost)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"model": "m" * 257}, "model: is longer than 256"),
        ({"model": "m", "provider": "p" * 257}, "provider: is longer than 256"),
        ({"model": "m", "usage": {"input_tokens": "many"}}, "usage.input_tokens: 'many' is not a whole number"),
        ({"model": "m", "usage": {"input_tokens": "-1"}}, "usage.input_tokens"),
        ({"model": "m", "usage": {"input_tokens": "9" * 18}}, "usage.input_tokens"),
        ({"model": "m", "usage": {"input_tokens": "1", "prompt_tokens": "2"}}, "usage.prompt_tokens: 2 is not 1"),
        ({"model": "m", "usage": {f"u{n}": "1" for n in range(65)}}, "more than 64"),
    ],
)
def test_an_explanation_refuses_what_no_span_may_say(question: dict[str, Any], error: str) -> None:
    with pytest.raises(Rejected) as caught:
        ask(**question)
    assert error in str(caught.value)


MODELS = ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "whisper-1", "gpt-5.4", "mine", "nothing", "x:8b"]
UNITS = ["input_tokens", "output_tokens", "cache_read_tokens", "web_searches", "audio_seconds", "total_tokens"]


@settings(max_examples=examples(300), deadline=None)
@given(
    st.sampled_from(
        ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "whisper-1", "gpt-5.4", "mine", "nothing", "x:8b"]
    ),
    st.sampled_from(["", "openai", "ollama", "langchain", "azure"]),
    st.dictionaries(
        st.sampled_from(
            ["input_tokens", "output_tokens", "cache_read_tokens", "web_searches", "audio_seconds", "total_tokens"]
        ),
        st.integers(0, 10**6),
    ),
    st.dictionaries(
        st.sampled_from(["service_tier", "processing"]), st.sampled_from(["flex", "batch", "default", "x"])
    ),
)
def test_an_explanation_costs_what_ingest_computes(
    model: str, provider: str, usage: dict[str, int], context: dict[str, str]
) -> None:
    own = Pricer({"mine": Rate(Decimal(1), Decimal(2))})
    answer = ask(model, provider, own, usage={name: str(count) for name, count in usage.items()}, context=context)
    msgspec.convert(answer, PriceExplanation)
    total = usage.pop("total_tokens", 0)
    if not total and not any(usage.values()):
        assert answer["lines"] == []
        return
    span = call(provider, model, (0,) * 6, NOON, usage=usage, total_tokens=total, pricing_context=context or None)
    quote = own.quote(span)
    got = answer["cost_usd"]
    assert (None if got is None else int(Decimal(got) * 10**9)) == quote.cost_nusd
    assert (answer["cost_source"], answer["cost_reason"] or "") == (quote.source, quote.reason)
