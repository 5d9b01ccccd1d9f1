"""Forwards ``POST /spans``, ``/mist``, ``/api/traces/*`` and OTLP to ingest, so that one base URL serves everything."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import httpx
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.body import Room, read_raw
from tokentrace.service.contract import Router
from tokentrace.service.ingest_operations import COSTKATANA, POST_MIST, POST_SPANS, SendParams, SpanId
from tokentrace.service.otlp_operations import OTLP

_PASSED = (
    b"content-type",
    b"content-encoding",
    b"idempotency-key",
    b"authorization",
    b"x-service-name",
    b"x-session-id",
    b"x-project-id",
    b"prefer",
)
_RETURNED = ("content-type", "retry-after", "preference-applied", "x-trace-id", "x-session-id")
_TIMEOUT_S = 15.0
#: Characters that stay unescaped in a path and a query.
_URL_MARKS = "/?%:@!$&'()*+,;=-._~"


def router(ingest_url: str, spans_path: str, max_body_bytes: int, max_otlp_bytes: int) -> Router:
    """
    Return the routes that are forwarded to ingest, documented as ingest documents them.

    Args:
        ingest_url: Base URL of ingest; "" = return no routes.
        spans_path: Path of the spans, here and at ingest.
        max_body_bytes: The largest body that is forwarded, bytes.
        max_otlp_bytes: The largest body of OTLP that is forwarded, bytes.
    """
    routes = Router("spans", lenient=True)
    if not ingest_url:
        return routes
    # A transport of its own: without one, httpx sends requests through the proxy that the environment names, which
    # Docker sets for containers. Ingest is a service beside this one.
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=64))
    client = httpx.AsyncClient(base_url=ingest_url, timeout=_TIMEOUT_S, transport=transport)

    room = Room(2 * max_otlp_bytes)

    async def pass_on(request: Request) -> Response:
        return await send(request, await read_raw(request, max_body_bytes))

    async def pass_on_otlp(request: Request) -> Response:
        with room.share() as share:
            return await send(request, await read_raw(request, max_otlp_bytes, share=share))

    async def send(request: Request, body: bytes) -> Response:
        # Bytes, because a header may hold any byte, and httpx would encode a str as ASCII.
        headers = [(name, value.strip()) for name, value in request.headers.raw if name in _PASSED]
        try:
            answer = await client.post(_target(request), content=body, headers=headers)
        except httpx.TransportError as exc:
            raise Unavailable(f"ingest does not answer: {type(exc).__name__}") from exc
        except httpx.InvalidURL as exc:
            raise Rejected(f"ingest: {exc}") from exc
        returned = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return Response(answer.content, answer.status_code, returned)

    async def pass_on_end(request: Request, trace_id: SpanId) -> Response:
        return await pass_on(request)

    @routes.post(spans_path, **POST_SPANS)
    async def pass_on_spans(request: Request, params: Annotated[SendParams, Query()]) -> Response:
        return await pass_on(request)

    routes.post("/mist", **POST_MIST)(pass_on)
    sdk = Router("Cost Katana", lenient=True)
    for path, described in COSTKATANA.items():
        sdk.post(path, **described)(pass_on_end if "{" in path else pass_on)
    routes.routes.extend(sdk.routes)
    otlp = Router("OTLP", lenient=True)
    for path, described in OTLP.items():
        otlp.post(path, **described)(pass_on_otlp)
    routes.routes.extend(otlp.routes)
    return routes


def _target(request: Request) -> httpx.URL:
    """Return the path and query of *request* as they were sent, because an id in the path may hold an escaped slash."""
    path = request.scope.get("raw_path") or request.url.path.encode()
    query = request.scope.get("query_string", b"")
    return httpx.URL(quote(path + b"?" + query if query else path, safe=_URL_MARKS))
