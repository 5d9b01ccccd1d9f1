"""Addresses, sockets and the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokentrace.errors import ConfigError, Unavailable

#: How long a connection that is not read from holds up the end.
_UNREAD_S = 5.0


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

    A client that has not read its answer or not sent its body is cut off after 5 s, or one that hangs would
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
