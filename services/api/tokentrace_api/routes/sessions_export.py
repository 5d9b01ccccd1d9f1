"""``GET /api/sessions/export``: every session that matches, as a JSON array or as CSV for a spreadsheet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from msgspec import Meta
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Session
from tokentrace.service.contract import Answer, Router, operation
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import choice
from tokentrace_api.reads import SessionMark, count_messages, newest_ordinal, sessions_after
from tokentrace_api.routes.csv_rows import cell, csv_rows
from tokentrace_api.routes.sessions_operations import LISTED_EXAMPLE, SessionDetails
from tokentrace_api.routes.sessions_parameters import SessionOrderParams
from tokentrace_api.store import Store

#: Number of sessions that a step reads: about 5 MB. Every step sums up all spans anew, so it is not smaller.
STEP = 5000
#: A spreadsheet takes a file without this mark for one in the encoding of its country.
_BOM = b"\xef\xbb\xbf"
#: Column of the CSV form -> key of the session that is shown in it; new ones last.
COLUMNS = {
    "session_id": "sessionId",
    "status": "status",
    "label": "label",
    "user_id": "userId",
    "source": "source",
    "started_at": "startedAt",
    "ended_at": "endedAt",
    "duration_ms": "duration",
    "spans": "totalSpans",
    "open_spans": "openSpans",
    "errors": "errorCount",
    "input_tokens": "totalInputTokens",
    "output_tokens": "totalOutputTokens",
    "cost_usd": "totalCostUSD",
    "unpriced_spans": "unpricedSpanCount",
    "partly_priced_spans": "partlyPricedSpanCount",
    "messages": "messageCount",
    "error": "error",
}
_TYPES = {"json": "application/json", "csv": "text/csv; charset=utf-8"}
_Format: Any = choice(tuple(_TYPES), "neither json nor csv")
Csv = Annotated[str, Meta(description="A byte order mark and a header, then a row for each session.")]
_EXPORT = operation(
    "exportSessions",
    "Export sessions",
    """
    All sessions that match, of all pages of `GET /api/sessions`, without their messages. Spans that arrive meanwhile
    are left out. The answer is written piece by piece; one that ends early is not complete.
    """,
    Answer(list[SessionDetails], "The sessions.", [LISTED_EXAMPLE]),
    Answer(Csv, "The sessions.", "\ufeff" + ",".join(COLUMNS) + "\r\n", media="text/csv"),
    errors={400: "format: 'xml' is neither json nor csv", 503: "span store: is not open yet"},
)
Page = tuple[list[dict[str, Any]], SessionMark | None]


class SessionExportParams(SessionOrderParams):
    """Which sessions are exported, in which order and form."""

    format: _Format = Field("json", description="`json`: an array; or `csv`, in UTF-8 with a byte order mark.")


def router(store: StoreReader) -> Router:
    """Return the route of the export."""
    routes = Router("sessions")

    @routes.get("/api/sessions/export", **_EXPORT)
    async def export(request: Request, params: Annotated[SessionExportParams, QueryParams()]) -> Response:
        form, wanted, now_ns = params.format, params.wanted(), store.now_ns()
        headers = {"Content-Disposition": f'attachment; filename="sessions.{form}"'}
        upto = await store.read(lambda spans: newest_ordinal(spans, now_ns))

        def page(mark: SessionMark | None, spans: Store) -> Page:
            sessions, after = sessions_after(spans, wanted, mark, STEP, upto, now_ns, params.order)
            return _rendered(spans, sessions, now_ns), after

        # Read before the first byte is sent, so that a store that cannot be read gives a 503 instead of an empty file.
        first = await store.read(partial(page, None))
        if request.method == "HEAD":
            return Response(media_type=_TYPES[form], headers=headers)
        pages = _pages(store, page, first)
        parts = _array(pages) if form == "json" else _table(pages)
        return StreamingResponse(parts, media_type=_TYPES[form], headers=headers)

    return routes


def _rendered(spans: Store, sessions: Sequence[Session], now_ns: int) -> list[dict[str, Any]]:
    counts = count_messages(spans, [session.session_id for session in sessions], now_ns)
    return [costkatana.render_session(session, [], counts[session.session_id]) for session in sessions]


async def _pages(
    store: StoreReader, page: Callable[[SessionMark | None, Store], Page], first: Page
) -> AsyncIterator[list[dict[str, Any]]]:
    sessions, after = first
    yield sessions
    while after is not None:
        sessions, after = await store.read(partial(page, after))
        yield sessions


async def _array(pages: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    before = b"[\n"
    async for sessions in pages:
        if sessions:
            yield before + b",\n".join(map(msgspec.json.encode, sessions))
            before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


async def _table(pages: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    yield _BOM + csv_rows([list(COLUMNS)])
    async for sessions in pages:
        yield csv_rows([[cell(_value(session, key)) for key in COLUMNS.values()] for session in sessions])


def _value(session: dict[str, Any], key: str) -> object:
    value = session.get(key)
    return value["message"] if key == "error" and value else value
