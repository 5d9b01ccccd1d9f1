"""An HTTP server on loopback that answers as a test tells it, so that a real SDK can be run against it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Seconds for which a part of an answer waits for its event.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Request:
    """A request as it came: the path with its query, header names in lower case, the body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """
    What the server answers.

    Attributes:
        parts: The body, sent part by part; an event is waited for. With more than one part, or with *cut*, the body is
            sent in chunks.
        cut: True = the connection is closed before the body has ended.
    """

    parts: Sequence[bytes | threading.Event]
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def json_answer(body: object, status: int = 200, **headers: str) -> Answer:
    """Return an answer with the JSON of *body*; an underscore in the name of a header stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer([json.dumps(body).encode()], status, headers=named)


def sse_answer(events: Sequence[object], *, cut: bool = False, done: bytes = b"") -> Answer:
    """Return a stream of server-sent events, one part for each; *done* is the data of a last one."""
    parts: list[bytes | threading.Event] = [
        event if isinstance(event, threading.Event) else _event(event) for event in events
    ]
    if done:
        parts.append(b"data: " + done + b"\n\n")
    return Answer(parts, content_type="text/event-stream", cut=cut)


def _event(event: object) -> bytes:
    name = event.get("type") or event.get("event_type") if isinstance(event, dict) else None
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(event)}\n\n".encode()


class ScriptedServer:
    """
    The server. Requests are answered by ``answer``, which a test may replace.

    Attributes:
        url: ``http://127.0.0.1:<port>``.
        requests: What came, oldest first.
        answer: Called with each request, in the thread of its connection.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer] = lambda request: Answer([b"{}"], 404)
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Write nothing."""

            def do_POST(self) -> None:
                scripted._handle(self)

            do_GET = do_POST  # noqa: N815 - the name that http.server calls

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *answers: Answer) -> None:
        """Give *answers* in their order, and the last one for all further requests."""
        waiting = list(answers)
        self.answer = lambda request: waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_PATIENCE_S)

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, handler.path, headers, handler.rfile.read(length))
        self.requests.append(request)
        answer = self.answer(request)
        chunked = len(answer.parts) > 1 or answer.cut
        handler.send_response(answer.status)
        handler.send_header("content-type", answer.content_type)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        body = [part for part in answer.parts if isinstance(part, bytes)]
        handler.send_header(*(("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body[0])))))
        handler.end_headers()
        try:
            for part in answer.parts:
                if isinstance(part, threading.Event):
                    part.wait(_PATIENCE_S)
                elif chunked:
                    handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                else:
                    handler.wfile.write(part)
            if chunked and not answer.cut:
                handler.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            answer = Answer([], cut=True)  # the client read no further
        if answer.cut:
            handler.close_connection = True


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run a server for a block."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.close()
