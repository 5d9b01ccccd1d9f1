"""Cleaning of the records of a batch that are not spans: they are checked, completed and redacted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from kit.builders import make_batch
from kit.raw_messages import (
    ARRIVED_NS,
    bare_span,
    clean_message,
    make_cleaner,
    raw_message,
)
from tokentrace.records import (
    Annotation,
    ChatMessage,
    Score,
    SessionEnd,
    Started,
    Tombstone,
    decode_batches,
    encode_batches,
)
from tokentrace.redact import EMAIL_REDACTED, REDACTED

GOOD: dict[str, Any] = {
    "started": Started(trace_id="t", span_id="s", name="begin"),
    "messages": ChatMessage(message_id="m", session_id="s", content="hello"),
    "annotations": Annotation(trace_id="t", span_id="s", attributes={"note": "fine"}),
    "session_ends": SessionEnd(session_id="s", ended_ns=0, error="lost"),
}


DEEP: Any = {"x": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}


def test_every_other_record_is_redacted_and_completed() -> None:
    batch = make_batch(
        source="jane@example.com",
        started=[Started(trace_id="t", span_id="s", name="mail a@b.io", metadata={"password": "hunter2"})],
        messages=[
            ChatMessage(message_id="m", session_id="s", content="I am a@b.io", metadata={"deep": [{"token": "x"}]})
        ],
        annotations=[Annotation(trace_id="t", span_id="s", attributes={"a@b.io": "password=hunter2"})],
        session_ends=[SessionEnd(session_id="s", ended_ns=0, error="a@b.io is gone")],
    )
    (cleaned,), dead_letters = clean_message(make_cleaner(), raw_message(encode_batches([batch])))
    (part,) = cleaned.parts
    assert dead_letters == []
    assert part.source == EMAIL_REDACTED
    assert part.spans[0].caller == EMAIL_REDACTED
    (started,), (chat,) = part.started, part.messages
    assert (started.name, started.metadata) == (f"mail {EMAIL_REDACTED}", {"password": REDACTED})
    assert (started.started_ns, started.arrived_ns, started.caller) == (ARRIVED_NS, ARRIVED_NS, EMAIL_REDACTED)
    assert (chat.content, chat.redacted, chat.length) == (f"I am {EMAIL_REDACTED}", True, 11)
    assert (chat.created_ns, chat.metadata) == (ARRIVED_NS, {"deep": [{"token": REDACTED}]})
    assert part.annotations[0].attributes == {EMAIL_REDACTED: f"password={REDACTED}"}
    assert (part.session_ends[0].ended_ns, part.session_ends[0].error) == (ARRIVED_NS, f"{EMAIL_REDACTED} is gone")
    assert cleaned.redactions == {"email": 5, "key_value": 3}


def test_attributes_of_other_records_that_are_too_long_are_cut() -> None:
    started = replace(GOOD["started"], metadata={"x": "v" * 40_000})
    annotation = replace(GOOD["annotations"], attributes={f"k{index}": 1 for index in range(200)})
    cleaned = make_cleaner().clean(make_batch(started=[started], annotations=[annotation]), ARRIVED_NS)
    (part,) = cleaned.parts
    assert part.started[0].metadata["x"].endswith("…[cut, 40000 bytes]")
    assert len(part.annotations[0].attributes) == 128
    assert not cleaned.dead_letters


def test_only_the_first_part_of_a_split_batch_holds_the_other_records() -> None:
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
        ("annotations", {"attributes": {"tt.own": 1}}, "attributes"),
        ("session_ends", {"session_id": ""}, "session_id"),
        ("session_ends", {"ended_ns": 5}, "ended_ns"),
        # The records from here on cannot be decoded.
        ("started", {"name": "n" * 300}, "started[1]: name"),
        ("started", {"kind": "spaceship"}, "started[1]: kind"),
        ("messages", {"role": "alien"}, "messages[1]: role"),
        ("messages", {"length": -1}, "messages[1]: length"),
        ("annotations", {"trace_id": "t" * 300}, "annotations[1]: trace_id"),
        ("session_ends", {"error": "e" * 40_000}, "session_ends[1]: error"),
    ],
)
def test_a_bad_other_record_becomes_a_dead_letter_and_the_others_stay(
    field: str, changes: dict[str, Any], reason: str
) -> None:
    secret = {"name": "a@b.io"} if field == "started" else {"error": "a@b.io"} if field == "session_ends" else {}
    bad = replace(GOOD[field], **{**secret, **changes})
    batch = make_batch(**{name: [record] for name, record in GOOD.items()})
    batch = replace(batch, **{field: [GOOD[field], bad, GOOD[field]]})
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(encode_batches([batch])))
    (part,) = cleaned[0].parts
    assert len(part.spans) == 1
    assert {name: len(getattr(part, name)) for name in GOOD} == {**dict.fromkeys(GOOD, 1), field: 2}
    (dead_letter,) = dead_letters
    assert dead_letter.position == 1
    assert dead_letter.reason.startswith(reason)
    body = json.loads(dead_letter.body)
    assert (body["reason"], body["index"]) == (dead_letter.reason, 1)
    assert b"a@b.io" not in dead_letter.body
    assert b"hunter2" not in dead_letter.body
    assert decode_batches(encode_batches([part])) == [part]


def test_a_content_of_exactly_256_kib_is_accepted() -> None:
    batch = make_batch(messages=[ChatMessage(message_id="m", session_id="s", content="é" * 131_072)])
    assert make_cleaner().clean(batch, ARRIVED_NS).dead_letters == []


@pytest.mark.parametrize(
    "records",
    [
        {"scores": [Score(trace_id="t", span_id="s", name="eval.score", value=5, attributes={"password": "hunter2"})]},
        {"tombstones": [Tombstone(target="user", id="jane@example.com", deleted_ns=5)]},
    ],
)
def test_records_that_only_the_api_may_write_become_dead_letters(records: dict[str, Any]) -> None:
    batch = make_batch(**records)
    cleaned, (dead_letter,) = clean_message(make_cleaner(), raw_message(encode_batches([batch])))
    (part,) = cleaned[0].parts
    assert (part.scores, part.tombstones) == ([], [])
    assert len(part.spans) == 1
    assert dead_letter.reason.startswith(f"{next(iter(records))}: ")
    assert b"hunter2" not in dead_letter.body
    assert b"jane" not in dead_letter.body
