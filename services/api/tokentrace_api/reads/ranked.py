"""Lists traces by cost, duration or tokens, and counts them over time."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace_api.reads.cursor_text import from_text, to_text
from tokentrace_api.reads.newest import LIMIT_S, MOST_RANKED, floor_of, matching_traces
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.sums import COST, TOKENS
from tokentrace_api.reads.trace_rows import TraceRow, summed, with_details
from tokentrace_api.store import Store

Rank = Literal["cost", "duration", "tokens"]
RANKS: tuple[Rank, ...] = ("cost", "duration", "tokens")
#: What a list is sorted by -> SQL over the spans of a trace.
VALUES = {
    "cost": COST,
    "duration": "greatest(max(ended_ns) - min(started_ns), 0)::HUGEINT",
    "tokens": TOKENS,
}
#: A larger offset does not fit into the integers of SQL; no store holds so many traces.
_MAX_OFFSET = 2**62


class RankCursor(NamedTuple):
    """
    A place in a list of traces by a number, largest first, then by id; the traces after it are on the next page.

    Attributes:
        rank: What the list is sorted by.
        value: The number of the last trace of the page, as text because it may exceed 64 bits; None = its cost is
            unknown, which comes last.
        trace_id: Id of that trace.
        floor_ns: The list holds the traces that started after this time, Unix nanoseconds; None = all.
    """

    rank: Rank
    value: str | None
    trace_id: str
    floor_ns: int | None


class RankedPage(NamedTuple):
    """
    A page of traces by a number.

    Attributes:
        total: Number of matching traces on all pages; None if some of them were not looked at.
        next: Cursor of the next page; None = this is the last page, or the page was asked for 0 traces.
        searched_until_ns: Traces that started at or before this time were not looked at, Unix nanoseconds; None = all
            were.
    """

    rows: list[TraceRow]
    total: int | None
    next: RankCursor | None
    searched_until_ns: int | None


def encode_rank_cursor(cursor: RankCursor) -> str:
    """Return *cursor* as text for a URL."""
    return to_text(cursor)


def parse_rank_cursor(text: str) -> RankCursor | None:
    """
    Decode a cursor that ``encode_rank_cursor`` encoded; None = *text* has another form.

    Raises:
        Rejected: *text* has the form of such a cursor, but is none.
    """
    cursor = from_text(text, RankCursor)
    if cursor is None:
        return None
    value, floor_ns = cursor.value, cursor.floor_ns or 0
    is_number = value is None or (value.isascii() and value.isdigit() and len(value) <= 38)
    if not is_number or not -(2**63) <= floor_ns < 2**63:
        raise Rejected(f"{quoted(text)} is not a cursor of an earlier answer")
    return cursor


def find_ranked(
    store: Store,
    search: Search,
    rank: Rank,
    limit: int,
    offset: int,
    cursor: RankCursor | None,
    now_ns: int,
    most: int = MOST_RANKED,
) -> RankedPage:
    """
    Return a page of the traces that match *search*, those with the largest number first.

    Args:
        rank: The number: cost, duration (start to latest end) or tokens.
        limit, offset: Maximum number of traces on the page, and number of traces to skip after *cursor*.
        cursor: The page begins after it; None = with the largest.
        most: Number of matching spans whose traces are looked at, the newest first.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    # All pages look at the same part of the store as the first one.
    floor_ns = floor_of(store, search, most, now_ns) if cursor is None else cursor.floor_ns
    sql, parameters = matching_traces(search, floor_ns, f"{VALUES[rank]} AS value")
    after = "true"
    if cursor is not None:
        known = "value < ?::HUGEINT OR value IS NULL OR (value = ?::HUGEINT AND trace_id > ?)"
        after = "value IS NULL AND trace_id > ?" if cursor.value is None else known
        parameters += [cursor.trace_id] if cursor.value is None else [cursor.value, cursor.value, cursor.trace_id]
    found = store.query(
        f"{sql} SELECT total, trace_id, value::VARCHAR FROM (SELECT count(*) AS total FROM matching) LEFT JOIN "
        f"(SELECT trace_id, value FROM matching WHERE {after} ORDER BY value DESC NULLS LAST, trace_id "
        f"LIMIT {limit + 1} OFFSET {min(offset, _MAX_OFFSET)}) ON true ORDER BY value DESC NULLS LAST, trace_id",
        parameters,
        now_ns,
        limit_s=LIMIT_S,
    )
    total = int(found[0][0]) if found else 0
    ranked = [(trace_id, value) for _, trace_id, value in found if trace_id is not None]
    shown = ranked[:limit]
    rows = {row.trace_id: row for row in summed(store, [trace_id for trace_id, _ in shown], Search(), now_ns)}
    listed = with_details(store, [rows[trace_id] for trace_id, _ in shown if trace_id in rows], now_ns)
    after_page = None
    if shown and len(ranked) > limit:
        after_page = RankCursor(rank, shown[-1][1], shown[-1][0], floor_ns)
    return RankedPage(listed, total if floor_ns is None else None, after_page, floor_ns)
