"""Reading of responses: each form gives the counts that its vendor bills, as genai-prices' own extractors find them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN
from types import SimpleNamespace
from typing import Any

import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from kit.responses import CHAT, GENERATED, GOLDEN, MESSAGE, RESPONSE
from tokentrace.client import usage
from tokentrace.client.fields import as_span, values_of
from tokentrace.pricing import FIELD_UNITS, Pricer
from tokentrace.records import Span, check_span, settle_usage

PROVIDERS = {provider.id: provider for provider in providers}
#: Units that the price list counts and a span leaves to the rest of a whole.
_REST = ("input_text", "output_text", "cache_text", "cache_write_5m")
FIELDS = dict(
    zip(
        FIELD_UNITS,
        (
            "prompt_tokens",
            "completion_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
            "cache_write_1h_tokens",
            "reasoning_tokens",
        ),
        strict=True,
    )
)


def span_of(response: object, **more: Any) -> Span:
    """Return the span of a call that *response* answered; its values that cannot be used fail the test."""
    notes: list[str] = []
    span = as_span(values_of({"kind": "llm", "provider": "openai", **usage.read(response), **more}, notes))
    assert not notes, notes
    return span


def as_objects(value: Any) -> Any:
    """Return JSON as objects with attributes, in snake case, as SDKs that are not installed here make them."""
    if isinstance(value, dict):
        names = {"".join(f"_{c.lower()}" if c.isupper() else c for c in name): item for name, item in value.items()}
        return SimpleNamespace(**{name: as_objects(item) for name, item in names.items()})
    return [as_objects(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", GOLDEN)
def test_each_form_gives_the_counts_and_details_of_its_vendor(case: str) -> None:
    golden = GOLDEN[case]
    fields = dict(usage.read(golden.json))
    assert fields.pop("response_id", "") == golden.json.get("id", golden.json.get("responseId", ""))
    assert fields == golden.fields
    check_span(settle_usage(span_of(golden.json, model="m")))


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case, golden in GOLDEN.items() if golden.sdk_class])
def test_an_object_of_the_sdk_is_read_like_its_json(case: str) -> None:
    golden = GOLDEN[case]
    assert usage.read(golden.sdk_object()) == usage.read(golden.json)


def test_an_object_of_gemini_is_read_like_its_json() -> None:
    assert usage.read(as_objects(GENERATED)) == usage.read(GENERATED)


@pytest.mark.parametrize("case", [case for case, golden in GOLDEN.items() if golden.extractor])
def test_counts_agree_with_the_extractors_of_genai_prices(case: str) -> None:
    golden = GOLDEN[case]
    assert golden.extractor is not None
    provider, flavor = golden.extractor
    _, extracted = PROVIDERS[provider].extract_usage(golden.json, api_flavor=flavor)
    theirs = {unit: amount for unit, amount in vars(extracted).items() if amount and not unit.startswith(_REST)}
    span = span_of(golden.json)
    ours = {unit: getattr(span, field) for unit, field in FIELDS.items()} | (span.usage or {})
    # Their extractors do not look at the calls of hosted tools in the output of the responses API.
    ours = {unit: amount for unit, amount in ours.items() if amount and (unit in theirs or unit != "web_searches")}
    assert ours == theirs


@pytest.mark.parametrize(
    "case",
    [
        "openai chat",
        "openai chat with audio",
        "openai embeddings",
        "anthropic",
        "google",
        "google with audio and video",
    ],
)
def test_costs_agree_with_genai_prices(case: str) -> None:
    golden = GOLDEN[case]
    assert golden.extractor is not None
    provider, flavor = golden.extractor
    model, extracted = PROVIDERS[provider].extract_usage(golden.json, api_flavor=flavor)
    at = datetime(2026, 3, 15, 12, tzinfo=UTC)
    assert model is not None
    found = PROVIDERS[provider].find_model(model)
    assert found is not None
    price = found.get_prices(at).calc_price(extracted)["total_price"]
    quote = Pricer().quote(settle_usage(span_of(golden.json, provider=provider)), int(at.timestamp()) * 10**9)
    assert quote.source == "priced", quote
    assert quote.cost_nusd == int((price * 10**9).quantize(1, rounding=ROUND_HALF_EVEN))


def test_a_part_over_its_whole_is_clamped_and_named() -> None:
    response = {
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 9},
        },
    }
    fields = usage.read(response)
    assert (fields["cache_read_tokens"], fields["reasoning_tokens"]) == (10, 5)
    assert "cache_write_tokens" not in fields
    assert fields["adjusted"] == [
        "cache_read_tokens: 12 is more than its whole, 10 kept",
        "cache_write_tokens: 3 is more than its whole, 0 kept",
        "reasoning_tokens: 9 is more than its whole, 5 kept",
    ]


def test_reasoning_that_a_vendor_counts_beside_its_completion_is_added() -> None:
    counts = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 141}
    details = {"completion_tokens_details": {"reasoning_tokens": 100}}
    span = span_of({"object": "chat.completion", "model": "grok-4", "usage": counts | details})
    assert (span.completion_tokens, span.reasoning_tokens, span.total_tokens) == (109, 100, 141)


def test_units_that_contradict_the_counts_are_left_out_and_named() -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"audio_tokens": 11}}
    fields = usage.read({"object": "chat.completion", "usage": counts})
    assert "usage" not in fields
    assert "input_audio_tokens: 11 is more than prompt_tokens 10" in next(iter(fields["adjusted"] or ()))


@pytest.mark.parametrize("amount", [-1, 2**41, float("nan"), "12", True, None])
def test_an_amount_that_is_no_count_is_left_out(amount: object) -> None:
    fields = usage.read({"object": "chat.completion", "usage": {"prompt_tokens": 7, "completion_tokens": amount}})
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (7, 0)


@pytest.mark.parametrize("response", [CHAT, RESPONSE, MESSAGE], ids=["chat", "responses", "anthropic"])
def test_a_response_without_usage_says_that_it_is_missing(response: dict[str, Any]) -> None:
    fields = usage.read({**response, "usage": None, "output": []})
    assert fields["usage_state"] == "missing"
    assert "prompt_tokens" not in fields
    assert fields["model"] == response["model"]
    check_span(span_of({**response, "usage": None, "output": []}))


def test_an_advisor_of_another_model_makes_the_usage_partial() -> None:
    iteration = {"type": "advisor_message", "model": "claude-opus-4-1", "input_tokens": 5, "output_tokens": 5}
    message = {**MESSAGE, "usage": {**MESSAGE["usage"], "iterations": [iteration]}}
    assert usage.read(message)["usage_state"] == "partial"


@pytest.mark.parametrize("response", [None, 1, "text", b"", [], {}, {"usage": 3}, {"usage": {"a": 1}}, object()])
def test_an_unknown_form_gives_nothing(response: object) -> None:
    assert usage.read(response) == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**42) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.sampled_from(sorted(GOLDEN)))
def test_any_values_in_a_known_form_give_a_span_that_is_valid(data: st.DataObject, case: str) -> None:
    """Every count, and every other value at a drawn place, may be replaced by anything."""

    def changed(value: Any, depth: int) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(_JSON)
        if isinstance(value, dict) and depth:
            return {name: changed(item, depth - 1) for name, item in value.items()}
        if isinstance(value, list) and depth:
            return [changed(item, depth - 1) for item in value]
        return data.draw(st.integers(0, 2000)) if type(value) is int else value

    fields = usage.read({name: changed(value, 4) for name, value in GOLDEN[case].json.items()})
    if fields:
        values = values_of({"kind": "llm", "model": "m", **fields}, [])
        values.setdefault("usage_state", "partial" if values.get("total_tokens") or values.get("usage") else "missing")
        check_span(settle_usage(as_span(values)))


def test_a_part_without_its_whole_raises_the_total() -> None:
    prompt = {"prompt_tokens": 0, "completion_tokens": 1778, "total_tokens": 1778}
    chat = {**CHAT, "usage": {**prompt, "prompt_tokens_details": {"audio_tokens": 231}}}
    fields = usage.read(chat)
    assert fields["total_tokens"] == 2009
    check_span(span_of(chat))
