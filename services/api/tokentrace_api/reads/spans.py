"""Finds single spans in the store: by filter, by id, and spans that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.records import Span, Started
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.tellings import with_later_versions
from tokentrace_api.store import ONE_TELLING, STARTED, Store, Telling, span_of, telling_of, trace_hash

#: Selects the spans that have started and not ended.
_OPEN = (
    "SELECT * FROM {started} AS begun WHERE NOT EXISTS (SELECT 1 FROM {spans} AS ended "
    "WHERE ended.trace_id = begun.trace_id AND ended.span_id = begun.span_id)"
)


def newest_ordinal(store: Store, now_ns: int) -> int:
    """Return the number of the newest row of a span; 0 = there is none."""
    rows = store.query("SELECT max(ordinal) FROM {spans}", [], now_ns)
    return int(rows[0][0] or 0) if rows else 0


def find_spans(store: Store, search: Search, after: int, upto: int, now_ns: int) -> list[Telling]:
    """Return the matching spans in the rows *after* + 1 to *upto*, in order, each call once."""
    condition, values = search.condition()
    bounds, instants = search.bounds("started_ns")
    where = " AND ".join(text for text in ("ordinal > ?", "ordinal <= ?", "counted", condition, bounds) if text)
    rows = store.query(
        f"SELECT * FROM {{spans}} WHERE {where} ORDER BY ordinal", [after, upto, *values, *instants], now_ns
    )
    return with_later_versions(store, [telling_of(row) for row in rows], now_ns)


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
            return [span for span in spans if span.span_id == span_id][:1]
        return [next((span for span in spans if span.parent_span_id is None), spans[0])] if spans else []
    rows = store.query(f"SELECT * FROM {{spans}} WHERE span_id = ? {ONE_TELLING} ORDER BY ordinal", [span_id], now_ns)
    first: dict[str, Span] = {}
    for span in map(span_of, rows):
        first.setdefault(span.trace_id, span)
    return list(first.values())


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
