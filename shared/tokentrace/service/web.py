"""What every service's HTTP side shares: the server, the error envelope, bodies with a limit, health, tokens."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokentrace.errors import ConfigError, Conflict, Rejected, Unavailable

log = logging.getLogger("tokentrace.http")

MAX_BODY_BYTES = 8 * 1024 * 1024
#: How much of a body over the limit is read and thrown away before the connection is cut.
_MAX_DRAINED = 128 * 1024 * 1024
_DRAIN_S = 3.0
#: How long a connection that is not read from holds up the end.
_UNREAD_S = 5.0
OPEN_PATHS = ("/healthz", "/readyz")
#: Where Cost Katana's SDK is answered.
SDK_PATHS = "/api/"
#: Content type of Prometheus' text format.
PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """
    The body, gzip undone, never holding more than *limit* bytes of it.

    Raises:
        Rejected: 413 over the limit, counted before and after decompression; 415 other encodings; 400 broken gzip.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise Rejected(f"Content-Encoding: {encoding[:40]!r} is not supported, only gzip is", status=415)
    packed = await _read(request, limit)
    return _inflate(packed, limit) if "gzip" in encoding else packed


async def read_raw(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """
    The body as it came, never holding more than *limit* bytes of it.

    Raises:
        Rejected: 413 over the limit.
    """
    return await _read(request, limit)


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    too_long = declared.isdigit() and int(declared) > limit
    chunks: list[bytes] = []
    size = 0
    try:
        if not too_long:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    too_long = True
                    break
                chunks.append(chunk)
        if too_long:
            await _drain(request)
    except ClientDisconnect as exc:
        raise Rejected("body: the client went away in the middle of it") from exc
    if too_long:
        raise Rejected(f"body: {declared[:20] or f'over {limit}'} bytes, at most {limit} are taken", status=413)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _drain(request: Request) -> None:
    """Read on for a moment without keeping it: a client that is cut off while it sends never sees the answer."""
    size = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            while size <= _MAX_DRAINED:
                message = await request.receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _inflate(packed: bytes, limit: int) -> bytes:
    """All members of a gzip body, stopping one byte past *limit*."""
    parts: list[bytes] = []
    room, rest = limit, packed
    while rest:
        unpack = zlib.decompressobj(31)
        try:
            part = unpack.decompress(rest, room + 1)
        except zlib.error as exc:
            raise Rejected(f"body: not gzip ({exc})") from exc
        room -= len(part)
        if room < 0:
            raise Rejected(f"body: over {limit} bytes, which is the limit after decompression", status=413)
        if not unpack.eof:
            raise Rejected("body: gzip data ends too early")
        parts.append(part)
        rest = unpack.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Health(NamedTuple):
    """
    Whether a service can do its work.

    Attributes:
        missing: What it waits for; empty = ready.
        details: More, for people.
    """

    missing: Sequence[str]
    details: Mapping[str, Any]


class Sample(NamedTuple):
    """One number of a service's own metrics; counters end in ``_total``."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}


def health_routes(health: Callable[[], Health], samples: Callable[[], Iterable[Sample]]) -> list[Route]:
    """``/healthz`` (the loop turns), ``/readyz`` (connected and caught up) and ``/internal/metrics``."""

    async def healthz(_: Request) -> Response:
        return reply({"status": "ok"})

    async def readyz(_: Request) -> Response:
        state = health()
        body = {"status": "not_ready" if state.missing else "ok", "missing": list(state.missing), **state.details}
        return reply(body, 503 if state.missing else 200)

    async def internal_metrics(_: Request) -> Response:
        return Response(render_samples(samples()), headers={"content-type": PROMETHEUS_TYPE})

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/internal/metrics", internal_metrics),
    ]


class _Samples(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self._samples:
            family = families.get(sample.name)
            if family is None:
                make = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
                family = families[sample.name] = make(sample.name, sample.help, labels=list(sample.labels))
            family.add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()


def render_samples(samples: Iterable[Sample]) -> bytes:
    """*samples* in Prometheus' text format."""
    return render_families(_Samples(samples))


def render_families(collector: Collector) -> bytes:
    """What *collector* collects in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def parse_addr(addr: str, default_port: int) -> tuple[str, int]:
    """
    ``host:port``, ``:port`` or ``port``; without a host this machine only.

    Raises:
        ConfigError: Not an address.
    """
    host, _, port = addr.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port:
        return host, default_port
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"addr: {addr!r} is not host:port")
    return host, int(port)


def bind(addr: tuple[str, int]) -> socket.socket:
    """
    A listening socket, bound before the server starts, so that a taken port is a clear error.

    Raises:
        Unavailable: Taken, or not ours.
    """
    host, port = addr
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    sock.set_inheritable(True)
    return sock


class _Protocol(HttpToolsProtocol):
    """
    A connection that a client may leave at any moment.

    uvicorn tells only the request read last that its client is gone; one that is being answered while others wait
    behind it then writes to a closed socket, which is a traceback in the log for each.
    """

    _unanswered: tuple[RequestResponseCycle, ...] = ()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.cycle is not None:
            waiting = (one for one in self._unanswered if not one.response_complete)
            self._unanswered = (*waiting, self.cycle)

    def eof_received(self) -> None:
        super().eof_received()
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        """The socket is closed next: nothing can be answered any more."""
        self.pipeline.clear()
        for one in self._unanswered:
            one.disconnected = not one.response_complete
            one.message_event.set()

    @property
    def is_half_sent(self) -> bool:
        """A request is still to be read to its end."""
        return any(one.more_body and not one.response_complete for one in self._unanswered)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process' signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(app: ASGIApp, sockets: Sequence[socket.socket], *, stopping: asyncio.Event) -> None:
    """
    Serve *app* until *stopping* is set; then finish the requests under way, at most 15 s.

    Whoever has not read what was sent, or not sent what was announced, is cut off after 5 s, or one that hangs would
    hold up the end.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=15,
        backlog=2048,
    )
    server = _Server(config)

    async def stop() -> None:
        await stopping.wait()
        server.should_exit = True
        await asyncio.sleep(_UNREAD_S)
        for connection in list(server.server_state.connections):
            half_sent = isinstance(connection, _Protocol) and connection.is_half_sent
            if half_sent or connection.transport.get_write_buffer_size():
                connection.transport.abort()

    stopper = asyncio.create_task(stop())
    try:
        await server.serve(sockets=list(sockets))
    finally:
        stopper.cancel()


Endpoint = Callable[[Request], Awaitable[Response]]
__all__ = [
    "MAX_BODY_BYTES",
    "OPEN_PATHS",
    "PROMETHEUS_TYPE",
    "Endpoint",
    "Health",
    "Sample",
    "bind",
    "failure",
    "health_routes",
    "make_app",
    "parse_addr",
    "read_body",
    "read_raw",
    "render_families",
    "render_samples",
    "reply",
    "serve_http",
]
