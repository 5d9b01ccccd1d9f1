"""
Finds pages of traces, newest start first, exact for every filter and without reading all rows.

If few spans match, the page is computed from their traces. If many match, the search walks back in time over the starts
of spans: when it reaches the first span of a trace, it knows all traces that started later. Traces that started at the
same instant are ordered by id, so if more spans started at one instant than a step reads, the walk goes on by id there.
A walk that takes too long ends the page early, and the page says how far the search got.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace_api.reads.cursor_text import from_text, to_text
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.trace_rows import COLUMNS, TraceRow, row_of, summed, with_details
from tokentrace_api.store import ONE_TELLING, Store

#: Up to this number of matching rows, a page is computed from the traces of these rows.
FEW = 50_000
#: Rows that the first step of a walk reads for each trace of the page, and the maximum for a step.
_ROWS_A_TRACE = 8
_MOST_ROWS = 20_000
#: The latest start that a span can have, Unix nanoseconds.
_LAST_NS = 2**63 - 1
#: Seconds after which a walk ends the page early.
BUDGET_S = 0.2


class Cursor(NamedTuple):
    """
    A place in the order of traces: newest start first, then by id. The traces after it are on the next page.

    Attributes:
        started_ns, trace_id: Those of the last trace of a page. If the page ended early, the time at or before which
            nothing was searched, and "", or the id up to which the traces of that time were searched.
    """

    started_ns: int
    trace_id: str

    def is_before(self, row: TraceRow) -> bool:
        """Return True if *row* comes after this cursor."""
        return row.started_ns < self.started_ns or (row.started_ns == self.started_ns and row.trace_id > self.trace_id)


def encode_cursor(cursor: Cursor) -> str:
    """Return *cursor* as text for a URL."""
    return to_text(cursor)


def parse_cursor(text: str) -> Cursor:
    """
    Decode a cursor that ``encode_cursor`` encoded.

    Raises:
        Rejected: *text* is not such a cursor.
    """
    cursor = from_text(text, Cursor)
    if cursor is None or not 0 <= cursor.started_ns <= _LAST_NS:
        raise Rejected(f"cursor: {quoted(text)} is not a cursor of an earlier answer")
    return cursor


class Page(NamedTuple):
    """
    A page of traces.

    Attributes:
        rows: The traces of the page.
        total: Number of matching traces on all pages; None if more than ``FEW`` rows match.
        next: Cursor of the next page; None = this is the last page, or the page was asked for 0 traces.
        searched_until_ns: If the page ended early, traces that started at or before this time were not searched, except
            perhaps some that started at it, Unix nanoseconds; otherwise None.
    """

    rows: list[TraceRow]
    total: int | None
    next: Cursor | None
    searched_until_ns: int | None = None


def find_page(
    store: Store,
    search: Search,
    limit: int,
    offset: int,
    cursor: Cursor | None,
    now_ns: int,
    budget_s: float = BUDGET_S,
) -> Page:
    """
    Return a page of the traces that match *search*.

    Args:
        limit: Maximum number of traces on the page.
        offset: Number of traces to skip after *cursor*.
        cursor: The page begins after it; None = with the newest trace.
        budget_s: Seconds after which a walk ends the page early.

    Raises:
        Unavailable: The store cannot be read.
    """
    deadline = time.perf_counter() + budget_s
    condition, values = search.condition()
    if search.since_ns is not None:
        # No span of a trace starts before the trace.
        condition, values = f"{condition or 'true'} AND started_ns >= ?", [*values, search.since_ns]
    first = f"SELECT trace_hash FROM {{spans}} WHERE {condition or 'true'} LIMIT {FEW + 1}"
    grouped = store.query(f"SELECT trace_hash, count(*) FROM ({first}) GROUP BY trace_hash", values, now_ns)
    matching = sum(count for _, count in grouped)
    if not matching:
        return Page([], 0, None)
    if matching <= FEW:
        hashes = [trace for trace, _ in grouped]
        page = _through_matches(store, search, hashes, limit, offset, cursor, now_ns)
    else:
        rows, reached = _walk(store, search, limit, offset, cursor, now_ns, deadline)
        page = _cut(rows, limit, offset, None, reached)
    return page._replace(rows=with_details(store, page.rows, now_ns))


def _cut(rows: Sequence[TraceRow], limit: int, offset: int, total: int | None, reached: Cursor | None) -> Page:
    """Return the page in *rows*, which begin after the cursor; a row after the page means that another page follows."""
    shown = list(rows[offset : offset + limit])
    if len(rows) > offset + limit:
        # With limit 0 the page has no last row and so no cursor.
        last = shown[-1] if shown else None
        return Page(shown, total, Cursor(last.started_ns, last.trace_id) if last else None)
    return Page(shown, total, reached, None if reached is None else reached.started_ns)


def _through_matches(
    store: Store, search: Search, hashes: Sequence[int], limit: int, offset: int, cursor: Cursor | None, now_ns: int
) -> Page:
    """Return the page, computed from the traces with *hashes*; a trace that only shares a match's hash is left out."""
    having, values = search.of_trace()
    bounds, instants = search.bounds("began")
    # Of all rows only the hash is read; the wide columns are read only of rows with a matching hash.
    rows_of = "WHERE ordinal IN (SELECT ordinal FROM {spans} WHERE trace_hash IN (SELECT unnest(?::UINTEGER[])))"
    conditions = [text for text in (having, bounds) if text]
    matching = (
        # One telling of each span is shown, and only it may match.
        f"WITH matching AS MATERIALIZED (SELECT trace_id, {COLUMNS} "
        f"FROM (SELECT * FROM {{spans}} {rows_of} {ONE_TELLING}) "
        f"GROUP BY trace_id {'HAVING ' + ' AND '.join(conditions) if conditions else ''}) "
    )
    parameters = [hashes, *values, *instants]
    after, after_values = "", list[Any]()
    if cursor is not None:
        after = "WHERE began < ? OR (began = ? AND trace_id > ?)"
        after_values = [cursor.started_ns, cursor.started_ns, cursor.trace_id]
    rows = store.query(
        f"{matching} SELECT *, (SELECT count(*) FROM matching) FROM matching {after} "
        f"ORDER BY began DESC, trace_id LIMIT {limit + 1} OFFSET {offset}",
        [*parameters, *after_values],
        now_ns,
    )
    if rows:
        return _cut([row_of(row) for row in rows], limit, 0, int(rows[0][-1]), None)
    total = store.query(f"{matching} SELECT count(*) FROM matching", parameters, now_ns)
    return Page([], int(total[0][0]) if total else 0, None)


def _walk(
    store: Store, search: Search, limit: int, offset: int, cursor: Cursor | None, now_ns: int, deadline: float
) -> tuple[list[TraceRow], Cursor | None]:
    """
    Walk back in time from *cursor*.

    Returns:
        (The first matching traces after *cursor*, up to one more than the page needs; the place up to which was
        searched if the time ran out, otherwise None).
    """
    needed = offset + limit + 1
    traces: list[TraceRow] = []
    at = Cursor(_LAST_NS if search.until_ns is None else min(search.until_ns, _LAST_NS), "")
    if cursor is not None and cursor.started_ns <= at.started_ns:
        at = cursor
    size, within_instant = min(_ROWS_A_TRACE * needed, _MOST_ROWS), False
    while True:
        if within_instant:
            ids = _next_ids(store, at, size, now_ns)
            met, floor_ns = set(ids), at.started_ns - 1
            within_instant = len(ids) == size
            last = not within_instant and floor_ns < 0
            after = Cursor(at.started_ns, ids[-1]) if within_instant else Cursor(floor_ns, "")
        else:
            newest = store.query(
                "SELECT trace_id, started_ns FROM {spans} WHERE started_ns <= ? "
                f"ORDER BY started_ns DESC LIMIT {size}",
                [at.started_ns],
                now_ns,
            )
            last = len(newest) < size
            floor_ns = -1 if last else int(newest[-1][1])
            if floor_ns == at.started_ns and not last:
                within_instant = True  # all rows of this step started at the same time
                continue
            met, after = {trace_id for trace_id, started_ns in newest if started_ns > floor_ns}, Cursor(floor_ns, "")
        if search.since_ns is not None and floor_ns < search.since_ns:
            floor_ns, last = search.since_ns - 1, not within_instant
        rows = summed(store, met, search, now_ns)
        traces += sorted(
            (row for row in rows if floor_ns < row.started_ns and at.is_before(row)),
            key=lambda row: (-row.started_ns, row.trace_id),
        )
        if last or len(traces) >= needed:
            return traces[:needed], None
        at = after
        # A cursor cannot say how many traces of *offset* were skipped, so the walk continues until all are skipped.
        if time.perf_counter() > deadline and len(traces) >= offset:
            return traces, at
        size = min(size * 4, max(size, _MOST_ROWS))


def _next_ids(store: Store, at: Cursor, size: int, now_ns: int) -> list[str]:
    """Return the first *size* ids after *at* of the traces that have a span that started at its instant."""
    rows = store.query(
        f"SELECT DISTINCT trace_id FROM {{spans}} WHERE started_ns = ? AND trace_id > ? ORDER BY 1 LIMIT {size}",
        [at.started_ns, at.trace_id],
        now_ns,
    )
    return [row[0] for row in rows]
