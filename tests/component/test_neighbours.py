"""The place of a trace in a list equals its place in the list sorted in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, untimed
from kit.trace_oracle import expected, matches, searches, spans, stored
from tokentrace.records import Span
from tokentrace_api.reads import RANKS, Rank, Search, TraceRow, find_place

ORDERS: tuple[Rank | str, ...] = ("started", *RANKS)


def sort_key(row: TraceRow, order: str) -> tuple[bool, int, str]:
    number = {
        "started": row.started_ns,
        "cost": row.sums.cost_nusd,
        "duration": max(row.ended_ns - row.started_ns, 0),
        "tokens": row.sums.total_tokens,
    }[order]
    return number is None, -(number or 0), row.trace_id


@untimed(40)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked=st.lists(st.tuples(searches, st.sampled_from(ORDERS)), min_size=2, max_size=4),
    most=st.sampled_from((10**6, 10**6, 9, 1)),
)
def test_a_trace_stands_between_those_that_a_list_sorted_in_plain_python_has_around_it(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked: list[tuple[Search, Rank]],
    most: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, order in asked:
            places = {
                trace_id: find_place(store, search, order, trace_id, NOW_NS, most)
                for trace_id in {*(span.trace_id for span in sent), "absent"}
            }
            floor_ns = places["absent"].searched_until_ns
            assert floor_ns is None or sum(matches(span, search) for span in sent) > most
            started = [row for row in expected(sent, search) if floor_ns is None or row.started_ns > floor_ns]
            listed = [row.trace_id for row in sorted(started, key=lambda row: sort_key(row, order))]
            for trace_id, place in places.items():
                assert (place.total, place.searched_until_ns) == (len(listed), floor_ns)
                if trace_id not in listed:
                    assert (place.previous, place.following, place.position) == (None, None, None)
                    continue
                at = listed.index(trace_id)
                assert place.position == at + 1
                assert place.previous == (listed[at - 1] if at else None)
                assert place.following == (listed[at + 1] if at + 1 < len(listed) else None)
    finally:
        store.close()
