"""``GET /export``: every span that matches, as JSON lines or CSV, in order of arrival."""

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

from tokentrace.service.contract import Answer, Router, operation
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import choice
from tokentrace_api.reads import Search, find_spans, newest_ordinal
from tokentrace_api.routes.answers import SPAN_EXAMPLE
from tokentrace_api.routes.csv_rows import cell, csv_rows
from tokentrace_api.routes.searching import StoredSearchParams
from tokentrace_api.routes.shown_spans import render_telling
from tokentrace_api.store import Store, Telling

#: Minimum and maximum number of rows that a step reads; the number adapts so that a step yields about 8 MiB.
_LEAST_STEP, _MOST_STEP = 500, 20_000
_PART_BYTES = 8 * 1024 * 1024
#: Columns of the CSV form, new ones last; maps are JSON.
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
    "later_versions",
    "latency_ns",
    "ttft_ns",
    "cost_reason",
    "usage",
    "usage_state",
    "service_tier",
    "pricing_context",
    "response_id",
    "scope",
    "error_stack",
)
_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}


_Format: Any = choice(tuple(_TYPES), "neither jsonl nor csv")


class ExportParams(StoredSearchParams):
    """Which spans are exported, and in which form."""

    format: _Format = Field("jsonl", description="`jsonl`: a JSON object on each line; or `csv`.")


JsonLines = Annotated[
    str,
    Meta(description="A span on each line, as in `GET /traces/{trace_id}`, but with `trace_id` and without `depth`."),
]
Csv = Annotated[str, Meta(description="A header, then a row for each span; maps, such as `attributes`, are JSON.")]
_EXPORT = operation(
    "exportSpans",
    "Export spans",
    "All spans that match, in order of arrival. If a call was told several times, the first telling is exported, and "
    "`later_versions` says how many there are after it.",
    Answer(JsonLines, "The spans.", msgspec.json.encode(SPAN_EXAMPLE).decode() + "\n", media="application/x-ndjson"),
    Answer(Csv, "The spans.", ",".join(COLUMNS) + "\r\n", media="text/csv"),
    errors={400: "format: 'xml' is neither jsonl nor csv", 503: "span store: is not open yet"},
)


def router(store: StoreReader) -> Router:
    """Return the route of the export."""
    routes = Router("traces")

    @routes.get("/export", **_EXPORT)
    async def export(request: Request, params: Annotated[ExportParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        form, search = params.format, params.search_at(now_ns)
        # Read before the first byte is sent, so that a store that cannot be read gives a 503 instead of an empty file.
        last = await store.read(lambda spans: newest_ordinal(spans, now_ns))
        render = _lines if form == "jsonl" else _table
        headers = {"Content-Disposition": f'attachment; filename="spans.{form}"'}
        head = b"" if form == "jsonl" else csv_rows([COLUMNS])
        if request.method == "HEAD":
            return Response(media_type=_TYPES[form], headers=headers)
        parts = _parts(store, search, last, now_ns, head, render)
        return StreamingResponse(parts, media_type=_TYPES[form], headers=headers)

    return routes


async def _parts(
    store: StoreReader,
    search: Search,
    last: int,
    now_ns: int,
    head: bytes,
    render: Callable[[Sequence[Telling]], bytes],
) -> AsyncIterator[bytes]:
    if head:
        yield head

    def part(store: Store, after: int, upto: int) -> bytes:
        return render(find_spans(store, search, after, upto, now_ns))

    after, step = 0, _LEAST_STEP
    while after < last:
        upto = min(after + step, last)
        # Rendered in the worker thread, because the event loop serves other requests too.
        data = await store.read(partial(part, after=after, upto=upto))
        if data:
            yield data
        after, step = upto, _next_step(step, len(data))


def _next_step(step: int, size: int) -> int:
    """Return how many rows to read next, after *step* rows gave *size* bytes."""
    return min(max(step * _PART_BYTES // max(size, 1), _LEAST_STEP), 4 * step, _MOST_STEP)


def _lines(tellings: Sequence[Telling]) -> bytes:
    return b"".join(msgspec.json.encode(render_telling(telling)) + b"\n" for telling in tellings)


def _table(tellings: Sequence[Telling]) -> bytes:
    rows = []
    for telling in tellings:
        shown = render_telling(telling)
        rows.append([cell(shown.get(name)) for name in COLUMNS])
    return csv_rows(rows)
