"""Batches: encoding and decoding, damaged messages, checks of batch ids, and how spans are split over batches."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_batch, make_span
from kit.examples import examples
from tokentrace.errors import Rejected
from tokentrace.records import (
    KINDS,
    MAX_COST_NUSD,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MAX_TOKENS,
    SPAN_FIELDS,
    Batch,
    ChatMessage,
    ReporterStats,
    Score,
    SessionEnd,
    Span,
    Started,
    Tombstone,
    check_batch_id,
    check_span,
    decode_batches,
    encode_batches,
    name_fields,
    salvage_batches,
    split_spans,
)


def wire(span_fields: dict[str, Any], **batch_fields: Any) -> bytes:
    """Return an encoded batch with one span, of which *span_fields* replace some fields without a check."""
    fields = msgspec.to_builtins(make_span())
    for name, value in span_fields.items():
        fields[SPAN_FIELDS.index(name)] = value
    batch = msgspec.to_builtins(make_batch(**batch_fields), builtin_types=(bytes,))
    batch[Batch.__struct_fields__.index("spans")] = [fields]
    return msgspec.msgpack.encode([batch])


text = st.text(max_size=20)
ids = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=20)
instants = st.integers(0, MAX_INSTANT_NS)
tokens = st.integers(0, MAX_TOKENS)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), text
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
spans = st.builds(
    Span,
    trace_id=ids,
    span_id=ids,
    parent_span_id=st.none() | ids,
    name=text,
    kind=st.sampled_from(KINDS),
    caller=text,
    model=text,
    provider=text,
    status=st.sampled_from(["ok", "error", "timeout"]),
    started_ns=instants,
    ended_ns=instants,
    latency_ns=st.integers(0, MAX_LATENCY_NS),
    ttft_ns=st.integers(0, MAX_LATENCY_NS),
    prompt_tokens=tokens,
    completion_tokens=tokens,
    total_tokens=st.integers(0, 2 * MAX_TOKENS),
    cost_nusd=st.none() | st.integers(0, MAX_COST_NUSD),
    score=st.none() | st.integers(0, 10**9),
    attributes=st.dictionaries(text, values, max_size=4),
    error=text,
    arrived_ns=instants,
    session_id=st.none() | ids,
    user_id=st.none() | ids,
    cost_source=st.sampled_from(["", "reported", "priced", "overridden", "partly_priced", "unpriced", "zero_ignored"]),
    cost_model=text,
    unpriced_reason=text,
    cache_read_tokens=tokens,
    cache_write_tokens=tokens,
    cache_write_1h_tokens=tokens,
    reasoning_tokens=tokens,
    usage=st.none() | st.dictionaries(text, tokens, max_size=3),
    error_stack=text,
    source=text,
    usage_state=st.sampled_from(["", "missing", "partial", "estimated", "none"]),
    pricing_context=st.none() | st.dictionaries(text, text, max_size=3),
    response_id=ids,
    scope=text,
)
batches = st.builds(
    Batch,
    id=st.text(min_size=1, max_size=40),
    sequence=st.integers(0, 2**63 - 1),
    part=st.integers(0, 2**20),
    arrived_ns=instants,
    source=text,
    spans=st.lists(spans, max_size=3),
    reporter=st.none()
    | st.builds(ReporterStats, sent=st.integers(0, 2**63 - 1), queue_depth=st.integers(0, 2**63 - 1)),
    started=st.lists(st.builds(Started, trace_id=ids, span_id=ids, metadata=st.dictionaries(text, values)), max_size=2),
    scores=st.lists(
        st.builds(Score, trace_id=ids, span_id=ids, name=text, value=st.none() | st.integers(0, 10**9)), max_size=2
    ),
    messages=st.lists(st.builds(ChatMessage, message_id=ids, session_id=ids, content=text), max_size=2),
    session_ends=st.lists(st.builds(SessionEnd, session_id=ids, ended_ns=instants), max_size=2),
    tombstones=st.lists(
        st.builds(Tombstone, target=st.sampled_from(["trace", "session", "user"]), id=ids, deleted_ns=instants),
        max_size=2,
    ),
    layout=st.integers(0, 2**15),
    identities=st.binary(max_size=40),
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(batches, max_size=2))
def test_encoded_batches_decode_to_equal_batches(many: list[Batch]) -> None:
    assert decode_batches(encode_batches(many)) == many


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_tokens", -1),
        ("prompt_tokens", MAX_TOKENS + 1),
        ("prompt_tokens", 2**64 - 1),
        ("prompt_tokens", 1.5),
        ("prompt_tokens", True),
        ("prompt_tokens", "5"),
        ("completion_tokens", -1),
        ("total_tokens", 2 * MAX_TOKENS + 1),
        ("cost_nusd", -1),
        ("cost_nusd", MAX_COST_NUSD + 1),
        ("cost_nusd", 0.5),
        ("latency_ns", MAX_LATENCY_NS + 1),
        ("latency_ns", -1),
        ("ttft_ns", -1),
        ("started_ns", MAX_INSTANT_NS + 1),
        ("ended_ns", -1),
        ("score", 10**9 + 1),
        ("score", -1),
        ("kind", "LLM"),
        ("kind", "other"),
        ("kind", ""),
        ("status", "foo"),
        ("status", "OK"),
        ("cost_source", "guessed"),
        ("usage_state", "unknown"),
        ("pricing_context", {"service_tier": 1}),
        ("response_id", "x" * 257),
        ("name", 5),
        ("model", 5),
        ("usage", {"web_searches": -1}),
        ("usage", {"web_searches": 0.5}),
        ("attributes", []),
        ("trace_id", 5),
        ("error", 5),
    ],
)
def test_the_reason_why_salvage_drops_an_invalid_value_names_its_field(field: str, value: object) -> None:
    payload = wire({field: value})
    with pytest.raises(Rejected, match=r"^batch: "):
        decode_batches(payload)
    [(batch, bad)] = salvage_batches(payload)
    assert batch.spans == []
    [(index, raw, reason)] = bad
    assert index == 0
    assert msgspec.msgpack.decode(raw)[SPAN_FIELDS.index(field)] == value
    assert reason.startswith(f"{field}: ")
    assert len(reason) < 200


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x00", b"\x80", b"null", b"{}", b"\x91\x90", b"\x91\x91\xa0", b"\x91"]
)
def test_a_message_that_is_not_batches_is_rejected(payload: bytes) -> None:
    for decode in (decode_batches, salvage_batches):
        with pytest.raises(Rejected, match=r"^batch: "):
            decode(payload)


def test_a_message_may_contain_no_batch() -> None:
    assert decode_batches(encode_batches([])) == []


def test_a_message_nested_100_000_levels_deep_is_rejected() -> None:
    payload = wire({"attributes": {"key": "PLACEHOLDER"}}).replace(b"\xabPLACEHOLDER", b"\x91" * 100_000 + b"\xc0")
    for decode in (decode_batches, salvage_batches):
        with pytest.raises(Rejected):
            decode(payload)


PLACEHOLDER = b"\xabPLACEHOLDER"


@pytest.mark.parametrize(
    "inside",
    [
        b"\xa2\xff\xfe",
        b"\xa1\xff",
        b"\x81\xa1\xff\x01",
        b"\x81\x80\x01",
        b"\x81\x90\x01",
        b"\x81\xc0\x01",
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xc7\x0c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xd4\x05\x01",
        b"\xc4\x01\x00",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=[
        "not utf-8",
        "half a character",
        "a key not utf-8",
        "a map as key",
        "a list as key",
        "nil as key",
        "a timestamp",
        "an impossible timestamp",
        "an extension",
        "bytes",
        "a reserved byte",
        "a list said to have 4 billion items",
        "a text said to have 4 GB",
        "a map said to have 4 billion keys",
    ],
)
@pytest.mark.parametrize("field", ["attributes", "name"])
def test_unusual_msgpack_is_rejected_while_decoding_or_checking(field: str, inside: bytes) -> None:
    value = {"key": "PLACEHOLDER"} if field == "attributes" else "PLACEHOLDER"
    payload = wire({field: value}).replace(PLACEHOLDER, inside)
    try:
        [batch] = decode_batches(payload)
    except Rejected:
        return
    with pytest.raises(Rejected):
        check_span(batch.spans[0])


@pytest.mark.parametrize(
    "inside", [b"\xa2\xff\xfe", b"\x81\x80\x01", b"\x81\xa1\xff\x01"], ids=["text", "map key", "key"]
)
def test_an_undecodable_span_leaves_the_other_spans_of_its_batch(inside: bytes) -> None:
    good = make_span(span_id="good")
    payload = encode_batches([make_batch(good, make_span(attributes={"key": "PLACEHOLDER"}), good)])
    [(batch, bad)] = salvage_batches(payload.replace(PLACEHOLDER, inside))
    assert batch.spans == [good, good]
    assert [index for index, _, _ in bad] == [1]


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=60))
@example(b"\x91\x96\xa1a\x01\x00\x00\xa0\x91\x91\xa1\xff")
def test_arbitrary_bytes_decode_or_are_rejected(payload: bytes) -> None:
    for decode in (decode_batches, salvage_batches):
        try:
            decode(payload)
        except Rejected:
            pass


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_a_damaged_message_decodes_or_is_rejected(data: st.DataObject) -> None:
    payload = bytearray(encode_batches([make_batch(make_span(attributes={"a": [1, {"b": "c"}]}, usage={"x": 1}))]))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(payload)))
    for decode in (decode_batches, salvage_batches):
        try:
            decode(bytes(payload[:cut]))
        except Rejected:
            pass


def test_salvage_keeps_the_valid_spans_in_order() -> None:
    first, last = make_span(span_id="first"), make_span(span_id="last")
    payload = encode_batches([make_batch(first, make_span(prompt_tokens=-1), last, sequence=7, part=2)])
    [(batch, bad)] = salvage_batches(payload)
    assert batch == make_batch(first, last, sequence=7, part=2)
    assert [index for index, _, _ in bad] == [1]


def test_salvage_keeps_all_of_a_valid_batch() -> None:
    stats = ReporterStats(sent=10, acked=9, dropped=1, failed=2, queue_depth=3)
    whole = make_batch(make_span(), reporter=stats)
    assert salvage_batches(encode_batches([whole, whole])) == [(whole, []), (whole, [])]


def test_salvage_keeps_valid_records_that_are_not_spans() -> None:
    score = Score(trace_id="t", span_id="s", name="eval.score", value=1)
    others: dict[str, Any] = {
        "started": [Started(trace_id="t", span_id="s")],
        "scores": [score],
        "messages": [ChatMessage(message_id="m", session_id="s", content="hi")],
        "session_ends": [SessionEnd(session_id="s", ended_ns=ENDED_NS)],
        "tombstones": [Tombstone(target="trace", id="t", deleted_ns=ENDED_NS)],
    }
    [(batch, _)] = salvage_batches(encode_batches([make_batch(make_span(prompt_tokens=-1), **others)]))
    assert {name: getattr(batch, name) for name in others} == others


def test_fields_appended_by_a_newer_version_are_ignored() -> None:
    batch = make_batch()
    newer = msgspec.to_builtins(batch, builtin_types=(bytes,))
    newer[5] = [[*newer[5][0], "a field of tomorrow", 5]]
    payload = msgspec.msgpack.encode([[*newer, {"another": 1}]])
    assert decode_batches(payload) == [batch]


def test_an_error_of_the_decoder_names_fields_instead_of_positions() -> None:
    assert name_fields("Expected `int`, got `str` - at `$[13]`") == "prompt_tokens: Expected `int`, got `str`"
    assert name_fields("Expected `int` >= 0 - at `$[30][...]`").startswith("usage: ")
    assert name_fields("Input data was truncated") == "Input data was truncated"
    assert name_fields("odd - at `$[999]`") == "odd - at `$[999]`"
    assert name_fields("odd - at `$[x]`") == "odd - at `$[x]`"


@pytest.mark.parametrize("bad", ["", "a\nb", "\x00", "é", "x" * 401, "a\tb"])
def test_a_batch_id_that_is_empty_too_long_or_not_printable_ascii_is_rejected(bad: str) -> None:
    with pytest.raises(Rejected, match="batch id"):
        check_batch_id(bad)
    assert check_batch_id("x" * 400) == "x" * 400


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_split_spans_keeps_each_span_once_and_always_cuts_at_the_same_places(items: list[int], size: int) -> None:
    spans = [make_span(span_id=str(item)) for item in items]
    pieces = [list(piece) for piece in split_spans(spans, size)]
    assert [span for piece in pieces for span in piece] == spans
    assert all(1 <= len(piece) <= size for piece in pieces)
    assert pieces == [list(piece) for piece in split_spans(spans, size)]
