"""The MIST envelope and its span: what Go tools send, and how spans are shown to them."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, STARTED_NS, make_batch, make_span
from kit.examples import examples
from tokentrace.dialect.docs import decode_spans
from tokentrace.dialect.mist import decode_message, render_span
from tokentrace.errors import Rejected
from tokentrace.records import KINDS, Span, decode_batches, encode_batches
from tokentrace.units import DAY, MS

SPAN: dict[str, Any] = {
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331b7ad6b7169203331",
    "operation": "infermux.infer",
    "start_ns": STARTED_NS,
    "end_ns": ENDED_NS,
    "status": "ok",
    "attrs": {
        "provider": "openai",
        "model": "gpt-4o",
        "tokens_in": 512,
        "tokens_out": 128,
        "cost_usd": 0.00448,
        "latency_ms": 1240,
        "finish_reason": "stop",
    },
}


def envelope(payload: Any, **fields: Any) -> bytes:
    message = {
        "version": "1",
        "id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "source": "infermux",
        "type": "trace.span",
        "timestamp_ns": ENDED_NS,
        "payload": payload,
        **fields,
    }
    return json.dumps(message).encode()


def decode_one(*, source: str = "infermux", attrs: Any = None, **fields: Any) -> Span:
    """Decode SPAN with other *fields*, and with *attrs* instead of its attributes unless *attrs* is None."""
    return decode_message(
        envelope({**SPAN, "attrs": SPAN["attrs"] if attrs is None else attrs, **fields}, source=source)
    )


def refusal(body: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode_message(body)
    assert caught.value.status == 400
    return str(caught.value)


def test_a_span_of_infermux_becomes_the_expected_record() -> None:
    assert decode_one() == make_span(
        trace_id=SPAN["trace_id"],
        span_id=SPAN["span_id"],
        name="infermux.infer",
        caller="infermux",
        cost_nusd=4_480_000,
        attributes={"latency_ms": 1240, "finish_reason": "stop"},
        arrived_ns=0,
        source="mist",
    )


def test_a_span_of_infermux_is_shown_as_it_was_sent() -> None:
    assert render_span(decode_one()) == {**SPAN, "attrs": {**SPAN["attrs"], "caller": "infermux"}}


# --- the envelope ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["health.ping", "eval.result", "", "TRACE.SPAN", "trace.span "])
def test_another_type_is_rejected_with_the_error_of_the_go_handler(kind: str) -> None:
    assert refusal(envelope(SPAN, type=kind)) == f"expected type trace.span, got {kind}"


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"null", b"5", b"{", b"\xff", b"\x00", b"[" * 100_000])
def test_a_body_that_is_no_message_is_rejected_with_the_error_of_the_go_handler(body: bytes) -> None:
    assert refusal(body).startswith("invalid message: ")


@pytest.mark.parametrize("payload", [[], 5, "text", True, [SPAN], {"start_ns": "now"}, {"attrs": []}, {"trace_id": 5}])
def test_a_payload_that_is_no_span_is_rejected_with_the_error_of_the_go_handler(payload: object) -> None:
    assert refusal(envelope(payload)).startswith("invalid span payload: ")


@pytest.mark.parametrize("version", ["2", "0", "one", "-1", "1.0"])
def test_another_version_is_rejected(version: str) -> None:
    assert refusal(envelope(SPAN, version=version)).startswith("invalid message: version")


def test_version_id_and_source_may_be_absent() -> None:
    span = decode_message(json.dumps({"type": "trace.span", "payload": SPAN}).encode())
    assert span.caller == ""
    assert span.model == "gpt-4o"


def test_unknown_keys_are_ignored() -> None:
    assert decode_message(envelope({**SPAN, "tracestate": "x"}, priority=1)) == decode_one()


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(SPAN),
        json.dumps(SPAN, separators=(",", ":")),
        json.dumps(SPAN, indent=2),
        '{ "operation" : "infermux.infer" ,\n "attrs" : { "model" : "gpt-4o", "name": "\\u00e9 é" } }',
        "{}",
    ],
)
@pytest.mark.parametrize("around", ["", " ", "\n\t "])
def test_the_checksum_covers_the_bytes_of_the_payload_as_sent(payload: str, around: str) -> None:
    checksum = zlib.crc32(payload.encode())
    body = f'{{"type":"trace.span","payload":{around}{payload}{around},"checksum":%d}}'
    decode_message((body % checksum).encode())
    assert "checksum" in refusal((body % (checksum ^ 1)).encode())


@pytest.mark.parametrize("checksum", [0, None])
def test_a_checksum_of_zero_is_not_checked(checksum: int | None) -> None:
    assert decode_message(envelope(SPAN, checksum=checksum)) == decode_one()


@pytest.mark.parametrize("checksum", [1, -1, 2**32, 2**64])
def test_a_wrong_checksum_is_rejected(checksum: int) -> None:
    assert refusal(envelope(SPAN, checksum=checksum)).startswith("invalid message: ")


# --- the mapping -----------------------------------------------------------------------------------------------------


def test_the_source_is_the_caller_unless_an_attribute_names_one() -> None:
    assert decode_one(source="schemaflux").caller == "schemaflux"
    assert decode_one(attrs={"caller": "worker"}).caller == "worker"
    assert decode_one(attrs={"caller": 5}).caller == "infermux"


@pytest.mark.parametrize(
    ("operation", "attrs", "kind"),
    [
        ("inference", {"model": "gpt-4o"}, "llm"),
        ("inference", {"tokens_in": 0}, "llm"),
        ("inference", {"tokens_out": 5}, "llm"),
        ("infermux.infer", {}, "llm"),
        ("transport.send", {}, "custom"),
        ("transport.send", {"model": ""}, "custom"),
        ("transport.send", {"model": 5, "tokens_in": "5"}, "custom"),
        ("lookup", {"type": "tool"}, "tool"),
        ("lookup", {"type": "tool", "model": "gpt-4o"}, "tool"),
        ("lookup", {"type": "custom", "model": "gpt-4o"}, "custom"),
        ("lookup", {"type": "strange"}, "custom"),
        ("lookup", {"type": 5}, "custom"),
        ("lookup", {"type": ["tool"]}, "custom"),
        ("lookup", {"type": {"a": 1}}, "custom"),
    ],
)
def test_the_kind_follows_from_the_attributes_and_the_operation(
    operation: str, attrs: dict[str, Any], kind: str
) -> None:
    assert decode_one(operation=operation, attrs=attrs).kind == kind


@pytest.mark.parametrize("value", ["5", True, None, [5], {"n": 5}])
@pytest.mark.parametrize("key", ["tokens_in", "tokens_out", "cost_usd", "ttft_ms"])
def test_an_attribute_that_should_be_a_number_and_is_none_stays_an_attribute(key: str, value: object) -> None:
    span = decode_one(attrs={"model": "gpt-4o", key: value})
    assert (span.prompt_tokens, span.completion_tokens, span.cost_nusd, span.ttft_ns) == (0, 0, None, 0)
    assert span.attributes == {key: value}


def test_a_fraction_of_a_token_is_cut_off() -> None:
    span = decode_one(attrs={"tokens_in": 5.9, "tokens_out": 3.0})
    assert (span.prompt_tokens, span.completion_tokens, span.total_tokens) == (5, 3, 8)


def test_a_cost_of_zero_differs_from_no_cost() -> None:
    assert decode_one(attrs={"cost_usd": 0}).cost_nusd == 0
    assert decode_one(attrs={}).cost_nusd is None


@pytest.mark.parametrize(
    ("status", "attrs", "expected", "kept"),
    [
        ("", {}, "ok", {}),
        ("ok", {}, "ok", {}),
        ("error", {}, "error", {}),
        ("timeout", {}, "timeout", {}),
        ("ok", {"timeout": True}, "timeout", {"timeout": True}),
        ("error", {"timeout": True}, "timeout", {"timeout": True}),
        ("ok", {"timeout": "yes"}, "ok", {"timeout": "yes"}),
        ("cancelled", {}, "error", {"mist.status": "cancelled"}),
    ],
)
def test_an_unknown_status_becomes_error_and_stays_as_an_attribute(
    status: str, attrs: dict[str, Any], expected: str, kept: dict[str, Any]
) -> None:
    span = decode_one(status=status, attrs=attrs)
    assert span.status == expected
    assert span.attributes == kept


def test_an_unknown_status_is_shown_as_it_was_sent() -> None:
    assert render_span(decode_one(status="cancelled"))["status"] == "cancelled"


def test_error_session_and_user_are_taken_from_the_attributes() -> None:
    span = decode_one(attrs={"error": "boom", "session_id": "s", "user_id": "u", "ttft_ms": 1.5})
    assert (span.error, span.session_id, span.user_id, span.ttft_ns) == ("boom", "s", "u", 1_500_000)


@pytest.mark.parametrize("value", ["cancelled", "", 5, None, ["error"]])
def test_an_attribute_mist_status_cannot_change_the_status_that_is_shown(value: object) -> None:
    assert render_span(decode_one(status="ok", attrs={"mist.status": value}))["status"] == "ok"


@pytest.mark.parametrize(("operation", "source"), [("matchspec.task", "infermux"), ("eval", "matchspec")])
def test_a_score_of_matchspec_becomes_eval_score(operation: str, source: str) -> None:
    span = decode_one(
        operation=operation, source=source, attrs={"score": 0.87, "suite": "nightly", "task": "t", "passed": True}
    )
    assert span.score == 870_000_000
    assert span.attributes == {"eval.score": 0.87, "eval.suite": "nightly", "task": "t", "passed": True}


@pytest.mark.parametrize("score", [1.5, -0.1, "0.9", True, None])
def test_an_invalid_score_of_matchspec_stays_an_attribute(score: object) -> None:
    span = decode_one(operation="matchspec.task", attrs={"score": score})
    assert span.score is None
    assert span.attributes == {"score": score}


def test_a_score_of_another_tool_stays_an_attribute() -> None:
    span = decode_one(operation="matchspecial", attrs={"score": 0.87, "suite": "nightly"})
    assert span.score is None
    assert span.attributes == {"score": 0.87, "suite": "nightly"}


def test_an_eval_score_wins_over_a_score() -> None:
    span = decode_one(operation="matchspec.task", attrs={"score": 0.1, "eval.score": 0.9})
    assert span.score == 900_000_000
    assert span.attributes == {"score": 0.1, "eval.score": 0.9}


@pytest.mark.parametrize("bad", ["a\nb", "é", "x" * 257, "\x00", ""])
def test_an_invalid_id_is_dropped(bad: str) -> None:
    span = decode_one(trace_id=bad, span_id=bad, parent_id=bad)
    assert (span.trace_id, span.span_id, span.parent_span_id) == ("", "", None)


def test_the_parent_id_is_kept() -> None:
    assert decode_one(parent_id="p").parent_span_id == "p"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (STARTED_NS, ENDED_NS, (STARTED_NS, ENDED_NS, 1240 * MS)),
        (STARTED_NS, STARTED_NS, (STARTED_NS, STARTED_NS, 0)),
        (STARTED_NS, 0, (STARTED_NS, 0, 0)),  # not ended
        (ENDED_NS, STARTED_NS, (STARTED_NS, STARTED_NS, 0)),  # a clock that went back
        (0, ENDED_NS, (ENDED_NS, ENDED_NS, 0)),  # no start
        (1000, 51_000_000, (0, 0, 50_999_000)),  # a clock that starts at zero
        (0, 0, (0, 0, 0)),
        (-5, -3, (0, 0, 2)),
        (2**62, 2**62 + 7, (0, 0, 7)),
        (-(2**63), -(2**63) + 9, (0, 0, 9)),
    ],
)
def test_instants_of_another_century_become_0_not_durations(start: int, end: int, expected: tuple[int, ...]) -> None:
    span = decode_one(start_ns=start, end_ns=end)
    assert (span.started_ns, span.ended_ns, span.latency_ns) == expected


def test_a_call_lasts_at_most_30_days() -> None:
    assert decode_one(start_ns=STARTED_NS, end_ns=STARTED_NS + 30 * DAY).latency_ns == 30 * DAY
    assert "30 days" in refusal(envelope({**SPAN, "end_ns": STARTED_NS + 30 * DAY + 1}))


@pytest.mark.parametrize(
    ("attrs", "field"),
    [
        ({"tokens_in": -1}, "prompt_tokens"),
        ({"tokens_in": 1e300}, "prompt_tokens"),
        ({"tokens_in": 2**70}, "prompt_tokens"),
        ({"tokens_out": -0.5e20}, "completion_tokens"),
        ({"cost_usd": -0.01}, "cost_nusd"),
        ({"cost_usd": 1e7}, "cost_nusd"),
        ({"cost_usd": 1e300}, "cost_nusd"),
        ({"cost_usd": 1.7e308}, "cost_nusd"),
        ({"eval.score": 1.5}, "eval.score"),
        ({"tt.x": 1}, "tt.x"),
        ({"": 1}, "attrs"),
        ({"big": 2**64}, "big"),
    ],
)
def test_the_error_of_a_value_out_of_bounds_names_the_field(attrs: dict[str, Any], field: str) -> None:
    message = refusal(envelope({**SPAN, "attrs": attrs}))
    assert message.startswith("invalid span payload: ")
    assert field in message


def test_attributes_may_nest() -> None:
    attrs = {"choices": [{"index": 0, "logprobs": None}], "meta": {"a": {"b": 1.5}}}
    assert decode_one(attrs=attrs).attributes == attrs


def test_attributes_that_nest_too_deep_are_rejected() -> None:
    deep = b'{"type":"trace.span","payload":{"attrs":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}"
    assert refusal(deep).startswith("invalid ")
    assert "nested" in refusal(envelope({**SPAN, "attrs": {"a": json.loads("[" * 30 + "]" * 30)}}))


@pytest.mark.parametrize("attrs", [None, {}])
def test_a_span_may_have_no_attributes(attrs: dict[str, Any] | None) -> None:
    span = decode_message(envelope({**SPAN, "attrs": attrs}))
    assert span.attributes == {}
    assert span.kind == "llm"


def test_an_empty_object_is_a_span_as_in_the_go_handler() -> None:
    assert decode_message(envelope({})) == Span(kind="custom", caller="infermux", source="mist")


@settings(max_examples=examples(300))
@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_rejected(body: bytes) -> None:
    for text in (body, b'{"type":"trace.span","payload":' + body + b"}", b'{"type":"' + body + b'"}'):
        try:
            decode_message(text)
        except Rejected:
            pass


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(0, 100),
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(0, 1),
        st.text(max_size=5),
        st.sampled_from([*KINDS, "ok", "error", "timeout"]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ATTRS = [
    "model",
    "provider",
    "tokens_in",
    "tokens_out",
    "cost_usd",
    "error",
    "caller",
    "ttft_ms",
    "type",
    "session_id",
    "user_id",
    "timeout",
    "score",
    "suite",
    "eval.score",
    "eval.suite",
    "latency_ms",
    "finish_reason",
    "x",
    "tt.x",
    "",
]
payloads = st.fixed_dictionaries(
    {"attrs": st.none() | st.dictionaries(st.sampled_from(ATTRS), values, max_size=5)},
    optional={
        "trace_id": st.text(max_size=5),
        "span_id": st.text(max_size=5),
        "parent_id": st.text(max_size=5),
        "operation": st.sampled_from(["", "inference", "infermux.infer", "matchspec.task", "x" * 257]),
        "start_ns": st.sampled_from([0, 1, STARTED_NS, 2**62]) | st.integers(-(2**63), 2**63 - 1),
        "end_ns": st.sampled_from([0, 1, STARTED_NS, ENDED_NS, 2**62]) | st.integers(-(2**63), 2**63 - 1),
        "status": st.sampled_from(["", "ok", "error", "timeout", "cancelled"]),
    },
)


@settings(max_examples=examples(500), deadline=None)
@given(payloads, st.sampled_from(["", "infermux", "matchspec"]))
@example({"attrs": {"cost_usd": 1.7e308}}, "")
@example({"attrs": {"ttft_ms": 1.7e308}}, "")
@example({"attrs": {"tokens_in": 1.7e308}}, "")
def test_every_accepted_span_can_be_encoded_and_shown(payload: dict[str, Any], source: str) -> None:
    try:
        span = decode_message(envelope(payload, source=source))
    except Rejected:
        return
    assert decode_batches(encode_batches([make_batch(span)])) == [make_batch(span)]
    json.dumps(render_span(span), allow_nan=False)


SAME = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "caller",
    "model",
    "provider",
    "status",
    "started_ns",
    "ended_ns",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "ttft_ns",
    "score",
    "error",
    "session_id",
    "user_id",
)


def assert_same(back: Span, span: Span) -> None:
    """Check that the fields in SAME are equal, and the costs, of which 0 and None are the same to the Go tools."""
    assert {name: getattr(back, name) for name in SAME} == {name: getattr(span, name) for name in SAME}
    assert (back.cost_nusd or 0) == (span.cost_nusd or 0)


@settings(max_examples=examples(300), deadline=None)
@given(payloads, st.sampled_from(["infermux", "matchspec"]))
@example({"attrs": {"type": "custom", "model": "gpt-4o"}}, "infermux")
@example({"attrs": {"type": "llm"}, "operation": "inference"}, "infermux")
def test_a_shown_mist_span_decodes_to_the_same_span(payload: dict[str, Any], source: str) -> None:
    try:
        span = decode_message(envelope(payload, source=source))
    except Rejected:
        return
    back = decode_message(envelope(render_span(span), source=source))
    assert_same(back, span)
    # An attribute of these names that is not a text is lost: the shown span has the field of the name instead.
    fields = ("caller", "session_id", "user_id")
    without = {key: value for key, value in span.attributes.items() if key not in fields}
    assert {key: value for key, value in back.attributes.items() if key not in fields} == without


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"session_id": "s", "user_id": "u"},
        {"caller": "web", "parent_span_id": "p", "ttft_ms": 12.5, "status": "error", "error": "boom"},
        {"kind": "embedding"},
        {"kind": "tool"},
        {"kind": "custom"},
        {"kind": "llm", "status": "error", "model": "", "prompt_tokens": 0},
        {"attributes": {"eval.score": 0.5, "x": True}},
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_a_documented_span_shown_as_mist_keeps_its_mapped_fields(fields: dict[str, Any]) -> None:
    base = {
        "trace_id": "t",
        "span_id": "s",
        "model": "gpt-4o",
        "provider": "openai",
        "prompt_tokens": 5,
        "cost_usd": 0.5,
        "started_at": "2026-03-15T14:23:01.441Z",
        "ended_at": "2026-03-15T14:23:02.681Z",
        "latency_ms": 1240,
        "name": "summarize",
        "caller": "web",
    }
    [span] = decode_spans(json.dumps({**base, **fields}).encode())
    assert_same(decode_message(envelope(render_span(span), source="")), span)


def test_a_root_is_shown_as_mist_without_a_parent() -> None:
    shown = render_span(make_span(parent_span_id=None))
    assert "parent_id" not in shown
    assert shown["start_ns"] == STARTED_NS
    assert isinstance(shown["end_ns"], int)
