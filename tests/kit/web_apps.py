"""Web applications under real servers on loopback, and requests to them that end before their answers do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from werkzeug.serving import make_server

from kit.environment import PATIENCE
from tokentrace import BufferTransport, Span

#: How long a wait lasts before it fails, seconds.
WAIT_S = 5.0 * PATIENCE


@contextlib.contextmanager
def asgi_server(app: Any) -> Iterator[str]:
    """Run *app* under uvicorn in a thread, and return its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="websockets-sansio", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + WAIT_S
    while not server.started:
        assert time.monotonic() < deadline, "uvicorn has not started"
        assert thread.is_alive(), "uvicorn has ended"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)


@contextlib.contextmanager
def wsgi_server(app: Any) -> Iterator[str]:
    """Run *app* under the server of Werkzeug with a thread for each request, and return its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(WAIT_S)
        server.server_close()


def hang_up(url: str, path: str, *, after: int) -> bytes:
    """Send a GET request, read *after* bytes of the answer at least, and close the connection; return what was read."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        read = b""
        while len(read) < after:
            part = connection.recv(65536)
            assert part, "the server closed the connection"
            read += part
    return read


def wait_for(buffer: BufferTransport, count: int) -> list[Span]:
    """Wait until *buffer* has *count* spans, and return them in the order of their starts."""
    deadline = time.monotonic() + WAIT_S
    while len(buffer) < count:
        assert time.monotonic() < deadline, f"{len(buffer)} of {count} spans: {buffer.spans}"
        time.sleep(0.01)
    # More than that would be a span that was handed over twice.
    time.sleep(0.05)
    assert len(buffer) == count, buffer.spans
    return sorted(buffer.spans, key=lambda span: span.started_ns)
