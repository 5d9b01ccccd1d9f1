"""OTLP over HTTP: ``POST /v1/traces``, ``/v1/logs`` and ``/v1/metrics``, and the path of Langfuse's SDK."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from tokentrace.errors import Rejected
from tokentrace.service.body import read_body
from tokentrace.service.contract import Router
from tokentrace.service.otlp_answers import MEDIA, OTLP_PATHS, Signal, encode_answer, encoding_of
from tokentrace.service.otlp_operations import OTLP
from tokentrace.service.web import Endpoint
from tokentrace_ingest.otlp import OtlpRequests


def endpoints(requests: OtlpRequests) -> Mapping[str, Endpoint]:
    """Return path -> endpoint."""
    return {path: _endpoint(signal, requests) for path, signal in OTLP_PATHS.items()}


def _endpoint(signal: Signal, requests: OtlpRequests) -> Endpoint:
    async def post_otlp(request: Request) -> Response:
        requests.check_backpressure()
        try:
            encoding = encoding_of(request.headers.get("content-type", ""))
            if encoding is None:
                raise Rejected(f"Content-Type: send {' or '.join(MEDIA.values())}", status=415)
            with requests.room.share() as share:
                body = await read_body(request, requests.max_bytes, deflate=True, share=share)
                rejected, message = await requests.export(signal, encoding, body)
        except Rejected:
            requests.count_refused()
            raise
        return Response(encode_answer(encoding, signal, rejected, message), media_type=MEDIA[encoding])

    return post_otlp


def router(endpoints: Mapping[str, Endpoint]) -> Router:
    """Return a router with the routes of *endpoints*."""
    routes = Router("OTLP", lenient=True)
    for path, endpoint in endpoints.items():
        routes.post(path, **OTLP[path])(endpoint)
    return routes
