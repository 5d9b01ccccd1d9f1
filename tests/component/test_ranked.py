"""Traces sorted by cost, duration or tokens equal those sorted in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, untimed
from kit.trace_oracle import expected, matches, searches, spans, stored
from tokentrace.records import Span
from tokentrace_api.reads import RANKS, Rank, Search, TraceRow, encode_rank_cursor, find_ranked, parse_rank_cursor


def number_of(row: TraceRow, rank: Rank) -> int | None:
    numbers = {
        "cost": row.sums.cost_nusd,
        "duration": max(row.ended_ns - row.started_ns, 0),
        "tokens": row.sums.total_tokens,
    }
    return numbers[rank]


def by_number(rows: Sequence[TraceRow], rank: Rank) -> list[TraceRow]:
    """Return *rows*, those with the largest number first, those without one last, then by id."""

    def key(row: TraceRow) -> tuple[bool, int, str]:
        number = number_of(row, rank)
        return (number is None, -(number or 0), row.trace_id)

    return sorted(rows, key=key)


@untimed(40)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked=st.lists(st.tuples(searches, st.sampled_from(RANKS), st.integers(0, 9)), min_size=3, max_size=6),
    limit=st.integers(1, 4),
    most=st.sampled_from((10**6, 10**6, 9, 1)),
)
def test_traces_by_a_number_equal_those_sorted_in_plain_python(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked: list[tuple[Search, Rank, int]],
    limit: int,
    most: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, rank, offset in asked:
            first = find_ranked(store, search, rank, limit, offset, None, NOW_NS, most)
            floor_ns = first.searched_until_ns
            started = [row for row in expected(sent, search) if floor_ns is None or row.started_ns > floor_ns]
            assert floor_ns is None or sum(matches(span, search) for span in sent) > most
            assert first.total == (len(started) if floor_ns is None else None)
            listed, page = list(first.rows), first
            while page.next is not None:
                assert len(page.rows) == limit
                cursor = parse_rank_cursor(encode_rank_cursor(page.next))
                page = find_ranked(store, search, rank, limit, 0, cursor, NOW_NS, most)
                assert page.searched_until_ns == floor_ns
                listed += page.rows
            assert listed == by_number(started, rank)[offset:]
    finally:
        store.close()
