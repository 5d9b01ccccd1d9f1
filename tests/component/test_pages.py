"""
Tests that compare pages of traces, exports and single spans with a filter in plain Python over the same spans.

Filters, sizes of pages, cursors, offsets and the number of files vary.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import NOW_NS, Log, first_tellings, untimed
from kit.trace_oracle import TRACES, expected, in_time, is_excluded, matches, searches, spans, stored
from tokentrace.errors import Rejected
from tokentrace.records import Span
from tokentrace_api.reads import (
    Cursor,
    Page,
    Search,
    encode_cursor,
    find_by_id,
    find_page,
    find_spans,
    newest_ordinal,
    pages,
    parse_cursor,
)
from tokentrace_api.store import Store


def follow(store: Store, search: Search, limit: int, offset: int, budget_s: float) -> list[Page]:
    """Return the page at *offset* and all following pages by cursor."""
    listed = [find_page(store, search, limit, offset, None, NOW_NS, budget_s)]
    while listed[-1].next is not None:
        cursor = parse_cursor(encode_cursor(listed[-1].next))
        listed.append(find_page(store, search, limit, 0, cursor, NOW_NS, budget_s))
        assert len(listed) < 200, "the pages do not end"
    return listed


def check_pages(
    store: Store, sent: Sequence[Span], search: Search, limit: int, offsets: Sequence[int], budget_s: float
) -> None:
    rows = expected(sent, search)
    for offset in {0, *offsets}:
        listed = follow(store, search, limit, offset, budget_s)
        assert [row for page in listed for row in page.rows] == rows[offset:]
        for page in listed:
            assert len(page.rows) <= limit
            assert page.total in (None, len(rows))
            # A page with fewer rows is the last one, or the time for its search was up.
            assert len(page.rows) == limit or page.next is None or page.searched_until_ns is not None
            if page.searched_until_ns is not None:
                assert all(row.started_ns >= page.searched_until_ns for row in page.rows)
    if budget_s:
        all_rows = []
        for offset in range(0, len(rows) + limit, limit):
            page = find_page(store, search, limit, offset, None, NOW_NS, budget_s)
            assert page.searched_until_ns is None
            assert (page.next is None) == (offset + limit >= len(rows))
            all_rows += page.rows
        assert all_rows == rows


#: Settings under which a page is computed: from all matches, or by walking through the traces in large or small steps,
#: each with enough time (``budget_s``) and with none.
ALGORITHMS = [
    {"few": few, "rows_a_trace": rows_a_trace, "most_rows": most_rows, "budget_s": budget_s}
    for few, rows_a_trace, most_rows in ((50_000, 8, 20_000), (0, 8, 20_000), (3, 2, 5), (0, 1, 2))
    for budget_s in (3600.0, 0.0)
]


@pytest.mark.long
@untimed(50)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked_searches=st.lists(
        st.tuples(searches, st.sampled_from(ALGORITHMS), st.integers(0, 9)), min_size=4, max_size=8
    ),
    limit=st.integers(1, 4),
)
def test_every_page_equals_a_filter_in_plain_python(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked_searches: list[tuple[Search, dict[str, Any], int]],
    limit: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, algorithm, offset in asked_searches:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pages, "FEW", algorithm["few"])
                patch.setattr(pages, "_ROWS_A_TRACE", algorithm["rows_a_trace"])
                patch.setattr(pages, "_MOST_ROWS", algorithm["most_rows"])
                check_pages(store, sent, search, limit, [offset], algorithm["budget_s"])
    finally:
        store.close()


@untimed(25)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked_searches=st.lists(searches, min_size=3, max_size=6),
    step=st.integers(1, 9),
)
def test_an_export_holds_every_matching_span_once_in_order(
    directories: Iterator[Path], sent: list[Span], cuts: list[int], asked_searches: list[Search], step: int
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        last = newest_ordinal(store, NOW_NS)
        for search in [*asked_searches, Search()]:
            exported = []
            for after in range(0, last, step):
                exported += find_spans(store, search, after, min(after + step, last), NOW_NS)
            matching = [
                span for span in first_tellings(sent) if matches(span, search) and not is_excluded(span, search)
            ]
            assert [telling.span for telling in exported] == [
                span for span in matching if in_time(span.started_ns, search)
            ]
    finally:
        store.close()


@untimed(12)
@given(sent=st.lists(spans, max_size=24), cuts=st.lists(st.integers(0, 23), max_size=2))
def test_traces_and_spans_are_read_back_as_they_were_sent(
    directories: Iterator[Path], sent: list[Span], cuts: list[int]
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        counted = first_tellings(sent)
        for trace_id in TRACES:
            trace = sorted((span for span in counted if span.trace_id == trace_id), key=lambda span: span.started_ns)
            assert store.trace(trace_id, NOW_NS) == trace
            roots = [span for span in trace if span.parent_span_id is None]
            assert find_by_id(store, trace_id, "", NOW_NS) == (roots or trace)[:1]
            assert find_by_id(store, trace_id, "4'", NOW_NS) == [span for span in trace if span.span_id == "4'"]
        by_id = find_by_id(store, "", "1", NOW_NS)
        assert {span.trace_id: span for span in by_id} == {
            span.trace_id: span for span in counted if span.span_id == "1"
        }
        assert store.recent(5, NOW_NS) == counted[::-1][:5]
        assert store.count(NOW_NS) == len(counted)
    finally:
        store.close()


def test_an_export_includes_a_span_that_gets_a_new_version_meanwhile(tmp_path: Path) -> None:
    store, log = Store(tmp_path, shards=1, keep_ns=10**18), Log()
    first, second = make_span(span_id="1", arrived_ns=NOW_NS), make_span(span_id="2", arrived_ns=NOW_NS)
    store.append([log.spans(first, second)])
    last = newest_ordinal(store, NOW_NS)
    exported = find_spans(store, Search(), 0, 1, NOW_NS)
    store.append([log.spans(make_span(span_id="2", name="again", arrived_ns=NOW_NS))])
    exported += find_spans(store, Search(), 1, last, NOW_NS)
    assert [(telling.span, telling.later_versions) for telling in exported] == [(first, 0), (second, 1)]
    store.close()


@pytest.mark.long
@pytest.mark.parametrize("few", [50_000, 0])
def test_ten_thousand_traces_with_the_same_start_are_listed_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(pages, "FEW", few)
    sent = [make_span(trace_id=f"{number:05}", started_ns=7, arrived_ns=NOW_NS) for number in range(10_000)]
    store = stored(tmp_path, sent, [5_000])
    listed = follow(store, Search(), 700, 0, 0.0)
    assert [row.trace_id for page in listed for row in page.rows] == [span.trace_id for span in sent]
    store.close()


@pytest.mark.long
def test_a_page_of_traces_that_all_started_at_one_instant_adds_up_a_few_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "FEW", 0)
    store = stored(
        tmp_path, [make_span(trace_id=f"{n:05}", started_ns=7, arrived_ns=NOW_NS) for n in range(20_000)], []
    )
    query, most = store.query, 0

    def noted(sql: str, parameters: Sequence[Any], *others: Any) -> Any:
        nonlocal most
        most = max([most, *(len(each) for each in parameters if isinstance(each, list))])
        return query(sql, parameters, *others)

    monkeypatch.setattr(store, "query", noted)
    page = find_page(store, Search(), 20, 40, None, NOW_NS)
    assert [row.trace_id for row in page.rows] == [f"{number:05}" for number in range(40, 60)]
    assert 0 < most < 2_500
    store.close()


def test_sums_of_a_trace_may_exceed_64_bits(tmp_path: Path) -> None:
    many = [
        make_span(span_id=f"{number}", cost_nusd=10**15, total_tokens=2**41, arrived_ns=NOW_NS)
        for number in range(10_000)
    ]
    store = stored(tmp_path, many, [])
    (row,) = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    assert (row.sums.cost_nusd, row.sums.total_tokens) == (10**19, 10_000 * 2**41)
    store.close()


def cursor_text(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    ["", "x", "ü", "====", cursor_text("[1]"), cursor_text('["1","t"]'), cursor_text("[1,null]"), cursor_text("{}")]
    + [cursor_text(f'[{number},"t"]') for number in (2**63, 10**30, 10**60, "1e400", "1.5", -1, -(10**30))],
)
def test_a_text_that_is_not_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="cursor"):
        parse_cursor(text)


@pytest.mark.parametrize("started_ns", [0, 1, 2**63 - 1])
def test_a_cursor_is_decoded_as_it_was_encoded(started_ns: int) -> None:
    cursor = Cursor(started_ns, 't"\\é')
    assert parse_cursor(encode_cursor(cursor)) == cursor
