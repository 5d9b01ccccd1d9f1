"""The part of the OpenAPI document that describes the routes that read traces."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.records import Kind
from tokentrace.service.contract import Answer, operation
from tokentrace_api.reads import MOST_STEPS
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
    """
    A trace in a list.

    Attributes:
        duration_ms: Time from the earliest start to the latest end of a span, milliseconds.
        error: Text of the first span, by start, that has an error text.
        models: The models of its spans, sorted; at most 20.
        caller, session_id, user_id: Those of the root, or else of the first span that has one.
        score: Mean of the scores of its spans, 0 to 1.
        attributes: The attributes that `attribute` asks for, as text: those of the root, or else of the first span that
            has one; null = none has. Absent unless asked for.
    """

    trace_id: str
    name: str
    started_at: InstantText
    ended_at: InstantText
    status: str
    duration_ms: Milliseconds
    error: str | None
    models: list[str]
    caller: str | None
    session_id: str | None
    user_id: str | None
    score: float | None
    attributes: dict[str, str | None] | UnsetType = UNSET


class TracePage(msgspec.Struct):
    """
    A page of traces in the order that was asked for.

    Attributes:
        count: Number of traces on this page.
        total: Number of matching traces on all pages; null if over 50,000 spans match and the order is `started`, or if
            not all traces were searched.
        next_cursor: Cursor of the next page; null = this is the last page.
        searched_until: Present only if there was too much to search: traces that started at or before this instant have
            not been searched, except perhaps some that started at it. `next_cursor` goes on, in the order `started`;
            in another order, a list with this instant as `until` has the others.
    """

    traces: list[ListedTrace]
    trace_ids: list[str]
    count: Natural
    total: Natural | None
    limit: Natural
    offset: Natural
    next_cursor: str | None
    searched_until: InstantText | UnsetType = UNSET


class TracePoint(SumsOfSpans, kw_only=True):
    """
    The traces that started in one step.

    Attributes:
        at: When the step begins, or the range if it begins within the step.
        trace_count: Number of traces.
        ok_count: Number of those of which every span has the status ok.
        error_count: Number of the others.
        partial: True = the numbers cover only a part of the step: the range cuts it, it is not over yet, or a part of
            it was not searched. Absent for a whole step.
    """

    at: InstantText
    trace_count: Natural
    ok_count: Natural
    error_count: Natural
    partial: bool | UnsetType = UNSET


class TraceSeries(SumsOfSpans, kw_only=True):
    """
    Traces over time: the sums over all of them, and over those of each step.

    Attributes:
        from_, to: The first and the last instant that the points cover: the given bounds, or else the start of the
            first trace and now, or the start of the last trace if there is no bound; null = no trace matches, and the
            bound was not given.
        points: Every step of the range, also those without traces.
        trace_count, ok_count, error_count: As for a point.
        searched_until: Present only if there was too much to search: traces that started at or before this instant have
            not been searched.
    """

    from_: InstantText | None = msgspec.field(name="from")
    to: InstantText | None
    step: str
    trace_count: Natural
    ok_count: Natural
    error_count: Natural
    points: list[TracePoint]
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
        counted: Whether its cost and tokens are part of the sums: false if another telling of its call is, for a kind
            of span that only contains calls, and while the span is open.
        total_tokens: null while the span is open.
        ttft_ms: Time to the first token, milliseconds; null if it is not known.
        score: From 0 to 1; null if it has none.
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
    counted: bool
    total_tokens: Natural | None
    ttft_ms: Milliseconds | None
    caller: str | None
    score: float | None


class TimelineColumns(msgspec.Struct):
    """
    The rows of a timeline as columns: a list for each field of ``TimelineRow``, all of the same length.

    Attributes:
        hidden: Number of descendants of the span that are not shown; present only if the deepest levels are left out.
    """

    span_id: list[str]
    parent_span_id: list[str | None]
    name: list[str]
    kind: list[Kind]
    depth: list[Natural]
    start_ms: list[Milliseconds]
    model: list[str | None]
    status: list[SpanStatus]
    duration_ms: list[Milliseconds | None]
    cost_usd: list[float | None]
    counted: list[bool]
    total_tokens: list[Natural | None]
    ttft_ms: list[Milliseconds | None]
    caller: list[str | None]
    score: list[float | None]
    hidden: list[Natural] | UnsetType = UNSET


class TimelineHead(SumsOfSpans, kw_only=True):
    """
    What a timeline says about the whole trace.

    Attributes:
        name: Name of the root, or of the first span if the trace has no root.
        duration_ms: Time from the start of the trace to the latest end of a span, milliseconds.
        session_id, user_id: Those of the root, or else of the first span that has one.
        error_count: Number of spans with status error or timeout.
        row_count: Number of spans of the trace, or below the span that was asked for, open ones included.
        next_cursor: Present only if further rows follow: the `cursor` of the next page.
    """

    trace_id: str
    name: str
    started_at: InstantText
    duration_ms: Milliseconds
    session_id: str | None
    user_id: str | None
    error_count: Natural
    row_count: Natural
    next_cursor: str | UnsetType = UNSET


class Timeline(TimelineHead, kw_only=True):
    """A trace as a timeline, its rows by start."""

    rows: list[TimelineRow]


class ColumnTimeline(TimelineHead, kw_only=True):
    """A trace as a timeline in columns, by start."""

    columns: TimelineColumns


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
    "duration_ms": 820,
    "error": None,
    "models": ["gpt-4o"],
    "caller": "checkout",
    "session_id": "s1",
    "user_id": "u-7",
    "score": 0.9,
}
_ONLY_LISTED = {"status", "duration_ms", "error", "models", "caller", "session_id", "user_id", "score"}
_SPAN_IN_TRACE = {key: value for key, value in SPAN_EXAMPLE.items() if key != "trace_id"} | {"depth": 0}
_TRACE_EXAMPLE = {key: value for key, value in _ROW_EXAMPLE.items() if key not in _ONLY_LISTED} | {
    "spans": [_SPAN_IN_TRACE]
}
_TIMELINE_EXAMPLE = {
    "trace_id": "t1",
    "name": "answer question",
    "started_at": "2026-03-15T14:23:01.441Z",
    "duration_ms": 820,
    "session_id": "s1",
    "user_id": "u-7",
    "error_count": 0,
    "row_count": 1,
    "total_cost_usd": 0.00256,
    "total_tokens": 640,
    "span_count": 1,
    "unpriced_span_count": 0,
    "partly_priced_span_count": 0,
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
            "counted": True,
            "total_tokens": 640,
            "ttft_ms": 210,
            "caller": "checkout",
            "score": 0.9,
        }
    ],
}
LIST_TRACES = operation(
    "listTraces",
    "List traces",
    """
    Traces, newest start first, or by `order`. A trace matches if one of its spans matches all filters and none of its
    spans has a value that `not.<key>` names. `since`, `until` and `window` apply to the start of the trace.
    `next_cursor` leads to the next page. An order other than `started` considers the traces of the newest 1,000,000
    spans that match.
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
_SUMS_EXAMPLE = {
    "total_cost_usd": 0.00256,
    "total_tokens": 640,
    "span_count": 1,
    "unpriced_span_count": 0,
    "partly_priced_span_count": 0,
    "trace_count": 1,
    "ok_count": 1,
    "error_count": 0,
}
GET_TRACE_SERIES = operation(
    "getTraceSeries",
    "Get traces over time",
    f"""
    The traces that `GET /traces` lists with the same filters, counted and added up in steps of their starts. A step
    begins at a multiple of its length, counted from 1970. At most the traces of the newest 1,000,000 spans that match
    are considered, in at most {MOST_STEPS:,} steps. A trace with the id `series` is at `/traces/series/`.
    """,
    Answer(
        TraceSeries,
        "The steps.",
        {
            **_SUMS_EXAMPLE,
            "from": "2026-03-15T14:23:00.000Z",
            "to": "2026-03-15T14:23:59.999Z",
            "step": "1m",
            "points": [{**_SUMS_EXAMPLE, "at": "2026-03-15T14:23:00.000Z"}],
        },
    ),
    errors={400: "step: '1s' makes over 2,000 points; the shortest for this range is 44s", **_STORE_AWAY},
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
    A row for each span: when it begins and how long it takes, in milliseconds; with `format=columns` a list for each
    field, which is much smaller. The sums are those of the whole trace.

    Rows come in pages of 1,000: `next_cursor` leads to the next one. Columns hold up to 20,000 spans at once. If there
    are more, they hold the top levels that have at most 20,000 spans together, and `hidden` says how many spans below
    each are left out; `below` asks for these.
    """,
    Answer((Timeline, ColumnTimeline), "The rows or the columns.", _TIMELINE_EXAMPLE),
    errors={
        400: "format: 'xml' is neither rows nor columns",
        404: "trace not found",
        **_STORE_AWAY,
    },
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
