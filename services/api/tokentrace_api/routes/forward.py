"""What ingest answers, ``POST /spans``, ``/mist`` and ``/api/traces/*``, passed on: one base URL serves everything."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.body import read_raw

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_PASSED = (
    b"content-type",
    b"content-encoding",
    b"idempotency-key",
    b"authorization",
    b"x-service-name",
    b"x-session-id",
    b"x-project-id",
)
_RETURNED = ("content-type", "retry-after", "x-trace-id", "x-session-id")
_TIMEOUT_S = 15.0
#: What may stand in a path and a query as it is.
_URL_MARKS = "/?%:@!$&'()*+,;=-._~"


def routes(api: Api) -> list[BaseRoute]:
    """The routes that ingest answers; none when nobody said where ingest is."""
    config = api.config
    if not config.ingest_url:
        return []
    client = httpx.AsyncClient(base_url=config.ingest_url, timeout=_TIMEOUT_S, limits=httpx.Limits(max_connections=64))

    async def forward(request: Request) -> Response:
        body = await read_raw(request, config.max_body_bytes)
        # As bytes: a name may be any text, and httpx would take a str for ASCII.
        headers = [(name, value.strip()) for name, value in request.headers.raw if name in _PASSED]
        try:
            answer = await client.post(_target(request), content=body, headers=headers)
        except httpx.TransportError as exc:
            raise Unavailable(f"ingest does not answer: {type(exc).__name__}") from exc
        except httpx.InvalidURL as exc:
            raise Rejected(f"ingest: {exc}") from exc
        returned = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return Response(answer.content, answer.status_code, returned)

    return [Route(path, forward, methods=["POST"]) for path in (config.ingest_path, "/mist", "/api/traces/{rest:path}")]


def _target(request: Request) -> httpx.URL:
    """Path and query as they came: an id in the path may hold an escaped slash."""
    path = request.scope.get("raw_path") or request.url.path.encode()
    query = request.scope.get("query_string", b"")
    return httpx.URL(quote(path + b"?" + query if query else path, safe=_URL_MARKS))
