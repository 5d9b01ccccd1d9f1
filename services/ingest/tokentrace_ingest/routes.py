"""The HTTP ways in: ``POST /spans`` and ``POST /mist``."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bus import subjects
from tokentrace.dialect import docs, mist
from tokentrace.errors import Conflict, Rejected
from tokentrace.http import read_body, reply
from tokentrace.records import Batch, Span
from tokentrace.records.batch import BATCH_TYPE, encode_batch
from tokentrace_ingest.machine import MAX_SPAN_BYTES

if TYPE_CHECKING:
    from tokentrace_ingest.service import Ingest

_MAX_KEY = 256


def routes(ingest: Ingest) -> list[BaseRoute]:
    """The routes that take spans in."""

    async def post_spans(request: Request) -> Response:
        try:
            body = await read_body(request, ingest.config.max_body_bytes)
            if request.headers.get("content-type", "").startswith(BATCH_TYPE):
                accepted, rejected = await ingest.accept_batches(body)
                return reply({"accepted": accepted, "rejected": rejected}, 202)
            spans = docs.decode_spans(body)
            _check_size(spans, len(body), ingest.config.max_batch_size)
        except Rejected:
            ingest.count_refused("spans")
            raise
        key = await _request_id(ingest, request, body, spans)
        await ingest.accept(Batch(id=key, spans=spans), "spans", size_bytes=len(body))
        return reply({"accepted": len(spans)}, 202)

    async def post_mist(request: Request) -> Response:
        try:
            body = await read_body(request, ingest.config.max_body_bytes)
            span = mist.decode_message(body)
            _check_size([span], len(body), 1)
        except Rejected:
            ingest.count_refused("mist")
            raise
        key = await _request_id(ingest, request, body, [span])
        await ingest.accept(Batch(id=key, spans=[span]), "mist", size_bytes=len(body))
        return Response(status_code=202)

    return [
        Route(ingest.config.spans_path, post_spans, methods=["POST"]),
        Route("/mist", post_mist, methods=["POST"]),
    ]


def _check_size(spans: list[Span], body_bytes: int, limit: int) -> None:
    if len(spans) > limit:
        raise Rejected(f"batch: {len(spans)} spans, at most {limit} are taken in one request", status=413)
    if body_bytes > MAX_SPAN_BYTES:
        for index, span in enumerate(spans):
            if len(encode_batch(Batch(id="size", spans=[span]))) > MAX_SPAN_BYTES:
                raise Rejected(f"span {index}: over {MAX_SPAN_BYTES} bytes", status=413)


async def _request_id(ingest: Ingest, request: Request, body: bytes, spans: list[Span]) -> str:
    """
    The batch id of a request: the same for a repetition, if there is any way to tell one.

    Raises:
        Rejected: 422 for an Idempotency-Key that was used with another body within a day.
    """
    given = request.headers.get("idempotency-key", "")
    if given:
        if len(given) > _MAX_KEY:
            raise Rejected(f"Idempotency-Key: longer than {_MAX_KEY} characters")
        digest = hashlib.sha256(body).hexdigest()
        name = hashlib.sha256(f"{request.url.path}\n{given}".encode()).hexdigest()
        requests = ingest.bus.kv(subjects.REQUESTS)
        try:
            await requests.create(name, digest.encode())
        except Conflict:
            entry = await requests.get(name)
            if entry is not None and entry.value != digest.encode():
                raise Rejected(
                    "Idempotency-Key: was used with another body within the last 24 hours", status=422
                ) from None
        return f"key.{name}.{digest}"
    if all(span.trace_id and span.span_id for span in spans):
        return f"body.{hashlib.sha256(body).hexdigest()}"
    return f"request.{os.urandom(16).hex()}"
