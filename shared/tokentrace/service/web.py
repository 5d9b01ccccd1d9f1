"""The HTTP parts that every service shares: JSON answers, the form of errors, and hot paths."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tokentrace.errors import Conflict, Rejected, Unavailable
from tokentrace.service.otlp_answers import OTLP_PATHS, otlp_failure

log = logging.getLogger(__name__)

#: Paths below this one are Cost Katana's; its SDK reads the error text from ``message``.
SDK_PATHS = "/api/"
_encoder = msgspec.json.Encoder()

Endpoint = Callable[[Request], Awaitable[Response]]
#: (Method, path) -> endpoint that is called before any routing.
HotPaths = Mapping[tuple[str, str], Endpoint]


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with *body*, a Struct or builtins, as JSON."""
    return Response(_encoder.encode(body), status, media_type="application/json", headers=dict(headers or {}))


#: Header of an answer that says that a part is not available: ask again after so many seconds.
TRY_AGAIN = {"Retry-After": "1"}


def failure(message: str, status: int, headers: Mapping[str, str] | None = None, *, path: str = "") -> Response:
    """Return the error response ``{"error": message}``; below ``/api/`` it repeats the text as ``message``."""
    body = {"error": message, "message": message} if path.startswith(SDK_PATHS) else {"error": message}
    return reply(body, status, headers)


def refusal(scope: Scope, message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error response to the request of *scope*, in the form that clients of its path read."""
    path: str = scope["path"]
    if path in OTLP_PATHS:
        return otlp_failure(scope, message, status, headers)
    return failure(message, status, headers, path=path)


async def _on_rejected(request: Request, exc: Rejected) -> Response:
    return refusal(request.scope, str(exc), exc.status)


async def _on_unavailable(request: Request, exc: Unavailable) -> Response:
    return refusal(request.scope, str(exc), 503, {"Retry-After": str(exc.retry_after_s)})


async def _on_conflict(request: Request, exc: Conflict) -> Response:
    return refusal(request.scope, str(exc), 409)


async def _on_http(request: Request, exc: HTTPException) -> Response:
    detail = {404: "not found", 405: "method not allowed"}.get(exc.status_code, exc.detail)
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(request.app.routes, request.scope))
    return refusal(request.scope, detail, exc.status_code, headers)


async def _on_bug(request: Request, exc: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return refusal(request.scope, "internal error", 500)


#: Exception -> function that makes the error response, for every application of every service.
EXCEPTION_HANDLERS: Mapping[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    Rejected: _on_rejected,
    Unavailable: _on_unavailable,
    Conflict: _on_conflict,
    HTTPException: _on_http,
    Exception: _on_bug,
}


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """
    Return the methods that any route has for the path of *scope*, sorted.

    Starlette names only the methods of the first route of the path.
    """
    methods: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def make_app(routes: Sequence[BaseRoute]) -> ASGIApp:
    """Return an application of *routes* that turns exceptions into error responses."""
    return Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)


class HotPathApp:
    """
    An application that calls the *hot* endpoints itself and passes every other request to *app*.

    Matching a route and passing FastAPI's middleware costs more than reading a span, so ``POST /spans`` and ``/mist``
    are looked up by method and path. Their routes are declared in *app* too, for the document.
    """

    def __init__(self, app: ASGIApp, hot: HotPaths) -> None:
        self._app, self._hot = app, hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._hot.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as exc:  # noqa: BLE001 - every error becomes an answer, as in the application behind
            kinds = (kind for kind in type(exc).__mro__ if kind in EXCEPTION_HANDLERS)
            response = await EXCEPTION_HANDLERS[next(kinds)](request, exc)
        await response(scope, receive, send)
