"""Finds single spans in the store: by filter, by id, and spans that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.dedup import same_call
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

    If a span does not count because its call was told as another span first, that other span is returned: what is said
    about the call, such as a score, belongs there.

    Args:
        trace_id: "" = any trace.
        span_id: "" = the root of the trace, or its first span if it has no root.
    """
    if trace_id:
        tellings = store.tellings(trace_id, now_ns)
        if span_id:
            found = [telling for telling in tellings if telling.span.span_id == span_id][:1]
        else:
            found = [telling for telling in tellings if telling.span.parent_span_id is None][:1] or tellings[:1]
        return [_first_told(store, telling, now_ns) for telling in found]
    rows = store.query(f"SELECT * FROM {{spans}} WHERE span_id = ? {ONE_TELLING} ORDER BY ordinal", [span_id], now_ns)
    first: dict[str, Telling] = {}
    for telling in map(telling_of, rows):
        first.setdefault(telling.span.trace_id, telling)
    told = [_first_told(store, telling, now_ns) for telling in first.values()]
    return list({(span.trace_id, span.span_id): span for span in told}.values())


def _first_told(store: Store, telling: Telling, now_ns: int) -> Span:
    """Return the span of *telling*, or, if it does not count, the span as which its call was told first."""
    span = telling.span
    if telling.counted or not span.response_id:
        return span
    sql = "SELECT * FROM {spans} WHERE counted AND response_id = ? ORDER BY ordinal"
    counted = map(span_of, store.query(sql, [span.response_id], now_ns))
    return next((other for other in counted if same_call(other, span)), span)


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
