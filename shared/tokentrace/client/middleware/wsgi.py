"""Traces of the requests of a WSGI application: Flask, Django, Bottle, Pyramid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokentrace.client.middleware.request import DEFAULT_SKIP, Requests, RequestTrace, guarded
from tokentrace.client.tracing import Tracer, context

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

#: The key of the trace in the environ of a request.
ENVIRON_KEY = "tokentrace.trace"


class WsgiTraceMiddleware:
    """
    Makes a trace of each request: ``app.wsgi_app = WsgiTraceMiddleware(app.wsgi_app, tracer)`` for Flask.

    It does for WSGI what ``TraceMiddleware`` does for ASGI; the trace is ``environ["tokentrace.trace"]``. The root span
    ends after the last part of the body, or when the server closes it.

    Args:
        app: The WSGI application.
        tracer: Makes the traces; None = the default tracer.
        session_header: The header with the id of the session; without it, the session is a new one.
        include_details: True = the root span has the headers, the address and the user agent, without secrets.
        skip: Paths without a trace, as patterns of ``fnmatch``.
        name: Returns the name of a root span for a method and a path; None = ``METHOD path``, with ``{id}`` for ids of
            at least eight digits.
        route_names: True = the name has the rule of the route, such as ``/users/<user>``, where Flask knows it.
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """
        Handle one request.

        Args:
            environ: What is known of the request.
            start_response: Begins the answer.

        Returns:
            The body of the answer.
        """
        request = self._begin(environ)
        if request is None:
            return self.app(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            more = _prepared(request, status, headers)
            if self._requests.route_names:
                # Flask takes the route out of the environ when its handler has returned.
                request.named(_rule(environ) or "")
            return start_response(status, headers if more is None else more, *exc_info)

        before = context.enter(request.root)
        try:
            body = self.app(environ, start)
        except BaseException as exc:
            request.fail(exc)
            request.end()
            raise
        finally:
            context.leave(before)
        return _SizedBody(body, request) if hasattr(body, "__len__") else _Body(body, request)

    @guarded
    def _begin(self, environ: Environ) -> RequestTrace | None:
        if ENVIRON_KEY in environ:
            return None
        headers = {
            name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name[:5] == "HTTP_"
        }
        # The server has decoded the path as latin-1, whatever it is.
        path = (
            (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1").decode(errors="replace")
        )
        request = self._requests.begin(
            environ["REQUEST_METHOD"],
            path or "/",
            environ.get("QUERY_STRING", ""),
            headers,
            environ.get("REMOTE_ADDR", ""),
        )
        if request is not None:
            environ[ENVIRON_KEY] = request.trace
        return request


@guarded
def _prepared(request: RequestTrace, status: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    request.answered(int(status[:3]), dict(headers))
    names = {name.lower() for name, _ in headers}
    return [*headers, *(header for header in request.answer_headers if header[0] not in names)]


@guarded
def _rule(environ: Environ) -> str:
    """Return the rule of the route that Flask has chosen; "" = there is none."""
    rule = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", "")
    return rule if isinstance(rule, str) else ""


class _Body:
    """The body of an answer; the root span ends with it."""

    def __init__(self, body: Iterable[bytes], request: RequestTrace) -> None:
        self._body, self._request = body, request
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        # The server may take the parts in another thread, or after it began the next request in this one.
        before = context.enter(self._request.root)
        try:
            if self._parts is None:
                self._parts = iter(self._body)
            return next(self._parts)
        except StopIteration:
            self._request.completed()
            raise
        except BaseException as exc:
            self._request.fail(exc)
            raise
        finally:
            context.leave(before)

    def close(self) -> None:
        """End the answer: it is complete, or the client went away."""
        before = context.enter(self._request.root)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as exc:
            self._request.fail(exc)
            raise
        finally:
            context.leave(before)
            self._request.closed()


class _SizedBody(_Body):
    """A body with a known number of parts, by which a server finds the length of the answer."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type] # made only for bodies with a length
