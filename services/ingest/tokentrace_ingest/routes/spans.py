"""``POST /spans``: the documented JSON, and a reporter's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import docs
from tokentrace.errors import Rejected
from tokentrace.records import BATCH_TYPE, Batch
from tokentrace.service.body import read_body
from tokentrace.service.web import reply
from tokentrace_ingest.routes.checks import check_count, check_sizes, request_id

if TYPE_CHECKING:
    from tokentrace_ingest.service import Ingest


def routes(ingest: Ingest) -> list[BaseRoute]:
    """The route, where the configuration says."""

    async def post_spans(request: Request) -> Response:
        try:
            body = await read_body(request, ingest.config.max_body_bytes)
            if request.headers.get("content-type", "").startswith(BATCH_TYPE):
                accepted, rejected = await ingest.accept_batches(body)
                return reply({"accepted": accepted, "rejected": rejected}, 202)
            spans = docs.decode_spans(body)
            check_count(len(spans), ingest.config.max_batch_size)
            check_sizes(spans, len(body))
        except Rejected:
            ingest.count_refused("spans")
            raise
        has_ids = all(span.trace_id and span.span_id for span in spans)
        key = await request_id(ingest, request, body, has_ids=has_ids)
        await ingest.accept(Batch(id=key, spans=spans), "spans", size_bytes=len(body))
        return reply({"accepted": len(spans)}, 202)

    return [Route(ingest.config.spans_path, post_spans, methods=["POST"])]
