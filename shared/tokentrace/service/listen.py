"""Parsing of addresses, listening sockets, and the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokentrace.errors import ConfigError, Unavailable, quoted

#: How long the end of the server waits for a client that does not read its answer or does not send its body, seconds.
_UNREAD_S = 5.0


def parse_addr(addr: str, default_port: int) -> tuple[str, int]:
    """
    Return the host and the port of ``host:port``, ``host:``, ``:port`` or ``port``; without a host, 127.0.0.1.

    Raises:
        ConfigError: *addr* is not such an address.
    """
    host, colon, port = addr.rpartition(":")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ConfigError(f"addr: {quoted(addr)} is not host:port; an IPv6 address is written [::1]:8700")
    host = host.strip("[]") or "127.0.0.1"
    if not port and colon:
        return host, default_port
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"addr: {quoted(addr)} is not host:port")
    return host, int(port)


def bind(addr: tuple[str, int]) -> socket.socket:
    """
    Return a socket bound to *addr*, before the server starts, so that a port in use is a clear error.

    Raises:
        ConfigError: The host cannot be a name or an address.
        Unavailable: The address is in use, unknown, or not allowed for this process.
    """
    host, port = addr
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        # A UnicodeError, for example: an empty or a long part of the name.
        sock.close()
        raise ConfigError(f"addr: {quoted(host)} is not the name or the address of a host") from exc
    sock.set_inheritable(True)
    return sock


class _Protocol(HttpToolsProtocol):
    """
    A connection that notices in every request when its client disconnects, and ignores offers of other protocols.

    uvicorn tells only the request that was read last. An earlier request that is still being answered would write to a
    closed socket, and each such request logs a traceback.
    """

    _unanswered: tuple[RequestResponseCycle, ...] = ()
    _resuming = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                self._ignore_upgrade()
                data = data[exc.args[0] :]
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
                return

    def _ignore_upgrade(self) -> None:
        """
        Read on as if the client had not offered another protocol; Java's client offers one with every request.

        The parser takes what follows the head of such a request for the other protocol, so the body would never come.
        A new parser gets a head that says how long the body is.
        """
        framing = [pair for pair in self.headers if pair[0] in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(self)
        self._resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in framing) + b"\r\n")
        self._resuming = False

    def on_message_begin(self) -> None:
        if not self._resuming:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._resuming:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        super().on_headers_complete()
        if self.cycle is not None:
            waiting = (cycle for cycle in self._unanswered if not cycle.response_complete)
            self._unanswered = (*waiting, self.cycle)

    def eof_received(self) -> None:
        super().eof_received()
        self._disconnect_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnect_all()
        super().connection_lost(exc)

    def _disconnect_all(self) -> None:
        """Tell every request that the client is gone: the socket is closed next, so no answer can be sent any more."""
        self.pipeline.clear()
        for cycle in self._unanswered:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    @property
    def is_half_sent(self) -> bool:
        """True while the body of a request is not completely read."""
        return any(cycle.more_body and not cycle.response_complete for cycle in self._unanswered)


class _Server(uvicorn.Server):
    """A uvicorn server that installs no signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(app: ASGIApp, sockets: Sequence[socket.socket], *, stopping: asyncio.Event) -> None:
    """
    Serve *app* until *stopping* is set, then finish the requests under way for at most 15 s.

    A client that has not read its answer or not sent its body 5 s after *stopping* is cut off, because it may hang.

    Raises:
        Unavailable: Another process has begun to listen at one of the addresses since it was bound.
    """
    addresses = " and ".join(f"{host}:{port}" for host, port, *_ in (sock.getsockname() for sock in sockets))
    config = uvicorn.Config(
        app,
        http=_Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        # No route is a web socket, and no header of a proxy is believed: who asks and how is what the socket says.
        ws="none",
        proxy_headers=False,
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
    except OSError as exc:
        if server.started:
            raise
        raise Unavailable(f"cannot listen on {addresses}: {exc.strerror or exc}") from exc
    finally:
        stopper.cancel()
