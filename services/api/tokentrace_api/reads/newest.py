"""
Reads that look at every matching span, and so are bounded: to the newest spans, by start.

How many spans a read looks at is a number and not a time, so that the same question has the same answer on a busy
machine.
"""

from __future__ import annotations

from typing import Any

from tokentrace_api.reads.search import Search
from tokentrace_api.store import Store

#: Maximum number of matching spans of which all traces are added up.
MOST_RANKED = 1_000_000
#: Seconds after which such a read is interrupted.
LIMIT_S = 20.0


def floor_of(store: Store, search: Search, most: int, now_ns: int, *, of_traces: bool = True) -> int | None:
    """
    Return the start at or before which a read of *search* does not look; None = it looks at all matching spans.

    Args:
        most: Number of matching spans that it looks at.
        of_traces: The bounds of *search* concern the start of traces; a span of such a trace may start later.

    Raises:
        Unavailable: The store cannot be read, or the query took over ``LIMIT_S``.
    """
    where, values = _where(search, of_traces=of_traces)
    counted = store.query(f"SELECT count(*) FROM {{spans}} WHERE {where}", values, now_ns, limit_s=LIMIT_S)
    count = int(counted[0][0]) if counted else 0
    if count <= most:
        return None
    rows = store.query(
        f"SELECT quantile_disc(started_ns, ?::DOUBLE), max(started_ns) FROM {{spans}} WHERE {where}",
        [1 - most / count, *values],
        now_ns,
        limit_s=LIMIT_S,
    )
    floor_ns, newest_ns = rows[0]
    # If so many started at one instant, all of these are looked at.
    return int(min(floor_ns, newest_ns - 1))


def _where(search: Search, *, of_traces: bool) -> tuple[str, list[Any]]:
    condition, values = search.condition() if of_traces else search.of_span()
    bounds, instants = search._replace(until_ns=None).bounds("started_ns") if of_traces else search.bounds("started_ns")
    return " AND ".join(text for text in (condition, bounds) if text) or "true", [*values, *instants]


def matching_traces(search: Search, floor_ns: int | None, columns: str) -> tuple[str, list[Any]]:
    """
    Return (SQL that begins a query with the table ``matching``, its parameters).

    The table has a row for each trace that matches *search* and started after *floor_ns*: its id, its start (``began``,
    Unix nanoseconds) and *columns*, which are aggregates over its spans, each span once.
    """
    if floor_ns is not None and (search.since_ns is None or search.since_ns <= floor_ns):
        search = search._replace(since_ns=floor_ns + 1)
    where, values = _where(search, of_traces=True)
    having, of_trace = search.of_trace()
    bounds, instants = search.bounds("began")
    conditions = " AND ".join(text for text in (having, bounds) if text)
    # ONE_TELLING sorts all rows. Almost every row counts, so it is enough to look for the spans of which none does.
    one_telling = (
        "SELECT * FROM {spans} WHERE counted AND trace_hash IN (FROM met) UNION ALL "
        "SELECT untold.* FROM (SELECT * FROM {spans} WHERE NOT counted AND trace_hash IN (FROM met) "
        "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal) = 1) AS untold "
        "WHERE NOT EXISTS (SELECT 1 FROM {spans} AS told WHERE told.counted AND told.trace_hash = untold.trace_hash "
        "AND told.trace_id = untold.trace_id AND told.span_id = untold.span_id)"
    )
    sql = (
        f"WITH met AS MATERIALIZED (SELECT DISTINCT trace_hash FROM {{spans}} WHERE {where}), "
        f"matching AS MATERIALIZED (SELECT trace_id, min(started_ns) AS began, {columns} FROM ({one_telling}) "
        f"GROUP BY trace_id {f'HAVING {conditions}' if conditions else ''})"
    )
    return sql, [*values, *of_trace, *instants]
