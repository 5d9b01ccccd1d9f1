"""``POST /mist``: one span of a MIST tool."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokentrace.dialect import mist
from tokentrace.errors import Rejected
from tokentrace.records import Batch
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.ingest_operations import POST_MIST
from tokentrace.service.web import Endpoint
from tokentrace_ingest.routes.checks import RequestKeys, check_sizes, request_id
from tokentrace_ingest.routes.intake import Intake, Limits

PATH = "/mist"


def endpoint(intake: Intake, keys: RequestKeys, limits: Limits) -> Endpoint:
    """Return the endpoint of ``POST /mist``; *keys* is the bucket of Idempotency-Keys."""

    async def post_mist(request: Request) -> Response:
        try:
            body = await read_body(request, limits.body_bytes)
            span = mist.decode_message(body)
            check_sizes([span], len(body))
        except Rejected:
            intake.count_refused("mist")
            raise
        batch_id = await request_id(keys, request, body, has_ids=bool(span.trace_id and span.span_id))
        await intake.accept(Batch(id=batch_id, spans=[span]), "mist", size_bytes=len(body))
        return Response(status_code=202)

    return post_mist


def router(post_mist: Endpoint) -> Router:
    """Return a router with the route of *post_mist*."""
    routes = Router("spans", lenient=True)
    routes.post(PATH, **POST_MIST)(post_mist)
    return routes
