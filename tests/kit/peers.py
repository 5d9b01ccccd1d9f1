"""Servers for tests of the reporter: a proxy that cuts connections, and an HTTP endpoint with chosen statuses."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest

#: For modules whose reporters connect to a server that accepts connections and sends nothing. nats-py does not close
#: that stream, and the garbage collector may warn of it during any later test. That no socket stays open is tested by
#: ``test_a_failed_connection_to_a_silent_server_leaves_no_socket_open``.
ignore_ungreeted_connections = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)


class CuttingProxy:
    """
    A TCP proxy to *port* on 127.0.0.1 that can lose replies.

    Attributes:
        port: The TCP port on which the proxy listens.
        sent: All bytes that clients have sent.
        cut: Takes a piece of a reply; returns True to discard it and close the connection.
        cuts: How many pieces were discarded.
    """

    def __init__(self, port: int) -> None:
        self.sent = bytearray()
        self.cut: Callable[[bytes], bool] = lambda data: False
        self.cuts = 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as target:
                    target.settimeout(None)
                    back = threading.Thread(target=proxy._pass_back, args=(target, self.request))
                    back.start()
                    try:
                        while data := self.request.recv(65536):
                            proxy.sent += data
                            target.sendall(data)
                    finally:
                        with contextlib.suppress(OSError):
                            target.shutdown(socket.SHUT_RDWR)
                        back.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _pass_back(self, target: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := target.recv(65536):
                if self.cut(data):
                    self.cuts += 1
                    break
                client.sendall(data)
        for end in (client, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class HttpEndpoint:
    """
    An HTTP server that answers POST requests with *statuses* in order, and then with 202.

    Attributes:
        url: Its base URL.
        bodies: The body of each request, in order.
        headers: The headers of each request, with the path as ``path``.
    """

    def __init__(self, *statuses: int, body: bytes = b"{}") -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        remaining = list(statuses)
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.headers.append({**self.headers, "path": self.path})
                self.send_response(remaining.pop(0) if remaining else 202)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Write no log line for a request."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS with *context* from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = self.url.replace("http://", "https://")

    def __enter__(self) -> HttpEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
