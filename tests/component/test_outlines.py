"""Traces and sessions in pages: the pages put together are the whole, and sums and depths are those of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.store_log import NOW_NS, Log, open_store, stored_span, untimed
from tokentrace.errors import Rejected
from tokentrace.records import Span, Started
from tokentrace_api.reads import (
    Order,
    SpanPage,
    depths,
    encode_span_cursor,
    find_by_id,
    find_page,
    find_started,
    find_telling,
    open_spans,
    outlines,
    page_of,
    parse_span_cursor,
    session_outline,
    sums_of,
    trace_outline,
    whole_spans,
    with_later_versions,
)
from tokentrace_api.reads.search import Search
from tokentrace_api.store import Store, Telling

IDS = [f"{number}" for number in range(12)]
parents = st.none() | st.sampled_from(IDS)
ended_spans = st.builds(
    stored_span,
    st.just("t"),
    st.integers(0, 11),
    parent_span_id=parents,
    started_ns=st.sampled_from([NOW_NS, NOW_NS - 5, NOW_NS - 9]),
    kind=st.sampled_from(["llm", "agent", "tool"]),
    cost_nusd=st.none() | st.integers(0, 99),
    session_id=st.just("s"),
    attributes=st.dictionaries(st.sampled_from("ab"), st.text(max_size=9), max_size=2),
    error_stack=st.sampled_from(["", "line 1"]),
)
started_spans = st.builds(
    Started,
    trace_id=st.just("t"),
    span_id=st.sampled_from(IDS),
    parent_span_id=parents,
    session_id=st.just("s"),
    started_ns=st.sampled_from([NOW_NS, NOW_NS - 5, NOW_NS - 7]),
)


Pages = list[tuple[SpanPage, list[Telling]]]


def pages_of(store: Store, order: Order, limit: int, *, attributes: bool = True) -> Pages:
    """Return each page of the trace ``t`` with its ended spans; the outline is read for each page, as routes do."""
    listed: Pages = []
    cursor = None
    while True:
        page = page_of(trace_outline(store, "t", order, NOW_NS).rows, order, limit, cursor)
        tellings, page = whole_spans(store, page, order, NOW_NS, attributes=attributes)
        listed.append((page, tellings))
        if page.next is None:
            return listed
        cursor = parse_span_cursor(encode_span_cursor(page.next), order)
        assert len(listed) < 100, "the pages do not end"


@untimed(60)
@given(
    sent=st.lists(ended_spans, min_size=1, max_size=20),
    begun=st.lists(started_spans, max_size=6, unique_by=lambda started: started.span_id),
    limit=st.integers(1, 7),
    page_bytes=st.sampled_from([1, 30, 10**9]),
    cut=st.integers(0, 20),
)
def test_the_pages_of_a_trace_are_the_trace(
    directories: Iterator[Path], sent: list[Span], begun: list[Started], limit: int, page_bytes: int, cut: int
) -> None:
    store, log = open_store(next(directories), shards=1), Log()
    store.append([log.add(log.batch(spans=sent[:cut])), log.add(log.batch(spans=sent[cut:], started=begun))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "PAGE_BYTES", page_bytes)
        patch.setattr(outlines, "_UNMEASURED", 1)
        whole = with_later_versions(store, store.tellings("t", NOW_NS), NOW_NS)
        ended = {telling.key for telling in whole}
        waiting = [(each.trace_id, each.span_id) for each in open_spans(store, "trace_id", "t", NOW_NS)]
        listed = pages_of(store, "ended first", limit)
        assert [telling for _, tellings in listed for telling in tellings] == whole
        assert [row.key for page, _ in listed for row in page.rows] == [telling.key for telling in whole] + [
            key for key in waiting if key not in ended
        ]
        assert all(1 <= len(page.rows) <= limit for page, _ in listed)
        by_start = trace_outline(store, "t", "start", NOW_NS)
        assert [row.key for page, _ in pages_of(store, "start", limit) for row in page.rows] == [
            row.key for row in by_start.rows
        ]
        assert [row.started_ns for row in by_start.rows] == sorted(row.started_ns for row in by_start.rows)
        assert session_outline(store, "s", "start", NOW_NS) == by_start
    [row] = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    assert sums_of(by_start.rows) == row.sums
    assert {key: depth for key, depth in depths(by_start.rows).items() if key in ended} == {
        key: depth
        for key, depth in depths([*(telling.span for telling in whole), *by_start.started.values()]).items()
        if key in ended
    }
    for span_id in IDS:
        of_span = [each for each in whole if each.span.span_id == span_id]
        assert find_telling(store, "t", span_id, NOW_NS) == of_span[:1]
        assert [replace(each, arrived_ns=0) for each in find_started(store, "t", span_id, NOW_NS)] == [
            each for each in begun if each.span_id == span_id
        ]
    roots = [telling for telling in whole if telling.span.parent_span_id is None]
    assert find_by_id(store, "t", "", NOW_NS) == [telling.span for telling in (roots or whole)[:1]]
    store.close()


def test_without_attributes_a_page_has_everything_else(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    span = stored_span("t", error="no", error_stack="line 1", usage={"searches": 2}, attributes={"big": "x" * 10_000})
    store.append([log.spans(span)])
    [(_, [telling])] = pages_of(store, "ended first", 5, attributes=False)
    assert (telling.span.attributes, telling.span.error_stack) == ({}, "")
    assert (telling.span.error, telling.span.usage, telling.span.span_id) == ("no", {"searches": 2}, "0")
    store.close()


def test_a_page_ends_early_when_its_spans_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "PAGE_BYTES", 100_000)
    store, log = open_store(tmp_path, shards=1), Log()
    store.append([log.spans(*(stored_span("t", number, attributes={"a": "x" * 9_000}) for number in range(40)))])
    listed = pages_of(store, "ended first", 1000)
    assert [len(page.rows) for page, _ in listed] == [11, 11, 11, 7]
    assert sorted(telling.span.span_id for _, tellings in listed for telling in tellings) == sorted(map(str, range(40)))
    assert [len(page.rows) for page, _ in pages_of(store, "ended first", 1000, attributes=False)] == [40]
    store.close()


def test_a_span_that_arrives_between_two_pages_moves_no_other_span(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    store.append([log.spans(*(stored_span("t", number, started_ns=NOW_NS + 2 * number) for number in range(10)))])
    first = page_of(trace_outline(store, "t", "start", NOW_NS).rows, "start", 4, None)
    store.append([log.spans(stored_span("t", 90, started_ns=NOW_NS + 1), stored_span("t", 91, started_ns=NOW_NS + 9))])
    second = page_of(trace_outline(store, "t", "start", NOW_NS).rows, "start", 4, first.next)
    assert [row.span_id for row in (*first.rows, *second.rows)] == ["0", "1", "2", "3", "4", "91", "5", "6"]
    store.close()


OTHER = encode_span_cursor(outlines.SpanCursor(1, 2, 0, 3, "t", "s"))


@pytest.mark.parametrize("text", ["", "x", "ü", "====", "W10", "WzFd", OTHER[:-4], OTHER + "AAAA", OTHER])
def test_a_text_that_is_not_a_cursor_of_this_order_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="next_cursor"):
        parse_span_cursor(text, "ended first")


def test_sums_and_depths_of_a_page_are_those_of_all_spans(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    chain = [
        stored_span("t", number, parent_span_id=f"{number - 1}" if number else None, kind="tool")
        for number in range(3_000)
    ]
    store.append([log.spans(*chain)])
    outline = trace_outline(store, "t", "start", NOW_NS)
    assert sums_of(outline.rows).spans == 3_000
    assert depths(outline.rows)["t", "2999"] == 2_999
    store.close()
