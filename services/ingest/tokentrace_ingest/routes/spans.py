"""``POST /spans``, whose path is configurable: spans in the documented JSON, or a reporter's batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.dialect import docs
from tokentrace.errors import Rejected
from tokentrace.records import BATCH_TYPE, Batch
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.ingest_operations import MAX_ERRORS, POST_SPANS, Accepted, SendParams, wants_partial
from tokentrace.service.web import Endpoint, reply
from tokentrace_ingest.routes.checks import RequestKeys, check_count, check_sizes, request_id
from tokentrace_ingest.routes.intake import Intake, Limits


def endpoint(intake: Intake, keys: RequestKeys, limits: Limits) -> Endpoint:
    """Return the endpoint of ``POST /spans``; *keys* is the bucket of Idempotency-Keys."""

    async def post_spans(request: Request) -> Response:
        try:
            body = await read_body(request, limits.body_bytes)
            if request.headers.get("content-type", "").startswith(BATCH_TYPE):
                accepted, refused = await intake.accept_batches(body)
                return reply(Accepted(accepted=accepted, rejected=len(refused), errors=refused[:MAX_ERRORS]), 202)
            lenient = wants_partial(request)
            spans, bad = docs.decode_each(body) if lenient else (docs.decode_spans(body), [])
            check_count(len(spans) + len(bad), limits.spans)
            check_sizes(spans, len(body))
        except Rejected:
            intake.count_refused("spans")
            raise
        has_ids = all(span.trace_id and span.span_id for span in spans)
        batch_id = await request_id(keys, request, body, has_ids=has_ids)
        if lenient:
            accepted, refused = await intake.accept_valid(batch_id, spans, bad, len(body))
            return reply(Accepted(accepted=accepted, rejected=refused), 202, {"Preference-Applied": "handling=lenient"})
        await intake.accept(Batch(id=batch_id, spans=spans), "spans", size_bytes=len(body))
        return reply(Accepted(accepted=len(spans)), 202)

    return post_spans


def router(path: str, post_spans: Endpoint) -> Router:
    """Return a router with the route of *post_spans* at the configured *path*."""
    routes = Router("spans", lenient=True)

    @routes.post(path, **POST_SPANS)
    async def send(request: Request, params: Annotated[SendParams, Query()]) -> Response:
        return await post_spans(request)

    return routes
