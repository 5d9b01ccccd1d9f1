"""What every service's HTTP side shares: the server, the error envelope, bodies with a limit, health, tokens."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tokentrace.errors import Conflict, Rejected, Unavailable

log = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz")
#: Where Cost Katana's SDK is answered.
SDK_PATHS = "/api/"
_encoder = msgspec.json.Encoder()


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*body* as JSON."""
    return Response(_encoder.encode(body), status, media_type="application/json", headers=dict(headers or {}))


def failure(message: str, status: int, headers: Mapping[str, str] | None = None, *, path: str = "") -> Response:
    """The error envelope of every service; under ``/api/`` it says the same as ``message``, where the SDK looks."""
    body = {"error": message, "message": message} if path.startswith(SDK_PATHS) else {"error": message}
    return reply(body, status, headers)


async def _on_rejected(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Rejected)
    return failure(str(exc), exc.status, path=request.url.path)


async def _on_unavailable(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Unavailable)
    return failure(str(exc), 503, {"Retry-After": str(exc.retry_after_s)}, path=request.url.path)


async def _on_conflict(request: Request, exc: Exception) -> Response:
    return failure(str(exc), 409, path=request.url.path)


async def _on_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    detail = {404: "not found", 405: "method not allowed"}.get(exc.status_code, exc.detail)
    return failure(detail, exc.status_code, exc.headers, path=request.url.path)


async def _on_bug(request: Request, exc: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return failure("internal error", 500, path=request.url.path)


def make_app(routes: Sequence[BaseRoute], *, token: str = "", open_paths: Collection[str] = OPEN_PATHS) -> ASGIApp:
    """
    An application of *routes* with the error envelope.

    Args:
        token: Bearer token that every path but the open ones asks for; "" = none.
    """
    app: ASGIApp = Starlette(
        routes=routes,
        exception_handlers={
            Rejected: _on_rejected,
            Unavailable: _on_unavailable,
            Conflict: _on_conflict,
            HTTPException: _on_http,
            Exception: _on_bug,
        },
    )
    return _Bearer(app, token, frozenset(open_paths)) if token else app


class _Bearer:
    """Asks for ``Authorization: Bearer <token>``; compares in constant time."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str]) -> None:
        self._app, self._open = app, open_paths
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            given = next((value for key, value in scope["headers"] if key == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):
                asked = {"WWW-Authenticate": "Bearer"}
                response = failure("missing or wrong bearer token", 401, asked, path=scope["path"])
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


Endpoint = Callable[[Request], Awaitable[Response]]
