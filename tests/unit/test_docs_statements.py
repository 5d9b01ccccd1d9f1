"""What a documented span states beside its counts: usage state, context of the price, response, scope, a true zero."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentrace.dialect.docs import decode_spans, render_span
from tokentrace.errors import Rejected
from tokentrace.records import Span

CALL = {"model": "gpt-4o", "prompt_tokens": 10}


def decode_one(**fields: Any) -> Span:
    """Decode a call to gpt-4o with *fields*; None removes a field."""
    document = {name: value for name, value in {**CALL, **fields}.items() if value is not None}
    [span] = decode_spans(json.dumps(document).encode())
    return span


def refusal(*documents: dict[str, Any], one: bool = False) -> str:
    with pytest.raises(Rejected) as caught:
        decode_spans(json.dumps(documents[0] if one else list(documents)).encode())
    assert caught.value.status == 400
    return str(caught.value)


# --- the context of the price ---


@pytest.mark.parametrize("name", ["service_tier", "processing", "speed"])
def test_a_shorthand_is_a_key_of_the_pricing_context(name: str) -> None:
    span = decode_one(**{name: "flex"})
    assert span.pricing_context == {name: "flex"}
    assert decode_one(pricing_context={name: "flex"}) == span
    assert decode_one(pricing_context={name: "flex"}, **{name: "flex"}) == span
    assert span.attributes == {}
    both = {**CALL, name: "flex", "pricing_context": {name: "batch"}}
    assert refusal(both) == f"span 0: {name}: 'flex' differs from pricing_context.{name}, which means the same"


def test_an_empty_context_is_none() -> None:
    assert decode_one(pricing_context={}).pricing_context is None
    assert decode_one(pricing_context={"service_tier": ""}, speed="").pricing_context is None


def test_a_tier_is_shown_in_the_context_and_by_its_name() -> None:
    shown = render_span(decode_one(service_tier="flex", pricing_context={"search_type": "web"}))
    assert shown["pricing_context"] == {"service_tier": "flex", "search_type": "web"}
    assert shown["service_tier"] == "flex"
    plain = render_span(decode_one())
    assert not {"pricing_context", "service_tier", "usage_state", "response_id", "scope", "cost_reason"} & set(plain)


# --- usage state, response and scope ---


@pytest.mark.parametrize("state", ["missing", "none", "partial", "estimated"])
def test_a_call_without_tokens_is_taken_with_a_usage_state(state: str) -> None:
    span = decode_one(prompt_tokens=None, usage_state=state)
    assert span.usage_state == state
    assert render_span(span)["usage_state"] == state


def test_a_call_without_tokens_and_without_a_usage_state_is_refused() -> None:
    assert "usage_state" in refusal({"model": "gpt-4o"})
    assert "usage_state" in refusal({"model": "gpt-4o", "usage": {"web_searches": 0}})
    assert "usage_state: none" in refusal({**CALL, "usage_state": "none"})


def test_a_response_id_is_a_field_and_never_an_attribute() -> None:
    assert decode_one(response_id="chatcmpl-1", scope="lib").response_id == "chatcmpl-1"
    assert decode_one(scope="lib").scope == "lib"
    span = decode_one(attributes={"response_id": "chatcmpl-1"})
    assert (span.response_id, span.attributes) == ("", {"response_id": "chatcmpl-1"})
    for bad in ("two words", "[x]", "é", "x" * 257):
        assert "response_id" in refusal({**CALL, "response_id": bad})


# --- a true zero ---


@pytest.mark.parametrize("reason", ["", "cache_hit", "free_model", "local_provider", "no_tokens_used"])
def test_a_zero_is_true_if_the_span_says_so(reason: str) -> None:
    span = decode_one(cost_usd=0, cost_source="reported", cost_reason=reason)
    assert (span.cost_nusd, span.cost_source, span.unpriced_reason) == (0, "reported", reason)


@pytest.mark.parametrize(
    "fields",
    [
        {"cost_usd": 0},
        {"cost_usd": 0, "cost_reason": "cache_hit"},
        {"cost_usd": 0, "cost_source": "free", "cost_reason": "free_model"},
        {"cost_source": "reported", "cost_reason": "cache_hit"},
    ],
)
def test_a_zero_is_not_stated_by_less(fields: dict[str, Any]) -> None:
    span = decode_one(**fields)
    assert (span.cost_source, span.unpriced_reason) == ("", "")


def test_an_unknown_reason_of_a_zero_is_refused() -> None:
    message = refusal({**CALL, "cost_usd": 0, "cost_source": "reported", "cost_reason": "cheap"})
    assert message.startswith("span 0: cost_reason: 'cheap' is none of cache_hit")


def test_less_than_half_a_nano_dollar_is_a_reported_cost() -> None:
    span = decode_one(cost_usd=4e-10)
    assert (span.cost_nusd, span.cost_source) == (0, "reported")


# --- users and sessions ---


@pytest.mark.parametrize("key", ["user_id", "userId"])
@pytest.mark.parametrize(("value", "text"), [("alice", "alice"), (4711, "4711"), (4711.0, "4711"), (True, None)])
def test_a_user_in_the_attributes_fills_the_field_and_stays(key: str, value: object, text: str | None) -> None:
    span = decode_one(attributes={key: value})
    assert (span.user_id, span.attributes) == (text, {key: value})
    assert decode_one(attributes={key: value}, user_id="bob").user_id == "bob"


# --- errors ---


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({**CALL, "attributes": {"a": 1, "deep": {}}}, "attributes.deep: "),
        ({**CALL, "usage": {"a": 1, "web_searches": -1}}, "usage.web_searches: "),
        ({**CALL, "usage": {"a": 1, "web_searches": 1.5}}, "usage.web_searches: 1.5 is not a whole number"),
        ({**CALL, "pricing_context": {"service_tier": 5}}, "pricing_context.service_tier: "),
        ({**CALL, "prompt_tokens": "5"}, "prompt_tokens: "),
        ({**CALL, "promt": 5}, "Object contains unknown field `promt`"),
        ({**CALL, "trace_id": "é"}, r"trace_id: '\xe9' is not"),
        ({**CALL, "attributes": {"ключ": []}}, r"attributes.\u043a\u043b\u044e\u0447: "),
    ],
)
def test_every_error_names_the_span_and_the_field_and_escapes_once(document: dict[str, Any], text: str) -> None:
    assert refusal(document, one=True).startswith(f"span 0: {text}")
    assert refusal(CALL, CALL, document).startswith(f"span 2: {text}")
