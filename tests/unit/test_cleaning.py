"""Cleaning: the same message always gives the same bytes; batches are decoded, completed and split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_batch
from kit.examples import examples
from kit.raw_messages import (
    ARRIVED_NS,
    CREATED_NS,
    MESSAGES,
    bare_span,
    clean_message,
    make_cleaner,
    raw_message,
    stored_spans,
    written,
)
from tokentrace.bus import Message
from tokentrace.pricing import Pricer
from tokentrace.records import (
    ChatMessage,
    ReporterStats,
    SessionEnd,
    Span,
    Started,
    check_batch_id,
    check_span,
    decode_batches,
    encode_batches,
    shard_of,
)
from tokentrace.redact import REDACTED, Redactor
from tokentrace.units import DAY
from tokentrace_ingest.cleaning import Cleaner


@pytest.mark.parametrize("payload", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_redelivered_message_gives_the_same_bytes(payload: bytes) -> None:
    first = written(*clean_message(make_cleaner(), raw_message(payload)))
    cleaner = make_cleaner()
    clean_message(cleaner, raw_message(MESSAGES["bare"]))  # a replica that cleaned another message before
    assert written(*clean_message(cleaner, raw_message(payload))) == first
    assert written(*clean_message(cleaner, raw_message(payload))) == first


def test_fields_that_the_sender_set_stay_and_the_others_follow_from_the_message() -> None:
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
    ("sent", "expected"),
    [
        ((0, 0, 0), (ARRIVED_NS, ARRIVED_NS)),
        ((0, 0, 50), (ARRIVED_NS - 50, ARRIVED_NS)),
        ((ARRIVED_NS - 90, 0, 50), (ARRIVED_NS - 90, ARRIVED_NS - 40)),
        ((0, ARRIVED_NS - 10, 50), (ARRIVED_NS - 60, ARRIVED_NS - 10)),
        ((ARRIVED_NS - 90, ARRIVED_NS - 10, 50), (ARRIVED_NS - 90, ARRIVED_NS - 10)),
    ],
)
def test_missing_times_follow_from_the_times_that_are_set(
    sent: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    started, ended, latency = sent
    span = make_cleaner().finish(
        bare_span(started_ns=started, ended_ns=ended, latency_ns=latency), "key", 0, ARRIVED_NS
    )
    assert (span.started_ns, span.ended_ns) == expected


@given(st.integers(0, len(MESSAGES) - 1), st.integers(1, 50))
@settings(max_examples=examples(20))
def test_ids_made_for_the_batches_of_a_reporter_never_collide(number: int, count: int) -> None:
    cleaner = make_cleaner()
    seen: Counter[tuple[str, str]] = Counter()
    for sequence in range(1, count + 1):
        batch = make_batch(bare_span(), bare_span(), sequence=sequence, id=f"r.{number}")
        seen.update((span.trace_id, span.span_id) for span in cleaner.clean(batch, ARRIVED_NS).parts[0].spans)
    assert max(seen.values()) == 1


@pytest.mark.parametrize("name", ["bare", "bad neighbours", "json", "secrets"])
def test_stored_batches_can_be_decoded_and_are_valid(name: str) -> None:
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(MESSAGES[name]))
    for result in cleaned:
        assert result.spans == sum(len(part.spans) for part in result.parts)
        for part in result.parts:
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
    for dead_letter in dead_letters:
        assert json.loads(dead_letter.body)["reason"] == dead_letter.reason


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
def test_a_large_batch_is_split_by_index_after_every_64_spans(count: int, size: int, runs: list[int]) -> None:
    stats = ReporterStats(sent=5)
    batch = make_batch(reporter=stats)
    batch = replace(batch, spans=[bare_span(name=f"n{index}") for index in range(count)])
    cleaned = make_cleaner().clean(batch, ARRIVED_NS, size)
    assert [len(part.spans) for part in cleaned.parts] == runs
    assert [part.part for part in cleaned.parts] == list(range(len(runs)))
    assert [span.name for part in cleaned.parts for span in part.spans] == [f"n{index}" for index in range(count)]
    assert {(part.id, part.sequence, part.arrived_ns) for part in cleaned.parts} == {
        (batch.id, batch.sequence, ARRIVED_NS)
    }
    # Only the first part holds what is not a span, such as the reporter's statistics.
    assert [part.reporter for part in cleaned.parts] == [stats, *[None] * (len(runs) - 1)]


@given(st.sets(st.integers(0, 319), max_size=320))
@settings(max_examples=examples(30), deadline=None)
def test_a_bad_span_moves_no_other_span_to_another_part(bad: set[int]) -> None:
    spans = [bare_span(name=f"n{index}", model="" if index in bad else "gpt-4o") for index in range(320)]
    cleaned = make_cleaner().clean(make_batch(*spans), ARRIVED_NS)
    for part in cleaned.parts:
        assert all(int(span.name[1:]) // 64 == part.part for span in part.spans)
    assert [span.name for part in cleaned.parts for span in part.spans] == [
        f"n{index}" for index in range(320) if index not in bad
    ]
    assert [dead_letter.position for dead_letter in cleaned.dead_letters] == sorted(bad)
    assert cleaned.spans == 320 - len(bad)
    assert cleaned.parts[0].part == 0
    assert len({part.part for part in cleaned.parts}) == len(cleaned.parts)
    # An id depends on the index in the raw batch and not on the other spans.
    key = "shop.web.0123456789abcdef0123456789abcdef:1"
    for part in cleaned.parts:
        for span in part.spans:
            assert span.trace_id == hashlib.sha256(f"{key}:{span.name[1:]}".encode()).hexdigest()[:32]


def test_a_stored_batch_keeps_the_limits_if_placeholders_make_it_longer() -> None:
    # The placeholder of an email address is longer than this address.
    many = "a@b.io " * 36
    batch = make_batch(
        bare_span(name=many, caller=many, error="a@b.io " * 4600),
        source=many,
        started=[Started(trace_id="t", span_id="s", name=many, caller=many)],
        session_ends=[SessionEnd(session_id="s", ended_ns=0, error="a@b.io " * 4600)],
    )
    (cleaned,), dead_letters = clean_message(make_cleaner(), raw_message(encode_batches([batch])))
    assert dead_letters == []
    assert decode_batches(encode_batches(cleaned.parts)) == cleaned.parts


# -- redaction counts


def test_removed_secrets_of_a_batch_are_counted_by_kind() -> None:
    cleaner = make_cleaner()
    assert cleaner.clean(make_batch(), ARRIVED_NS).redactions == {}
    bad = bare_span(model="", error="c@d.io")
    dirty = make_batch(bare_span(error="a@b.io", attributes={"k": f"ghp_{'a1' * 18}", "password": "x"}), bad)
    assert cleaner.clean(dirty, ARRIVED_NS).redactions == {"email": 2, "api_key": 1, "key_value": 1}


def test_a_redactor_that_is_off_changes_and_counts_nothing() -> None:
    cleaner = Cleaner(Redactor(mode="off"), Pricer())
    batch = make_batch(
        bare_span(error="a@b.io"), messages=[ChatMessage(message_id="m", session_id="s", content="a@b.io")]
    )
    cleaned = cleaner.clean(batch, ARRIVED_NS)
    assert cleaned.redactions == {}
    assert (cleaned.parts[0].spans[0].error, cleaned.parts[0].messages[0].content) == ("a@b.io", "a@b.io")


# -- JSON of other NATS clients


def test_json_of_another_nats_client_is_decoded_as_documented_spans() -> None:
    payload = b' \n[{"model": "gpt-4o", "prompt_tokens": 3, "comp_tokens": 4, "latency_ms": 1.5, "name": "a"}]'
    (cleaned,), dead_letters = clean_message(make_cleaner(), raw_message(payload))
    (span,) = cleaned.parts[0].spans
    assert dead_letters == []
    assert (span.name, span.prompt_tokens, span.completion_tokens, span.latency_ns) == ("a", 3, 4, 1_500_000)
    assert span.source == "nats"
    assert span.arrived_ns == ARRIVED_NS


def test_the_batch_id_of_json_follows_from_message_id_and_content_or_the_sequence() -> None:
    cleaner = make_cleaner()
    tool, tools = b'{"kind": "tool", "name": "x"}', b'[{"kind": "tool", "name": "y"}]'

    def id_of(message: Message, created_ns: int = CREATED_NS) -> str:
        (batch,), _ = cleaner.read(message, created_ns)
        check_batch_id(batch.id)
        return batch.id

    assert id_of(raw_message(tool, id="m1")) == id_of(raw_message(tool, id="m1", sequence=99))
    assert id_of(raw_message(tool, id="m1")) != id_of(raw_message(tool, id="m2"))
    assert id_of(raw_message(tool, id="m1")) != id_of(raw_message(tools, id="m1"))
    assert id_of(raw_message(b" " + tool, id="m1")) != id_of(raw_message(tool, id="m1 "))
    assert id_of(raw_message(tool)) == id_of(raw_message(tool))
    assert id_of(raw_message(tool, sequence=1)) != id_of(raw_message(tools, sequence=2))
    assert id_of(raw_message(tool), CREATED_NS) != id_of(raw_message(tool), CREATED_NS + 1)
    id_of(raw_message(tool, id="ünïcode\n" * 500))


def test_bad_items_of_a_json_array_become_dead_letters_and_the_others_stay() -> None:
    items = [
        {"kind": "tool", "name": "a"},
        {"kind": "tool", "name": "b", "unknown_field": 1},
        5,
        {"kind": "llm", "name": "c"},
        {"kind": "tool", "name": "d", "attributes": {"password": "hunter2"}},
        {"kind": "tool", "name": "e", "attributes": {"password": "hunter2", "nested": {"a": 1}}},
    ]
    cleaned, dead_letters = clean_message(make_cleaner(), raw_message(json.dumps(items).encode()))
    spans = stored_spans(cleaned)
    assert [span.name for span in spans] == ["a", "d"]
    assert len({span.span_id for span in spans}) == 2
    assert [dead_letter.position for dead_letter in dead_letters] == [1, 2, 3, 5]
    assert all(b"hunter2" not in dead_letter.body for dead_letter in dead_letters)
    assert spans[1].attributes == {"password": REDACTED}


def test_a_large_json_array_is_split_like_any_batch() -> None:
    items = [{"kind": "tool", "name": f"n{index}"} for index in range(300)]
    (cleaned,), _ = clean_message(make_cleaner(), raw_message(json.dumps(items).encode()))
    assert [len(part.spans) for part in cleaned.parts] == [64, 64, 64, 64, 44]


# -- shards


def test_a_single_shard_takes_everything() -> None:
    assert {shard_of(make_batch(sequence=number, id=f"x{number}"), 1) for number in range(50)} == {0}


def test_the_batches_of_a_reporter_go_to_the_shards_in_turn() -> None:
    shard_of_each = [shard_of(make_batch(sequence=number), 4) for number in range(1, 9)]
    assert shard_of_each == [1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("shards", [2, 4, 7, 256])
def test_requests_spread_evenly_and_a_repeated_request_goes_to_the_same_shard(shards: int) -> None:
    shard_of_each = [shard_of(make_batch(sequence=0, id=f"request.{number}"), shards) for number in range(shards * 200)]
    again = [shard_of(make_batch(sequence=0, id=f"request.{number}"), shards) for number in range(shards * 200)]
    assert again == shard_of_each
    load = Counter(shard_of_each)
    assert set(load) == set(range(shards))
    assert max(load.values()) < 300
    assert min(load.values()) > 120


def test_the_parts_of_a_batch_stay_in_one_shard() -> None:
    for sequence, id in [(0, "request.1"), (5, "a.b.c")]:
        parts = [make_batch(sequence=sequence, id=id, part=part) for part in range(10)]
        assert len({shard_of(part, 7) for part in parts}) == 1


# -- what a reporter states


def test_a_span_with_start_and_end_has_a_latency() -> None:
    cleaner = make_cleaner()
    start = ARRIVED_NS - 90

    def latency(**fields: int) -> int:
        return cleaner.finish(bare_span(**fields), "key", 0, ARRIVED_NS).latency_ns

    assert latency(started_ns=start, ended_ns=ARRIVED_NS) == 90
    assert latency(started_ns=start, ended_ns=ARRIVED_NS, latency_ns=7) == 7
    assert latency(started_ns=ARRIVED_NS, ended_ns=start) == 0
    assert latency(started_ns=start) == 0
    assert latency(started_ns=ARRIVED_NS - 31 * DAY, ended_ns=ARRIVED_NS) == 0


def test_a_reporter_states_user_session_and_a_true_zero_and_no_other_source() -> None:
    def finished(**fields: Any) -> Span:
        return make_cleaner().finish(bare_span(**fields), "key", 0, ARRIVED_NS)

    named = finished(attributes={"user_id": 7, "sessionId": "s"})
    assert (named.user_id, named.session_id, named.attributes) == ("7", "s", {"user_id": 7, "sessionId": "s"})
    assert finished(attributes={"user_id": 7}, user_id="bob").user_id == "bob"
    hit = finished(cost_nusd=0, cost_source="reported", unpriced_reason="cache_hit")
    assert (hit.cost_nusd, hit.cost_source, hit.unpriced_reason) == (0, "reported", "cache_hit")
    assert finished(cost_source="free", unpriced_reason="cache_hit").cost_source == "priced"
    assert finished(cost_nusd=0).cost_source == "zero_ignored"
    assert finished(source="mist").source == "reporter"


def test_the_amounts_of_a_reporter_are_settled_and_checked() -> None:
    batch = make_batch(
        Span(model="gpt-4o", usage={"input_tokens": 1000, "output_tokens": 500}),
        bare_span(usage={"input_tokens": 11}),
        Span(model="gpt-4o"),
    )
    cleaned = make_cleaner().clean(batch, ARRIVED_NS)
    [span] = cleaned.parts[0].spans
    assert (span.prompt_tokens, span.completion_tokens, span.total_tokens, span.usage) == (1000, 500, 1500, None)
    assert span.cost_nusd == 7_500_000
    first, second = (letter.reason for letter in cleaned.dead_letters)
    assert first == "usage.input_tokens: 11 differs from prompt_tokens 10, which counts the same"
    assert "usage_state" in second


def test_a_dead_letter_of_a_json_array_names_the_index_of_its_span() -> None:
    payload = json.dumps(
        [{"kind": "tool"}, {"kind": "tool"}, {"model": "gpt-4o"}, {"kind": "tool", "promt": 1}]
    ).encode()
    _, dead_letters = clean_message(make_cleaner(), raw_message(payload))
    assert [letter.position for letter in dead_letters] == [2, 3]
    assert ["prompt_tokens" in dead_letters[0].reason, "promt" in dead_letters[1].reason] == [True, True]
