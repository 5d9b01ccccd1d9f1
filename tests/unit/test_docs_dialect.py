"""The documented JSON span: which values are accepted and which are rejected."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import STARTED_NS, make_batch, make_span
from kit.examples import examples
from tokentrace.dialect.docs import decode_spans, render_span
from tokentrace.errors import Rejected
from tokentrace.records import (
    KINDS,
    MAX_TOKENS,
    Span,
    decode_batches,
    encode_batches,
)

MINIMAL = {"model": "gpt-4o", "prompt_tokens": 1}


EXAMPLE = {
    "trace_id": "7f3a1c2b-0000-4000-8000-000000000001",
    "span_id": "a1b2c3d4-0000-4000-8000-000000000002",
    "name": "summarize-document",
    "model": "gpt-4o",
    "provider": "openai",
    "prompt_tokens": 512,
    "comp_tokens": 128,
    "total_tokens": 640,
    "cost_usd": 0.00448,
    "latency_ms": 1240,
    "status": "ok",
    "started_at": "2026-03-15T14:23:01.441Z",
    "ended_at": "2026-03-15T14:23:02.681Z",
}


def decode(*documents: dict[str, Any]) -> list[Span]:
    return decode_spans(json.dumps(list(documents)).encode())


def decode_one(**fields: Any) -> Span:
    """Decode a span with the required fields and *fields*."""
    [span] = decode_spans(json.dumps({**MINIMAL, **fields}).encode())
    return span


def refusal(**fields: Any) -> str:
    with pytest.raises(Rejected) as caught:
        decode_one(**fields)
    assert caught.value.status == 400
    return str(caught.value)


def test_the_documented_example_becomes_the_expected_record() -> None:
    [span] = decode(EXAMPLE)
    assert span == make_span(span_id=span.span_id, cost_nusd=4_480_000, arrived_ns=0)
    assert span.span_id == "a1b2c3d4-0000-4000-8000-000000000002"
    assert span.ended_ns - span.started_ns == span.latency_ns


def test_one_object_or_an_array_is_accepted_with_space_around_it() -> None:
    [span] = decode(EXAMPLE)
    text = json.dumps(EXAMPLE)
    assert decode_spans(f" \r\n\t{text}\n".encode()) == [span]
    assert decode_spans(f" \n[{text},{text}] ".encode()) == [span, span]
    assert decode_spans(b"[]") == []


def test_an_absent_field_has_its_default() -> None:
    assert decode_one() == Span(model="gpt-4o", prompt_tokens=1, total_tokens=1, source="spans")
    assert decode_one().status == "ok"
    assert decode_one().kind == "llm"
    assert decode_one().cost_nusd is None


def test_the_source_of_a_span_is_an_argument_of_the_decoder() -> None:
    assert decode_spans(json.dumps(MINIMAL).encode(), "nats")[0].source == "nats"


def test_an_absent_total_is_computed() -> None:
    assert decode_one(prompt_tokens=512, comp_tokens=128).total_tokens == 640
    assert decode_one(prompt_tokens=512, comp_tokens=128, total_tokens=0).total_tokens == 640
    assert decode_one(prompt_tokens=512, comp_tokens=128, total_tokens=700).total_tokens == 700


def test_a_total_without_its_parts_is_accepted() -> None:
    span = decode_one(prompt_tokens=0, total_tokens=640)
    assert (span.prompt_tokens, span.completion_tokens, span.total_tokens) == (0, 0, 640)


def test_a_total_less_than_its_parts_is_rejected() -> None:
    assert refusal(prompt_tokens=512, comp_tokens=128, total_tokens=639).startswith("span 0: total_tokens")


def test_completion_tokens_means_comp_tokens_and_must_not_differ() -> None:
    assert decode_one(completion_tokens=5).completion_tokens == 5
    assert decode_one(comp_tokens=5, completion_tokens=5).completion_tokens == 5
    assert decode_one(comp_tokens=5, completion_tokens=0).completion_tokens == 5
    assert "completion_tokens" in refusal(comp_tokens=5, completion_tokens=6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_accepted(kind: str) -> None:
    assert decode_one(kind=kind).kind == kind


@pytest.mark.parametrize("status", ["ok", "error", "timeout"])
def test_every_status_is_accepted(status: str) -> None:
    assert decode_one(status=status).status == status


@pytest.mark.parametrize("status", ["foo", "OK", "", "pending", 1])
def test_an_unknown_status_is_rejected(status: object) -> None:
    assert "status" in refusal(status=status)


def test_a_failed_call_needs_neither_model_nor_tokens() -> None:
    assert decode({"status": "error", "error": "boom"})[0].error == "boom"
    assert decode({"status": "timeout"})[0].model == ""


def test_a_cost_of_zero_differs_from_no_cost() -> None:
    assert decode_one(cost_usd=0).cost_nusd == 0
    assert decode_one(cost_usd=None).cost_nusd is None
    assert decode_one().cost_nusd is None


@given(st.floats(0, 1_000_000))
@example(5e-10)
@example(1.5e-9)
@example(0.1)
@example(1_000_000.0)
def test_dollars_are_rounded_half_to_even_to_nano_dollars(usd: float) -> None:
    expected = int((Decimal(repr(usd)) * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    assert decode_one(cost_usd=usd).cost_nusd == expected


@given(st.floats(0, 30 * 86_400_000))
@example(0.0000004)
def test_milliseconds_are_rounded_half_to_even_to_nanoseconds(ms: float) -> None:
    expected = int((Decimal(repr(ms)) * 10**6).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    assert decode_one(latency_ms=ms, ttft_ms=ms).latency_ns == expected
    assert decode_one(latency_ms=ms, ttft_ms=ms).ttft_ns == expected


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-03-15T14:23:01.441Z", STARTED_NS),
        ("2026-03-15T15:23:01.441+01:00", STARTED_NS),
        ("2026-03-15T14:23:01.441123Z", STARTED_NS + 123_000),
        ("2000-01-01T00:00:00Z", 946_684_800_000_000_000),
        ("2099-12-31T23:59:59.999Z", 4_102_444_799_999_000_000),
        ("2100-01-01T00:00:00Z", 4_102_444_800_000_000_000),
    ],
)
def test_an_instant_of_this_century_is_accepted_with_any_offset(text: str, ns: int) -> None:
    assert decode_one(started_at=text).started_ns == ns
    assert decode_one(ended_at=text).ended_ns == ns


@pytest.mark.parametrize(
    "text",
    [
        "1999-12-31T23:59:59.999Z",
        "1969-07-20T20:17:40Z",
        "0002-01-01T00:00:00Z",
        "2100-01-01T00:00:00.001Z",
        "2150-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "2026-03-15T14:23:01",
        "2026-03-15",
        "yesterday",
        "",
        1773584581,
        1773584581.441,
        True,
    ],
)
@pytest.mark.parametrize("field", ["started_at", "ended_at"])
def test_an_instant_without_offset_or_of_another_century_is_rejected(field: str, text: str) -> None:
    assert field in refusal(**{field: text})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", -1),
        ("prompt_tokens", 1.5),
        ("prompt_tokens", "5"),
        ("prompt_tokens", True),
        ("prompt_tokens", MAX_TOKENS + 1),
        ("prompt_tokens", 10**30),
        ("comp_tokens", -1),
        ("completion_tokens", -1),
        ("total_tokens", -1),
        ("total_tokens", 2 * MAX_TOKENS + 1),
        ("cost_usd", -0.01),
        ("cost_usd", 1_000_000.01),
        ("cost_usd", "0.01"),
        ("cost_usd", True),
        ("latency_ms", -1),
        ("latency_ms", 30 * 86_400_000 + 1),
        ("latency_ms", "1240"),
        ("ttft_ms", -0.5),
        ("kind", "other"),
        ("kind", "LLM"),
        ("model", 5),
        ("name", 5),
        ("error", []),
        ("usage", {"web_searches": -1}),
        ("usage", {"web_searches": 1.5}),
        ("usage", []),
        ("attributes", []),
        ("attributes", "a=b"),
        ("attributes", {"deep": {"er": 1}}),
        ("attributes", {"list": [1]}),
        ("attributes", {"": 1}),
        ("attributes", {"tt.x": 1}),
        ("attributes", {"eval.score": 1.5}),
        ("attributes", {"eval.score": -0.1}),
        ("attributes", {"eval.other": 2}),
        ("attributes", {"big": 2**64}),
        ("cache_read_tokens", 2),
        ("reasoning_tokens", 1),
        ("trace_id", "a\nb"),
        ("span_id", "é"),
        ("span_id", "x" * 257),
        ("parent_span_id", "\x7f"),
        ("parent_span_id", 5),
        ("cost_source", "guessed"),
        ("model", ""),
    ],
)
def test_the_error_of_a_bad_value_names_the_span_and_the_field(field: str, value: object) -> None:
    with pytest.raises(Rejected) as caught:
        decode(MINIMAL, {**MINIMAL, field: value})
    message = str(caught.value)
    assert message.startswith("span 1: ")
    assert field in message


def test_an_unknown_field_is_rejected_with_its_name() -> None:
    assert "promt_tokens" in refusal(promt_tokens=5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"5",
        b'"text"',
        b"true",
        b"{",
        b"[",
        b"[{}",
        b"[1]",
        b"[[]]",
        b"{}{}",
        b"[],",
        b"nonsense",
        b'{"model":"gpt-4o","prompt_tokens":1,}',
        b'{"model":"\xff","prompt_tokens":1}',
        b"\x00",
        b'{"model":"gpt-4o","prompt_tokens":1,"latency_ms":NaN}',
        b'{"model":"gpt-4o","prompt_tokens":1,"cost_usd":1e999}',
        b'{"model":"gpt-4o","prompt_tokens":1,"attributes":{"a":1e999}}',
        b"[" * 100_000,
        b'{"attributes":' * 100_000,
        b'{"model":"gpt-4o","prompt_tokens":1,"latency_ms":Infinity}',
    ],
)
def test_a_malformed_body_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected):
        decode_spans(body)


@settings(max_examples=examples(300))
@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_rejected(body: bytes) -> None:
    for text in (body, b'{"model":"a","prompt_tokens":1,"name":"' + body + b'"}', b'[{"attributes":{' + body + b"}}]"):
        try:
            decode_spans(text)
        except Rejected:
            pass


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.sampled_from(["ok", "llm", "tool", "2026-03-15T14:23:01Z", "9999-12-31T23:59:59Z", "priced"]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


FIELDS = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "caller",
    "model",
    "provider",
    "prompt_tokens",
    "comp_tokens",
    "completion_tokens",
    "total_tokens",
    "cost_usd",
    "cost_model",
    "latency_ms",
    "ttft_ms",
    "status",
    "error",
    "error_stack",
    "started_at",
    "ended_at",
    "attributes",
    "session_id",
    "user_id",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "usage",
    "usage_state",
    "pricing_context",
    "service_tier",
    "response_id",
    "scope",
    "cost_source",
    "cost_reason",
    "unpriced_reason",
]


@settings(max_examples=examples(500), deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
@example({"started_at": "9999-12-31T23:59:59Z"})
@example({"ended_at": "2100-01-02T00:00:00Z"})
def test_every_accepted_span_can_be_encoded_and_shown(fields: dict[str, Any]) -> None:
    try:
        [span] = decode_spans(json.dumps({**MINIMAL, **fields}).encode())
    except Rejected:
        return
    assert decode_batches(encode_batches([make_batch(span)])) == [make_batch(span)]
    json.dumps(render_span(span), allow_nan=False)


SECRET = "hunter2-" * 30


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": SECRET},
        {"status": SECRET},
        {"kind": "'".join(["hunter2-" * 4] * 20)},
        {"status": "x'" + SECRET},
        {"started_at": SECRET},
        {"trace_id": SECRET * 2},
        {"trace_id": "\n" + SECRET[:200]},
        {SECRET: 1},
        {"attributes": {SECRET: []}},
        {"attributes": {"tt." + SECRET: 1}},
        {"usage": {SECRET: -1}},
    ],
)
def test_an_error_text_quotes_at_most_40_characters_of_the_input(fields: dict[str, Any]) -> None:
    message = refusal(**fields)
    assert "\n" not in message
    longest = max((size for size in range(len(SECRET)) if (SECRET + SECRET)[:size] in message), default=0)
    assert longest <= 40
    assert message.count("hunter2") <= 5
    assert len(message) < 200


def test_attributes_keep_their_types() -> None:
    attributes = {"s": "x", "i": 5, "f": 5.0, "t": True, "n": False, "zero": 0, "empty": ""}
    kept = decode_one(attributes=attributes).attributes
    assert {key: (type(value), value) for key, value in kept.items()} == {
        key: (type(value), value) for key, value in attributes.items()
    }


@pytest.mark.parametrize(
    ("value", "score"),
    [(0, 0), (1, 10**9), (0.0, 0), (1.0, 10**9), (0.1, 10**8), (0.87, 870_000_000), ("0.9", None), (True, None)],
)
def test_a_numeric_eval_score_becomes_the_score(value: object, score: int | None) -> None:
    span = decode_one(attributes={"eval.score": value})
    assert span.score == score
    assert span.attributes == {"eval.score": value}


def test_an_eval_suite_may_be_a_text() -> None:
    assert decode_one(attributes={"eval.suite": "nightly"}).attributes == {"eval.suite": "nightly"}


def test_session_and_user_may_be_attributes_and_their_fields_win() -> None:
    span = decode_one(attributes={"session_id": "s", "user_id": "u"})
    assert (span.session_id, span.user_id) == ("s", "u")
    span = decode_one(attributes={"session_id": "s", "user_id": "u"}, session_id="S", user_id="U")
    assert (span.session_id, span.user_id) == ("S", "U")
    span = decode_one(attributes={"session_id": "", "user_id": 5})
    assert (span.session_id, span.user_id) == (None, "5")
    assert span.attributes == {"session_id": "", "user_id": 5}


def test_an_empty_parent_id_means_a_root() -> None:
    assert decode_one(parent_span_id="").parent_span_id is None
    assert decode_one(parent_span_id=None).parent_span_id is None
    assert decode_one(parent_span_id="p").parent_span_id == "p"


def test_a_cost_source_that_a_client_sends_is_ignored() -> None:
    span = decode_one(cost_source="priced", unpriced_reason="because")
    assert (span.cost_source, span.unpriced_reason) == ("", "")


def test_one_bad_span_rejects_all_and_is_named_by_its_index_from_zero() -> None:
    for index in range(3):
        documents: list[dict[str, Any]] = [dict(MINIMAL) for _ in range(3)]
        documents[index]["model"] = ""
        with pytest.raises(Rejected, match=rf"^span {index}: model"):
            decode(*documents)
