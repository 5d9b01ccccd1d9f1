"""Dead letters: a bad span or message becomes one without secrets, and the other spans of its batch are stored."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_batch
from kit.examples import examples
from kit.raw_messages import (
    ARRIVED_NS,
    MESSAGES,
    bare_span,
    clean_message,
    make_cleaner,
    raw_message,
    stored_spans,
    written,
)
from tokentrace.records import (
    decode_batches,
    encode_batches,
)
from tokentrace.redact import REDACTED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": ""}, "model"),
        ({"trace_id": "line\nbreak"}, "trace_id"),
        ({"span_id": "ünïcode"}, "span_id"),
        ({"prompt_tokens": 0, "completion_tokens": 0}, "prompt_tokens"),
        ({"total_tokens": 3}, "total_tokens"),
        ({"cache_read_tokens": 11}, "cache_read_tokens"),
        ({"reasoning_tokens": 6}, "reasoning_tokens"),
        ({"ended_ns": 5}, "ended_at"),
        ({"attributes": {"": 1}}, "attributes"),
        ({"attributes": {"x": float("nan")}}, "attributes"),
        ({"attributes": {"x": float("inf")}}, "attributes"),
        ({"attributes": {"tt.own": 1}}, "attributes"),
        ({"attributes": {"eval.score": 7}}, "attributes"),
        ({"attributes": {"x": b"bytes"}}, "attributes"),
        ({"attributes": {"x": {1: "integer key"}}}, "attributes"),
        ({"attributes": {"x": {b"k": "bytes key"}}}, "attributes"),
        ({"attributes": {"x": {(1, 2): "tuple key"}}}, "attributes"),
        ({"attributes": {"x": {None: "no key"}}}, "attributes"),
        ({"attributes": {"x": [msgspec.msgpack.Ext(5, b"data")]}}, "attributes"),
        ({"attributes": {"x": [b"bytes", float("nan")]}}, "attributes"),
    ],
    ids=range(20),
)
def test_a_bad_span_becomes_a_dead_letter_and_the_other_spans_stay(fields: dict[str, Any], reason: str) -> None:
    bad = bare_span(**{"name": "bad", "error": "mail jane@example.com, password=hunter2", **fields})
    batch = make_batch(bare_span(name="before"), bad, bare_span(name="after"))
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(encode_batches([batch])))
    assert [span.name for span in stored_spans(cleaned)] == ["before", "after"]
    (dead_letter,) = dead_letters
    assert dead_letter.position == 1
    assert dead_letter.reason.startswith(reason)
    body = json.loads(dead_letter.body)
    assert body["batch"] == f"{batch.id}:1"
    assert body["index"] == 1
    assert b"hunter2" not in dead_letter.body
    assert b"jane@example.com" not in dead_letter.body


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**41},
        {"kind": "spaceship"},
        {"status": "fine"},
        {"name": 5},
        {"error": {}},
        {"attributes": {1: "integer key"}},
        {"attributes": {"deep": [[[[1]]]], 5: "x"}},
        {"latency_ns": -1},
        {"usage": {"searches": -1}},
        {"ended_ns": 2**62},
    ],
    ids=range(11),
)
def test_a_span_that_cannot_be_decoded_becomes_a_dead_letter_with_only_its_digest(
    fields: dict[str, Any],
) -> None:
    bad = bare_span(**{"attributes": {"password": "hunter2"}, **fields})
    payload = encode_batches([make_batch(bare_span(name="before"), bad, bare_span(name="after"))])
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert [span.name for span in stored_spans(cleaned)] == ["before", "after"]
    (dead_letter,) = dead_letters
    assert dead_letter.position == 1
    body = json.loads(dead_letter.body)
    encoded = msgspec.msgpack.encode(bad)
    assert (body["size_bytes"], body["sha256"]) == (len(encoded), hashlib.sha256(encoded).hexdigest())
    assert "span" not in body
    assert b"hunter2" not in dead_letter.body


def test_a_bad_span_that_can_be_decoded_is_shown_redacted() -> None:
    bad = bare_span(model="", name="bad", attributes={"password": "hunter2", "kept": 5}, error="jane@example.com")
    _, (dead_letter,) = clean_message(make_cleaner(), raw_message(encode_batches([make_batch(bad)])))
    shown = json.loads(dead_letter.body)["span"]
    assert shown["name"] == "bad"
    assert shown["attributes"] == {"password": REDACTED, "kept": 5}
    assert "jane" not in shown["error"]


def test_dead_letter_ids_differ_between_spans_and_repeat_when_a_batch_is_cleaned_again() -> None:
    bad = bare_span(model="")
    twice = make_cleaner().clean(make_batch(bad, bad), ARRIVED_NS).dead_letters
    other = make_cleaner().clean(make_batch(bad, sequence=2), ARRIVED_NS).dead_letters
    again = make_cleaner().clean(make_batch(bad, bad), ARRIVED_NS + 5).dead_letters
    assert len({dead_letter.id for dead_letter in [*twice, *other]}) == 3
    assert [dead_letter.id for dead_letter in again] == [dead_letter.id for dead_letter in twice]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"rubbish",
        b"\x93",
        b"\xff" * 100,
        MESSAGES["whole"][:-1],
        MESSAGES["whole"] + b"x",
        b"{",
        b"[",
        b"[}",
        b"{} {}",
        b"  ",
        b'{"prompt_tokens": "many"}',
        b'{"name": "\xff\xfe"}',
        b'"text"',
        b"[" * 100_000,
        encode_batches([make_batch(id="line\nbreak")]),
        encode_batches([make_batch(id="x" * 401)]),
        encode_batches([make_batch(id="")]),
        encode_batches([make_batch(sequence=-1)]),
        b"\x91" * 5000,
        b"\x81" * 5000,
    ],
    ids=range(22),
)
def test_a_message_that_cannot_be_read_is_one_dead_letter_with_its_size_and_digest(payload: bytes) -> None:
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert stored_spans(cleaned) == []
    (dead_letter,) = dead_letters
    body = json.loads(dead_letter.body)
    assert (body["size_bytes"], body["sha256"]) == (len(payload), hashlib.sha256(payload).hexdigest())
    assert len(dead_letter.body) < 1000


@given(st.binary(max_size=200))
@settings(max_examples=examples(300))
def test_any_bytes_become_batches_or_dead_letters(payload: bytes) -> None:
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert cleaned or dead_letters or decode_batches(payload) == []


@given(st.data())
@settings(max_examples=examples(200), deadline=None)
def test_a_damaged_message_always_gives_the_same_bytes(data: st.DataObject) -> None:
    payload = bytearray(MESSAGES["two batches"])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    message = raw_message(bytes(payload))
    first = written(*clean_message(make_cleaner(), message))
    assert written(*clean_message(make_cleaner(), message)) == first


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9) | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _VALUES, max_size=4))
@settings(max_examples=examples(200), deadline=None)
def test_a_span_with_any_attributes_is_stored_or_becomes_a_dead_letter(attributes: dict[str, Any]) -> None:
    payload = encode_batches([make_batch(bare_span(attributes=attributes), bare_span(name="neighbour"))])
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert len(stored_spans(cleaned)) + len(dead_letters) == 2
    assert stored_spans(cleaned)[-1].name == "neighbour"
    for dead_letter in dead_letters:
        json.loads(dead_letter.body)


@pytest.mark.parametrize(
    "fields", [{"attributes": {"": "x", "a@b.io": 1}}, {"trace_id": "jané a@b.io"}, {"attributes": {"tt.a@b.io": 1}}]
)
def test_neither_reason_nor_body_of_a_dead_letter_quotes_a_secret(fields: dict[str, Any]) -> None:
    bad = bare_span(**{"model": "a@b.io", "error": "a@b.io", "cost_model": "a@b.io", **fields})
    _, (dead_letter,) = clean_message(make_cleaner(), raw_message(encode_batches([make_batch(bad)])))
    assert "a@b.io" not in dead_letter.reason
    assert b"a@b.io" not in dead_letter.body
