"""
A server on loopback that speaks the protocols of OpenAI and Anthropic, for their real SDKs.

What it answers depends on the request and on a ``Script``. It uses nothing but the standard library, because it also
runs beside SDKs that are older than this project.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from kit.llm_answers import DEFAULTS, REQUEST_ID, RESPONSE_ID, Said, frames, protocol_of, refusal, response, whole


@dataclass
class Script:
    """
    How the server answers.

    Attributes:
        statuses: Statuses of the first answers, before those that succeed.
        encoding: The encoding of the body: gzip, deflate, or "".
        piece: Bytes that are written at once; 0 = one frame.
        cut_after: Number of frames after which the connection ends; None = it does not.
        error_after: Number of frames after which an error event ends the stream; None = there is none.
        hang: Whether an answer never comes.
        gate: Waited for after the first frame; None = nothing is waited for.
        finish_reason: Why a chat completion ended.
        content: The text of a chat completion.
        usage: The usage of an answer, as its protocol writes it; None = that of ``llm_answers``.
        model: The model that answers; empty = the one that was asked for, with a date.
    """

    statuses: tuple[int, ...] = ()
    encoding: str = ""
    piece: int = 0
    cut_after: int | None = None
    error_after: int | None = None
    hang: bool = False
    gate: threading.Event | None = None
    finish_reason: str = "stop"
    content: str = "Hello, world"
    usage: Mapping[str, Any] | None = None
    model: str = ""
    left: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = list(self.statuses)


class Got(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Told(NamedTuple):
    """
    What a client was told of a call.

    Attributes:
        protocol: The protocol: chat, responses, messages or embeddings.
        model: The model that was asked for.
        status: The status of the answer; 0 = there was none.
        streamed: Whether the answer is a stream.
        has_usage: Whether the answer states its usage.
        id: The id of the answer.
        usage: Its usage, as the protocol writes it.
    """

    protocol: str
    model: str
    status: int
    streamed: bool = False
    has_usage: bool = False
    id: str = ""
    usage: Mapping[str, Any] = {}


class LlmServer:
    """
    The server; ``with`` starts and ends it.

    Attributes:
        script: How it answers.
        scripts: Model -> how it answers a request for this model instead.
        requests: What came, oldest first.
        told: What clients were told, in the order in which the answers began.
        numbers_ids: Whether each answer has an id of its own.
        always_with_usage: Whether chat streams state their usage without being asked to.
        states: The states of an answer in the background, each once.
    """

    def __init__(self) -> None:
        self.script = Script()
        self.scripts: dict[str, Script] = {}
        self.requests: list[Got] = []
        self.told: list[Told] = []
        self.numbers_ids = False
        self._ids = itertools.count(1)
        self.released = threading.Event()
        self.always_with_usage = False
        self.states = ["queued", "in_progress", "completed"]
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.llm = self  # type: ignore[attr-defined]  # how a handler finds the server
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def start(self, script: Script) -> None:
        """Answer as *script* says from now on, and forget the requests."""
        self.script, self.requests, self.states = script, [], ["queued", "in_progress", "completed"]
        self.told = []

    def says(self, path: str, script: Script) -> Said:
        """Return what the next answer at *path* says."""
        said = DEFAULTS[protocol_of(path)]._replace(
            content=script.content, finish_reason=script.finish_reason, model=script.model
        )
        if self.numbers_ids and said.id:
            said = said._replace(id=f"{said.id[:-6]}{next(self._ids):06}")
        return said if script.usage is None else said._replace(usage=script.usage)

    def __enter__(self) -> LlmServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing where a client has closed its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise a delayed acknowledgement holds frames back.
    disable_nagle_algorithm = True

    @property
    def llm(self) -> LlmServer:
        server: LlmServer = self.server.llm  # type: ignore[attr-defined]  # set above
        return server

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to the standard error output."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _answer(self, body: bytes) -> None:
        llm = self.llm
        headers = {name.lower(): value for name, value in self.headers.items()}
        llm.requests.append(Got(self.command, self.path, headers, body))
        asked = json.loads(body) if headers.get("content-type", "").startswith("application/json") and body else {}
        model = asked.get("model", "")
        script = llm.scripts.get(model, llm.script)
        path = self.path.partition("?")[0]
        protocol = protocol_of(path)
        if script.hang:
            llm.told.append(Told(protocol, model, 0))
            llm.released.wait(60)
            self.close_connection = True
            return
        status = script.left.pop(0) if script.left else 200
        if status != 200:
            llm.told.append(Told(protocol, model, status))
            self._json(refusal(status, path), status, script)
            return
        said, streamed = llm.says(path, script), bool(asked.get("stream"))
        if streamed and llm.always_with_usage:
            asked["stream_options"] = {"include_usage": True}
        asks = protocol != "chat" or bool((asked.get("stream_options") or {}).get("include_usage"))
        llm.told.append(Told(protocol, model, status, streamed, not streamed or asks, said.id, said.usage))
        if streamed:
            self._stream(list(frames(path, asked, said, script.error_after)), script)
        else:
            self._json(self._whole(path, asked, said), 200, script)

    def _whole(self, path: str, asked: dict[str, Any], said: Said) -> dict[str, Any]:
        if protocol_of(path) != "responses":
            return whole(path, asked, said)
        states, is_fetched = self.llm.states, path.endswith(RESPONSE_ID)
        state = states[0] if asked.get("background") or is_fetched else "completed"
        if is_fetched and len(states) > 1:
            state = states.pop(1)
        return response(asked, state, said)

    def _json(self, value: Any, status: int, script: Script) -> None:
        data = json.dumps(value).encode()
        encoder = _encoder(script.encoding)
        if encoder is not None and status == 200:
            data = encoder.compress(data) + encoder.flush()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("x-request-id", REQUEST_ID)
        self.send_header("request-id", REQUEST_ID)
        if encoder is not None and status == 200:
            self.send_header("content-encoding", script.encoding)
        if status != 200:
            self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, frames: list[bytes], script: Script) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("x-request-id", REQUEST_ID)
        self.send_header("request-id", REQUEST_ID)
        if script.encoding:
            self.send_header("content-encoding", script.encoding)
        self.end_headers()
        encoder = _encoder(script.encoding)
        try:
            for number, frame in enumerate(frames):
                if number == 1 and script.gate is not None:
                    script.gate.wait(60)
                if number == script.cut_after:
                    self.close_connection = True
                    return
                data = frame if encoder is None else encoder.compress(frame) + encoder.flush(zlib.Z_SYNC_FLUSH)
                for start in range(0, len(data), script.piece or len(data)):
                    self._chunk(data[start : start + (script.piece or len(data))])
            if encoder is not None:
                self._chunk(encoder.flush(zlib.Z_FINISH))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _encoder(encoding: str) -> Any:
    return zlib.compressobj(wbits=31 if encoding == "gzip" else 15) if encoding else None


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    """Wait until *condition* holds, for at most *seconds*; return whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
