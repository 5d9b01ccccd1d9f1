"""Finds single spans in the store: by filter, by id, and spans that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.records import Span, Started
from tokentrace_api.reads.search import Search
from tokentrace_api.store import STARTED, Store, span_of, trace_hash

_ONCE = "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) = 1"
#: Selects the spans that have started and not ended.
_OPEN = (
    "SELECT * FROM {started} AS begun WHERE NOT EXISTS (SELECT 1 FROM {spans} AS ended "
    "WHERE ended.trace_id = begun.trace_id AND ended.span_id = begun.span_id)"
)


def newest_ordinal(store: Store, now_ns: int) -> int:
    """Return the number of the newest row of a span; 0 = there is none."""
    rows = store.query("SELECT max(ordinal) FROM {spans}", [], now_ns)
    return int(rows[0][0] or 0) if rows else 0


def find_spans(store: Store, search: Search, after: int, upto: int, now_ns: int, newest: int) -> list[Span]:
    """
    Return the matching spans in the rows *after* + 1 to *upto*, in order; of each span only the last version.

    Args:
        newest: Number of the last row that the caller will read. A version after that row does not replace an earlier
            one, because the caller would then get neither.
    """
    condition, values = search.condition()
    bounds, instants = search.bounds("started_ns")
    where = " AND ".join(text for text in ("ordinal > ?", "ordinal <= ?", condition, bounds) if text)
    rows = store.query(
        f"SELECT * FROM {{spans}} AS held WHERE {where} "
        # Spans with two versions are rare, so a later version is looked up for matching rows only.
        "AND NOT EXISTS (SELECT 1 FROM {spans} AS later WHERE later.ordinal > ? AND later.ordinal <= ? "
        "AND later.trace_hash = held.trace_hash "
        "AND later.trace_id = held.trace_id AND later.span_id = held.span_id AND later.ordinal > held.ordinal) "
        "ORDER BY ordinal",
        [after, upto, *values, *instants, after, newest],
        now_ns,
    )
    return [span_of(row) for row in rows]


def find_by_id(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[Span]:
    """
    Return the spans with these ids, at most one of each trace.

    Args:
        trace_id: "" = any trace.
        span_id: "" = the root of the trace, or its first span if it has no root.
    """
    if trace_id:
        spans = store.trace(trace_id, now_ns)
        if span_id:
            return [span for span in spans if span.span_id == span_id]
        return [next((span for span in spans if span.parent_span_id is None), spans[0])] if spans else []
    rows = store.query(f"SELECT * FROM {{spans}} WHERE span_id = ? {_ONCE}", [span_id], now_ns)
    return [span_of(row) for row in rows]


def shards_of(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[int]:
    """Return a list with the shard on which a span first arrived; [] if the span is not stored."""
    sql = "SELECT shard FROM {spans} WHERE trace_hash = ? AND trace_id = ? AND span_id = ? ORDER BY ordinal LIMIT 1"
    return [row[0] for row in store.query(sql, [trace_hash(trace_id), trace_id, span_id], now_ns)]


def open_spans(store: Store, column: str, value: str, now_ns: int) -> list[Started]:
    """Return the open spans whose *column* has *value*, by start."""
    rows = store.query(f"{_OPEN} AND begun.{column} = ? ORDER BY started_ns, span_id", [value], now_ns)
    return [_started_of(row) for row in rows]


def _started_of(row: Sequence[Any]) -> Started:
    values = dict(zip(STARTED, row, strict=True))
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return Started(**values)
