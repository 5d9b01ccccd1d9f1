"""Configured prices: they take precedence over the price tables, and costs are computed exactly and rounded once."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.prices import (
    call,
    pricer,
    to_nusd,
)
from tokentrace.pricing import Pricer, Rate
from tokentrace.records import MAX_COST_NUSD

RATE = Rate(Decimal("2.00"), Decimal("8.00"), Decimal("0.50"))


money = st.decimals(0, 1000, places=6)


def test_a_configured_price_wins_with_any_provider_and_in_any_case() -> None:
    configured = Pricer({"My-Model": RATE, "gpt-4o": RATE})
    for provider, model in (
        ("openai", "gpt-4o"),
        ("azure", "GPT-4O"),
        ("", "my-model"),
        ("no-such-provider", "MY-MODEL"),
    ):
        quote = configured.quote(call(provider, model, (1_000_000, 1_000_000, 500_000, 0, 0, 0)))
        assert quote[:2] == (1_000_000_000 + 250_000_000 + 8_000_000_000, "overridden")
        assert quote.reason == ""
    assert configured.quote(call("openai", "gpt-4o-mini")).source == "priced"


@settings(deadline=None)
@given(money, money, st.none() | money, st.integers(0, 2**30), st.integers(0, 2**30), st.data())
@example(Decimal("0.0005"), Decimal(0), None, 1, 0, None)
@example(Decimal("0.0015"), Decimal(0), None, 1, 0, None)
def test_a_configured_price_is_exact_and_rounded_once(
    prompt_rate: Decimal,
    completion_rate: Decimal,
    read_rate: Decimal | None,
    prompt: int,
    out: int,
    data: st.DataObject | None,
) -> None:
    read = 0 if data is None else data.draw(st.integers(0, prompt))
    quote = Pricer({"mine": Rate(prompt_rate, completion_rate, read_rate)}).quote(
        call("", "mine", (prompt, out, read, 0, 0, 0))
    )
    with localcontext() as context:
        context.prec = 60
        cached = prompt_rate if read_rate is None else read_rate
        expected = to_nusd(((prompt - read) * prompt_rate + read * cached + out * completion_rate) / 10**6)
    if not prompt and not out:
        assert quote.reason == "no_usage"
        return
    assert quote.cost_nusd == (expected if expected <= MAX_COST_NUSD else None)


def test_cached_tokens_without_a_configured_rate_have_the_prompt_rate() -> None:
    configured = Pricer({"m": Rate(Decimal(2), Decimal(8))})
    assert configured.quote(call("", "m", (100, 0, 100, 0, 0, 0))).cost_nusd == 100 * 2000
    assert configured.quote(call("", "m", (100, 0, 40, 60, 0, 0))).cost_nusd == 100 * 2000


def test_a_configured_price_replaces_a_reported_zero_and_no_other_reported_cost() -> None:
    configured = Pricer({"gpt-4o": RATE})
    assert configured.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), cost_nusd=0)).cost_nusd == 2000
    assert configured.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), cost_nusd=5))[:2] == (5, "reported")


def test_a_unit_without_a_configured_price_is_named() -> None:
    configured = Pricer({"gpt-4o": RATE})
    quote = configured.quote(call("openai", "gpt-4o", (1, 0, 0, 0, 0, 0), usage={"web_searches": 3}))
    assert quote[:2] == (2000, "partly_priced")
    assert quote.reason == "no_rate:web_searches"


@pytest.mark.parametrize("usage", [{"web_searches": 0}, {"bananas": 0}])
def test_a_unit_with_a_count_of_zero_needs_no_rate(usage: dict[str, int]) -> None:
    tokens = (1, 0, 0, 0, 0, 0)
    assert pricer.quote(call("openai", "gpt-4o", tokens, usage=usage))[:2] == (2500, "priced")
    assert Pricer({"gpt-4o": RATE}).quote(call("openai", "gpt-4o", tokens, usage=usage))[:2] == (2000, "overridden")
