"""
Pages of traces, newest start first: exact whatever the filter, and never by reading everything.

What few spans match is found through them. What many match is found by walking back in time: a trace is met at the row
it starts with, and nothing older can start later. A page that takes too long ends early and says how far it got.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tokentrace.errors import Rejected, shorten
from tokentrace.records import ROLLUP_KINDS
from tokentrace_api.reads.search import Search
from tokentrace_api.store import Store, trace_hash

#: Up to so many matching spans a page is found through them.
FEW = 50_000
#: Rows a walk looks at in its first step, for each trace that is wanted, and in any step at most.
_ROWS_A_TRACE = 8
_MOST_ROWS = 20_000
#: Nothing starts later, Unix nanoseconds.
_LAST_NS = 2**63 - 1
#: Work on one page, seconds.
BUDGET_S = 0.2
_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
_SUMS = (
    "coalesce(arg_min(name, (started_ns, ordinal)) FILTER (parent_span_id IS NULL), "
    "arg_min(name, (started_ns, ordinal))), "
    "min(started_ns) AS began, max(ended_ns), "
    f"coalesce(sum(cost_nusd) FILTER (kind NOT IN ({_ROLLUPS})), 0)::HUGEINT, "
    "sum(total_tokens)::HUGEINT, count(*), "
    "CASE WHEN bool_or(status = 'error') THEN 'error' WHEN bool_or(status = 'timeout') THEN 'timeout' ELSE 'ok' END"
)
_ONCE = "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) = 1"


class TraceRow(NamedTuple):
    """A line of ``GET /traces``: sums over the spans of a trace, each span once."""

    trace_id: str
    name: str
    started_ns: int
    ended_ns: int
    cost_nusd: int
    total_tokens: int
    span_count: int
    status: str


class Cursor(NamedTuple):
    """What was shown before: traces that started later, or at the same instant and have a smaller id."""

    started_ns: int
    trace_id: str

    def is_before(self, row: TraceRow) -> bool:
        """*row* is still to be shown."""
        return row.started_ns < self.started_ns or (row.started_ns == self.started_ns and row.trace_id > self.trace_id)


def encode_cursor(cursor: Cursor) -> str:
    """As it stands in an address."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def parse_cursor(text: str) -> Cursor:
    """
    The cursor of an earlier answer.

    Raises:
        Rejected: It is of no answer.
    """
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(decoded, type=Cursor)
    except (binascii.Error, msgspec.DecodeError, ValueError) as exc:
        raise Rejected(f"cursor: {shorten(text)!r} is not one of an earlier answer") from exc
    if not 0 <= cursor.started_ns <= _LAST_NS:
        raise Rejected(f"cursor: {shorten(text)!r} is not one of an earlier answer")
    return cursor


class Page(NamedTuple):
    """
    Some traces.

    Attributes:
        total: How many match in all; None when so many do that counting them would take too long.
        next: Where the next page goes on; None = there are no more.
        searched_until_ns: The page ended early: of what started before, nothing is known; None = it did not.
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
    The page behind *cursor* and *offset* more traces.

    Raises:
        Unavailable: The disk refused.
    """
    deadline = time.perf_counter() + budget_s
    condition, values = search.condition()
    some = f"SELECT trace_hash FROM {{spans}} WHERE {condition or 'true'} LIMIT {FEW + 1}"
    grouped = store.query(f"SELECT trace_hash, count(*) FROM ({some}) GROUP BY trace_hash", values, now_ns)
    matching = sum(count for _, count in grouped)
    if not matching:
        return Page([], 0, None)
    if matching <= FEW:
        hashes = [trace for trace, _ in grouped]
        return _through_matches(store, search, hashes, limit, offset, cursor, now_ns)
    rows, reached_ns = _walk(store, search, limit, offset, cursor, now_ns, deadline)
    return _cut(rows, limit, offset, None, reached_ns)


def _cut(rows: Sequence[TraceRow], limit: int, offset: int, total: int | None, reached_ns: int | None) -> Page:
    """The page of *rows*, which begin behind the cursor and hold one more than it where there is one."""
    shown = list(rows[offset : offset + limit])
    if len(rows) > offset + limit:
        # A page of nothing goes on where it began.
        last = shown[-1] if shown else None
        return Page(shown, total, Cursor(last.started_ns, last.trace_id) if last else None)
    return Page(shown, total, None if reached_ns is None else Cursor(reached_ns, ""), reached_ns)


def _through_matches(
    store: Store, search: Search, hashes: Sequence[int], limit: int, offset: int, cursor: Cursor | None, now_ns: int
) -> Page:
    """The page, when the spans that match are of traces with *hashes*, and of others that are left out by the sums."""
    condition, values = search.condition()
    bounds, instants = search.bounds("began")
    # Only the hash is read of every row: the wide columns are of the rows that are found by it.
    rows_of = "WHERE ordinal IN (SELECT ordinal FROM {spans} WHERE trace_hash IN (SELECT unnest(?::UINTEGER[])))"
    conditions = [text for text in (f"bool_or({condition})" if condition else "", bounds) if text]
    found = (
        # What is summed, and must match, is the last version of each span.
        f"WITH found AS MATERIALIZED (SELECT trace_id, {_SUMS} FROM (SELECT * FROM {{spans}} {rows_of} {_ONCE}) "
        f"GROUP BY trace_id {'HAVING ' + ' AND '.join(conditions) if conditions else ''}) "
    )
    given = [hashes, *values, *instants]
    after, key = "", list[Any]()
    if cursor is not None:
        after = "WHERE began < ? OR (began = ? AND trace_id > ?)"
        key = [cursor.started_ns, cursor.started_ns, cursor.trace_id]
    rows = store.query(
        f"{found} SELECT *, (SELECT count(*) FROM found) FROM found {after} "
        f"ORDER BY began DESC, trace_id LIMIT {limit + 1} OFFSET {offset}",
        [*given, *key],
        now_ns,
    )
    if rows:
        return _cut([_row(row) for row in rows], limit, 0, int(rows[0][-1]), None)
    total = store.query(f"{found} SELECT count(*) FROM found", given, now_ns)
    return Page([], int(total[0][0]) if total else 0, None)


def _row(row: Sequence[Any]) -> TraceRow:
    return TraceRow(row[0], row[1], row[2], row[3], int(row[4]), int(row[5]), row[6], row[7])


def _walk(
    store: Store, search: Search, limit: int, offset: int, cursor: Cursor | None, now_ns: int, deadline: float
) -> tuple[list[TraceRow], int | None]:
    """(The first traces behind *cursor*, one more than are wanted; how far back was looked when the time was over)."""
    wanted = offset + limit + 1
    condition, values = search.condition()
    found: list[TraceRow] = []
    bounds = [bound for bound in (search.until_ns, cursor.started_ns if cursor else None) if bound is not None]
    upto_ns, size = min([_LAST_NS, *bounds]), min(_ROWS_A_TRACE * wanted, _MOST_ROWS)
    while True:
        newest = store.query(
            f"SELECT trace_id, started_ns FROM {{spans}} WHERE started_ns <= ? ORDER BY started_ns DESC LIMIT {size}",
            [upto_ns],
            now_ns,
        )
        last = len(newest) < size
        floor_ns = -1 if last else int(newest[-1][1])
        if floor_ns == upto_ns and not last:
            size *= 4  # as many spans as this started at one instant
            continue
        if search.since_ns is not None and floor_ns < search.since_ns:
            floor_ns, last = search.since_ns - 1, True
        met = {trace_id for trace_id, started_ns in newest if started_ns > floor_ns}
        rows = [row for row in _summed(store, met, condition, values, now_ns) if floor_ns < row.started_ns <= upto_ns]
        found += sorted(
            (row for row in rows if cursor is None or cursor.is_before(row)),
            key=lambda row: (-row.started_ns, row.trace_id),
        )
        if last or len(found) >= wanted:
            return found[:wanted], None
        # Whoever skips some has to be told of what comes behind them: there is no going on in between.
        if time.perf_counter() > deadline and len(found) >= offset:
            return found, floor_ns
        upto_ns, size = floor_ns, min(size * 4, max(size, _MOST_ROWS))


def _summed(store: Store, trace_ids: set[str], condition: str, values: Sequence[Any], now_ns: int) -> list[TraceRow]:
    """The traces called so of which a span matches."""
    if not trace_ids:
        return []
    ids = sorted(trace_ids)
    rows = store.query(
        f"SELECT trace_id, {_SUMS} FROM (SELECT * FROM {{spans}} WHERE trace_hash IN "
        "(SELECT unnest(?::UINTEGER[])) AND trace_id IN (SELECT unnest(?::VARCHAR[])) "
        f"{_ONCE}) GROUP BY trace_id HAVING bool_or({condition or 'true'})",
        [sorted({trace_hash(trace_id) for trace_id in ids}), ids, *values],
        now_ns,
    )
    return [_row(row) for row in rows]
