"""Tests of the span store: of a call that is told several times, one telling counts and the others stand beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.store_log import NOW_NS, SECOND, Log, first_tellings, open_store, shown, stored_span, untimed
from tokentrace.metrics import Query
from tokentrace.records import Score, Span
from tokentrace_api.reads import (
    Search,
    SessionFilter,
    Where,
    aggregates_by,
    find_by_id,
    find_page,
    list_sessions,
    sums_of,
    trace_outline,
    with_later_versions,
)
from tokentrace_api.store import Store, Telling, segment
from tokentrace_api.store.span_updates import MAX_TELLINGS

LONG_ID = "chatcmpl-Bx7dK2mQ9rT4vW"
ROWS = "SELECT trace_id, span_id, counted, conflicting FROM {spans} ORDER BY ordinal"


def rows(store: Store) -> list[tuple[Any, ...]]:
    return store.query(ROWS, [], NOW_NS)


def tellings(store: Store, trace_id: str) -> list[Telling]:
    return with_later_versions(store, store.tellings(trace_id, NOW_NS), NOW_NS)


def test_of_a_span_id_that_is_used_for_everything_twenty_tellings_are_stored(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    spans = [stored_span("t", prompt_tokens=n, total_tokens=n, cost_nusd=n, ended_ns=NOW_NS) for n in range(1, 61)]
    for first in range(0, 60, 7):
        store.append([log.spans(*spans[first : first + 7])])
    [telling] = tellings(store, "t")
    assert (telling.span.total_tokens, telling.later_versions, len(rows(store))) == (1, MAX_TELLINGS - 1, MAX_TELLINGS)


def test_a_call_told_as_100_200_and_150_is_100_in_every_view(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    for tokens in (100, 200, 150):
        span = stored_span(
            "t", prompt_tokens=tokens, total_tokens=tokens, cost_nusd=tokens, session_id="s", ended_ns=NOW_NS
        )
        store.append([log.spans(span)])
    assert rows(store) == [("t", "0", True, False), ("t", "0", False, True), ("t", "0", False, True)]
    [telling] = tellings(store, "t")
    assert (telling.span.total_tokens, telling.later_versions) == (100, 2)
    [row] = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    assert row.sums == sums_of(trace_outline(store, "t", "start", NOW_NS).rows)
    assert (row.sums.cost_nusd, row.sums.total_tokens, row.sums.spans) == (100, 100, 1)
    [session], _ = list_sessions(store, SessionFilter(), 5, 0, NOW_NS)
    assert (session.cost_nusd, session.prompt_tokens, session.spans) == (100, 100, 1)
    second = NOW_NS // SECOND
    sums = aggregates_by(store, Where(Query(from_s=second - 60, to_s=second + 60)), "", [], NOW_NS)[""].sums
    assert (sums.spans, sums.cost, sums.total) == (1, 100, 100)
    assert [span.total_tokens for span in store.recent(5, NOW_NS)] == [100]
    assert (store.count(NOW_NS), len(shown(store))) == (1, 1)
    assert store.left_out.repeated == store.left_out.conflicting == 2
    store.close()


def test_a_telling_that_says_nothing_new_is_not_stored(tmp_path: Path) -> None:
    """Also after a score was added, and if the earlier telling is in the same batch or in an older file."""
    store, log = open_store(tmp_path, shards=1), Log()
    span = stored_span("t", attributes={"step": "plan"})
    store.append([log.spans(span, replace(span, arrived_ns=NOW_NS + 1))])
    assert len(rows(store)) == 1
    score = Score(trace_id="t", span_id="0", name="eval.score", value=5)
    store.append([log.add(log.batch(scores=[score]))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MAX_BYTES", 1)
        store.append([log.spans(replace(span, arrived_ns=NOW_NS + 2))])
    other = replace(span, attributes={"step": "act"})
    store.append([log.spans(other), log.spans(other)])
    assert rows(store) == [("t", "0", True, False), ("t", "0", False, False)]
    assert store.repetitions == 3
    store.close()


def test_two_instrumentations_of_one_call_are_two_rows_of_which_one_counts(tmp_path: Path) -> None:
    """An outer span without a response id, and two spans of the same response in different traces."""
    store, log = open_store(tmp_path, shards=1), Log()
    inner = stored_span("t", 1, response_id=LONG_ID, source="spans", scope="openai", parent_span_id="0")
    twin = replace(inner, span_id="2", scope="langchain", cost_nusd=7)
    elsewhere = replace(twin, trace_id="u", span_id="3")
    store.append([log.spans(stored_span("t", 0, kind="agent"), inner), log.spans(twin), log.spans(elsewhere)])
    assert [
        (each.span.span_id, each.counted, each.conflicting, each.later_versions) for each in tellings(store, "t")
    ] == [
        ("0", True, False, 0),
        ("1", True, False, 2),
        ("2", False, True, 0),
    ]
    page = {row.trace_id: row.sums for row in find_page(store, Search(), 5, 0, None, NOW_NS).rows}
    assert page["t"].cost_nusd == inner.cost_nusd
    assert (page["t"].spans, page["t"].total_tokens) == (2, inner.total_tokens)
    assert (page["u"].spans, page["u"].cost_nusd, page["u"].total_tokens) == (0, 0, 0)
    assert [span.span_id for span in shown(store)] == ["0", "1"]
    # A score of the other span belongs to the one that counts.
    assert find_by_id(store, "t", "2", NOW_NS) == find_by_id(store, "", "3", NOW_NS) == [inner]
    store.close()


def test_a_short_response_id_of_other_calls_links_nothing(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    for number in range(3):
        at = NOW_NS + number * 100 * SECOND
        store.append([log.spans(stored_span("t", number, response_id="chatcmpl-12", started_ns=at, ended_ns=at))])
    assert [(each.counted, each.later_versions) for each in tellings(store, "t")] == [(True, 0)] * 3
    store.close()


def test_a_span_found_by_its_id_is_the_first_telling(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    first = stored_span("t", name="first")
    store.append([log.spans(first, stored_span("t", name="second"))])
    assert find_by_id(store, "t", "0", NOW_NS) == find_by_id(store, "", "0", NOW_NS) == [first]
    store.close()


def test_roll_ups_add_neither_tokens_nor_cost(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    used = {"prompt_tokens": 4000, "completion_tokens": 1000, "total_tokens": 5000, "cost_nusd": 9, "session_id": "s"}
    store.append([log.spans(stored_span("t", 0, kind="agent", **used), stored_span("t", 1, **used))])
    [row] = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    assert (row.sums.total_tokens, row.sums.cost_nusd, row.sums.spans) == (5000, 9, 2)
    [session], _ = list_sessions(store, SessionFilter(), 5, 0, NOW_NS)
    assert (session.prompt_tokens, session.completion_tokens, session.cost_nusd) == (4000, 1000, 9)
    store.close()


@pytest.mark.parametrize(
    ("costs", "cost", "unpriced"), [((10, None), 10, 1), ((None, None), None, 2), ((0, None), 0, 1), ((0, 0), 0, 0)]
)
def test_a_sum_says_how_many_costs_it_lacks(
    tmp_path: Path, costs: tuple[int | None, ...], cost: int | None, unpriced: int
) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    store.append([log.spans(*(stored_span("t", at, cost_nusd=each, session_id="s") for at, each in enumerate(costs)))])
    [row] = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    [session], _ = list_sessions(store, SessionFilter(), 5, 0, NOW_NS)
    assert (row.sums.cost_nusd, row.sums.unpriced) == (session.cost_nusd, session.unpriced) == (cost, unpriced)
    assert list_sessions(store, SessionFilter(max_cost_nusd=20), 5, 0, NOW_NS)[1] == (cost is not None)
    store.close()


told = st.builds(
    stored_span,
    st.sampled_from(("a", "b", "c")),
    st.integers(0, 2),
    name=st.sampled_from(("x", "y")),
    cost_nusd=st.sampled_from((5, 7)),
)


@pytest.mark.long
@untimed(20)
@given(
    sent=st.lists(st.lists(told, min_size=1, max_size=12), min_size=2, max_size=8),
    steps=st.lists(st.sampled_from(("", "restart", "new file")), min_size=8, max_size=8),
)
def test_the_memory_of_calls_survives_restarts_and_new_files(
    directories: Iterator[Path], sent: list[list[Span]], steps: list[str]
) -> None:
    """The memory holds four calls, fewer than there are, and equals that of a store that was never closed."""
    directory = next(directories)
    store, steady, log = (
        open_store(directory, shards=1, capacity=4),
        open_store(next(directories), shards=1, capacity=4),
        Log(),
    )
    with pytest.MonkeyPatch.context() as patch:
        for spans, step in zip(sent, steps, strict=False):
            patch.setattr(segment, "MAX_BYTES", 1 if step == "new file" else 2**40)
            if step == "restart":
                store.close()
                store = open_store(directory, shards=1, capacity=4)
            item = log.spans(*spans)
            store.append([item])
            steady.append([item])
            memories = [each.catalog.readers[0].dedup for each in (store, steady)]
            assert memories[0].calls.digest == memories[1].calls.digest
            assert memories[0].left_out == memories[1].left_out
    assert rows(store) == rows(steady)
    assert {(span.trace_id, span.span_id) for span in shown(store)} == {
        (span.trace_id, span.span_id) for span in first_tellings(span for spans in sent for span in spans)
    }
    store.close()
    steady.close()
