"""Which spans are valid: their tokens, ids, instants and attributes; when a span counts, and whether its cost does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kit.builders import ENDED_NS, make_span
from tokentrace.errors import Rejected
from tokentrace.records import KINDS, ROLLUP_KINDS, Span, check_span, counts_as_cost, event_time, is_response_id
from tokentrace.units import MINUTE

FIVE_MINUTES = 5 * MINUTE


def refusal(span: Span) -> str:
    """Return the error text with which *span* is rejected."""
    with pytest.raises(Rejected) as caught:
        check_span(span)
    assert caught.value.status == 400
    return str(caught.value)


# --- which spans are valid ---


def test_the_default_span_of_the_builder_is_valid() -> None:
    check_span(make_span())


@pytest.mark.parametrize("kind", ["llm", "embedding"])
def test_a_successful_call_to_a_model_must_name_the_model(kind: str) -> None:
    assert refusal(make_span(kind=kind, model="")).startswith("model:")


@pytest.mark.parametrize("kind", ["llm", "embedding"])
def test_a_successful_call_to_a_model_must_have_tokens(kind: str) -> None:
    message = refusal(make_span(kind=kind, prompt_tokens=0, completion_tokens=0))
    assert "prompt_tokens" in message
    assert "comp_tokens" in message
    assert "total_tokens" in message


@pytest.mark.parametrize(
    "tokens", [{"prompt_tokens": 1}, {"completion_tokens": 1}, {"total_tokens": 1}, {"usage": {"web_searches": 1}}]
)
def test_any_one_count_over_zero_is_enough(tokens: dict[str, Any]) -> None:
    check_span(make_span(**{"prompt_tokens": 0, "completion_tokens": 0, **tokens}))


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_failed_call_needs_neither_model_nor_tokens(status: str) -> None:
    check_span(make_span(status=status, model="", prompt_tokens=0, completion_tokens=0))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"llm", "embedding"}))
def test_other_kinds_need_neither_model_nor_tokens(kind: str) -> None:
    check_span(make_span(kind=kind, model="", prompt_tokens=0, completion_tokens=0))


@pytest.mark.parametrize("source", ["mist", "costkatana", "reporter", "nats", "spans"])
def test_no_way_in_is_exempt_from_naming_model_and_tokens(source: str) -> None:
    assert refusal(make_span(source=source, model="")).startswith("model:")
    assert "usage_state" in refusal(make_span(source=source, prompt_tokens=0, completion_tokens=0))


@pytest.mark.parametrize("state", ["missing", "partial", "estimated", "none"])
def test_a_successful_call_to_a_model_needs_no_tokens_if_it_says_what_is_known_of_them(state: str) -> None:
    check_span(make_span(prompt_tokens=0, completion_tokens=0, usage_state=state))


@pytest.mark.parametrize("state", ["missing", "none"])
@pytest.mark.parametrize("counts", [{"prompt_tokens": 1}, {"total_tokens": 1}, {"usage": {"web_searches": 1}}])
def test_a_span_without_usage_counts_nothing(state: str, counts: dict[str, Any]) -> None:
    counts = {"prompt_tokens": 0, "completion_tokens": 0, **counts}
    assert refusal(make_span(usage_state=state, **counts)).startswith(f"usage_state: {state}")


@pytest.mark.parametrize("text", ["a b", "[EMAIL_REDACTED]", "x(1)", "{id}", "<x>", "é", "a\n"])
def test_a_response_id_that_cannot_identify_a_response_is_kept_and_identifies_nothing(text: str) -> None:
    check_span(make_span(response_id=text))
    assert not is_response_id(text)


def test_a_pricing_context_has_at_most_16_keys() -> None:
    check_span(make_span(pricing_context={str(index): "x" for index in range(16)}))
    assert "17 keys" in refusal(make_span(pricing_context={str(index): "x" for index in range(17)}))


@pytest.mark.parametrize("field", ["trace_id", "span_id", "parent_span_id"])
@pytest.mark.parametrize(
    "bad", ["a\nb", "a\r", "\x00", "\x7f", "\x1b[31m", "é", "a\u2028b", "\u202eabc", "x" * 257, "١", "\u00a0"]
)
def test_an_id_that_is_not_printable_ascii_or_too_long_is_rejected_with_a_safe_error_text(field: str, bad: str) -> None:
    message = refusal(make_span(**{field: bad}))
    assert message.startswith(field)
    assert message.replace("…", "").isascii()
    assert message.isprintable()
    assert len(message) < 150


@pytest.mark.parametrize("field", ["trace_id", "span_id", "parent_span_id"])
def test_an_id_may_have_256_characters_and_all_printable_ascii_characters(field: str) -> None:
    check_span(make_span(**{field: "x" * 256}))
    check_span(make_span(**{field: "".join(map(chr, range(32, 127)))}))


def test_ids_may_be_missing_but_a_parent_may_not_be_empty() -> None:
    check_span(make_span(trace_id="", span_id="", parent_span_id=None))
    assert refusal(make_span(parent_span_id="")).startswith("parent_span_id")


@pytest.mark.parametrize(
    ("prompt", "completion", "parts", "field"),
    [
        (10, 0, {"cache_read_tokens": 11}, "cache_read_tokens"),
        (10, 0, {"cache_write_tokens": 11}, "cache_write_tokens"),
        (10, 0, {"cache_read_tokens": 6, "cache_write_tokens": 5}, "cache_read_tokens"),
        (10, 0, {"cache_write_tokens": 5, "cache_write_1h_tokens": 6}, "cache_write_1h_tokens"),
        (10, 0, {"cache_write_1h_tokens": 1}, "cache_write_1h_tokens"),
        (10, 5, {"reasoning_tokens": 6}, "reasoning_tokens"),
    ],
)
def test_a_part_that_exceeds_its_whole_is_rejected(
    prompt: int, completion: int, parts: dict[str, int], field: str
) -> None:
    assert field in refusal(make_span(prompt_tokens=prompt, completion_tokens=completion, **parts))


def test_parts_may_equal_their_whole() -> None:
    check_span(
        make_span(
            prompt_tokens=10,
            completion_tokens=5,
            cache_read_tokens=4,
            cache_write_tokens=6,
            cache_write_1h_tokens=6,
            reasoning_tokens=5,
        )
    )


def test_a_total_may_exceed_its_parts_but_not_be_less() -> None:
    check_span(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=15))
    check_span(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=20))
    assert refusal(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=14)).startswith("total_tokens")


@pytest.mark.parametrize("field", ["started_ns", "ended_ns"])
def test_an_instant_before_2000_is_rejected(field: str) -> None:
    year_2000 = 946_684_800_000_000_000
    check_span(make_span(**{field: year_2000}))
    assert "2000" in refusal(make_span(**{field: year_2000 - 1}))
    assert "2000" in refusal(make_span(**{field: 1}))


# --- attributes ---


@pytest.mark.parametrize("value", ["text", "", 5, -5, 2**64 - 1, -(2**63), 0.5, True, False, None, [1, {"a": [2]}], {}])
def test_an_attribute_may_be_any_json_value(value: object) -> None:
    check_span(make_span(attributes={"key": value}))


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), 2**64, -(2**63) - 1, b"bytes", ("tuple",), {1, 2}, object()],
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"deep": [value]}])
def test_an_attribute_that_is_no_json_value_or_over_64_bits_is_rejected_at_any_depth(
    value: object, wrap: Callable[[object], object]
) -> None:
    assert refusal(make_span(attributes={"key": wrap(value)})).startswith("attributes: 'key'")


@pytest.mark.parametrize("attributes", [{"": 1}, {"": "x", "a": 1}])
def test_an_empty_attribute_key_is_rejected(attributes: dict[str, object]) -> None:
    assert refusal(make_span(attributes=attributes)) == "attributes: a key is empty"


@pytest.mark.parametrize("attributes", [{1: "x"}, {None: "x"}, {b"a": "x"}, {"a": {1: 2}}, {"a": [{None: 1}]}])
def test_a_key_that_is_not_a_string_is_rejected_at_any_depth(attributes: dict[object, object]) -> None:
    assert "not a string" in refusal(make_span(attributes=attributes))


@pytest.mark.parametrize("key", ["tt.internal", "tt.", "tt.x"])
def test_keys_with_the_reserved_prefix_are_rejected(key: str) -> None:
    assert "reserved" in refusal(make_span(attributes={key: 1}))


@pytest.mark.parametrize("key", ["tt", "ttx", "TT.x", "budget.left_usd", "x.tt.y"])
def test_similar_prefixes_are_allowed(key: str) -> None:
    check_span(make_span(attributes={key: 1}))


@pytest.mark.parametrize("value", [1.5, -0.1, 2, -1, 1.0000000001])
@pytest.mark.parametrize("key", ["eval.score", "eval.coherence", "eval."])
def test_a_numeric_score_outside_0_to_1_is_rejected(key: str, value: float) -> None:
    assert key in refusal(make_span(attributes={key: value}))


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.5, "nightly", "1.5", True, None])
def test_an_eval_attribute_may_be_0_to_1_or_not_a_number(value: object) -> None:
    check_span(make_span(attributes={"eval.suite": value}))


def test_more_than_128_attributes_are_rejected() -> None:
    check_span(make_span(attributes={f"k{index}": index for index in range(128)}))
    assert "129" in refusal(make_span(attributes={f"k{index}": index for index in range(129)}))


def test_the_limits_of_keys_and_values_are_in_bytes() -> None:
    check_span(make_span(attributes={"é" * 128: "é" * (16 * 1024)}))
    assert "256 bytes" in refusal(make_span(attributes={"é" * 128 + "x": 1}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": "é" * (16 * 1024) + "x"}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": "x" * (32 * 1024 + 1)}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": ["x" * 1024] * 33}))


def test_an_attribute_may_nest_16_levels_and_not_more() -> None:
    value: Any = 1
    for _ in range(15):
        value = [value]
    check_span(make_span(attributes={"key": value}))
    for _ in range(1000):
        value = [value]
    assert "nested" in refusal(make_span(attributes={"key": value}))


@pytest.mark.parametrize(
    "attributes",
    [{"key": "\ud800"}, {"\udfff": 1}, {"key": ["\ud800"]}, {"key": {"\ud800": 1}}],
    ids=["value", "key", "nested value", "nested key"],
)
def test_text_that_utf_8_cannot_encode_is_rejected(attributes: dict[str, object]) -> None:
    # Python represents undecodable bytes of file names and environment variables as lone surrogates.
    assert refusal(make_span(attributes=attributes)).startswith("attributes")


def test_an_error_text_never_quotes_an_attribute_at_length() -> None:
    assert len(refusal(make_span(attributes={"k" * 300: "v"}))) < 150
    assert len(refusal(make_span(attributes={"eval." + "k" * 200: 10**4000}))) < 200
    assert "hunter2" not in refusal(make_span(attributes={"key": "hunter2" * 10_000}))


# --- money and time ---


def test_the_cost_of_a_roll_up_kind_is_not_added() -> None:
    assert {kind for kind in KINDS if not counts_as_cost(kind)} == {"http", "agent", "workflow", "chain"}
    assert set(KINDS) >= ROLLUP_KINDS


def test_a_span_counts_at_its_end() -> None:
    assert event_time(make_span(ended_ns=ENDED_NS, arrived_ns=ENDED_NS + 10**15)) == ENDED_NS


def test_a_span_that_ends_over_5_minutes_ahead_counts_at_its_arrival() -> None:
    ahead = ENDED_NS + FIVE_MINUTES
    assert event_time(make_span(ended_ns=ahead, arrived_ns=ENDED_NS)) == ahead
    assert event_time(make_span(ended_ns=ahead + 1, arrived_ns=ENDED_NS)) == ENDED_NS
