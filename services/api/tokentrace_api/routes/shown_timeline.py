"""How answers show a trace as a timeline: as rows, or as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from tokentrace.records import counts_as_cost
from tokentrace.units import int_to_score, ns_to_ms, nusd_to_usd, render_instant
from tokentrace_api.reads import (
    Levels,
    Outline,
    SpanCursor,
    SpanPage,
    SpanRow,
    below,
    depths,
    encode_span_cursor,
    page_of,
    sums_of,
    top_levels,
)
from tokentrace_api.routes.shown_spans import sum_fields
from tokentrace_api.routes.shown_traces import pending_status
from tokentrace_api.routes.traces_operations import ColumnTimeline, Timeline, TimelineColumns, TimelineRow


class Shown:
    """
    A trace that is shown as a timeline.

    Args:
        outline: All spans of the trace by start; at least one.
        below_id: Only the spans below this one are shown; None = all.
        now_ns: The time of the answer, Unix nanoseconds.

    Raises:
        KeyError: The trace has no span *below_id*.
    """

    def __init__(self, trace_id: str, outline: Outline, below_id: str | None, now_ns: int) -> None:
        self._trace_id, self._all, self._now_ns = trace_id, outline.rows, now_ns
        self._begin = outline.rows[0].started_ns
        self._depth = depths(outline.rows)
        inside = self._all if below_id is None else below(self._all, self._depth, below_id)
        if inside is None:
            raise KeyError(below_id)
        self._rows = inside

    def as_rows(self, limit: int, cursor: SpanCursor | None) -> Timeline:
        """Return a page of the rows."""
        page = page_of(self._rows, "start", limit, cursor)
        return Timeline(rows=[TimelineRow(**self._fields(row)) for row in page.rows], **self._head(page))

    def as_columns(self, limit: int, most: int, cursor: SpanCursor | None) -> ColumnTimeline:
        """
        Return a page of the columns.

        Args:
            most: If there are more spans, as many levels are shown as have at most this number together.
        """
        levels = top_levels(self._rows, self._depth, most)
        page = page_of(levels.rows, "start", limit, cursor)
        return ColumnTimeline(columns=self._columns(page.rows, levels), **self._head(page))

    def _head(self, page: SpanPage) -> dict[str, Any]:
        rows = self._all
        ends = [row.ended_ns for row in rows if row.ended_ns is not None] or [self._begin]
        return {
            "trace_id": self._trace_id,
            "name": next((row for row in rows if row.parent_span_id is None), rows[0]).name,
            "started_at": render_instant(self._begin),
            "duration_ms": ns_to_ms(max(ends) - self._begin),
            "session_id": _first(rows, "session_id"),
            "user_id": _first(rows, "user_id"),
            "error_count": sum(row.status in ("error", "timeout") for row in rows),
            "row_count": len(self._rows),
            "next_cursor": UNSET if page.next is None else encode_span_cursor(page.next),
            **sum_fields(sums_of(rows)),
        }

    def _fields(self, row: SpanRow) -> dict[str, Any]:
        ended_ns = row.ended_ns
        return {
            "span_id": row.span_id,
            "parent_span_id": row.parent_span_id,
            "name": row.name,
            "kind": row.kind,
            "depth": self._depth[row.key],
            "start_ms": ns_to_ms(row.started_ns - self._begin),
            "model": row.model or None,
            "status": pending_status(row.started_ns, self._now_ns) if ended_ns is None else row.status,
            "duration_ms": None if ended_ns is None else ns_to_ms(max(ended_ns - row.started_ns, 0)),
            "cost_usd": None if row.cost_nusd is None else nusd_to_usd(row.cost_nusd),
            "counted": row.counted and counts_as_cost(row.kind),
            "total_tokens": None if ended_ns is None else row.total_tokens,
            "ttft_ms": ns_to_ms(row.ttft_ns) if row.ttft_ns else None,
            "caller": row.caller or None,
            "score": None if row.score is None else int_to_score(row.score),
        }

    def _columns(self, rows: Sequence[SpanRow], levels: Levels) -> TimelineColumns:
        shown = [self._fields(row) for row in rows]
        columns: Mapping[str, Any] = {
            name: [fields[name] for fields in shown] for name in TimelineRow.__struct_fields__
        }
        hidden = [levels.hidden.get(row.key, 0) for row in rows] if levels.hidden else UNSET
        return TimelineColumns(**columns, hidden=hidden)


def _first(rows: Sequence[SpanRow], field: str) -> str | None:
    """Return *field* of the first root that has one, or else of the first span that has one."""
    held = [row for row in rows if getattr(row, field)]
    found = next((row for row in held if row.parent_span_id is None), held[0] if held else None)
    return None if found is None else getattr(found, field)
