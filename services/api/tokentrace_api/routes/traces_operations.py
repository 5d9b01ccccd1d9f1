"""What the document says of the routes that read traces."""

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
)


class ListedTrace(msgspec.Struct):
    """A trace in a list: sums over its spans, each span once; money in US dollars."""

    trace_id: str
    name: str
    started_at: InstantText
    ended_at: InstantText
    total_cost_usd: float
    total_tokens: Natural
    span_count: Natural
    status: str


class TracePage(msgspec.Struct):
    """
    A page of traces, newest start first.

    Attributes:
        count: Traces on this page.
        total: Matching traces on all pages; null when counting them would take too long.
        next_cursor: Cursor of the next page; null = this is the last one.
        searched_until: Only when the page ended early: nothing that started before has been looked at.
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
    """The newest spans, newest first."""

    spans: list[MistSpan]
    count: Natural


class Trace(msgspec.Struct):
    """
    A trace; sums are those of the spans that have ended.

    Attributes:
        name: Of the root.
        ended_at: End of the last span; null while none has ended.
        spans: The ended ones by start, then the open ones.
    """

    trace_id: str
    name: str
    started_at: InstantText
    ended_at: InstantText | None
    total_cost_usd: float
    total_tokens: Natural
    span_count: Natural
    spans: list[StoredSpan]


class MistTrace(msgspec.Struct):
    """A trace in MIST's form."""

    trace_id: str
    spans: list[MistSpan]


class TimelineRow(msgspec.Struct):
    """
    A span as a bar.

    Attributes:
        depth: How many ancestors the trace holds.
        start_ms: Since the start of the trace.
        duration_ms: null while the span is open.
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
    """A trace ready to be drawn, rows by start."""

    trace_id: str
    started_at: InstantText
    duration_ms: Milliseconds
    rows: list[TimelineRow]


class OperationCounts(msgspec.Struct):
    """Spans of one name."""

    count: Natural
    errors: Natural


class Stats(Incomplete, kw_only=True):
    """Totals since the stream began; money in US dollars."""

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
    "status": "ok",
}
_SPAN_IN_TRACE = {key: value for key, value in SPAN_EXAMPLE.items() if key != "trace_id"} | {"depth": 0}
_TRACE_EXAMPLE = {key: value for key, value in _ROW_EXAMPLE.items() if key != "status"} | {"spans": [_SPAN_IN_TRACE]}
LIST_TRACES = operation(
    "listTraces",
    "List traces",
    """
    Traces, newest start first. A trace matches when one of its spans has everything that the filters ask for.
    Follow `next_cursor` for more.
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
    "In MIST's form, newest first.",
    Answer(RecentSpansAnswer, "The spans.", {"spans": [MIST_EXAMPLE], "count": 1}),
    errors=_STORE_AWAY,
)
GET_TRACE = operation(
    "getTrace",
    "Get a trace",
    "A trace with every span and its depth.",
    Answer((Trace, MistTrace), "The trace.", _TRACE_EXAMPLE),
    errors={400: "format: 'xml' is neither docs nor mist", **_NOT_FOUND, **_STORE_AWAY},
)
GET_TIMELINE = operation(
    "getTraceTimeline",
    "Get a trace as rows to draw",
    "A row for each span: where it begins and how long it takes, in milliseconds.",
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
    errors={400: "limit: unknown parameter; allowed are none", **_NOT_FOUND, **_STORE_AWAY},
)
GET_STATS = operation(
    "getStats",
    "Get totals since the beginning",
    "Counted since the stream began; spans that the store has forgotten are still counted.",
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
