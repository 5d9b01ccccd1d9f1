"""The part of the OpenAPI document that describes the routes that read traces."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.records import Kind
from tokentrace.service.contract import Answer, operation
from tokentrace_api.routes.answers import (
    MIST_EXAMPLE,
    SPAN_EXAMPLE,
    Incomplete,
    InstantText,
    Milliseconds,
    MistSpan,
    Natural,
    SpanStatus,
    StoredSpan,
    SumsOfSpans,
)


class ListedTrace(SumsOfSpans, kw_only=True):
    """A trace in a list."""

    trace_id: str
    name: str
    started_at: InstantText
    ended_at: InstantText
    status: str


class TracePage(msgspec.Struct):
    """
    A page of traces, newest start first.

    Attributes:
        count: Number of traces on this page.
        total: Number of matching traces on all pages; null if over 50,000 spans match.
        next_cursor: Cursor of the next page; null = this is the last page.
        searched_until: Present only if the search took too long and the page ended early: traces that started at or
            before this instant have not been searched, except perhaps some that started at it.
    """

    traces: list[ListedTrace]
    trace_ids: list[str]
    count: Natural
    total: Natural | None
    limit: Natural
    offset: Natural
    next_cursor: str | None
    searched_until: InstantText | UnsetType = UNSET


class RecentSpansAnswer(msgspec.Struct):
    """The spans that arrived last, newest first."""

    spans: list[MistSpan]
    count: Natural


class Trace(SumsOfSpans, kw_only=True):
    """
    A trace.

    Attributes:
        name: Name of the root, or of the first span if the trace has no root.
        ended_at: Latest end of a span; null = no span has ended.
        spans: The ended spans by start, then the open spans by start; a page of them if there are many. Everything
            else is about all spans.
        next_cursor: Present only if further spans follow: the `cursor` of the next page.
    """

    trace_id: str
    name: str
    started_at: InstantText
    ended_at: InstantText | None
    spans: list[StoredSpan]
    next_cursor: str | UnsetType = UNSET


class MistTrace(msgspec.Struct):
    """
    A trace in MIST's form.

    Attributes:
        next_cursor: Present only if further spans follow: the `cursor` of the next page.
    """

    trace_id: str
    spans: list[MistSpan]
    next_cursor: str | UnsetType = UNSET


class TimelineRow(msgspec.Struct):
    """
    A row of a timeline: one span.

    Attributes:
        depth: Number of its ancestors in the trace.
        start_ms: Start of the span, milliseconds since the start of the trace.
        duration_ms: Time from start to end, milliseconds; null while the span is open.
        cost_usd: US dollars; null while the span is open or if its cost is unknown.
    """

    span_id: str
    parent_span_id: str | None
    name: str
    kind: Kind
    depth: Natural
    start_ms: Milliseconds
    model: str | None
    status: SpanStatus
    duration_ms: Milliseconds | None
    cost_usd: float | None


class Timeline(msgspec.Struct):
    """
    A trace as a timeline, its rows by start.

    Attributes:
        duration_ms: Time from the start of the trace to the latest end of a span, milliseconds.
        next_cursor: Present only if further rows follow: the `cursor` of the next page.
    """

    trace_id: str
    started_at: InstantText
    duration_ms: Milliseconds
    rows: list[TimelineRow]
    next_cursor: str | UnsetType = UNSET


class OperationCounts(msgspec.Struct):
    """Number of spans with one name, and of those with status error."""

    count: Natural
    errors: Natural


class Stats(Incomplete, kw_only=True):
    """
    Totals since the stream began; timeouts are not counted as errors.

    Attributes:
        folded: `["name"]` if there are too many names of spans, so that some are counted together as `other`.
    """

    total_spans: Natural
    error_count: Natural
    error_rate: float
    latency_p50_ms: Milliseconds
    latency_p99_ms: Milliseconds
    latency_avg_ms: Milliseconds
    total_tokens_in: Natural
    total_tokens_out: Natural
    total_cost_usd: float
    by_operation: dict[str, OperationCounts] | UnsetType = UNSET
    folded: list[str] | UnsetType = UNSET


_NOT_FOUND = {404: "trace not found"}
_STORE_AWAY = {503: "span store: is not open yet"}
_ROW_EXAMPLE = {
    "trace_id": "t1",
    "name": "answer question",
    "started_at": "2026-03-15T14:23:01.441Z",
    "ended_at": "2026-03-15T14:23:02.261Z",
    "total_cost_usd": 0.00256,
    "total_tokens": 640,
    "span_count": 1,
    "unpriced_span_count": 0,
    "partly_priced_span_count": 0,
    "status": "ok",
}
_SPAN_IN_TRACE = {key: value for key, value in SPAN_EXAMPLE.items() if key != "trace_id"} | {"depth": 0}
_TRACE_EXAMPLE = {key: value for key, value in _ROW_EXAMPLE.items() if key != "status"} | {"spans": [_SPAN_IN_TRACE]}
LIST_TRACES = operation(
    "listTraces",
    "List traces",
    """
    Traces, newest start first. A trace matches if one of its spans matches all filters. `since` and `until` apply to
    the start of the trace. `next_cursor` leads to the next page.
    """,
    Answer(
        TracePage,
        "A page.",
        {
            "traces": [_ROW_EXAMPLE],
            "trace_ids": ["t1"],
            "count": 1,
            "total": 1,
            "limit": 20,
            "offset": 0,
            "next_cursor": None,
        },
    ),
    errors={400: "status: 'bad' is none of ok, error, timeout", **_STORE_AWAY},
)
LIST_RECENT = operation(
    "listRecentSpans",
    "List the newest spans",
    "The spans that arrived last, in MIST's form, newest first.",
    Answer(RecentSpansAnswer, "The spans.", {"spans": [MIST_EXAMPLE], "count": 1}),
    errors=_STORE_AWAY,
)
GET_TRACE = operation(
    "getTrace",
    "Get a trace",
    """
    A trace with its spans and their depth. A trace of over 1,000 spans is shown in pages: `next_cursor` leads to the
    next one; sums are always over all spans. A page also ends after about 8 MiB. A slash in the id is escaped. Slashes
    at the end of the path are ignored, so `/traces/recent/` is the trace `recent`.
    """,
    Answer((Trace, MistTrace), "The trace.", _TRACE_EXAMPLE),
    errors={400: "format: 'xml' is neither docs nor mist", **_NOT_FOUND, **_STORE_AWAY},
)
GET_SPAN = operation(
    "getSpan",
    "Get a span",
    "One span of a trace; the rest of the trace is not read.",
    Answer(StoredSpan, "The span.", SPAN_EXAMPLE),
    errors={400: "limit: unknown parameter; allowed are none", 404: "span not found", **_STORE_AWAY},
)
GET_TIMELINE = operation(
    "getTraceTimeline",
    "Get a trace as a timeline",
    """
    A row for each span: when it begins and how long it takes, in milliseconds. A trace of over 1,000 spans is shown in
    pages: `next_cursor` leads to the next one.
    """,
    Answer(
        Timeline,
        "The rows.",
        {
            "trace_id": "t1",
            "started_at": "2026-03-15T14:23:01.441Z",
            "duration_ms": 820,
            "rows": [
                {
                    "span_id": "s1",
                    "parent_span_id": None,
                    "name": "answer question",
                    "kind": "llm",
                    "depth": 0,
                    "start_ms": 0,
                    "model": "gpt-4o",
                    "status": "ok",
                    "duration_ms": 820,
                    "cost_usd": 0.00256,
                }
            ],
        },
    ),
    errors={400: "limit: 'x' is not a whole number >= 0 of at most 18 digits", **_NOT_FOUND, **_STORE_AWAY},
)
GET_STATS = operation(
    "getStats",
    "Get totals since the stream began",
    "Spans that the store no longer holds are still counted.",
    Answer(
        Stats,
        "The totals.",
        {
            "total_spans": 312,
            "error_count": 4,
            "error_rate": 0.0128,
            "latency_p50_ms": 820.0,
            "latency_p99_ms": 3810.0,
            "latency_avg_ms": 910.5,
            "total_tokens_in": 156800,
            "total_tokens_out": 39200,
            "total_cost_usd": 1.42,
            "by_operation": {"answer question": {"count": 312, "errors": 4}},
        },
    ),
    errors={400: "window: unknown parameter; allowed are none", 503: "no aggregator answers"},
)
