"""
Reads traces and sessions of any size: an outline of all spans, then whole spans page by page.

An outline has the few columns that a tree, a timeline and sums need, so that 20,000 spans are read in a fraction of a
second. Attributes and errors are read only for the spans of a page, by the numbers of their rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Rejected, quoted
from tokentrace.records import Started
from tokentrace_api.reads.cursor_text import from_text, to_text
from tokentrace_api.reads.spans import open_spans
from tokentrace_api.reads.tellings import with_later_versions
from tokentrace_api.reads.tree import Key
from tokentrace_api.store import COLUMNS, ONE_TELLING, Store, Telling, telling_of, trace_hash

#: A page of whole spans ends after about this many bytes of attributes, errors and other texts.
PAGE_BYTES = 8 * 1024 * 1024
#: Up to this number of spans, a page is not measured: spans are refused above 512 KiB.
_UNMEASURED = 16
_OUTLINE = (
    "ordinal, trace_id, span_id, parent_span_id, name, kind, model, status, started_ns, ended_ns, cost_nusd, "
    "cost_source, total_tokens, counted, caller, ttft_ns, score, coalesce(session_id, ''), coalesce(user_id, '')"
)
_WHOLE = ", ".join(COLUMNS)
_WITHOUT_ATTRIBUTES = ", ".join("NULL" if name == "attributes" else name for name in COLUMNS)
_SIZE = "coalesce(strlen(attributes), 0) + coalesce(strlen(error), 0) + coalesce(octet_length(rest), 0)"

#: ``ended first``: the ended spans by start, then the open spans by start. ``start``: all by start.
Order = Literal["ended first", "start"]
_ORDERS: tuple[Order, ...] = ("ended first", "start")


class SpanRow(NamedTuple):
    """
    The outline of a span. Times in Unix nanoseconds.

    Attributes:
        ordinal: Number of its row; 0 for a span that has not ended.
        ended_ns: None = it has not ended.
        cost_nusd: Nano-dollars; None = unknown, or the span has not ended.
        counted: False for a telling that no sum uses, and for a span that has not ended.
        ttft_ns: Time to the first token, nanoseconds; 0 = unknown.
        score: In 10⁻⁹; None = it has none.
        session_id, user_id: "" = none.
    """

    ordinal: int
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    model: str
    status: str
    started_ns: int
    ended_ns: int | None
    cost_nusd: int | None
    cost_source: str
    total_tokens: int
    counted: bool
    caller: str
    ttft_ns: int
    score: int | None
    session_id: str
    user_id: str

    @property
    def key(self) -> Key:
        """(Trace id, span id)."""
        return self.trace_id, self.span_id


class Outline(NamedTuple):
    """
    All spans of a trace or a session, each once.

    Attributes:
        rows: A row for each span, in the order that was asked for.
        started: The open spans by their keys.
    """

    rows: list[SpanRow]
    started: dict[Key, Started]


class SpanCursor(NamedTuple):
    """
    A place in the order of an outline; the spans after it are on the next page.

    Attributes:
        order: Number of the order.
        first, second: 1 for an open span and its start, in the order of ``Order``.
        ordinal, trace_id, span_id: Those of the last span of a page; they order spans that started at the same time.
    """

    order: int
    first: int
    second: int
    ordinal: int
    trace_id: str
    span_id: str


class SpanPage(NamedTuple):
    """
    A page of an outline.

    Attributes:
        rows: The rows of the page.
        next: Cursor of the next page; None = this is the last page, or it was asked for 0 spans.
    """

    rows: list[SpanRow]
    next: SpanCursor | None


def trace_outline(store: Store, trace_id: str, order: Order, now_ns: int) -> Outline:
    """Return the outline of a trace, without rows if there is no such trace."""
    condition, parameters = "trace_hash = ? AND trace_id = ?", [trace_hash(trace_id), trace_id]
    return _outline(store, "trace_id", trace_id, condition, parameters, order, now_ns)


def session_outline(store: Store, session_id: str, order: Order, now_ns: int) -> Outline:
    """Return the outline of a session, without rows if it has no spans."""
    return _outline(store, "session_id", session_id, "session_id = ?", [session_id], order, now_ns)


def _outline(
    store: Store, column: str, value: str, condition: str, parameters: list[Any], order: Order, now_ns: int
) -> Outline:
    # Open spans are read first: a span that ends between the two reads is then in both, not in neither.
    started = {(span.trace_id, span.span_id): span for span in open_spans(store, column, value, now_ns)}
    rows = list(
        map(
            SpanRow._make,
            store.query(
                f"SELECT {_OUTLINE} FROM {{spans}} WHERE {condition} {ONE_TELLING} ORDER BY started_ns, ordinal",
                parameters,
                now_ns,
            ),
        )
    )
    if started:
        for row in rows:
            started.pop(row.key, None)
        # Sorting 20,000 rows here takes longer than reading them, so it is done only if there is something to merge.
        rows += map(_open_row, started.values())
        rows.sort(key=lambda row: _cursor_of(row, order))
    return Outline(rows, started)


def _open_row(span: Started) -> SpanRow:
    return SpanRow(
        ordinal=0,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        kind=span.kind,
        model="",
        status="pending",
        started_ns=span.started_ns,
        ended_ns=None,
        cost_nusd=None,
        cost_source="",
        total_tokens=0,
        counted=False,
        caller=span.caller,
        ttft_ns=0,
        score=None,
        session_id=span.session_id or "",
        user_id=span.user_id or "",
    )


def _cursor_of(row: SpanRow, order: Order) -> SpanCursor:
    is_open = int(row.ended_ns is None)
    first, second = (is_open, row.started_ns) if order == "ended first" else (row.started_ns, is_open)
    return SpanCursor(_ORDERS.index(order), first, second, row.ordinal, row.trace_id, row.span_id)


def encode_span_cursor(cursor: SpanCursor) -> str:
    """Return *cursor* as text for a URL."""
    return to_text(cursor)


def parse_span_cursor(text: str, order: Order) -> SpanCursor:
    """
    Decode a cursor that ``encode_span_cursor`` encoded for a page in *order*.

    Raises:
        Rejected: *text* is anything else.
    """
    cursor = from_text(text, SpanCursor)
    if cursor is None:
        raise Rejected(f"{quoted(text)} is not the next_cursor of an earlier answer")
    if cursor.order != _ORDERS.index(order):
        raise Rejected(f"{quoted(text)} is the next_cursor of another kind of answer")
    return cursor


def without_metadata(outline: Outline) -> Outline:
    """Return *outline* with open spans that have no metadata."""
    return outline._replace(started={key: replace(span, metadata={}) for key, span in outline.started.items()})


def page_of(rows: Sequence[SpanRow], order: Order, limit: int, cursor: SpanCursor | None) -> SpanPage:
    """Return the page of *rows*, in *order*, with at most *limit* rows after *cursor*; None = from the beginning."""
    begin = 0 if cursor is None else bisect_right(rows, cursor, key=lambda row: _cursor_of(row, order))
    shown = list(rows[begin : begin + limit])
    return SpanPage(shown, _cursor_of(shown[-1], order) if shown and begin + limit < len(rows) else None)


def whole_spans(
    store: Store, page: SpanPage, order: Order, now_ns: int, *, attributes: bool
) -> tuple[list[Telling], SpanPage]:
    """
    Read the ended spans of *page*.

    Args:
        attributes: False = attributes and stack traces are neither read nor returned.

    Returns:
        (The spans in the order of the page, with their ``later_versions``; the page, which ends early if the spans take
        over ``PAGE_BYTES``). A span that was deleted meanwhile is missing from the spans.
    """
    if attributes:
        page = _within_bytes(store, page, order, now_ns)
    ordinals = [row.ordinal for row in page.rows if row.ended_ns is not None]
    rows = _rows_at(store, _WHOLE if attributes else _WITHOUT_ATTRIBUTES, ordinals, now_ns)
    found = {int(row[0]): telling_of(row) for row in rows}
    tellings = [found[ordinal] for ordinal in ordinals if ordinal in found]
    if not attributes:
        tellings = [
            telling._replace(span=replace(telling.span, error_stack="")) if telling.span.error_stack else telling
            for telling in tellings
        ]
    return with_later_versions(store, tellings, now_ns), page


def _within_bytes(store: Store, page: SpanPage, order: Order, now_ns: int) -> SpanPage:
    ordinals = [row.ordinal for row in page.rows if row.ended_ns is not None]
    if len(ordinals) <= _UNMEASURED:
        return page
    sizes = dict(_rows_at(store, f"ordinal, {_SIZE}", ordinals, now_ns))
    taken = 0
    for index, row in enumerate(page.rows):
        taken += sizes.get(row.ordinal, 0)
        if taken > PAGE_BYTES and index:
            return SpanPage(page.rows[:index], _cursor_of(page.rows[index - 1], order))
    return page


def _rows_at(store: Store, selected: str, ordinals: Sequence[int], now_ns: int) -> list[tuple[Any, ...]]:
    if not ordinals:
        return []
    # With the bounds, row groups without such a row are skipped.
    return store.query(
        f"SELECT {selected} FROM {{spans}} WHERE ordinal BETWEEN ? AND ? AND ordinal IN (SELECT unnest(?::BIGINT[]))",
        [min(ordinals), max(ordinals), list(ordinals)],
        now_ns,
    )
