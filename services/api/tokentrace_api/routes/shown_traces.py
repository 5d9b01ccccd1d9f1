"""How answers show a trace: its page of spans in either form, its timeline, and its row in a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from tokentrace.dialect import mist
from tokentrace.records import Started
from tokentrace.units import DAY, ns_to_ms, render_instant
from tokentrace_api.reads import Outline, SpanPage, TraceRow, depths, encode_span_cursor, sums_of
from tokentrace_api.routes.shown_spans import mean_score, render_telling, sum_fields
from tokentrace_api.routes.traces_operations import ListedTrace
from tokentrace_api.store import Telling

#: An open span that started longer ago than this is abandoned, nanoseconds.
ABANDONED_NS = DAY


def render_row(row: TraceRow, attributes: Mapping[str, str | None] | None = None) -> ListedTrace:
    """Return *row* as the list of traces shows it, with *attributes* if any were asked for."""
    details = row.details
    return ListedTrace(
        trace_id=row.trace_id,
        name=row.name,
        started_at=render_instant(row.started_ns),
        ended_at=render_instant(row.ended_ns),
        status=row.status,
        duration_ms=ns_to_ms(max(row.ended_ns - row.started_ns, 0)),
        error=details.error or None,
        models=list(details.models),
        caller=details.caller or None,
        session_id=details.session_id or None,
        user_id=details.user_id or None,
        score=mean_score(details.score, details.scored),
        attributes=dict(attributes) if attributes else UNSET,
        **sum_fields(row.sums),
    )


def render_trace(
    trace_id: str, outline: Outline, page: SpanPage, tellings: Sequence[Telling], now_ns: int
) -> dict[str, Any]:
    """
    Return a page of a trace as the struct ``Trace`` describes it.

    Args:
        outline: All spans of the trace, the ended ones first, each kind by start; at least one.
        page: The rows that are shown.
        tellings: The ended spans of *page*.
    """
    rows = outline.rows
    root = next((row for row in rows if row.parent_span_id is None), rows[0])
    ends = [row.ended_ns for row in rows if row.ended_ns is not None]
    depth = depths(rows)
    shown = []
    for telling in tellings:
        span = render_telling(telling)
        del span["trace_id"]
        shown.append(span | {"depth": depth[telling.key]})
    for row in page.rows:
        if row.ended_ns is None:
            span = render_open(outline.started[row.key], now_ns)
            del span["trace_id"]
            shown.append(span | {"depth": depth[row.key]})
    return {
        "trace_id": trace_id,
        "name": root.name,
        "started_at": render_instant(min(row.started_ns for row in rows)),
        "ended_at": render_instant(max(ends)) if ends else None,
        **sum_fields(sums_of(rows)),
        "spans": shown,
        **next_page(page),
    }


def render_mist_trace(trace_id: str, outline: Outline, page: SpanPage, tellings: Sequence[Telling]) -> dict[str, Any]:
    """Return a page of a trace as the struct ``MistTrace`` describes it; the arguments are as for ``render_trace``."""
    shown = [mist.render_span(telling.span) for telling in tellings]
    shown += [_mist_open(outline.started[row.key]) for row in page.rows if row.ended_ns is None]
    return {"trace_id": trace_id, "spans": shown, **next_page(page)}


def next_page(page: SpanPage, name: str = "next_cursor") -> Mapping[str, str]:
    """Return the field that leads to the next page; {} on the last page."""
    return {} if page.next is None else {name: encode_span_cursor(page.next)}


def pending_status(started_ns: int, now_ns: int) -> str:
    """Return the status of an open span: pending, or abandoned a day after its start."""
    return "abandoned" if started_ns < now_ns - ABANDONED_NS else "pending"


def render_open(started: Started, now_ns: int) -> dict[str, Any]:
    """Return an open span as the struct ``StoredSpan`` describes it."""
    shown: dict[str, Any] = {
        "trace_id": started.trace_id,
        "span_id": started.span_id,
        "parent_span_id": started.parent_span_id,
        "name": started.name,
        "kind": started.kind,
        "status": pending_status(started.started_ns, now_ns),
        "started_at": render_instant(started.started_ns),
        "ended_at": None,
    }
    optional = {
        "caller": started.caller,
        "session_id": started.session_id,
        "user_id": started.user_id,
        "attributes": started.metadata,
    }
    return shown | {name: value for name, value in optional.items() if value}


def _mist_open(started: Started) -> dict[str, Any]:
    """Return an open span in MIST's form; its ``end_ns`` is 0."""
    shown = {
        "trace_id": started.trace_id,
        "span_id": started.span_id,
        "parent_id": started.parent_span_id,
        "operation": started.name,
        "start_ns": started.started_ns,
        "end_ns": 0,
        "status": "",
        "attrs": started.metadata,
    }
    return {key: value for key, value in shown.items() if value or key not in ("parent_id", "attrs")}
