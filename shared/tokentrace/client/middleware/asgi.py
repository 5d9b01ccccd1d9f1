"""Traces of the requests of an ASGI application: FastAPI, Starlette, Django, Quart, Litestar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from tokentrace.client.middleware.request import DEFAULT_SKIP, Requests, RequestTrace, guarded
from tokentrace.client.tracing import Tracer, context

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The key of the trace in the scope of a request.
SCOPE_KEY = "tokentrace"
#: Codes of a WebSocket that was closed as planned.
_NORMAL_CLOSE = (1000, 1001)


class TraceMiddleware:
    """
    Makes a trace of each request, with a root span of kind ``http``: ``app.add_middleware(TraceMiddleware, tracer=…)``.

    The trace continues that of the caller, if the headers name one. Inside the request it is the current one, and
    ``scope["tokentrace"]``; ``request.scope["tokentrace"].span("search")`` opens a span in it. Answers have the headers
    ``x-session-id`` and ``x-trace-id``. The root span ends after the last part of the answer, when the client goes
    away, or with an exception; its status is ``error`` from HTTP status 400 on and for an exception. A WebSocket has
    one span. A fault of the middleware is logged, and the request goes on.

    Args:
        app: The ASGI application.
        tracer: Makes the traces; None = the default tracer.
        session_header: The header with the id of the session; without it, the session is a new one.
        include_details: True = the root span has the headers, the address and the user agent, without secrets.
        skip: Paths without a trace, as patterns of ``fnmatch``.
        name: Returns the name of a root span for a method and a path; None = ``METHOD path``, with ``{id}`` for ids of
            at least eight digits.
        route_names: True = the name has the template of the route, such as ``/users/{user}``, where Starlette or
            FastAPI knows it.
    """

    def __init__(
        self,
        app: App,
        tracer: Tracer | None = None,
        *,
        session_header: str = "x-session-id",
        include_details: bool = False,
        skip: Sequence[str] = DEFAULT_SKIP,
        name: Callable[[str, str], str] | None = None,
        route_names: bool = False,
    ) -> None:
        self.app = app
        self._requests = Requests(tracer, session_header, include_details, skip, name, route_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Handle one connection.

        Args:
            scope: What is known of the connection.
            receive: Waits for a message of the client.
            send: Sends a message to the client.
        """
        request = self._begin(scope)
        if request is None:
            await self.app(scope, receive, send)
            return
        connection = _Connection(request, scope, receive, send, self._requests.route_names)
        before = context.enter(request.root)
        try:
            await self.app(scope, connection.receive, connection.send)
        except BaseException as exc:
            if not request.has_ended:
                request.fail(exc)
            raise
        finally:
            context.leave(before)
            connection.finish()

    @guarded
    def _begin(self, scope: Scope) -> RequestTrace | None:
        # An application inside another one may have the middleware, too.
        if scope["type"] not in ("http", "websocket") or SCOPE_KEY in scope:
            return None
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        method = scope.get("method", "WEBSOCKET")
        client = scope.get("client") or ("",)
        query = scope.get("query_string", b"").decode("latin-1")
        request = self._requests.begin(method, scope["path"], query, headers, str(client[0]))
        if request is not None:
            scope[SCOPE_KEY] = request.trace
        return request


class _Connection:
    """Reads along what the application receives and sends."""

    def __init__(self, request: RequestTrace, scope: Scope, receive: Receive, send: Send, route_names: bool) -> None:
        self._request, self._scope, self._receive, self._send = request, scope, receive, send
        self._route_names = route_names
        self._root_path = scope.get("root_path", "")
        self._accepted = False

    async def receive(self) -> Message:
        """Wait for a message of the client."""
        message = await self._receive()
        self._received(message)
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client."""
        outgoing = self._outgoing(message)
        try:
            await self._send(message if outgoing is None else outgoing)
        except OSError:
            # So servers tell that the client went away.
            self._name()
            self._request.disconnected()
            raise
        self._sent(message)

    def finish(self) -> None:
        """End the root span if it has not ended yet: the application has returned or raised."""
        self._name()
        if not self._request.has_ended and not self._request.has_answer and not self._accepted:
            self._request.fail("the application sent no answer")
        self._request.end()

    @guarded
    def _outgoing(self, message: Message) -> Message | None:
        """Take note of an answer that begins, and return it with further headers; None = it stays as it is."""
        kind = message["type"]
        if kind not in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            return None
        given = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        names = {name.lower() for name, _ in given}
        own = [(name.encode(), value.encode()) for name, value in self._request.answer_headers]
        if kind == "websocket.accept":
            self._accepted = True
        else:
            shown = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
            self._request.answered(int(message["status"]), shown)
        return {**message, "headers": [*given, *(header for header in own if header[0] not in names)]}

    @guarded
    def _sent(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.body", "websocket.http.response.body") and not message.get("more_body", False):
            self._name()
            self._request.completed()
        elif kind == "websocket.close":
            self._closed(int(message.get("code") or 1000))

    def _closed(self, code: int) -> None:
        """The application has closed a WebSocket, or refused it, which the server answers with 403."""
        if not self._accepted:
            self._request.answered(403, {})
        elif code not in _NORMAL_CLOSE and not self._request.has_ended:
            self._request.fail(f"closed with code {code}")
        self._name()
        self._request.end()

    @guarded
    def _received(self, message: Message) -> None:
        if message["type"] == "http.disconnect" and not self._request.has_ended:
            self._name()
            self._request.disconnected()
        elif message["type"] == "websocket.disconnect":
            self._name()
            self._request.end()

    @guarded
    def _name(self) -> None:
        """Name the root span after the route, which the framework puts into the scope."""
        if self._route_names and not self._request.has_ended:
            path = getattr(self._scope.get("route"), "path", None)
            if isinstance(path, str):
                # The path of a route inside a mounted application begins after that of the mount.
                mount = self._scope.get("root_path", "").removeprefix(self._root_path)
                self._request.named(path if path.startswith(mount) else mount + path)
