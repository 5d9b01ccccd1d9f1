"""``GET /export``: every span that matches, as JSON lines or CSV, in order of arrival."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import docs
from tokentrace.errors import Rejected, shorten
from tokentrace.records import Span
from tokentrace_api.parameters import parameters
from tokentrace_api.reads import Search, find_spans, newest_ordinal
from tokentrace_api.routes.searching import SEARCHED, parse_search
from tokentrace_api.store import Store

if TYPE_CHECKING:
    from tokentrace_api.service import Api

#: Rows of the store looked at in one go, so that about so many bytes are sent at once.
_LEAST_STEP, _MOST_STEP = 500, 20_000
_PART_BYTES = 8 * 1024 * 1024
#: Columns of CSV: the documented fields; attributes are one, as JSON.
COLUMNS = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "caller",
    "model",
    "provider",
    "status",
    "error",
    "prompt_tokens",
    "comp_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "cost_usd",
    "cost_source",
    "cost_model",
    "unpriced_reason",
    "latency_ms",
    "ttft_ms",
    "started_at",
    "ended_at",
    "session_id",
    "user_id",
    "attributes",
)
_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}


def routes(api: Api) -> list[BaseRoute]:
    """The route of the export."""

    async def export(request: Request) -> Response:
        given = parameters(request, (*SEARCHED, "format"), prefix="attr.")
        form = given.get("format", "jsonl")
        if form not in _TYPES:
            raise Rejected(f"format: {shorten(form)!r} is neither jsonl nor csv")
        search, now_ns = parse_search(given), time.time_ns()
        # Asked before the first byte is sent: a store that is away is a 503 and no empty file.
        last = await api.read(lambda store: newest_ordinal(store, now_ns))
        render = _lines if form == "jsonl" else _table
        headers = {"Content-Disposition": f'attachment; filename="spans.{form}"'}
        head = b"" if form == "jsonl" else _csv([COLUMNS])
        if request.method == "HEAD":
            return Response(media_type=_TYPES[form], headers=headers)
        parts = _parts(api, search, last, now_ns, head, render)
        return StreamingResponse(parts, media_type=_TYPES[form], headers=headers)

    return [Route("/export", export)]


async def _parts(
    api: Api, search: Search, last: int, now_ns: int, head: bytes, render: Callable[[Sequence[Span]], bytes]
) -> AsyncIterator[bytes]:
    if head:
        yield head

    def part(store: Store, after: int, upto: int) -> bytes:
        return render(find_spans(store, search, after, upto, now_ns, last))

    after, step = 0, _LEAST_STEP
    while after < last:
        upto = min(after + step, last)
        # Rendered where it was read: this loop has others to serve.
        data = await api.read(partial(part, after=after, upto=upto))
        if data:
            yield data
        after, step = upto, _next_step(step, len(data))


def _next_step(step: int, size: int) -> int:
    """How many rows to look at after *step* of them came to *size* bytes: few of large spans, many where few match."""
    return min(max(step * _PART_BYTES // max(size, 1), _LEAST_STEP), 4 * step, _MOST_STEP)


def _lines(spans: Sequence[Span]) -> bytes:
    return b"".join(msgspec.json.encode(docs.render_span(span)) + b"\n" for span in spans)


def _table(spans: Sequence[Span]) -> bytes:
    rows = []
    for span in spans:
        shown = docs.render_span(span)
        if shown.get("attributes"):
            shown["attributes"] = msgspec.json.encode(shown["attributes"]).decode()
        rows.append([_cell(shown.get(name)) for name in COLUMNS])
    return _csv(rows)


def _cell(value: object) -> object:
    """A spreadsheet takes a text that begins like a formula for one: a quote before it makes it text again."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
