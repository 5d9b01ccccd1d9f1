"""The span of the documents (SPEC A.1): what is taken, what is refused and how it is shown again."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import ENDED_NS, STARTED_NS, make_batch, make_span
from tokentrace.dialect.docs import decode_spans, render_span
from tokentrace.errors import Rejected
from tokentrace.records import (
    KINDS,
    MAX_COST_NUSD,
    MAX_LATENCY_NS,
    MAX_TOKENS,
    Span,
    check_span,
    decode_batches,
    encode_batches,
)
from tokentrace.units import MS

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


def one(**fields: Any) -> Span:
    """The span that a client means by *fields* over the least it has to send."""
    [span] = decode_spans(json.dumps({**MINIMAL, **fields}).encode())
    return span


def refusal(**fields: Any) -> str:
    with pytest.raises(Rejected) as caught:
        one(**fields)
    assert caught.value.status == 400
    return str(caught.value)


def test_the_documented_example_becomes_our_record():
    [span] = decode(EXAMPLE)
    assert span == make_span(cost_nusd=4_480_000, arrived_ns=0)
    assert span.ended_ns - span.started_ns == span.latency_ns


def test_the_documented_example_is_shown_as_it_came():
    [span] = decode(EXAMPLE)
    assert render_span(span) == {**EXAMPLE, "parent_span_id": None, "kind": "llm"}


def test_one_object_or_an_array_may_be_sent_with_spaces_before_it():
    [span] = decode(EXAMPLE)
    text = json.dumps(EXAMPLE)
    assert decode_spans(f" \r\n\t{text}\n".encode()) == [span]
    assert decode_spans(f" \n[{text},{text}] ".encode()) == [span, span]
    assert decode_spans(b"[]") == []


def test_what_is_left_out_has_its_default():
    assert one() == Span(model="gpt-4o", prompt_tokens=1, total_tokens=1, source="spans")
    assert one().status == "ok"
    assert one().kind == "llm"
    assert one().cost_nusd is None


def test_the_caller_says_which_way_in_it_was():
    assert decode_spans(json.dumps(MINIMAL).encode(), "nats")[0].source == "nats"


def test_the_total_is_computed_when_it_is_not_given():
    assert one(prompt_tokens=512, comp_tokens=128).total_tokens == 640
    assert one(prompt_tokens=512, comp_tokens=128, total_tokens=0).total_tokens == 640
    assert one(prompt_tokens=512, comp_tokens=128, total_tokens=700).total_tokens == 700


def test_only_a_total_may_be_given():
    span = one(prompt_tokens=0, total_tokens=640)
    assert (span.prompt_tokens, span.completion_tokens, span.total_tokens) == (0, 0, 640)


def test_a_total_less_than_its_parts_is_rejected():
    assert refusal(prompt_tokens=512, comp_tokens=128, total_tokens=639).startswith("span 0: total_tokens")


def test_completion_tokens_is_another_name_and_may_not_disagree():
    assert one(completion_tokens=5).completion_tokens == 5
    assert one(comp_tokens=5, completion_tokens=5).completion_tokens == 5
    assert one(comp_tokens=5, completion_tokens=0).completion_tokens == 5
    assert "completion_tokens" in refusal(comp_tokens=5, completion_tokens=6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_taken(kind):
    assert one(kind=kind).kind == kind


@pytest.mark.parametrize("status", ["ok", "error", "timeout"])
def test_every_status_is_taken(status):
    assert one(status=status).status == status


@pytest.mark.parametrize("status", ["foo", "OK", "", "pending", None, 1])
def test_another_status_is_rejected(status):
    assert "status" in refusal(status=status)


def test_a_failed_call_needs_neither_model_nor_tokens():
    assert decode({"status": "error", "error": "boom"})[0].error == "boom"
    assert decode({"status": "timeout"})[0].model == ""


def test_a_cost_of_zero_and_no_cost_are_told_apart():
    assert one(cost_usd=0).cost_nusd == 0
    assert one(cost_usd=None).cost_nusd is None
    assert one().cost_nusd is None


@given(st.floats(0, 1_000_000))
@example(5e-10)
@example(1.5e-9)
@example(0.1)
@example(1_000_000.0)
def test_dollars_are_taken_as_they_are_written(usd):
    want = int((Decimal(repr(usd)) * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    assert one(cost_usd=usd).cost_nusd == want


@given(st.floats(0, 30 * 86_400_000))
@example(0.0000004)
def test_milliseconds_are_taken_as_they_are_written(ms):
    want = int((Decimal(repr(ms)) * 10**6).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    assert one(latency_ms=ms, ttft_ms=ms).latency_ns == want
    assert one(latency_ms=ms, ttft_ms=ms).ttft_ns == want


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
def test_an_instant_may_have_any_offset_and_lies_in_this_century(text, ns):
    assert one(started_at=text).started_ns == ns
    assert one(ended_at=text).ended_ns == ns


@pytest.mark.parametrize(
    "text",
    [
        "1999-12-31T23:59:59.999Z",
        "1969-07-20T20:17:40Z",
        "0001-01-01T00:00:00Z",
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
def test_another_instant_is_rejected(field, text):
    assert field in refusal(**{field: text})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", -1),
        ("prompt_tokens", 1.5),
        ("prompt_tokens", "5"),
        ("prompt_tokens", True),
        ("prompt_tokens", None),
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
        ("model", "x" * 257),
        ("model", 5),
        ("name", "x" * 257),
        ("name", None),
        ("error", "x" * 40_000),
        ("usage", {"web_searches": -1}),
        ("usage", {"web_searches": 1.5}),
        ("usage", []),
        ("attributes", []),
        ("attributes", "a=b"),
        ("attributes", {"deep": {"er": 1}}),
        ("attributes", {"list": [1]}),
        ("attributes", {"null": None}),
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
def test_a_wrong_value_is_rejected_and_its_span_and_field_are_named(field, value):
    with pytest.raises(Rejected) as caught:
        decode(MINIMAL, {**MINIMAL, field: value})
    message = str(caught.value)
    assert message.startswith("span 1: ")
    assert field in message


def test_a_field_that_does_not_exist_is_rejected_by_name():
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
        b"\xef\xbb\xbf[]",
        b"\x00",
        b'{"model":"\\ud800","prompt_tokens":1}',
        b'{"model":"gpt-4o","prompt_tokens":1,"attributes":{"\\udfff":1}}',
        b'{"model":"gpt-4o","prompt_tokens":1,"latency_ms":NaN}',
        b'{"model":"gpt-4o","prompt_tokens":1,"cost_usd":1e999}',
        b'{"model":"gpt-4o","prompt_tokens":1,"attributes":{"a":1e999}}',
        b"[" * 100_000,
        b'{"attributes":' * 100_000,
        b'{"model":"gpt-4o","prompt_tokens":1,"latency_ms":Infinity}',
    ],
)
def test_a_malformed_body_is_rejected(body):
    with pytest.raises(Rejected):
        decode_spans(body)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_any_bytes_are_spans_or_rejected(body):
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
    "cost_source",
    "unpriced_reason",
]


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
@example({"started_at": "9999-12-31T23:59:59Z"})
@example({"ended_at": "2100-01-02T00:00:00Z"})
def test_whatever_is_accepted_can_travel(fields):
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
        {"attributes": {SECRET * 2: 1}},
        {"attributes": {SECRET: []}},
        {"attributes": {"tt." + SECRET: 1}},
        {"usage": {SECRET: -1}},
    ],
)
def test_an_error_text_never_carries_more_than_40_characters_of_what_was_sent(fields):
    message = refusal(**fields)
    assert "\n" not in message
    longest = max((size for size in range(len(SECRET)) if (SECRET + SECRET)[:size] in message), default=0)
    assert longest <= 40
    assert message.count("hunter2") <= 5
    assert len(message) < 200


# --- attributes that mean something ----------------------------------------------------------------------------------


def test_attributes_keep_their_types():
    attributes = {"s": "x", "i": 5, "f": 5.0, "t": True, "n": False, "zero": 0, "empty": ""}
    kept = one(attributes=attributes).attributes
    assert {key: (type(value), value) for key, value in kept.items()} == {
        key: (type(value), value) for key, value in attributes.items()
    }


@pytest.mark.parametrize(
    ("value", "score"),
    [(0, 0), (1, 10**9), (0.0, 0), (1.0, 10**9), (0.1, 10**8), (0.87, 870_000_000), ("0.9", None), (True, None)],
)
def test_eval_score_is_the_score_when_it_is_a_number(value, score):
    span = one(attributes={"eval.score": value})
    assert span.score == score
    assert span.attributes == {"eval.score": value}


def test_a_suite_may_be_a_name():
    assert one(attributes={"eval.suite": "nightly"}).attributes == {"eval.suite": "nightly"}


def test_session_and_user_may_stand_among_the_attributes_and_a_field_of_their_own_wins():
    span = one(attributes={"session_id": "s", "user_id": "u"})
    assert (span.session_id, span.user_id) == ("s", "u")
    span = one(attributes={"session_id": "s", "user_id": "u"}, session_id="S", user_id="U")
    assert (span.session_id, span.user_id) == ("S", "U")
    assert one(attributes={"session_id": "", "user_id": 5}).session_id is None


def test_an_empty_parent_is_no_parent():
    assert one(parent_span_id="").parent_span_id is None
    assert one(parent_span_id=None).parent_span_id is None
    assert one(parent_span_id="p").parent_span_id == "p"


def test_nobody_but_us_says_where_a_cost_comes_from():
    span = one(cost_source="priced", unpriced_reason="because")
    assert (span.cost_source, span.unpriced_reason) == ("", "")


def test_one_bad_span_refuses_all_and_is_counted_from_zero():
    for index in range(3):
        documents: list[dict[str, Any]] = [dict(MINIMAL) for _ in range(3)]
        documents[index]["model"] = ""
        with pytest.raises(Rejected, match=rf"^span {index}: model"):
            decode(*documents)


# --- shown again -----------------------------------------------------------------------------------------------------


def test_a_root_is_shown_with_a_null_parent_and_empty_fields_are_left_out():
    shown = render_span(make_span())
    assert shown["parent_span_id"] is None
    assert shown["cost_usd"] is None
    for absent in ("attributes", "error", "caller", "ttft_ms", "session_id", "usage", "reasoning_tokens", "cost_model"):
        assert absent not in shown


def test_a_cost_of_zero_is_shown_as_zero():
    assert render_span(make_span(cost_nusd=0))["cost_usd"] == 0


ascii_ids = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
names = st.text(max_size=20)
instants = st.integers(946_684_800_000, 4_102_444_800_000).map(lambda ms: ms * MS)
scalars = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
keys = st.text(min_size=1, max_size=20).filter(lambda key: not key.startswith(("tt.", "eval.")))


@st.composite
def valid_spans(draw):
    cached, written, reasoning = (draw(st.integers(0, 2**30)) for _ in range(3))
    prompt = draw(st.integers(max(1, cached + written), 2**39))
    completion = draw(st.integers(reasoning, 2**39))
    return make_span(
        trace_id=draw(ascii_ids),
        span_id=draw(ascii_ids),
        parent_span_id=draw(st.none() | ascii_ids),
        name=draw(names),
        kind=draw(st.sampled_from(KINDS)),
        caller=draw(names),
        model=draw(names.filter(bool)),
        provider=draw(names),
        status=draw(st.sampled_from(["ok", "error", "timeout"])),
        started_ns=draw(instants),
        ended_ns=draw(instants),
        latency_ns=draw(st.integers(0, MAX_LATENCY_NS)),
        ttft_ns=draw(st.integers(0, MAX_LATENCY_NS)),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion + draw(st.sampled_from([0, 0, 7])),
        cost_nusd=draw(st.none() | st.integers(0, MAX_COST_NUSD)),
        attributes=draw(st.dictionaries(keys, scalars, max_size=3)),
        error=draw(names),
        error_stack=draw(names),
        session_id=draw(st.none() | ascii_ids),
        user_id=draw(st.none() | ascii_ids),
        cost_model=draw(names),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)),
        reasoning_tokens=reasoning,
        usage=draw(st.none() | st.dictionaries(names, st.integers(0, 2**40), min_size=1, max_size=2)),
        arrived_ns=ENDED_NS,
        cost_source=draw(st.sampled_from(["", "reported", "priced", "unpriced"])),
        unpriced_reason=draw(names),
    )


@settings(max_examples=150, deadline=None)
@given(valid_spans())
def test_a_span_that_is_shown_reads_back_as_itself(span):
    # Who priced it and when it arrived is ours to say; all else is the client's.
    check_span(span)
    [back] = decode_spans(json.dumps(render_span(span)).encode())
    assert back == replace(span, cost_source="", unpriced_reason="", arrived_ns=0)


@given(instants, st.integers(0, MS - 1))
def test_instants_are_shown_with_milliseconds_and_a_z(instant, below_ms):
    shown = render_span(make_span(started_ns=instant + below_ms, ended_ns=instant))["started_at"]
    assert len(shown) == len("2026-03-15T14:23:01.441Z")
    assert shown.endswith("Z")
    assert datetime.fromisoformat(shown) == datetime.fromisoformat(render_span(make_span(ended_ns=instant))["ended_at"])
