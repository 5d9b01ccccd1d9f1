"""How spans are grouped into batches, and what each batch says about its reporter."""

from __future__ import annotations

from collections import Counter
from functools import partial

import msgspec

from kit.builders import make_span
from kit.peers import ignore_ungreeted_connections
from kit.raw_stream import read_raw, span_names
from kit.reporting import WAIT_S, until
from tokentrace import Reporter, Stats
from tokentrace.bus import subjects
from tokentrace.client.reporter.span_queue import BATCH_BYTES, BATCH_SPANS

pytestmark = ignore_ungreeted_connections


def test_each_reporter_numbers_its_batches_from_1_under_a_unique_id(url: str) -> None:
    with Reporter("a b", url, project="shop.eu", shards=4) as first, Reporter("a b", url) as second:
        assert first.id != second.id
        for _ in range(1000):
            first.report(make_span())
        second.report(make_span())
        assert first.flush(WAIT_S)
        assert second.flush(WAIT_S)
    stored = read_raw(url)
    of_first = [message for message in stored if message.batch.id == first.id]
    assert sorted(message.batch.sequence for message in of_first) == list(range(1, len(of_first) + 1))
    assert {message.id for message in of_first} == {f"{first.id}:{number}" for number in range(1, len(of_first) + 1)}
    assert {message.subject for message in of_first} == {
        subjects.raw("shop.eu", number % 4) for number in range(1, len(of_first) + 1)
    }
    assert {message.batch.source for message in stored} == {"a b"}
    assert [message.batch.id for message in stored if message not in of_first] == [second.id]


def test_a_burst_is_sent_in_batches_of_at_most_256_spans(url: str) -> None:
    with Reporter("burst", url) as reporter:
        for index in range(5000):
            reporter.report(make_span(name=f"n{index}"))
        assert reporter.flush(WAIT_S)
    stored = sorted(read_raw(url), key=lambda message: message.batch.sequence)
    sizes = [len(message.batch.spans) for message in stored]
    assert max(sizes) == BATCH_SPANS == 256
    assert sum(sizes) == 5000
    # The order is kept, and a batch has more than 10 spans on average.
    assert [span.name for message in stored for span in message.batch.spans] == [f"n{index}" for index in range(5000)]
    assert len(stored) < 500


def test_a_batch_of_several_spans_has_at_most_512_kib(url: str) -> None:
    with Reporter("large", url) as reporter:
        for size in (200_000, 200_000, 200_000, 700_000, 10, 10, 300_000, 300_000):
            reporter.report(make_span(attributes={"text": "x" * size}))
        assert reporter.flush(WAIT_S)
    batches = [message.batch for message in read_raw(url)]
    assert sum(len(batch.spans) for batch in batches) == 8
    for batch in batches:
        assert len(batch.spans) == 1 or sum(len(msgspec.msgpack.encode(span)) for span in batch.spans) <= BATCH_BYTES


def test_a_span_too_large_for_a_message_is_cut_and_keeps_its_tokens(url: str) -> None:
    with Reporter("huge", url) as reporter:
        reporter.report(make_span(name="before"))
        reporter.report(make_span(name="huge", attributes={"text": "x" * 9_000_000}))
        reporter.report(make_span(name="after"))
        assert reporter.flush(WAIT_S)
        assert reporter.stats() == Stats(3, 3, 0, 0, 0, truncated=1)
    stored = read_raw(url)
    assert span_names(stored) == Counter(["before", "huge", "after"])
    (huge,) = (span for message in stored for span in message.batch.spans if span.name == "huge")
    assert huge.adjusted == ("attributes.text: cut, 9000000 bytes",)
    assert huge.total_tokens == make_span().total_tokens


def test_a_single_span_is_sent_without_a_flush(url: str) -> None:
    with Reporter("lone", url) as reporter:
        for number in range(1, 4):
            reporter.report(make_span())
            until(
                partial(lambda wanted: reporter.stats().acked == wanted, number),
                f"span {number} accepted without flush",
            )
    assert len(read_raw(url)) == 3


def test_spans_reported_one_after_the_other_share_batches(url: str) -> None:
    with Reporter("shared", url) as reporter:
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        for _ in range(200):
            reporter.report(make_span())
        until(lambda: reporter.stats().acked == 201, "all accepted")
    assert len(read_raw(url)) <= 10


def test_each_batch_carries_the_counters_of_its_reporter(url: str) -> None:
    with Reporter("counters", url, max_queue_spans=300) as reporter:
        for _ in range(2000):
            reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        reporter.report(make_span(attributes={"x": object()}))
        assert reporter.flush(WAIT_S)
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        final = reporter.stats()
    sent = 0
    batches = sorted((message.batch for message in read_raw(url)), key=lambda batch: batch.sequence)
    for batch in batches:
        of_batch = len(batch.spans) + len(batch.refused)
        sent += of_batch
        counters = batch.reporter
        assert counters is not None
        assert counters.sent == sent
        assert counters.acked <= sent - of_batch
        assert counters.queue_depth <= 300 - of_batch
    assert batches[-1].reporter is not None
    assert batches[-1].reporter.dropped == final.dropped > 0
    assert (final.rejected, final.failed) == (1, 0)
    assert (final.sent, final.acked) == (sent, sent - 1)


def test_the_last_batch_of_a_reporter_says_that_no_span_waits(url: str) -> None:
    reporter = Reporter("depth", url)
    for _ in range(2000):
        reporter.report(make_span())
    reporter.close()
    last = max((message.batch for message in read_raw(url)), key=lambda batch: batch.sequence)
    assert last.reporter is not None
    assert last.reporter.queue_depth == 0


def test_batches_with_a_very_long_source_and_project_can_be_decoded(url: str) -> None:
    with Reporter("поставка-" * 40, url, project="проект" * 10) as reporter:
        reporter.report(make_span(name="there"))
        assert reporter.flush(WAIT_S)
    assert span_names(read_raw(url)) == Counter(["there"])
