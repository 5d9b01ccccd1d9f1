"""Single spans of the store: by what they have, by id, and those that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.records import Span, Started
from tokentrace_api.reads.search import Search
from tokentrace_api.store import STARTED, Store, span_of, trace_hash

_ONCE = "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) = 1"
#: Of the spans that began, those that have not ended.
_OPEN = (
    "SELECT * FROM {started} AS begun WHERE NOT EXISTS (SELECT 1 FROM {spans} AS ended "
    "WHERE ended.trace_id = begun.trace_id AND ended.span_id = begun.span_id)"
)


def newest_ordinal(store: Store, now_ns: int) -> int:
    """The number of the newest row; 0 = there is none."""
    rows = store.query("SELECT max(ordinal) FROM {spans}", [], now_ns)
    return int(rows[0][0] or 0) if rows else 0


def find_spans(store: Store, search: Search, after: int, upto: int, now_ns: int, newest: int) -> list[Span]:
    """
    The spans that match among the rows numbered (after, upto], in that order; of versions of one the last.

    Args:
        newest: The last row there is for whoever reads on step by step: what comes later replaces nothing, for it will
            not be read.
    """
    condition, values = search.condition()
    bounds, instants = search.bounds("started_ns")
    wanted = " AND ".join(text for text in ("ordinal > ?", "ordinal <= ?", condition, bounds) if text)
    rows = store.query(
        f"SELECT * FROM {{spans}} AS held WHERE {wanted} "
        # Two versions of a span are rare: only of rows that would be given is a later one looked for.
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
    The spans with these ids, one for each trace.

    Args:
        trace_id: "" = of any trace.
        span_id: "" = the root of the trace, or what began first.
    """
    if trace_id:
        spans = store.trace(trace_id, now_ns)
        if span_id:
            return [span for span in spans if span.span_id == span_id]
        return [next((span for span in spans if span.parent_span_id is None), spans[0])] if spans else []
    rows = store.query(f"SELECT * FROM {{spans}} WHERE span_id = ? {_ONCE}", [span_id], now_ns)
    return [span_of(row) for row in rows]


def shards_of(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[int]:
    """The shard that a span first came on, if it is there."""
    sql = "SELECT shard FROM {spans} WHERE trace_hash = ? AND trace_id = ? AND span_id = ? ORDER BY ordinal LIMIT 1"
    return [row[0] for row in store.query(sql, [trace_hash(trace_id), trace_id, span_id], now_ns)]


def open_spans(store: Store, column: str, value: str, now_ns: int) -> list[Started]:
    """The spans whose *column* is *value* that began and have not ended, by start."""
    rows = store.query(f"{_OPEN} AND begun.{column} = ? ORDER BY started_ns, span_id", [value], now_ns)
    return [_started_of(row) for row in rows]


def _started_of(row: Sequence[Any]) -> Started:
    values = dict(zip(STARTED, row, strict=True))
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return Started(**values)
