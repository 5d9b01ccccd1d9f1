"""Counts and adds up, in steps of time, the traces that a list of traces shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.units import DAY, MINUTE, MS, SECOND
from tokentrace_api.reads.newest import LIMIT_S, MOST_RANKED, floor_of, matching_traces
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.sums import IN_SUMS, TOKENS, Sums
from tokentrace_api.reads.trace_rows import STATUS
from tokentrace_api.store import Store

#: Maximum number of steps of a series, and about how many it has if the step is chosen here.
MOST_STEPS, USUAL_STEPS = 2000, 120
#: The lengths that are chosen from, nanoseconds.
LENGTHS_NS = (
    *(100 * MS, SECOND, 10 * SECOND, 30 * SECOND),
    *(minutes * MINUTE for minutes in (1, 5, 10, 30, 60, 180, 360, 720)),
    *(days * DAY for days in (1, 7, 30, 365, 3650)),
)
#: A trace with spans of roll-up kinds only has no call whose cost could be known, so calls are counted, not traces.
_COLUMNS = (
    f"{STATUS} AS state, count(cost_nusd) FILTER ({IN_SUMS}) AS priced, "
    f"count(*) FILTER ({IN_SUMS} AND cost_nusd IS NULL) AS unpriced, "
    f"count(*) FILTER ({IN_SUMS} AND cost_source = 'partly_priced') AS partly, "
    f"coalesce(sum(cost_nusd) FILTER ({IN_SUMS}), 0)::HUGEINT AS money, {TOKENS} AS used, "
    "count(*) FILTER (counted) AS told"
)
_SUMS = (
    "count(trace_id), count(*) FILTER (state <> 'ok'), sum(priced)::HUGEINT, sum(unpriced)::HUGEINT, "
    "sum(partly)::HUGEINT, sum(money)::HUGEINT, sum(used)::HUGEINT, sum(told)::HUGEINT"
)


class TraceSums(NamedTuple):
    """
    Traces, added up.

    Attributes:
        traces: Number of traces.
        errors: Number of those of which a span has the status error or timeout.
        sums: Sums over their spans that count.
    """

    traces: int
    errors: int
    sums: Sums


NO_TRACES = TraceSums(0, 0, Sums(0, 0, 0, 0, 0))


class TraceStep(NamedTuple):
    """
    The traces that started in one step.

    Attributes:
        start_ns: When the step begins, or the series if it begins within the step, Unix nanoseconds.
        partial: True = the bounds of the search cut the step, it is not over yet, or a part of it was not searched.
    """

    start_ns: int
    partial: bool
    traces: TraceSums


class TraceSeries(NamedTuple):
    """
    The traces that match a search, over time.

    Attributes:
        from_ns, to_ns: The first and the last instant that the steps cover, Unix nanoseconds; None = no trace matches,
            and the search has no such bound.
        step_ns: Length of a step; None = the range has more than ``MOST_STEPS`` steps of the length that was asked for,
            and then there are no steps.
        steps: Every step of the range, those without a trace too.
        total: All steps together.
        searched_until_ns: Traces that started at or before this time were not looked at, Unix nanoseconds; None = all
            were.
    """

    from_ns: int | None
    to_ns: int | None
    step_ns: int | None
    steps: list[TraceStep]
    total: TraceSums
    searched_until_ns: int | None


def trace_series(
    store: Store, search: Search, step_ns: int | None, now_ns: int, most: int = MOST_RANKED
) -> TraceSeries:
    """
    Return the traces that match *search*, which are those that ``find_page`` lists, in steps of their starts.

    Without a lower bound the range begins with the first trace. Without an upper bound it ends now, or with the last
    trace if there is no lower bound either, or if that trace started later.

    Args:
        step_ns: Length of a step, nanoseconds; None = one of ``LENGTHS_NS`` that gives about ``USUAL_STEPS`` steps. A
            step begins at a multiple of its length.
        most: Number of matching spans whose traces are looked at, the newest first.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    floor_ns = floor_of(store, search, most, now_ns)
    sql, parameters = matching_traces(search, floor_ns, _COLUMNS)
    lowest = [bound for bound in (search.since_ns, None if floor_ns is None else floor_ns + 1) if bound is not None]
    from_sql, from_values = ("?::HUGEINT", [max(lowest)]) if lowest else ("min(began)", [])
    newest_sql = "greatest(max(began), ?::BIGINT)" if search.since_ns is not None else "max(began)"
    to_sql = "?::HUGEINT" if search.until_ns is not None else newest_sql
    to_values = [search.until_ns] if search.until_ns is not None else [now_ns] if search.since_ns is not None else []
    lengths, fit = (list(LENGTHS_NS), USUAL_STEPS) if step_ns is None else ([step_ns], MOST_STEPS - 1)
    rows = store.query(
        # Counting makes one row of it, even if both ends are given.
        f"{sql}, extent AS (SELECT {from_sql} AS low, {to_sql} AS high, count(*) AS traces FROM matching), "
        "chosen AS (SELECT low, high, (SELECT min(length) FROM (SELECT unnest(?::BIGINT[]) AS length) "
        "WHERE length::HUGEINT * ? >= high::HUGEINT - low) AS step FROM extent) "
        f"SELECT low, high, step, began // step AS number, {_SUMS} FROM chosen LEFT JOIN matching ON true "
        f"GROUP BY ALL ORDER BY number LIMIT {MOST_STEPS + 1}",
        [*parameters, *from_values, *to_values, lengths, fit],
        now_ns,
        limit_s=LIMIT_S,
    )
    if rows:
        low, high, step = (None if value is None else int(value) for value in rows[0][:3])
    else:
        # The store has no file yet, so nothing was computed.
        low = search.since_ns
        high = search.until_ns if low is None or search.until_ns is not None else now_ns
        step = None
    if low is None or high is None:
        return TraceSeries(low, high, step_ns or LENGTHS_NS[0], [], NO_TRACES, floor_ns)
    if step is None:
        step = next((length for length in lengths if length * fit >= high - low), None)
    if step is None:
        return TraceSeries(low, high, None, [], NO_TRACES, floor_ns)
    found = {int(row[3]): row[4:] for row in rows if row[3] is not None}
    least_ns = search.since_ns if floor_ns is None else low
    steps = []
    for number in range(low // step, high // step + 1) if low <= high else ():
        begin, end = number * step, (number + 1) * step
        is_cut = (least_ns is not None and begin < least_ns) or end > now_ns
        is_cut = is_cut or (search.until_ns is not None and end > search.until_ns + 1)
        steps.append(TraceStep(max(begin, low), is_cut, _sums([found[number]] if number in found else [])))
    return TraceSeries(low, high, step, steps, _sums(list(found.values())), floor_ns)


def _sums(rows: Sequence[Sequence[Any]]) -> TraceSums:
    """Return the sum of *rows*, each with the values of ``_SUMS``."""
    traces, errors, priced, unpriced, partly, money, used, told = (
        sum(int(row[at] or 0) for row in rows) for at in range(8)
    )
    cost = None if unpriced and not priced else money
    return TraceSums(traces, errors, Sums(cost, unpriced, partly, used, told))
