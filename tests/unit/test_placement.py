"""The shard of every record: all tellings of a call in one shard, nothing lost, and the same split every time."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import ENDED_NS, make_batch, make_span
from kit.examples import examples
from tokentrace.dedup import Deduplicator, identities_of
from tokentrace.records import Annotation, Batch, ChatMessage, ReporterStats, SessionEnd, Span, Started, shard_of
from tokentrace_ingest.placement import place

LONG_ID = "chatcmpl-0123456789abcdef"


def span(trace: int, number: int, response_id: str = "") -> Span:
    return make_span(trace_id=f"t{trace}", span_id=f"s{number}", response_id=response_id)


spans = st.builds(span, st.integers(0, 3), st.integers(0, 20), st.sampled_from(["", "", LONG_ID, "chatcmpl-417"]))


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(spans, max_size=40), st.integers(1, 7), st.integers(0, 3))
def test_a_split_batch_holds_every_record_once_with_its_identity(told: list[Span], shards: int, part: int) -> None:
    batch = make_batch(id="r", sequence=7, part=part, spans=told, reporter=ReporterStats(sent=3))
    placed = place(batch, "shop", shards, by_call=True)
    assert Counter(each.span_id for _, own in placed for each in own.spans) == Counter(each.span_id for each in told)
    for shard, own in placed:
        assert own.identities == identities_of(own.spans, "shop")
        assert (own.layout, own.part % shards, own.part // shards) == (1, shard, part)
    assert sum(own.reporter is not None for _, own in placed) == 1
    assert len({shard for shard, _ in placed}) == len(placed)
    assert place(batch, "shop", shards, by_call=True) == placed


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.lists(spans, min_size=1, max_size=8), max_size=12), st.sampled_from([2, 4]))
def test_one_shard_and_several_shards_count_the_same_spans(batches: list[list[Span]], shards: int) -> None:
    def count(number_of_shards: int) -> Counter[tuple[str, str]]:
        readers = [Deduplicator(number_of_shards) for _ in range(number_of_shards)]
        counted: Counter[tuple[str, str]] = Counter()
        for number, told in enumerate(batches):
            batch = make_batch(id=f"request-{number}", sequence=0, spans=told)
            for shard, own in place(batch, "shop", number_of_shards, by_call=True):
                taken = readers[shard].take(own, ENDED_NS, "shop").batch
                for each in [] if taken is None else taken.spans:
                    counted[each.trace_id, each.response_id or each.span_id] += 1
        return counted

    assert count(shards) == count(1)


def test_spans_that_ingest_named_stay_together_unless_they_have_a_response_id() -> None:
    told = [span(0, number) for number in range(50)] + [span(1, number, f"{LONG_ID}{number}") for number in range(50)]
    made = {each.span_id for each in told}
    placed = place(make_batch(id="x", sequence=0, spans=told), "shop", 4, by_call=True, made=made)
    assert len({shard for shard, own in placed for each in own.spans if not each.response_id}) == 1
    assert len({shard for shard, own in placed for each in own.spans if each.response_id}) == 4


def test_records_of_a_span_follow_it_and_those_of_a_session_stay_together() -> None:
    shards = 5
    ids = [(f"t{number}", f"s{number}") for number in range(20)]
    batch = Batch(
        id="x",
        spans=[make_span(trace_id=trace, span_id=own) for trace, own in ids],
        started=[Started(trace_id=trace, span_id=own, session_id="a", name="n") for trace, own in ids],
        annotations=[Annotation(trace_id=trace, span_id=own, attributes={}) for trace, own in ids],
        messages=[
            ChatMessage(message_id=f"m{number}", session_id="a", trace_id=trace, span_id=own, role="user", content="c")
            for number, (trace, own) in enumerate(ids)
        ],
        session_ends=[SessionEnd(session_id="a", ended_ns=ENDED_NS), SessionEnd(session_id="a", ended_ns=ENDED_NS + 1)],
    )
    shard_of_span: dict[str, int] = {}
    for shard, own in place(batch, "shop", shards, by_call=True):
        for records in (own.spans, own.started, own.annotations, own.messages):
            for record in records:
                assert shard_of_span.setdefault(str(record.span_id), shard) == shard
    assert len(set(shard_of_span.values())) > 1
    assert sum(bool(own.session_ends) for _, own in place(batch, "shop", shards, by_call=True)) == 1


def test_before_the_agreement_the_id_of_the_batch_decides_and_nothing_is_split() -> None:
    batch = make_batch(id="r", sequence=6, spans=[span(0, number) for number in range(30)])
    ((shard, own),) = place(batch, "shop", 4, by_call=False)
    assert shard == shard_of(batch, 4) == 2
    assert own == msgspec.structs.replace(batch, identities=identities_of(batch.spans, "shop"))


def test_earlier_readers_get_no_source_of_a_cost_that_they_cannot_decode() -> None:
    batch = make_batch(make_span(cost_nusd=0, cost_source="free"), make_span(cost_nusd=1, cost_source="priced"))
    for by_call, first in ((False, "reported"), (True, "free")):
        ((_, own),) = place(batch, "shop", 1, by_call=by_call)
        assert [span.cost_source for span in own.spans] == [first, "priced"]


@pytest.mark.parametrize("shards", [1, 4])
def test_a_batch_with_figures_only_is_published_once(shards: int) -> None:
    batch = make_batch(id="r", sequence=6, reporter=ReporterStats(sent=1))
    ((_, own),) = place(msgspec.structs.replace(batch, spans=[]), "shop", shards, by_call=True)
    assert own.reporter == ReporterStats(sent=1)
