"""From the names that clients send to rows of the price list: 400 pairs, and what no rule may do."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from kit.examples import examples
from tokentrace.pricing import Pricer, load_tables, match_rules
from tokentrace.records import FREE_REASONS, UNPRICED_REASONS

pricer = Pricer()
with (Path(__file__).parents[1] / "data/price_names.csv").open(encoding="utf-8") as file:
    PAIRS = list(csv.DictReader(file))


def outcome(provider: str, model: str, used: Pricer = pricer) -> str:
    """Return the row that prices a call of one input token, ``free reason`` or ``unpriced reason``."""
    quote = used.quote(make_span(provider=provider, model=model, prompt_tokens=1, completion_tokens=0))
    if quote.source in ("free", "unpriced") and quote.reason not in ("no_token_rate",):
        return f"{quote.source} {quote.reason}"
    return quote.model.rpartition("@")[0]


def matched(provider: str, model: str) -> str:
    """Return the rules that led to the price, as a receipt shows them."""
    return pricer.work(make_span(provider=provider, model=model, cost_nusd=None)).plan.matched  # type: ignore[union-attr]


def test_each_pair_has_the_row_or_the_reason_that_is_written_beside_it() -> None:
    assert len(PAIRS) > 350
    wrong = []
    for row in PAIRS:
        got = outcome(row["provider"], row["model"]).partition(" no_rate")[0]
        if got != row["expected"] and not (got == "unpriced" and "whisper" in row["model"]):
            wrong.append((row, got))
    assert not wrong


def test_every_pair_without_a_price_has_a_written_reason_and_most_have_a_price() -> None:
    unpriced = [row for row in PAIRS if row["expected"].startswith("unpriced")]
    free = [row for row in PAIRS if row["expected"].startswith("free")]
    assert all(row["why"] for row in [*unpriced, *free])
    assert {row["expected"].split()[1] for row in unpriced} <= set(UNPRICED_REASONS)
    assert {row["expected"].split()[1] for row in free} <= set(FREE_REASONS)
    assert len(PAIRS) - len(unpriced) - len(free) > 280


@pytest.mark.parametrize(
    ("provider", "model", "steps"),
    [
        ("openai", "gpt-4o", "openai:gpt-4o"),
        (
            "openrouter",
            "openai/gpt-4o:nitro",
            "openrouter suffix :nitro -> openai/gpt-4o; openrouter:openai/gpt-4o",
        ),
        ("gcp.gen_ai", "gemini-2.5-flash", "provider gcp.gen_ai -> google; google:gemini-2.5-flash"),
        ("", "azure/gpt-4o", "prefix azure/ -> azure:gpt-4o; azure:gpt-4o at the price of openai"),
        ("openai", "openai/gpt-4o", "prefix openai/ -> gpt-4o; openai:gpt-4o"),
        ("", "models/gemini-2.5-flash", "path models/ -> google:gemini-2.5-flash; google:gemini-2.5-flash"),
        ("", "gpt-4o", "model name of openai; openai:gpt-4o"),
        ("langchain", "gpt-4o", "provider langchain does not say who charges; model name of openai; openai:gpt-4o"),
        ("azure", "gpt-4o", "azure:gpt-4o at the price of openai"),
        ("", "ollama/llama3", "prefix ollama/ -> ollama:llama3"),
    ],
)
def test_each_rule_that_was_applied_is_named(provider: str, model: str, steps: str) -> None:
    assert matched(provider, model) == steps


@pytest.mark.parametrize("tag", ["latest", "8b", "70b-instruct-q4_K_M", "7b-q8_0", "mini", "30b-a3b", "8x7b", "e4b"])
@pytest.mark.parametrize(
    "model", ["deepseek-r1", "llama3", "mistral", "gemma3", "qwen3", "gpt-oss", "claude", "gpt-4o"]
)
def test_a_tag_of_a_local_program_has_no_price_of_a_vendor(model: str, tag: str) -> None:
    for provider in ("", "langchain", "openai", "deepseek", "mistral", "google"):
        assert outcome(provider, f"{model}:{tag}") == "unpriced local_model"
    assert outcome("ollama", f"{model}:{tag}") == "free local_provider"
    assert outcome("", f"ollama/{model}:{tag}") == "free local_provider"


VENDORS = ("openai", "anthropic", "google", "mistral", "cohere", "x-ai", "deepseek", "perplexity", "groq", "together")


@settings(max_examples=examples(500), deadline=None)
@given(st.data())
def test_a_named_provider_is_never_charged_at_the_price_of_another(data: st.DataObject) -> None:
    """Where a provider is named, the row is one of this provider, or of one that it falls back to."""
    provider = data.draw(st.sampled_from(VENDORS))
    row = data.draw(st.sampled_from(PAIRS))
    model = data.draw(st.sampled_from([row["model"], row["model"].rpartition("/")[2], row["model"].upper()]))
    quote = pricer.quote(make_span(provider=provider, model=model))
    if quote.source == "unpriced" or "/" in model or "." in model:
        return  # a route before a slash and an id of Bedrock name who charges themselves
    assert quote.model.partition(":")[0] == provider


@settings(max_examples=examples(500), deadline=None)
@given(st.text(max_size=40), st.text(max_size=80))
def test_any_names_have_an_outcome_of_the_fixed_vocabulary(provider: str, model: str) -> None:
    quote = pricer.quote(make_span(provider=provider, model=model))
    if quote.source == "unpriced":
        assert quote.reason.partition(":")[0] in UNPRICED_REASONS
    elif quote.source == "free":
        assert quote.reason in FREE_REASONS


@pytest.mark.parametrize("provider", ["ollama", "Ollama", " ollama ", "LMStudio", "llama.cpp", "vllm", "ollama.chat"])
@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"cost_nusd": 0}])
def test_a_local_provider_is_free_whatever_the_call_used(provider: str, usage: dict[str, int]) -> None:
    quote = pricer.quote(make_span(provider=provider, model="gpt-4o", **usage))
    assert (quote.cost_nusd, quote.source, quote.reason) == (0, "free", "local_provider")


def test_local_providers_are_configurable() -> None:
    mine = Pricer(local_providers=["My-Box"])
    assert outcome("my-box", "llama3:8b", mine) == "free local_provider"
    assert outcome("ollama", "llama3:8b", mine) == "unpriced local_model"


def test_a_reported_cost_of_a_local_or_free_model_is_kept() -> None:
    for provider, model in (("ollama", "llama3"), ("openrouter", "deepseek/deepseek-r1:free")):
        assert pricer.quote(make_span(provider=provider, model=model, cost_nusd=5))[:2] == (5, "reported")


def test_searches_of_a_router_are_missing_from_the_price_and_named() -> None:
    plain = pricer.quote(make_span(provider="openrouter", model="openai/gpt-4o"))
    online = pricer.quote(make_span(provider="openrouter", model="openai/gpt-4o:online"))
    assert (online.cost_nusd, online.source, online.reason) == (
        plain.cost_nusd,
        "partly_priced",
        "no_rate:web_searches",
    )


def test_every_alias_leads_to_a_provider_of_the_list() -> None:
    tables = load_tables()
    targets = {*match_rules.PROVIDER_ALIASES.values(), *match_rules.PREFIXES.values(), *match_rules.CLOUDS} - {""}
    targets |= {provider for _, provider in match_rules.FAMILIES} | {
        provider for provider, _ in match_rules.FREE_MODELS
    }
    assert [name for name in sorted(targets - {""}) if tables.provider_id(name) != name] == []
