"""The counts and statements in free attributes of MIST and Cost Katana, under the names of tools and vendors."""

from __future__ import annotations

from typing import Any

import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from kit.costkatana import NOW_NS, encoded, finished, started
from kit.http_spans import mist_message, mist_span
from tokentrace.dialect.attributes import counts_of, session_of, snake, user_of
from tokentrace.dialect.costkatana import decode_end, end_of
from tokentrace.dialect.mist import decode_message, render_span
from tokentrace.dialect.vendor_names import BESIDE, PARTS, SHORT, WHOLES
from tokentrace.errors import Rejected
from tokentrace.records import OTHER_UNITS, TOKEN_UNITS, Span


def mist(**attrs: Any) -> Span:
    """Return the span of a MIST message with *attrs* of a call to gpt-4o."""
    return decode_message(mist_message(mist_span(attrs={"model": "gpt-4o", "provider": "openai", **attrs})))


def katana(**end: Any) -> Span:
    """Return a Cost Katana span that ends with *end*."""
    return finished({"status": "ok", "model": "gpt-4o", **end})


def amounts(span: Span) -> tuple[int, ...]:
    """Return prompt, completion, total, cache reads, cache writes, those of 1 h, and reasoning tokens."""
    return (
        span.prompt_tokens,
        span.completion_tokens,
        span.total_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )


# --- the table ---


def test_every_name_leads_to_a_unit_or_a_field() -> None:
    units = {*TOKEN_UNITS, *OTHER_UNITS, "total_tokens"}
    assert set(WHOLES.values()) <= units
    assert set(PARTS.values()) <= units
    assert {unit for unit, _ in BESIDE.values()} <= units
    assert {whole for _, whole in BESIDE.values()} <= set(WHOLES)
    assert set(SHORT.values()) <= {*WHOLES, *PARTS, *BESIDE, *units}
    assert not set(WHOLES) & set(PARTS)


def extracted() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (vendor and flavour, (name, unit) pairs) of each way in which genai-prices reads a vendor's answer."""
    found = []
    for provider in providers:
        for extractor in provider.extractors or []:
            pairs = []
            for mapping in extractor.mappings:
                path = [mapping.path] if isinstance(mapping.path, str) else mapping.path
                if all(isinstance(part, str) for part in path):
                    pairs.append((".".join(map(str, path)), mapping.dest))
            found.append((f"{provider.id} {extractor.api_flavor}", pairs))
    return found


@pytest.mark.parametrize(("vendor", "pairs"), extracted(), ids=[name for name, _ in extracted()])
def test_a_vendors_usage_is_read_as_genai_prices_reads_it(vendor: str, pairs: list[tuple[str, str]]) -> None:
    if vendor.startswith("cursor"):
        return  # "cacheReadTokens" beside "inputTokens"; here the first is the name of a part of the input
    # An amount that is added to a whole and is a part of it has two destinations.
    known = [(path, unit) for path, unit in pairs if snake(path) in {*WHOLES, *PARTS, *BESIDE, *TOKEN_UNITS}]
    if vendor.startswith(("perplexity default", "x-ai")):
        # These vendors count reasoning beside the completion, which their total shows; it is settled, not read.
        known = [(path, unit) for path, unit in known if "reasoning" not in path and "citation" not in path]
    sizes = {path: 100 * 2**number for number, path in enumerate(dict.fromkeys(path for path, _ in reversed(known)))}
    expected: dict[str, int] = {}
    for path, unit in known:
        expected[unit] = expected.get(unit, 0) + sizes[path]
    usage: dict[str, Any] = {}
    for path, size in sizes.items():
        at = usage
        *outer, last = path.split(".")
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = size
    got = counts_of({"usage": usage})
    named = {
        "input_tokens": got.pop("prompt_tokens", 0),
        "output_tokens": got.pop("completion_tokens", 0),
        "output_reasoning_tokens": got.pop("reasoning_tokens", 0),
        **got.pop("usage", {}),
        **got,
    }
    named.pop("usage_state", None)
    assert {unit: amount for unit, amount in named.items() if amount} == expected


# --- MIST ---


@pytest.mark.parametrize(
    "attrs",
    [
        {"cache_read_tokens": 800, "cache_write_tokens": 100, "cache_write_1h_tokens": 40, "reasoning_tokens": 50},
        {"cacheReadTokens": 800, "cacheWriteTokens": 100, "cacheWrite1hTokens": 40, "reasoningTokens": 50},
        {"usage": {"cache_read": 800, "cache_write": 100, "cache_write_1h": 40, "reasoning": 50}},
        {
            "usage": {
                "input_tokens": 100,
                "cache_read_input_tokens": 800,
                "cache_creation_input_tokens": 100,
                "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
                "output_tokens": 500,
                "output_tokens_details": {"thinking_tokens": 50},
                "service_tier": "standard",
            }
        },
    ],
    ids=["own names", "camel case", "short names", "anthropic"],
)
def test_mist_can_say_cached_1h_and_reasoning_tokens(attrs: dict[str, Any]) -> None:
    span = mist(tokens_in=1000, tokens_out=500, **attrs)
    assert amounts(span) == (1000, 500, 1500, 800, 100, 40, 50)
    assert span.usage is None
    assert all(span.attributes[key] == value for key, value in attrs.items())


def test_anthropic_input_excludes_cached_tokens_so_they_are_added() -> None:
    beside = {"cache_read_input_tokens": 800, "cache_creation_input_tokens": 100}
    for whole in (
        {"input_tokens": 100},
        {"tokens_in": 100},
        {"tokens_in": 1000},
        {"tokens_in": 100, "input_tokens": 100},
    ):
        assert amounts(mist(tokens_out=5, **whole, **beside))[:5] == (1000, 5, 1005, 800, 100), whole
    # Services that speak OpenAI's form include them.
    assert amounts(mist(prompt_tokens=1000, tokens_out=5, **beside))[:5] == (1000, 5, 1005, 800, 100)


def test_a_whole_that_is_missing_beside_cached_tokens_leaves_the_usage_partial() -> None:
    span = mist(tokens_out=5, cache_read_input_tokens=800)
    assert (span.prompt_tokens, span.cache_read_tokens, span.usage_state) == (800, 800, "partial")


def test_gemini_usage_metadata_of_a_mist_tool_is_understood() -> None:
    metadata = {
        "promptTokenCount": 20,
        "candidatesTokenCount": 424,
        "thoughtsTokenCount": 572,
        "totalTokenCount": 1016,
    }
    assert amounts(mist(model="gemini-2.5-pro", usage=metadata)) == (20, 996, 1016, 0, 0, 0, 572)
    assert amounts(mist(model="gemini-2.5-pro", tokens_in=20, tokens_out=424, total_tokens=1016)) == (
        (20, 996, 1016, 0, 0, 0, 572)
    )


def test_a_free_attribute_total_that_is_smaller_is_not_the_total_of_the_call() -> None:
    assert amounts(mist(tokens_in=1000, tokens_out=500, total_tokens=7))[:3] == (1000, 500, 1500)
    assert amounts(mist(total_tokens=1500))[:3] == (0, 0, 1500)


@pytest.mark.parametrize("value", ["1000", None, True, [1000], {}])
def test_a_count_that_is_no_number_is_ignored_and_the_usage_is_missing(value: object) -> None:
    span = mist(tokens_in=value)
    assert span.usage_state == "missing"
    assert span.attributes == {"tokens_in": value}


@pytest.mark.parametrize(
    ("attrs", "state"),
    [
        ({}, "missing"),
        ({"tokens_in": 0}, "missing"),
        ({"tokens_in": 5}, ""),
        ({"usage": {"web_searches": 1}}, ""),
        ({"usage_state": "none"}, "none"),
        ({"usage_state": "estimated", "tokens_in": 5}, "estimated"),
        ({"usage_state": "unheard of"}, "missing"),
        ({"type": "tool"}, ""),
    ],
)
def test_a_mist_call_without_usage_says_that_it_is_missing(attrs: dict[str, Any], state: str) -> None:
    assert mist(**attrs).usage_state == state


@pytest.mark.parametrize(
    "name", ["eval_count", "prompt", "input", "total", "cached", "reasoning", "requests", "output"]
)
def test_a_free_attribute_with_a_common_name_is_no_count(name: str) -> None:
    assert amounts(mist(tokens_in=10, **{name: 7})) == (10, 0, 10, 0, 0, 0, 0)


def test_names_that_disagree_are_refused_with_both_names() -> None:
    with pytest.raises(Rejected, match=r"cached_tokens: 5 differs from cache_read_tokens 4"):
        mist(tokens_in=10, cache_read_tokens=4, cached_tokens=5)
    with pytest.raises(Rejected, match=r"tokens_in: 9|input_tokens: 10"):
        mist(tokens_in=9, input_tokens=10)


def test_mist_states_tier_state_response_scope_and_a_true_zero() -> None:
    span = mist(
        tokens_in=5,
        service_tier="flex",
        speed="fast",
        response_id="chatcmpl-1",
        cost_usd=0,
        cost_source="reported",
        cost_reason="cache_hit",
        **{"otel.scope.name": "lib"},
    )
    assert span.pricing_context == {"service_tier": "flex", "speed": "fast"}
    assert (span.response_id, span.scope) == ("chatcmpl-1", "lib")
    assert (span.cost_nusd, span.cost_source, span.unpriced_reason) == (0, "reported", "cache_hit")


@pytest.mark.parametrize("value", ["two words", "[EMAIL_REDACTED]", 5, None, "é"])
def test_a_response_id_that_cannot_identify_a_response_stays_an_attribute(value: object) -> None:
    span = mist(tokens_in=5, response_id=value)
    assert (span.response_id, span.attributes["response_id"]) == ("", value)
    assert katana(tokens={"input": 5}, metadata={"responseId": value}).response_id == ""


def test_less_than_half_a_nano_dollar_is_reported_and_not_a_missing_cost() -> None:
    assert (mist(tokens_in=5, cost_usd=4e-10).cost_nusd, mist(tokens_in=5, cost_usd=4e-10).cost_source) == (
        0,
        "reported",
    )
    assert mist(tokens_in=5, cost_usd=0).cost_source == ""
    assert katana(tokens={"input": 5}, costUSD=4e-10).cost_source == "reported"
    assert katana(tokens={"input": 5}, costUSD=0).cost_source == ""


def test_a_span_that_is_shown_to_mist_tools_is_read_as_the_same_span() -> None:
    span = mist(
        tokens_in=1000,
        tokens_out=500,
        cache_read_tokens=800,
        usage={"input_audio_tokens": 10, "audio_seconds": 8.47},
        usage_state="estimated",
        pricing_context={"search_type": "x", "service_tier": "flex"},
        response_id="r-1",
    )
    bare = Span(**{name: getattr(span, name) for name in Span.__struct_fields__ if name != "attributes"})
    again = decode_message(mist_message(render_span(bare), source=""))
    assert Span(**{name: getattr(again, name) for name in Span.__struct_fields__ if name != "attributes"}) == bare


# --- Cost Katana ---


@pytest.mark.parametrize(
    "end",
    [
        {
            "tokens": {
                "input": 1000,
                "output": 500,
                "cached": 800,
                "cacheWrite": 100,
                "cacheWrite1h": 40,
                "reasoning": 50,
            }
        },
        {"tokens": {"prompt": 1000, "completion": 500, "cacheRead": 800, "cacheWrite": 100, "cacheWrite1h": 40}},
        {"tokens": {"input": 1000, "output": 500}, "metadata": {"cache_read_tokens": 800, "cacheWriteTokens": 100}},
        {
            "tokens": {"input_tokens": 100, "output_tokens": 500, "cache_read_input_tokens": 800}
            | {"cache_creation_input_tokens": 100}
        },
    ],
)
def test_cost_katana_can_say_cached_tokens(end: dict[str, Any]) -> None:
    assert amounts(katana(**end))[:5] == (1000, 500, 1500, 800, 100)


def test_cost_katana_can_say_1h_reasoning_and_audio_tokens() -> None:
    tokens = {"input": 1000, "output": 500, "cacheWrite": 100, "cacheWrite1h": 40, "reasoning": 50, "inputAudio": 30}
    span = katana(tokens={**tokens, "outputAudio": None})
    assert amounts(span) == (1000, 500, 1500, 0, 100, 40, 50)
    assert span.usage == {"input_audio_tokens": 30}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"prompt": 1000, "completion": 500}, (1000, 500, 1500)),
        ({"total": 1500}, (0, 0, 1500)),
        ({"input": 0, "output": 0}, (0, 0, 0)),
        (None, (0, 0, 0)),
    ],
)
def test_cost_katana_tokens_have_several_forms(tokens: Any, expected: tuple[int, int, int]) -> None:
    span = katana(tokens=tokens)
    assert amounts(span)[:3] == expected
    assert span.usage_state == ("" if any(expected) else "missing")


def test_what_a_start_counts_holds_unless_the_end_counts() -> None:
    early = katana(tokens={"input": 10, "cached": 4}, metadata={"service_tier": "flex"})
    kept = end_of(started(), decode_end(b"{}"), NOW_NS, early)
    assert amounts(kept) == amounts(early)
    replaced = end_of(started(), decode_end(encoded(tokens={"input": 7})), NOW_NS, early)
    assert amounts(replaced) == (7, 0, 7, 0, 0, 0, 0)


def test_cost_katana_states_tier_state_and_response() -> None:
    metadata = {"serviceTier": "priority", "responseId": "msg-1", "costSource": "reported", "costReason": "free_model"}
    span = katana(tokens={"input": 5}, costUSD=0, metadata={**metadata, "usageState": "estimated"})
    assert (span.pricing_context, span.response_id, span.usage_state) == (
        {"service_tier": "priority"},
        "msg-1",
        "estimated",
    )
    assert (span.cost_source, span.unpriced_reason) == ("reported", "free_model")


# --- users and sessions ---


@pytest.mark.parametrize(
    ("attributes", "user"),
    [
        ({"user_id": "alice"}, "alice"),
        ({"userId": "alice"}, "alice"),
        ({"user.id": "alice"}, "alice"),
        ({"user_id": 7}, "7"),
        ({"user_id": 7.0}, "7"),
        ({"user_id": 7.5}, "7.5"),
        ({"user_id": 2**60 + 1}, str(2**60 + 1)),
        ({"user_id": ""}, None),
        ({"user_id": True}, None),
        ({"user_id": ["alice"]}, None),
        ({"user_id": None, "userId": "bob"}, "bob"),
        ({"user_id": "x" * 300}, "x" * 256),
        ({}, None),
    ],
)
def test_a_user_in_the_attributes_is_a_text_or_the_text_of_a_number(attributes: dict[str, Any], user: Any) -> None:
    assert user_of(attributes) == user
    assert session_of({key.replace("user", "session"): value for key, value in attributes.items()}) == user
    assert mist(**attributes).user_id == user
    assert finished({"metadata": attributes, "tokens": {"input": 1}}, metadata={}).user_id == user


names = st.sampled_from([*WHOLES, *PARTS, *BESIDE, "usage", "tokens"])


@given(st.dictionaries(names, st.integers(-5, 2**70) | st.floats()))
def test_any_counts_are_read_or_refused_in_a_short_text(attributes: dict[str, Any]) -> None:
    refused = ""
    try:
        counts_of(attributes)
    except Rejected as exc:
        refused = str(exc)
    assert len(refused) < 250
