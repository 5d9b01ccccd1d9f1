"""A small reverse proxy that publishes a server below a prefix, as nginx with ``location /prefix/`` does."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator


class _Handler(socketserver.StreamRequestHandler):
    """Takes one request of a connection, cuts the prefix off its path, and passes the bytes of the answer on."""

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        method, _, rest = self.rfile.readline().decode("latin-1").partition(" ")
        path, _, version = rest.partition(" ")
        head, length = [], 0
        while (line := self.rfile.readline()) not in (b"\r\n", b"\n", b""):
            name = line.partition(b":")[0].strip().lower()
            if name == b"content-length":
                length = int(line.partition(b":")[2])
            if name not in (b"connection", b"keep-alive"):
                head.append(line)
        if not path.startswith(server.prefix):
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        body = self.rfile.read(length)
        asked = f"{method} /{path.removeprefix(server.prefix)} {version}".encode("latin-1")
        with socket.create_connection(("127.0.0.1", server.upstream)) as upstream, contextlib.suppress(OSError):
            upstream.sendall(asked + b"".join(head) + b"Connection: close\r\n\r\n" + body)
            while part := upstream.recv(65536):
                self.wfile.write(part)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, upstream: int, prefix: str) -> None:
        self.upstream, self.prefix = upstream, prefix
        super().__init__(("127.0.0.1", 0), _Handler)


@contextlib.contextmanager
def published(upstream: int, prefix: str) -> Iterator[str]:
    """Publish the server on port *upstream* of this machine below *prefix*, such as ``/a/b/``; yield its URL."""
    with _Server(upstream, prefix) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
        finally:
            server.shutdown()
            thread.join()
