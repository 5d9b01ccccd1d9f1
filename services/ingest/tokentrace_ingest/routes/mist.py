"""``POST /mist``: one span of a MIST tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.dialect import mist
from tokentrace.errors import Rejected
from tokentrace.records import Batch
from tokentrace.service.body import read_body
from tokentrace_ingest.routes.checks import check_sizes, request_id

if TYPE_CHECKING:
    from tokentrace_ingest.service import Ingest


def routes(ingest: Ingest) -> list[BaseRoute]:
    """The route."""

    async def post_mist(request: Request) -> Response:
        try:
            body = await read_body(request, ingest.config.max_body_bytes)
            span = mist.decode_message(body)
            check_sizes([span], len(body))
        except Rejected:
            ingest.count_refused("mist")
            raise
        key = await request_id(ingest, request, body, has_ids=bool(span.trace_id and span.span_id))
        await ingest.accept(Batch(id=key, spans=[span]), "mist", size_bytes=len(body))
        return Response(status_code=202)

    return [Route("/mist", post_mist, methods=["POST"])]
