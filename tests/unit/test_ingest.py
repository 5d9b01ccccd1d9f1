"""What ingest makes of a message is a function of the message; what it has committed is in the stream."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_batch, make_span
from tokentrace.bus import Message, subjects
from tokentrace.bus.memory import MAX_PAYLOAD, MemoryBroker, MemoryBus
from tokentrace.errors import Rejected, Unavailable
from tokentrace.pricing import Pricer
from tokentrace.records import (
    Annotation,
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
    shard_of,
)
from tokentrace.redact import EMAIL_REDACTED, REDACTED, Redactor
from tokentrace_ingest.cleaning import Cleaned, Cleaner, is_json
from tokentrace_ingest.dead_letters import DeadLetter
from tokentrace_ingest.group_commit import GroupCommit

ARRIVED_NS = 1_773_600_000_000_000_000
CREATED_NS = 1_773_500_000_000_000_000


def make_cleaner() -> Cleaner:
    return Cleaner(Redactor(), Pricer())


def message(payload: bytes, *, sequence: int = 7, id: str = "") -> Message:
    headers = {"Nats-Msg-Id": id} if id else {}
    return Message("tokentrace.raw.default.0", payload, sequence, ARRIVED_NS, headers)


def take_in(cleaner: Cleaner, got: Message) -> tuple[list[Cleaned], list[DeadLetter]]:
    """As the hop does it."""
    batches, letters = cleaner.read(got, CREATED_NS)
    size, checked = len(got.payload), is_json(got.payload)
    cleaned = [cleaner.clean(batch, got.time_ns, size, checked=checked) for batch in batches]
    return cleaned, [*letters, *(letter for one in cleaned for letter in one.dead_letters)]


def written(cleaned: list[Cleaned], letters: list[DeadLetter]) -> bytes:
    """Everything that is stored, as bytes."""
    parts = b"".join(encode_batches([part]) for one in cleaned for part in one.parts)
    return parts + b"".join(letter.id.encode() + letter.body for letter in letters)


def stored_spans(cleaned: list[Cleaned]) -> list[Span]:
    return [span for one in cleaned for part in one.parts for span in part.spans]


def bare_span(**fields: Any) -> Span:
    """A span whose reporter left everything out that ingest can fill in."""
    return Span(**{"model": "gpt-4o", "provider": "openai", "prompt_tokens": 10, "completion_tokens": 5, **fields})


MESSAGES = {
    "whole": encode_batches([make_batch()]),
    "bare": encode_batches([make_batch(*[bare_span(name=f"n{index}") for index in range(300)])]),
    "two batches": encode_batches([make_batch(bare_span(), id="a.b.1"), make_batch(bare_span(), id="a.b.2")]),
    "bad neighbours": encode_batches([make_batch(bare_span(), bare_span(model=""), bare_span(prompt_tokens=-1))]),
    "secrets": encode_batches([make_batch(bare_span(attributes={"password": "hunter2"}, error="jane@example.com"))]),
    "json": b'[{"model": "gpt-4o", "prompt_tokens": 1}, {"kind": "tool", "name": "x"}]',
    "bad json": b'[{"model": "gpt-4o", "prompt_tokens": 1}, {"prompt_tokens": -1}, 5]',
    "rubbish": b"\xc1\xff\x00rubbish",
    "empty": b"",
}


# -- redelivery


@pytest.mark.parametrize("payload", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_redelivered_message_makes_the_same_bytes(payload: bytes) -> None:
    first = written(*take_in(make_cleaner(), message(payload)))
    cleaner = make_cleaner()
    take_in(cleaner, message(MESSAGES["bare"]))  # another replica that has seen other things before
    assert written(*take_in(cleaner, message(payload))) == first
    assert written(*take_in(cleaner, message(payload))) == first


def test_what_the_sender_filled_in_stays_and_the_rest_follows_from_the_message() -> None:
    cleaner = make_cleaner()
    batch = make_batch(
        bare_span(),
        bare_span(trace_id="given"),
        bare_span(span_id="given"),
        bare_span(trace_id="t", span_id="s", caller="me", started_ns=ARRIVED_NS - 9, ended_ns=ARRIVED_NS - 4),
        source="web",
    )
    (part,) = cleaner.clean(batch, ARRIVED_NS).parts
    key = f"{batch.id}:{batch.sequence}"
    digests = [hashlib.sha256(f"{key}:{index}".encode()).hexdigest() for index in range(4)]
    ids = [(span.trace_id, span.span_id) for span in part.spans]
    assert ids == [
        (digests[0][:32], digests[0][32:]),
        ("given", digests[1][32:]),
        (digests[2][:32], "given"),
        ("t", "s"),
    ]
    assert [span.caller for span in part.spans] == ["web", "web", "web", "me"]
    assert {span.arrived_ns for span in part.spans} == {ARRIVED_NS}
    assert part.spans[0].total_tokens == 15
    assert (part.spans[3].started_ns, part.spans[3].ended_ns) == (ARRIVED_NS - 9, ARRIVED_NS - 4)


@pytest.mark.parametrize(
    ("given_times", "wanted"),
    [
        ((0, 0, 0), (ARRIVED_NS, ARRIVED_NS)),
        ((0, 0, 50), (ARRIVED_NS - 50, ARRIVED_NS)),
        ((ARRIVED_NS - 90, 0, 50), (ARRIVED_NS - 90, ARRIVED_NS - 40)),
        ((0, ARRIVED_NS - 10, 50), (ARRIVED_NS - 60, ARRIVED_NS - 10)),
        ((ARRIVED_NS - 90, ARRIVED_NS - 10, 50), (ARRIVED_NS - 90, ARRIVED_NS - 10)),
    ],
)
def test_missing_times_follow_from_those_that_are_there(
    given_times: tuple[int, int, int], wanted: tuple[int, int]
) -> None:
    started, ended, latency = given_times
    span = make_cleaner().finish(
        bare_span(started_ns=started, ended_ns=ended, latency_ns=latency), "key", 0, ARRIVED_NS
    )
    assert (span.started_ns, span.ended_ns) == wanted


@given(st.integers(0, MESSAGES.__len__() - 1), st.integers(1, 50))
@settings(max_examples=20)
def test_ids_of_different_batches_never_meet(number: int, others: int) -> None:
    cleaner = make_cleaner()
    seen: Counter[tuple[str, str]] = Counter()
    for sequence in range(1, others + 1):
        batch = make_batch(bare_span(), bare_span(), sequence=sequence, id=f"r.{number}")
        seen.update((span.trace_id, span.span_id) for span in cleaner.clean(batch, ARRIVED_NS).parts[0].spans)
    assert max(seen.values()) == 1


@pytest.mark.parametrize("name", ["bare", "bad neighbours", "json", "secrets"])
def test_what_is_stored_can_be_read_and_is_valid(name: str) -> None:
    cleaned, letters = take_in(make_cleaner(), message(MESSAGES[name]))
    for one in cleaned:
        assert one.spans == sum(len(part.spans) for part in one.parts)
        for part in one.parts:
            (again,) = decode_batches(encode_batches([part]))
            assert again == part
            check_batch_id(part.id)
            for span in part.spans:
                check_span(span)
                assert span.trace_id
                assert span.span_id
                assert span.started_ns
                assert span.ended_ns
                assert span.cost_source or span.kind == "tool"
    for letter in letters:
        assert json.loads(letter.body)["reason"] == letter.reason


# -- splitting


@pytest.mark.parametrize(
    ("count", "size", "runs"),
    [
        (0, 0, [0]),
        (1, 0, [1]),
        (256, 0, [256]),
        (256, 512 * 1024, [256]),
        (257, 0, [64, 64, 64, 64, 1]),
        (320, 0, [64] * 5),
        (100, 512 * 1024 + 1, [64, 36]),
        (64, 512 * 1024 + 1, [64]),
    ],
)
def test_a_large_batch_is_cut_by_index_in_runs_of_64(count: int, size: int, runs: list[int]) -> None:
    account = ReporterStats(sent=5)
    batch = make_batch(reporter=account)
    batch = replace(batch, spans=[bare_span(name=f"n{index}") for index in range(count)])
    cleaned = make_cleaner().clean(batch, ARRIVED_NS, size)
    assert [len(part.spans) for part in cleaned.parts] == runs
    assert [part.part for part in cleaned.parts] == list(range(len(runs)))
    assert [span.name for part in cleaned.parts for span in part.spans] == [f"n{index}" for index in range(count)]
    assert {(part.id, part.sequence, part.arrived_ns) for part in cleaned.parts} == {
        (batch.id, batch.sequence, ARRIVED_NS)
    }
    # What is not a span travels once.
    assert [part.reporter for part in cleaned.parts] == [account, *[None] * (len(runs) - 1)]


@given(st.sets(st.integers(0, 319), max_size=320))
@settings(max_examples=30, deadline=None)
def test_a_bad_span_moves_no_other_into_another_part(bad: set[int]) -> None:
    spans = [bare_span(name=f"n{index}", model="" if index in bad else "gpt-4o") for index in range(320)]
    cleaned = make_cleaner().clean(make_batch(*spans), ARRIVED_NS)
    for part in cleaned.parts:
        assert all(int(span.name[1:]) // 64 == part.part for span in part.spans)
    assert [span.name for part in cleaned.parts for span in part.spans] == [
        f"n{index}" for index in range(320) if index not in bad
    ]
    assert [letter.position for letter in cleaned.dead_letters] == sorted(bad)
    assert cleaned.spans == 320 - len(bad)
    assert cleaned.parts[0].part == 0
    assert len({part.part for part in cleaned.parts}) == len(cleaned.parts)
    # Ids follow the place in the raw batch, whatever its neighbours are.
    key = "shop.web.0123456789abcdef0123456789abcdef:1"
    for part in cleaned.parts:
        for span in part.spans:
            assert span.trace_id == hashlib.sha256(f"{key}:{span.name[1:]}".encode()).hexdigest()[:32]


# -- dead letters


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
        ({"attributes": {"x": "v" * 40_000}}, "attributes"),
        ({"attributes": {f"k{index}": 1 for index in range(200)}}, "attributes"),
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
    ids=range(22),
)
def test_a_bad_span_becomes_a_letter_and_its_neighbours_stay(fields: dict[str, Any], reason: str) -> None:
    bad = bare_span(**{"name": "bad", "error": "mail jane@example.com, password=hunter2", **fields})
    batch = make_batch(bare_span(name="before"), bad, bare_span(name="after"))
    cleaned, letters = take_in(make_cleaner(), message(encode_batches([batch])))
    assert [span.name for span in stored_spans(cleaned)] == ["before", "after"]
    (letter,) = letters
    assert letter.position == 1
    assert letter.reason.startswith(reason)
    body = json.loads(letter.body)
    assert body["batch"] == f"{batch.id}:1"
    assert body["index"] == 1
    assert b"hunter2" not in letter.body
    assert b"jane@example.com" not in letter.body


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**41},
        {"kind": "spaceship"},
        {"status": "fine"},
        {"name": "n" * 257},
        {"error": "e" * 40_000},
        {"attributes": {1: "integer key"}},
        {"attributes": {"deep": [[[[1]]]], 5: "x"}},
        {"latency_ns": -1},
        {"usage": {"searches": -1}},
        {"ended_ns": 2**62},
    ],
    ids=range(11),
)
def test_a_span_that_cannot_even_be_read_leaves_its_neighbours_and_shows_only_its_digest(
    fields: dict[str, Any],
) -> None:
    bad = bare_span(**{"attributes": {"password": "hunter2"}, **fields})
    payload = encode_batches([make_batch(bare_span(name="before"), bad, bare_span(name="after"))])
    cleaned, letters = take_in(make_cleaner(), message(payload))
    assert [span.name for span in stored_spans(cleaned)] == ["before", "after"]
    (letter,) = letters
    assert letter.position == 1
    body = json.loads(letter.body)
    encoded = msgspec.msgpack.encode(bad)
    assert (body["size_bytes"], body["sha256"]) == (len(encoded), hashlib.sha256(encoded).hexdigest())
    assert "span" not in body
    assert b"hunter2" not in letter.body


def test_a_readable_bad_span_is_shown_redacted_in_its_letter() -> None:
    bad = bare_span(model="", name="bad", attributes={"password": "hunter2", "kept": 5}, error="jane@example.com")
    _, (letter,) = take_in(make_cleaner(), message(encode_batches([make_batch(bad)])))
    shown = json.loads(letter.body)["span"]
    assert shown["name"] == "bad"
    assert shown["attributes"] == {"password": REDACTED, "kept": 5}
    assert "jane" not in shown["error"]


def test_letters_of_different_spans_differ_and_of_the_same_span_do_not() -> None:
    bad = bare_span(model="")
    twice = make_cleaner().clean(make_batch(bad, bad), ARRIVED_NS).dead_letters
    other = make_cleaner().clean(make_batch(bad, sequence=2), ARRIVED_NS).dead_letters
    again = make_cleaner().clean(make_batch(bad, bad), ARRIVED_NS + 5).dead_letters
    assert len({letter.id for letter in [*twice, *other]}) == 3
    assert [letter.id for letter in again] == [letter.id for letter in twice]


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
def test_a_message_that_nobody_can_read_is_one_letter_without_its_bytes(payload: bytes) -> None:
    cleaned, letters = take_in(make_cleaner(), message(payload))
    assert stored_spans(cleaned) == []
    (letter,) = letters
    body = json.loads(letter.body)
    assert (body["size_bytes"], body["sha256"]) == (len(payload), hashlib.sha256(payload).hexdigest())
    assert len(letter.body) < 1000


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_whatever_make_ingest_fail(payload: bytes) -> None:
    cleaned, letters = take_in(make_cleaner(), message(payload))
    assert cleaned or letters or decode_batches(payload) == []


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_never_makes_ingest_fail(data: st.DataObject) -> None:
    payload = bytearray(MESSAGES["two batches"])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    got = message(bytes(payload))
    first = written(*take_in(make_cleaner(), got))
    assert written(*take_in(make_cleaner(), got)) == first


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9) | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), _VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_attributes_whatever_make_ingest_fail(attributes: dict[str, Any]) -> None:
    payload = encode_batches([make_batch(bare_span(attributes=attributes), bare_span(name="neighbour"))])
    cleaned, letters = take_in(make_cleaner(), message(payload))
    assert len(stored_spans(cleaned)) + len(letters) == 2
    assert stored_spans(cleaned)[-1].name == "neighbour"
    for letter in letters:
        json.loads(letter.body)


@pytest.mark.parametrize(
    "fields", [{"attributes": {"": "x", "a@b.io": 1}}, {"trace_id": "jané a@b.io"}, {"attributes": {"tt.a@b.io": 1}}]
)
def test_not_even_the_reason_of_a_letter_quotes_a_secret(fields: dict[str, Any]) -> None:
    bad = bare_span(**{"model": "a@b.io", "error": "a@b.io", "cost_model": "a@b.io", **fields})
    _, (letter,) = take_in(make_cleaner(), message(encode_batches([make_batch(bad)])))
    assert "a@b.io" not in letter.reason
    assert b"a@b.io" not in letter.body


# -- what a batch carries besides spans

GOOD: dict[str, Any] = {
    "started": Started(trace_id="t", span_id="s", name="begin"),
    "messages": ChatMessage(message_id="m", session_id="s", content="hello"),
    "annotations": Annotation(trace_id="t", span_id="s", attributes={"note": "fine"}),
    "session_ends": SessionEnd(session_id="s", ended_ns=0, error="lost"),
}
DEEP: Any = {"x": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}


def test_every_record_of_a_batch_is_cleaned_and_completed() -> None:
    batch = make_batch(
        source="jane@example.com",
        started=[Started(trace_id="t", span_id="s", name="mail a@b.io", metadata={"password": "hunter2"})],
        messages=[
            ChatMessage(message_id="m", session_id="s", content="I am a@b.io", metadata={"deep": [{"token": "x"}]})
        ],
        annotations=[Annotation(trace_id="t", span_id="s", attributes={"a@b.io": "password=hunter2"})],
        session_ends=[SessionEnd(session_id="s", ended_ns=0, error="a@b.io is gone")],
    )
    (cleaned,), letters = take_in(make_cleaner(), message(encode_batches([batch])))
    (part,) = cleaned.parts
    assert letters == []
    assert part.source == EMAIL_REDACTED
    assert part.spans[0].caller == EMAIL_REDACTED
    (started,), (said,) = part.started, part.messages
    assert (started.name, started.metadata) == (f"mail {EMAIL_REDACTED}", {"password": REDACTED})
    assert (started.started_ns, started.arrived_ns, started.caller) == (ARRIVED_NS, ARRIVED_NS, EMAIL_REDACTED)
    assert (said.content, said.redacted, said.length) == (f"I am {EMAIL_REDACTED}", True, 11)
    assert (said.created_ns, said.metadata) == (ARRIVED_NS, {"deep": [{"token": REDACTED}]})
    assert part.annotations[0].attributes == {EMAIL_REDACTED: f"password={REDACTED}"}
    assert (part.session_ends[0].ended_ns, part.session_ends[0].error) == (ARRIVED_NS, f"{EMAIL_REDACTED} is gone")
    assert cleaned.redactions == {"email": 5, "key_value": 3}


def test_records_besides_spans_travel_once_with_the_first_part() -> None:
    batch = make_batch(*[bare_span() for _ in range(300)], **{field: [record] for field, record in GOOD.items()})
    parts = make_cleaner().clean(batch, ARRIVED_NS).parts
    assert len(parts) == 5
    for field in GOOD:
        assert [len(getattr(part, field)) for part in parts] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("field", "changes", "reason"),
    [
        ("started", {"trace_id": "line\nbreak"}, "trace_id"),
        ("started", {"span_id": ""}, "span_id"),
        ("started", {"parent_span_id": "ü"}, "parent_span_id"),
        ("started", {"session_id": "a\tb"}, "session_id"),
        ("started", {"started_ns": 5}, "started_ns"),
        ("started", {"metadata": {"": 1}}, "metadata"),
        ("started", {"metadata": {"x": "v" * 40_000}}, "metadata"),
        ("started", {"metadata": DEEP}, "metadata"),
        ("started", {"metadata": {"x": float("nan")}}, "metadata"),
        ("messages", {"message_id": ""}, "message_id"),
        ("messages", {"session_id": "\x00"}, "session_id"),
        ("messages", {"span_id": "ü"}, "span_id"),
        ("messages", {"content": "hunter2 " * 40_000}, "content"),
        ("messages", {"content": "é" * 131_073}, "content"),
        ("messages", {"metadata": {"x": b"bytes"}}, "metadata"),
        ("messages", {"created_ns": 5}, "created_ns"),
        ("annotations", {"span_id": ""}, "span_id"),
        ("annotations", {"attributes": {f"k{index}": 1 for index in range(200)}}, "attributes"),
        ("annotations", {"attributes": {"tt.own": 1}}, "attributes"),
        ("session_ends", {"session_id": ""}, "session_id"),
        ("session_ends", {"ended_ns": 5}, "ended_ns"),
        # Those cannot even be read.
        ("started", {"name": "n" * 300}, "started[1]: name"),
        ("started", {"kind": "spaceship"}, "started[1]: kind"),
        ("messages", {"role": "alien"}, "messages[1]: role"),
        ("messages", {"length": -1}, "messages[1]: length"),
        ("annotations", {"trace_id": "t" * 300}, "annotations[1]: trace_id"),
        ("session_ends", {"error": "e" * 40_000}, "session_ends[1]: error"),
    ],
)
def test_a_bad_record_becomes_a_letter_and_its_neighbours_stay(
    field: str, changes: dict[str, Any], reason: str
) -> None:
    secret = {"name": "a@b.io"} if field == "started" else {"error": "a@b.io"} if field == "session_ends" else {}
    bad = replace(GOOD[field], **{**secret, **changes})
    batch = make_batch(**{name: [record] for name, record in GOOD.items()})
    batch = replace(batch, **{field: [GOOD[field], bad, GOOD[field]]})
    cleaned, letters = take_in(make_cleaner(), message(encode_batches([batch])))
    (part,) = cleaned[0].parts
    assert len(part.spans) == 1
    assert {name: len(getattr(part, name)) for name in GOOD} == {**dict.fromkeys(GOOD, 1), field: 2}
    (letter,) = letters
    assert letter.position == 1
    assert letter.reason.startswith(reason)
    body = json.loads(letter.body)
    assert (body["reason"], body["index"]) == (letter.reason, 1)
    assert b"a@b.io" not in letter.body
    assert b"hunter2" not in letter.body
    assert decode_batches(encode_batches([part])) == [part]


def test_a_content_of_just_256_kib_is_taken() -> None:
    batch = make_batch(messages=[ChatMessage(message_id="m", session_id="s", content="é" * 131_072)])
    assert make_cleaner().clean(batch, ARRIVED_NS).dead_letters == []


@pytest.mark.parametrize(
    "given_records",
    [
        {"scores": [Score(trace_id="t", span_id="s", name="eval.score", value=5, attributes={"password": "hunter2"})]},
        {"tombstones": [Tombstone(target="user", id="jane@example.com", deleted_ns=5)]},
    ],
)
def test_what_only_the_api_may_say_is_refused_from_outside(given_records: dict[str, Any]) -> None:
    batch = make_batch(**given_records)
    cleaned, (letter,) = take_in(make_cleaner(), message(encode_batches([batch])))
    (part,) = cleaned[0].parts
    assert (part.scores, part.tombstones) == ([], [])
    assert len(part.spans) == 1
    assert letter.reason.startswith(f"{next(iter(given_records))}: ")
    assert b"hunter2" not in letter.body
    assert b"jane" not in letter.body


def test_a_stored_batch_is_never_longer_than_readers_take() -> None:
    # What stands in for a secret is longer than it.
    many = "a@b.io " * 36
    batch = make_batch(
        bare_span(name=many, caller=many, error="a@b.io " * 4600),
        source=many,
        started=[Started(trace_id="t", span_id="s", name=many, caller=many)],
        session_ends=[SessionEnd(session_id="s", ended_ns=0, error="a@b.io " * 4600)],
    )
    (cleaned,), letters = take_in(make_cleaner(), message(encode_batches([batch])))
    assert letters == []
    assert decode_batches(encode_batches(cleaned.parts)) == cleaned.parts


def test_the_tally_of_a_batch_tells_each_kind_and_a_clean_batch_has_none() -> None:
    cleaner = make_cleaner()
    assert cleaner.clean(make_batch(), ARRIVED_NS).redactions == {}
    bad = bare_span(model="", error="c@d.io")
    dirty = make_batch(bare_span(error="a@b.io", attributes={"k": f"ghp_{'a1' * 18}", "password": "x"}), bad)
    assert cleaner.clean(dirty, ARRIVED_NS).redactions == {"email": 2, "api_key": 1, "key_value": 1}


def test_a_redactor_that_is_off_lets_all_pass_and_counts_nothing() -> None:
    cleaner = Cleaner(Redactor(mode="off"), Pricer())
    batch = make_batch(
        bare_span(error="a@b.io"), messages=[ChatMessage(message_id="m", session_id="s", content="a@b.io")]
    )
    cleaned = cleaner.clean(batch, ARRIVED_NS)
    assert cleaned.redactions == {}
    assert (cleaned.parts[0].spans[0].error, cleaned.parts[0].messages[0].content) == ("a@b.io", "a@b.io")


# -- JSON of anybody


def test_json_of_any_nats_client_is_read_in_the_documented_form() -> None:
    payload = b' \n[{"model": "gpt-4o", "prompt_tokens": 3, "comp_tokens": 4, "latency_ms": 1.5, "name": "a"}]'
    (cleaned,), letters = take_in(make_cleaner(), message(payload))
    (span,) = cleaned.parts[0].spans
    assert letters == []
    assert (span.name, span.prompt_tokens, span.completion_tokens, span.latency_ns) == ("a", 3, 4, 1_500_000)
    assert span.source == "nats"
    assert span.arrived_ns == ARRIVED_NS


def test_a_json_message_is_known_by_its_id_or_else_by_its_place_in_the_stream() -> None:
    cleaner = make_cleaner()
    one, two = b'{"kind": "tool", "name": "x"}', b'[{"kind": "tool", "name": "y"}]'

    def id_of(got: Message, created_ns: int = CREATED_NS) -> str:
        (batch,), _ = cleaner.read(got, created_ns)
        check_batch_id(batch.id)
        return batch.id

    assert id_of(message(one, id="m1")) == id_of(message(one, id="m1", sequence=99))
    assert id_of(message(one, id="m1")) != id_of(message(one, id="m2"))
    assert id_of(message(one)) == id_of(message(one))
    assert id_of(message(one, sequence=1)) != id_of(message(two, sequence=2))
    assert id_of(message(one), CREATED_NS) != id_of(message(one), CREATED_NS + 1)
    id_of(message(one, id="ünïcode\n" * 500))


def test_bad_items_of_a_json_array_become_letters_and_the_good_ones_stay() -> None:
    items = [
        {"kind": "tool", "name": "a"},
        {"kind": "tool", "name": "b", "unknown_field": 1},
        5,
        {"kind": "llm", "name": "c"},
        {"kind": "tool", "name": "d", "attributes": {"password": "hunter2"}},
        {"kind": "tool", "name": "e", "attributes": {"password": "hunter2", "nested": {"a": 1}}},
    ]
    cleaned, letters = take_in(make_cleaner(), message(json.dumps(items).encode()))
    spans = stored_spans(cleaned)
    assert [span.name for span in spans] == ["a", "d"]
    assert len({span.span_id for span in spans}) == 2
    assert [letter.position for letter in letters] == [1, 2, 3, 5]
    assert all(b"hunter2" not in letter.body for letter in letters)
    assert spans[1].attributes == {"password": REDACTED}


def test_a_large_json_array_is_cut_like_any_batch() -> None:
    items = [{"kind": "tool", "name": f"n{index}"} for index in range(300)]
    (cleaned,), _ = take_in(make_cleaner(), message(json.dumps(items).encode()))
    assert [len(part.spans) for part in cleaned.parts] == [64, 64, 64, 64, 44]


# -- shards


def test_a_single_shard_takes_everything() -> None:
    assert {shard_of(make_batch(sequence=number, id=f"x{number}"), 1) for number in range(50)} == {0}


def test_a_reporters_batches_go_round_the_shards() -> None:
    found = [shard_of(make_batch(sequence=number), 4) for number in range(1, 9)]
    assert found == [1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("shards", [2, 4, 7, 256])
def test_requests_spread_evenly_and_a_repetition_meets_its_original(shards: int) -> None:
    found = [shard_of(make_batch(sequence=0, id=f"request.{number}"), shards) for number in range(shards * 200)]
    again = [shard_of(make_batch(sequence=0, id=f"request.{number}"), shards) for number in range(shards * 200)]
    assert again == found
    load = Counter(found)
    assert set(load) == set(range(shards))
    assert max(load.values()) < 300
    assert min(load.values()) > 120


def test_the_parts_of_a_batch_stay_in_one_shard() -> None:
    for sequence, id in [(0, "request.1"), (5, "a.b.c")]:
        parts = [make_batch(sequence=sequence, id=id, part=part) for part in range(10)]
        assert len({shard_of(part, 7) for part in parts}) == 1


# -- group commit


async def make_bus() -> tuple[MemoryBroker, MemoryBus]:
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    for stream in subjects.streams():
        await bus.ensure(stream)
    return broker, bus


def in_stream(broker: MemoryBroker) -> list[tuple[str, int, int]]:
    """(id, sequence, part) of every batch in ``TT_SPANS``, in order."""
    return [
        (batch.id, batch.sequence, batch.part)
        for stored in broker.logs[subjects.SPANS].messages.values()
        for batch in decode_batches(stored.payload)
    ]


def request(number: int, **fields: Any) -> Batch:
    return make_batch(**{"sequence": 0, "id": f"request.{number}", **fields})


async def test_commit_returns_only_after_its_batch_is_in_the_stream() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 4)

    async def one(number: int) -> None:
        for turn in range(10):
            batch = request(number * 100 + turn)
            await committer.commit("default", [batch])
            assert (batch.id, 0, 0) in in_stream(broker)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert Counter(in_stream(broker)) == Counter(
        (f"request.{number * 100 + turn}", 0, 0) for number in range(20) for turn in range(10)
    )


async def test_commits_that_come_together_share_a_message() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 1)
    await asyncio.gather(*(committer.commit("default", [request(number)]) for number in range(500)))
    assert [id for id, _, _ in in_stream(broker)] == [f"request.{number}" for number in range(500)]
    assert (await bus.state(subjects.SPANS)).messages <= 10


async def test_a_commit_alone_is_not_held_up() -> None:
    broker, bus = await make_bus()
    await asyncio.wait_for(GroupCommit(bus, 1).commit("default", [request(1)]), 10)
    assert in_stream(broker) == [("request.1", 0, 0)]


async def test_a_commit_of_nothing_returns() -> None:
    broker, bus = await make_bus()
    await asyncio.wait_for(GroupCommit(bus, 1).commit("default", []), 10)
    assert in_stream(broker) == []


async def test_every_part_goes_to_the_subject_of_its_project_and_shard() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 4)
    parts = [make_batch(sequence=number) for number in range(1, 9)]
    await committer.commit("shop.eu", parts)
    for stored in broker.logs[subjects.SPANS].messages.values():
        for batch in decode_batches(stored.payload):
            assert stored.subject == subjects.spans("shop.eu", batch.sequence % 4)
    assert len(in_stream(broker)) == 8


async def test_batches_of_different_projects_never_share_a_message() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 1)
    await asyncio.gather(*(committer.commit(f"p{number % 3}", [request(number)]) for number in range(60)))
    for stored in broker.logs[subjects.SPANS].messages.values():
        project = subjects.parse_project(stored.subject)
        assert {f"p{int(batch.id.partition('.')[2]) % 3}" for batch in decode_batches(stored.payload)} == {project}


async def test_a_broker_that_is_away_reaches_everybody_who_waits() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 4)
    broker.up = False
    waiting = [committer.commit("default", [request(number)]) for number in range(300)]
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    broker.up = True
    assert in_stream(broker) == []
    await asyncio.wait_for(committer.commit("default", [request(1)]), 10)
    assert in_stream(broker) == [("request.1", 0, 0)]


async def test_a_part_that_is_not_stored_fails_its_whole_commit() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 2)
    task = asyncio.ensure_future(committer.commit("default", [make_batch(sequence=1), make_batch(sequence=2)]))
    await asyncio.sleep(0)
    broker.up = False
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, 10)


async def test_a_broker_that_comes_and_goes_never_makes_commit_say_yes_to_what_is_not_there() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 2)
    said_yes: list[str] = []

    async def one(number: int) -> None:
        for turn in range(20):
            batch = request(number * 100 + turn)
            try:
                await committer.commit("default", [batch])
            except Unavailable:
                await asyncio.sleep(0)
            else:
                said_yes.append(batch.id)

    dice = random.Random(5)

    async def flap() -> None:
        for _ in range(200):
            broker.up = dice.random() < 0.7
            await asyncio.sleep(0)
        broker.up = True

    await asyncio.wait_for(asyncio.gather(flap(), *(one(number) for number in range(20))), 30)
    stored = Counter(id for id, _, _ in in_stream(broker))
    assert said_yes
    assert set(said_yes) <= set(stored)
    assert max(stored.values()) == 1


async def test_a_waiter_that_gives_up_takes_nobody_along() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 1)
    tasks = [asyncio.ensure_future(committer.commit("default", [request(number)])) for number in range(20)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 1
    assert outcomes.count(None) == 19
    stored = {id for id, _, _ in in_stream(broker)}
    assert stored >= {f"request.{number}" for number in range(20) if number != 3}


async def test_large_batches_are_not_grouped_beyond_what_a_message_may_be() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 1)
    big = [request(number, spans=[make_span(attributes={"x": "v" * 300_000})]) for number in range(12)]
    await asyncio.wait_for(asyncio.gather(*(committer.commit("default", [batch]) for batch in big)), 30)
    assert len(in_stream(broker)) == 12
    sizes = [len(stored.payload) for stored in broker.logs[subjects.SPANS].messages.values()]
    assert max(sizes) <= 1024 * 1024 + 64


async def test_what_the_broker_cannot_take_is_refused_and_the_others_are_stored() -> None:
    broker, bus = await make_bus()
    committer = GroupCommit(bus, 1)
    huge = request(0, spans=[make_span(attributes={"x": "v" * MAX_PAYLOAD})])
    outcomes = await asyncio.gather(
        committer.commit("default", [request(1)]),
        committer.commit("default", [huge]),
        committer.commit("default", [request(2), huge]),
        committer.commit("default", [request(3)]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), Rejected, Rejected, type(None)]
    assert {id for id, _, _ in in_stream(broker)} == {"request.1", "request.3"}
