"""Finds the place of a trace in a list: which traces stand before and after it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tokentrace_api.reads.newest import LIMIT_S, MOST_RANKED, floor_of, matching_traces
from tokentrace_api.reads.ranked import VALUES, Rank
from tokentrace_api.reads.search import Search
from tokentrace_api.store import Store


class Place(NamedTuple):
    """
    The place of a trace in a list.

    Attributes:
        previous, following: Ids of the traces before and after it; None = there is none.
        position: Its number in the list, from 1; None = the list does not have it.
        total: Number of traces in the list.
        searched_until_ns: Traces that started at or before this time were not looked at, Unix nanoseconds; None = all
            were.
    """

    previous: str | None
    following: str | None
    position: int | None
    total: int
    searched_until_ns: int | None


def find_place(
    store: Store,
    search: Search,
    order: Literal["started"] | Rank,
    trace_id: str,
    now_ns: int,
    most: int = MOST_RANKED,
) -> Place:
    """
    Return the place of a trace among those that match *search*.

    Args:
        order: What the list is sorted by, the newest or largest first, then by id.
        most: Number of matching spans whose traces are looked at, the newest first.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    floor_ns = floor_of(store, search, most, now_ns)
    value = "min(started_ns)::HUGEINT" if order == "started" else VALUES[order]
    sql, parameters = matching_traces(search, floor_ns, f"{value} AS value")
    rows = store.query(
        f"{sql}, placed AS (SELECT trace_id, lag(trace_id) OVER list AS previous, "
        "lead(trace_id) OVER list AS following, row_number() OVER list AS position FROM matching "
        "WINDOW list AS (ORDER BY value DESC NULLS LAST, trace_id)) "
        "SELECT previous, following, position, total FROM (SELECT count(*) AS total FROM matching) "
        "LEFT JOIN placed ON trace_id = ?",
        [*parameters, trace_id],
        now_ns,
        limit_s=LIMIT_S,
    )
    if not rows:
        return Place(None, None, None, 0, floor_ns)
    previous, following, position, total = rows[0]
    return Place(previous, following, None if position is None else int(position), int(total), floor_ns)
