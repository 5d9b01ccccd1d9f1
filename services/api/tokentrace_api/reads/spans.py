"""Finds single spans in the store: by filter, by id, and spans that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.records import Span, Started, same_call
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.tellings import with_later_versions
from tokentrace_api.store import ONE_TELLING, STARTED, Store, Telling, span_of, telling_of, trace_hash


def newest_ordinal(store: Store, now_ns: int) -> int:
    """Return the number of the newest row of a span; 0 = there is none."""
    rows = store.query("SELECT max(ordinal) FROM {spans}", [], now_ns)
    return int(rows[0][0] or 0) if rows else 0


def find_spans(store: Store, search: Search, after: int, upto: int, now_ns: int) -> list[Telling]:
    """Return the matching spans in the rows *after* + 1 to *upto*, in order, each call once."""
    condition, values = search.of_span()
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
        found = store.tellings_of(trace_id, span_id, now_ns) if span_id else store.first_tellings(trace_id, now_ns)
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


def find_telling(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[Telling]:
    """Return a list with the telling of a span that counts, or else the first one, with its ``later_versions``."""
    return with_later_versions(store, store.tellings_of(trace_id, span_id, now_ns), now_ns)


def shards_of(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[int]:
    """Return a list with the shard on which a span first arrived; [] if the span is not stored."""
    sql = "SELECT shard FROM {spans} WHERE trace_hash = ? AND trace_id = ? AND span_id = ? ORDER BY ordinal LIMIT 1"
    return [row[0] for row in store.query(sql, [trace_hash(trace_id), trace_id, span_id], now_ns)]


def find_started(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[Started]:
    """Return a list with the start of a span, which may have ended since; [] if its start is not known."""
    rows = store.query(
        "SELECT * FROM {started} WHERE trace_id = ? AND span_id = ? LIMIT 1", [trace_id, span_id], now_ns
    )
    return [_started_of(row) for row in rows]


def open_spans(store: Store, column: str, value: str, now_ns: int) -> list[Started]:
    """Return the open spans whose *column* has *value*, by start."""
    # Most spans that have started have ended, so only ids are read first. In this order, a span that ends between the
    # two reads is not open.
    begun = set(store.query(f"SELECT trace_id, span_id FROM {{started}} WHERE {column} = ?", [value], now_ns))
    if not begun:
        return []
    hashes = sorted({trace_hash(trace_id) for trace_id, _ in begun})
    begun -= set(
        store.query(
            "SELECT trace_id, span_id FROM {spans} WHERE trace_hash IN (SELECT unnest(?::UINTEGER[]))", [hashes], now_ns
        )
    )
    rows = store.query(
        f"SELECT * FROM {{started}} WHERE {column} = ? AND span_id IN (SELECT unnest(?::VARCHAR[])) "
        "ORDER BY started_ns, span_id",
        [value, sorted({span_id for _, span_id in begun})],
        now_ns,
    )
    return [started for started in map(_started_of, rows) if (started.trace_id, started.span_id) in begun]


def _started_of(row: Sequence[Any]) -> Started:
    values = dict(zip(STARTED, row, strict=True))
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return Started(**values)
