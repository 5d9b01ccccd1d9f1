"""Spans and batches: what is valid, what survives the wire, and what a broken message can do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_batch, make_span
from tokentrace.errors import Rejected
from tokentrace.records import (
    KINDS,
    MAX_COST_NUSD,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MAX_TOKENS,
    ROLLUP_KINDS,
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
    counts_as_cost,
    decode_batches,
    encode_batches,
    event_time,
    name_fields,
    salvage_batches,
    split_spans,
)
from tokentrace.units import MINUTE

FIVE_MINUTES = 5 * MINUTE


def refusal(span: Span) -> str:
    """Why *span* is refused."""
    with pytest.raises(Rejected) as caught:
        check_span(span)
    assert caught.value.status == 400
    return str(caught.value)


def wire(span_fields: dict[str, Any], **batch_fields: Any) -> bytes:
    """A message with one span whose fields nobody has checked."""
    fields = msgspec.to_builtins(make_span())
    for name, value in span_fields.items():
        fields[SPAN_FIELDS.index(name)] = value
    batch = msgspec.to_builtins(make_batch(**batch_fields))
    batch[Batch.__struct_fields__.index("spans")] = [fields]
    return msgspec.msgpack.encode([batch])


# --- what a span must be ---------------------------------------------------------------------------------------------


def test_the_default_span_of_the_builder_is_valid():
    check_span(make_span())


@pytest.mark.parametrize("kind", ["llm", "embedding"])
def test_a_call_to_a_model_that_went_well_names_its_model(kind):
    assert refusal(make_span(kind=kind, model="")).startswith("model:")


@pytest.mark.parametrize("kind", ["llm", "embedding"])
def test_a_call_to_a_model_that_went_well_has_tokens(kind):
    message = refusal(make_span(kind=kind, prompt_tokens=0, completion_tokens=0))
    assert "prompt_tokens" in message
    assert "comp_tokens" in message
    assert "total_tokens" in message


@pytest.mark.parametrize(
    "tokens", [{"prompt_tokens": 1}, {"completion_tokens": 1}, {"total_tokens": 1}, {"usage": {"web_searches": 1}}]
)
def test_one_count_of_any_sort_is_enough(tokens):
    check_span(make_span(**{"prompt_tokens": 0, "completion_tokens": 0, **tokens}))


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_failed_call_needs_neither_model_nor_tokens(status):
    check_span(make_span(status=status, model="", prompt_tokens=0, completion_tokens=0))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"llm", "embedding"}))
def test_other_kinds_need_neither_model_nor_tokens(kind):
    check_span(make_span(kind=kind, model="", prompt_tokens=0, completion_tokens=0))


def test_a_mist_tool_may_leave_out_what_it_does_not_know():
    check_span(make_span(source="mist", model="", prompt_tokens=0, completion_tokens=0))


@pytest.mark.parametrize("field", ["trace_id", "span_id", "parent_span_id"])
@pytest.mark.parametrize(
    "bad", ["a\nb", "a\r", "\x00", "\x7f", "\x1b[31m", "é", "a\u2028b", "\u202eabc", "x" * 257, "١", "\u00a0"]
)
def test_an_id_that_could_forge_a_line_of_a_log_is_rejected(field, bad):
    message = refusal(make_span(**{field: bad}))
    assert message.startswith(field)
    assert message.replace("…", "").isascii()
    assert message.isprintable()
    assert len(message) < 150


@pytest.mark.parametrize("field", ["trace_id", "span_id", "parent_span_id"])
def test_an_id_is_1_to_256_printable_ascii_characters(field):
    check_span(make_span(**{field: "x" * 256}))
    check_span(make_span(**{field: "".join(map(chr, range(32, 127)))}))


def test_ids_may_be_missing_but_a_parent_may_not_be_empty():
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
def test_a_part_is_never_more_than_its_whole(prompt, completion, parts, field):
    assert field in refusal(make_span(prompt_tokens=prompt, completion_tokens=completion, **parts))


def test_a_part_may_be_all_of_its_whole():
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


def test_a_total_may_exceed_its_parts_but_never_fall_short():
    check_span(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=15))
    check_span(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=20))
    assert refusal(make_span(prompt_tokens=10, completion_tokens=5, total_tokens=14)).startswith("total_tokens")


@pytest.mark.parametrize("field", ["started_ns", "ended_ns"])
def test_the_calendar_starts_in_2000(field):
    year_2000 = 946_684_800_000_000_000
    check_span(make_span(**{field: year_2000}))
    assert "2000" in refusal(make_span(**{field: year_2000 - 1}))
    assert "2000" in refusal(make_span(**{field: 1}))


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", "", 5, -5, 2**64 - 1, -(2**63), 0.5, True, False, None, [1, {"a": [2]}], {}])
def test_an_attribute_is_a_string_a_number_a_bool_or_made_of_them(value):
    check_span(make_span(attributes={"key": value}))


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), 2**64, -(2**63) - 1, b"bytes", ("tuple",), {1, 2}, object()],
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"deep": [value]}])
def test_what_json_cannot_say_is_no_attribute_at_any_depth(value, wrap):
    assert refusal(make_span(attributes={"key": wrap(value)})).startswith("attributes: 'key'")


@pytest.mark.parametrize("attributes", [{"": 1}, {"": "x", "a": 1}])
def test_an_attribute_has_a_name(attributes):
    assert refusal(make_span(attributes=attributes)) == "attributes: a key is empty"


@pytest.mark.parametrize("attributes", [{1: "x"}, {None: "x"}, {b"a": "x"}, {"a": {1: 2}}, {"a": [{None: 1}]}])
def test_a_key_is_a_string_at_any_depth(attributes):
    assert "not a string" in refusal(make_span(attributes=attributes))


@pytest.mark.parametrize("key", ["tt.internal", "tt.", "tt.x"])
def test_our_own_prefix_is_not_for_users(key):
    assert "reserved" in refusal(make_span(attributes={key: 1}))


@pytest.mark.parametrize("key", ["tt", "ttx", "TT.x", "budget.left_usd", "x.tt.y"])
def test_other_prefixes_are_ordinary(key):
    check_span(make_span(attributes={key: 1}))


@pytest.mark.parametrize("value", [1.5, -0.1, 2, -1, 1.0000000001])
@pytest.mark.parametrize("key", ["eval.score", "eval.coherence", "eval."])
def test_a_numeric_score_lies_between_0_and_1(key, value):
    assert key in refusal(make_span(attributes={key: value}))


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.5, "nightly", "1.5", True, None])
def test_a_score_may_be_either_end_and_a_suite_is_a_name(value):
    check_span(make_span(attributes={"eval.suite": value}))


def test_there_are_at_most_128_attributes():
    check_span(make_span(attributes={f"k{index}": index for index in range(128)}))
    assert "129" in refusal(make_span(attributes={f"k{index}": index for index in range(129)}))


def test_a_key_is_measured_in_bytes_and_so_is_a_value():
    check_span(make_span(attributes={"é" * 128: "é" * (16 * 1024)}))
    assert "256 bytes" in refusal(make_span(attributes={"é" * 128 + "x": 1}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": "é" * (16 * 1024) + "x"}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": "x" * (32 * 1024 + 1)}))
    assert "32768 bytes" in refusal(make_span(attributes={"key": ["x" * 1024] * 33}))


def test_an_attribute_nests_16_levels_and_not_1000():
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
def test_text_that_no_wire_can_carry_is_rejected(attributes):
    # Python reads undecodable file names and environment variables as lone surrogates.
    assert refusal(make_span(attributes=attributes)).startswith("attributes")


def test_a_refused_attribute_is_named_but_never_quoted_at_length():
    assert len(refusal(make_span(attributes={"k" * 300: "v"}))) < 150
    assert len(refusal(make_span(attributes={"eval." + "k" * 200: 10**4000}))) < 200
    assert "hunter2" not in refusal(make_span(attributes={"key": "hunter2" * 10_000}))


# --- money and time --------------------------------------------------------------------------------------------------


def test_money_of_a_roll_up_is_never_added():
    assert {kind for kind in KINDS if not counts_as_cost(kind)} == {"http", "agent", "workflow", "chain"}
    assert set(KINDS) >= ROLLUP_KINDS


def test_a_span_counts_when_it_ended():
    assert event_time(make_span(ended_ns=ENDED_NS, arrived_ns=ENDED_NS + 10**15)) == ENDED_NS


def test_a_clock_may_run_ahead_by_five_minutes_and_no_more():
    ahead = ENDED_NS + FIVE_MINUTES
    assert event_time(make_span(ended_ns=ahead, arrived_ns=ENDED_NS)) == ahead
    assert event_time(make_span(ended_ns=ahead + 1, arrived_ns=ENDED_NS)) == ENDED_NS


# --- the wire --------------------------------------------------------------------------------------------------------

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
)


@settings(max_examples=60, deadline=None)
@given(st.lists(batches, max_size=2))
def test_what_was_encoded_decodes_to_itself(many):
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
        ("prompt_tokens", None),
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
        ("name", "x" * 257),
        ("model", 5),
        ("usage", {"web_searches": -1}),
        ("usage", {"web_searches": 0.5}),
        ("attributes", None),
        ("attributes", []),
        ("trace_id", None),
        ("error", "x" * 40_000),
    ],
)
def test_a_value_out_of_bounds_is_rejected_and_its_field_is_named(field, value):
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
def test_what_is_no_batch_is_rejected(payload):
    for decode in (decode_batches, salvage_batches):
        with pytest.raises(Rejected, match=r"^batch: "):
            decode(payload)


def test_a_message_may_carry_no_batch():
    assert decode_batches(encode_batches([])) == []


def test_an_endlessly_nested_message_is_rejected():
    payload = wire({"attributes": {"key": "PLACEHOLDER"}}).replace(b"\xabPLACEHOLDER", b"\x91" * 100_000 + b"\xc0")
    for decode in (decode_batches, salvage_batches):
        with pytest.raises(Rejected):
            decode(payload)


PLACE = b"\xabPLACEHOLDER"


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
        "4 billion items",
        "4 GB of text",
        "4 billion keys",
    ],
)
@pytest.mark.parametrize("field", ["attributes", "name"])
def test_strange_msgpack_is_rejected_or_refused_by_the_check_and_never_crashes(field, inside):
    value = {"key": "PLACEHOLDER"} if field == "attributes" else "PLACEHOLDER"
    payload = wire({field: value}).replace(PLACE, inside)
    try:
        [batch] = decode_batches(payload)
    except Rejected:
        return
    with pytest.raises(Rejected):
        check_span(batch.spans[0])


@pytest.mark.parametrize(
    "inside", [b"\xa2\xff\xfe", b"\x81\x80\x01", b"\x81\xa1\xff\x01"], ids=["text", "map key", "key"]
)
def test_a_span_that_cannot_be_read_does_not_take_its_neighbours_along(inside):
    good = make_span(span_id="good")
    payload = encode_batches([make_batch(good, make_span(attributes={"key": "PLACEHOLDER"}), good)])
    [(batch, bad)] = salvage_batches(payload.replace(PLACE, inside))
    assert batch.spans == [good, good]
    assert [index for index, _, _ in bad] == [1]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
@example(b"\x91\x96\xa1a\x01\x00\x00\xa0\x91\x91\xa1\xff")
def test_any_bytes_are_batches_or_rejected(payload):
    for decode in (decode_batches, salvage_batches):
        try:
            decode(payload)
        except Rejected:
            pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_message_damaged_on_the_way_is_batches_or_rejected(data):
    payload = bytearray(encode_batches([make_batch(make_span(attributes={"a": [1, {"b": "c"}]}, usage={"x": 1}))]))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(payload)))
    for decode in (decode_batches, salvage_batches):
        try:
            decode(bytes(payload[:cut]))
        except Rejected:
            pass


def test_good_spans_survive_a_bad_one_in_their_order():
    first, last = make_span(span_id="first"), make_span(span_id="last")
    payload = encode_batches([make_batch(first, make_span(prompt_tokens=-1), last, sequence=7, part=2)])
    [(batch, bad)] = salvage_batches(payload)
    assert batch == make_batch(first, last, sequence=7, part=2)
    assert [index for index, _, _ in bad] == [1]


def test_a_batch_without_a_bad_span_is_salvaged_whole():
    stats = ReporterStats(sent=10, acked=9, dropped=1, failed=2, queue_depth=3)
    whole = make_batch(make_span(), reporter=stats)
    assert salvage_batches(encode_batches([whole, whole])) == [(whole, []), (whole, [])]


def test_the_other_records_of_a_batch_survive_a_bad_span():
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


def test_a_newer_writer_may_append_fields():
    batch = make_batch()
    newer = msgspec.to_builtins(batch)
    newer[5] = [[*newer[5][0], "a field of tomorrow", 5]]
    payload = msgspec.msgpack.encode([[*newer, {"another": 1}]])
    assert decode_batches(payload) == [batch]


def test_an_error_of_a_decoder_speaks_of_fields_and_not_of_positions():
    assert name_fields("Expected `int`, got `str` - at `$[13]`") == "prompt_tokens: Expected `int`, got `str`"
    assert name_fields("Expected `int` >= 0 - at `$[30][...]`").startswith("usage: ")
    assert name_fields("Input data was truncated") == "Input data was truncated"
    assert name_fields("odd - at `$[999]`") == "odd - at `$[999]`"
    assert name_fields("odd - at `$[x]`") == "odd - at `$[x]`"


@pytest.mark.parametrize("bad", ["", "a\nb", "\x00", "é", "x" * 401, "a\tb"])
def test_a_batch_id_can_stand_in_a_header_and_a_log(bad):
    with pytest.raises(Rejected, match="batch id"):
        check_batch_id(bad)
    assert check_batch_id("x" * 400) == "x" * 400


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_a_split_loses_nothing_repeats_nothing_and_is_the_same_every_time(items, size):
    pieces = [list(piece) for piece in split_spans(items, size)]  # type: ignore[type-var]
    assert [item for piece in pieces for item in piece] == items
    assert all(1 <= len(piece) <= size for piece in pieces)
    assert pieces == [list(piece) for piece in split_spans(items, size)]  # type: ignore[type-var]
