"""What counts of a batch: spans by the identity of their call, other records by their batch, and what is counted."""

from __future__ import annotations

import msgspec
import pytest

from kit.builders import ENDED_NS, make_batch, make_span
from tokentrace.dedup import Deduplicator, LeftOut, identities_of, keys_of
from tokentrace.records import Batch, Score, Span, is_long, is_response_id
from tokentrace.units import MINUTE, SECOND

NOW = ENDED_NS
LONG_ID = "chatcmpl-0123456789abcdef"


def told(span_id: str, *, response_id: str = "", shift_ns: int = 0, **fields: object) -> Span:
    base = make_span(trace_id="t", span_id=span_id, response_id=response_id, **fields)
    return msgspec.structs.replace(base, started_ns=base.started_ns + shift_ns, ended_ns=base.ended_ns + shift_ns)


def request(number: int, *spans: Span, **fields: object) -> Batch:
    return make_batch(id=f"request-{number}", sequence=0, **{"spans": list(spans), **fields})


def counted(dedup: Deduplicator, *batches: Batch) -> list[str]:
    """Return the ids of the spans that count, in order."""
    taken = [dedup.take(batch, NOW, "default").batch for batch in batches]
    return [span.span_id for batch in taken if batch is not None for span in batch.spans]


def test_a_span_counts_once_in_however_many_batches_it_is_told() -> None:
    dedup = Deduplicator()
    first = told("a", prompt_tokens=100, cost_nusd=1)
    second = told("a", prompt_tokens=200, cost_nusd=2)
    third = told("a", prompt_tokens=150, cost_nusd=3)
    taken = [
        dedup.take(batch, NOW, "default").batch
        for batch in (request(1, first), request(2, second, told("b")), request(3, third, first))
    ]
    spans = [span for batch in taken if batch is not None for span in batch.spans]
    assert [(span.span_id, span.prompt_tokens) for span in spans] == [("a", 100), ("b", told("b").prompt_tokens)]
    assert dedup.left_out == LeftOut(1, repeated=3, conflicting=2, conflicting_nusd=5)


def test_a_numbered_batch_is_skipped_as_a_whole_when_it_comes_again() -> None:
    dedup = Deduplicator()
    assert counted(dedup, make_batch(told("a"), told("a")), make_batch(told("a"), told("b"))) == ["a"]
    assert dedup.left_out == LeftOut(1, repeated=1)


def test_two_instrumentations_of_one_response_count_once() -> None:
    dedup = Deduplicator()
    inner, outer = told("inner", response_id=LONG_ID), told("outer", response_id=LONG_ID, shift_ns=-SECOND)
    assert counted(dedup, request(1, inner), request(2, outer)) == ["inner"]


def test_a_long_id_with_different_intervals_counts_each_call() -> None:
    dedup = Deduplicator()
    spans = [told(f"s{at}", response_id=LONG_ID, shift_ns=at * 10 * MINUTE) for at in range(5)]
    assert counted(dedup, request(1, *spans)) == [f"s{at}" for at in range(5)]
    assert dedup.left_out.reused == 4


def test_twenty_parallel_equal_calls_with_short_ids_through_one_instrumentation_all_count() -> None:
    dedup = Deduplicator()
    spans = [told(f"s{at}", response_id="chatcmpl-417", source="reporter", scope="x") for at in range(20)]
    assert len(counted(dedup, request(1, *spans))) == 20


def test_a_short_id_told_through_two_instrumentations_with_equal_usage_counts_once() -> None:
    dedup = Deduplicator()
    spans = [told("a", response_id="chatcmpl-417", scope="one"), told("b", response_id="chatcmpl-417", scope="two")]
    assert counted(dedup, request(1, *spans)) == ["a"]
    other_usage = told("c", response_id="chatcmpl-417", scope="three", prompt_tokens=9)
    assert counted(dedup, request(2, other_usage)) == ["c"]


@pytest.mark.parametrize("template", ["{{response_id}}", "<id>", "[id]", "a b", "", "\x7fabc", "é" * 20, "x" * 257])
def test_a_text_that_is_no_id_identifies_nothing(template: str) -> None:
    dedup = Deduplicator()
    if len(template) <= 256:
        spans = [told(f"s{at}", response_id=template) for at in range(100)]
        assert len(counted(dedup, request(1, *spans))) == 100
    assert not is_response_id(template)


@pytest.mark.parametrize("phone", ["4155551234", "415-555-1234"])
def test_calls_whose_response_ids_look_like_phone_numbers_count_each(phone: str) -> None:
    dedup = Deduplicator()
    spans = [told(f"s{at}", response_id=phone, shift_ns=at * MINUTE) for at in range(5)]
    assert len(counted(dedup, request(1, *spans))) == 5


@pytest.mark.parametrize(
    ("response_id", "long"),
    [
        ("chatcmpl-417", False),
        ("chatcmpl-0123456789ab", True),
        ("msg_01XFDUDYJgAACzvnptvVoYEL", True),
        ("resp_a-b-c-d-e-f-g-h-i-j-k", False),
        ("abc-def-012345678901", True),
        ("123456789012", True),
        ("12345678901", False),
        ("a-123456789012", True),
    ],
)
def test_an_id_is_long_with_12_letters_and_digits_after_its_prefix(response_id: str, long: bool) -> None:
    assert is_long(response_id) is long


def test_a_roll_up_and_a_call_without_tokens_are_not_known_by_the_response_id() -> None:
    dedup = Deduplicator()
    agent = told("agent", response_id=LONG_ID, kind="agent")
    failed = told("failed", response_id=LONG_ID, prompt_tokens=0, completion_tokens=0, total_tokens=0, status="error")
    assert counted(dedup, request(1, agent, failed, told("call", response_id=LONG_ID))) == ["agent", "failed", "call"]


def test_a_telling_without_usage_does_not_stop_a_later_one_with_usage() -> None:
    dedup = Deduplicator()
    empty = told("a", prompt_tokens=0, completion_tokens=0, total_tokens=0, cost_nusd=None, usage_state="missing")
    full = told("a", cost_nusd=5)
    assert counted(
        dedup, request(1, empty), request(2, empty), request(3, full), request(4, full), request(5, empty)
    ) == [
        "a",
        "a",
    ]


@pytest.mark.parametrize("inner_first", [True, False])
@pytest.mark.parametrize("response_id", ["", LONG_ID, "chatcmpl-417"])
def test_a_call_around_a_call_with_the_same_usage_counts_once(inner_first: bool, response_id: str) -> None:
    outer, middle = told("outer"), told("middle", parent_span_id="outer")
    inner = told("inner", parent_span_id="middle", response_id=response_id)
    spans = [inner, middle, outer] if inner_first else [outer, middle, inner]
    assert len(counted(Deduplicator(), request(1, *spans))) == 1


def test_a_call_around_other_usage_or_two_calls_or_a_later_one_counts_too() -> None:
    outer = told("outer")
    for inner in (
        [told("a", parent_span_id="outer", prompt_tokens=9)],
        [told("a", parent_span_id="outer"), told("b", parent_span_id="outer")],
        [told("a", parent_span_id="outer", shift_ns=MINUTE)],
        [told("a", parent_span_id="outer", kind="tool")],
    ):
        assert len(counted(Deduplicator(), request(1, outer, *inner))) == 1 + len(inner)


def test_the_same_ids_in_another_project_are_another_call() -> None:
    dedup = Deduplicator()
    assert dedup.take(request(1, told("a")), NOW, "default").batch is not None
    assert dedup.take(request(2, told("a")), NOW, "other").batch is not None


def test_other_records_of_a_request_count_once_and_apart_from_its_spans() -> None:
    dedup = Deduplicator()
    score = Score(trace_id="t", span_id="a", name="eval.score", value=1, ended_ns=NOW, arrived_ns=NOW)
    with_score = request(1, told("a"), scores=[score])
    first, again = (dedup.take(with_score, NOW, "default") for _ in range(2))
    assert first.batch == with_score
    assert again.batch is None
    later = dedup.take(request(2, told("a"), scores=[score]), NOW, "default").batch
    assert later is not None
    assert (later.spans, later.scores) == ([], [score])


def test_identities_sent_with_the_batch_decide_as_those_computed_by_the_reader() -> None:
    spans = [told("a"), told("b", response_id=LONG_ID), told("a")]
    computed, carried = Deduplicator(), Deduplicator()
    batch = request(1, *spans)
    sent = msgspec.structs.replace(batch, identities=identities_of(spans, "default"))
    damaged = msgspec.structs.replace(batch, identities=b"too short", id="request-2")
    for dedup in (computed, carried):
        assert counted(dedup, batch if dedup is computed else sent) == ["a", "b"]
        assert counted(dedup, damaged) == []
    assert computed.calls.digest == carried.calls.digest
    assert len(set(keys_of(sent.identities))) == 2


def test_digests_are_those_before_the_first_message_at_or_after_each_multiple_of_256() -> None:
    dedup = Deduplicator()
    for sequence in (1, 255, 300, 301, 1024):
        dedup.begin(sequence)
        before = dedup.calls.digest
        dedup.take(request(sequence, told(f"s{sequence}")), NOW, "default")
        if sequence in (300, 1024):
            assert dedup.digests[-1] == (sequence // 256 * 256, len(dedup.calls) - 1, before)
    assert [digest.sequence for digest in dedup.digests] == [256, 1024]


def test_a_restored_deduplicator_continues_as_the_one_that_was_saved() -> None:
    dedup = Deduplicator(shards=4, capacity=2**16)
    dedup.begin(700)
    counted(dedup, make_batch(told("a")), request(1, told("b"), told("a")))
    state, parts = dedup.snapshot("@", {})
    restored = Deduplicator(shards=4, capacity=2**16)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(state))
    restored.restore(decoded, {name: part.encode() for name, part in parts.items() if part.encode}, "@")
    assert (restored.left_out, restored.digests) == (dedup.left_out, dedup.digests)
    assert counted(restored, make_batch(told("a")), request(2, told("b"), told("c"))) == ["c"]
