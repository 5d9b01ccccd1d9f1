"""Calls sorted by start, cost, latency or tokens equal those sorted in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, ROLLUPS, first_tellings, untimed
from kit.trace_oracle import in_time, is_excluded, matches, searches, spans, stored
from tokentrace.errors import Rejected
from tokentrace.records import Span
from tokentrace_api.reads import (
    CALL_ORDERS,
    CallCursor,
    CallOrder,
    CallRow,
    Search,
    encode_call_cursor,
    find_calls,
    parse_call_cursor,
)


def row_of(span: Span) -> CallRow:
    fields: dict[str, Any] = {name: getattr(span, name) for name in CallRow._fields}
    return CallRow(**fields)._replace(session_id=span.session_id or "", user_id=span.user_id or "")


def listed(sent: list[Span], search: Search, order: CallOrder) -> list[CallRow]:
    """Return the calls that match, the largest number first, those without one last; among equal ones the last sent."""
    names = {"started": "started_ns", "cost": "cost_nusd", "latency": "latency_ns", "tokens": "total_tokens"}
    found = [
        (getattr(span, names[order]), at, row_of(span))
        for at, span in enumerate(first_tellings(sent))
        if span.kind not in ROLLUPS
        and matches(span, search)
        and not is_excluded(span, search)
        and in_time(span.started_ns, search)
    ]
    return [row for _, _, row in sorted(found, key=lambda each: (each[0] is None, -(each[0] or 0), -each[1]))]


@untimed(40)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked=st.lists(st.tuples(searches, st.sampled_from(CALL_ORDERS)), min_size=3, max_size=6),
    limit=st.integers(1, 4),
)
def test_calls_by_a_number_equal_those_sorted_in_plain_python(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked: list[tuple[Search, CallOrder]],
    limit: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, order in asked:
            expected = listed(sent, search, order)
            page = find_calls(store, search, order, limit, None, NOW_NS)
            assert page.total == len(expected)
            found = list(page.rows)
            while page.next is not None:
                assert len(page.rows) == limit
                page = find_calls(store, search, order, limit, parse_call_cursor(encode_call_cursor(page.next)), NOW_NS)
                found += page.rows
            assert found == expected
    finally:
        store.close()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "é",
        encode_call_cursor(CallCursor("cost", "1e3", 1)),
        encode_call_cursor(CallCursor("cost", str(2**64), 1)),
        encode_call_cursor(CallCursor("cost", "1", -1)),
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="is not a cursor of an earlier answer"):
        parse_call_cursor(text)
