"""
A client of the sessions API in the form of Cost Katana's ``TraceClient`` (SPEC E.9).

    client = TraceClient(api_key="…", project_id="shop", api_url="http://localhost:9090")
    root = client.start_span("answer", "agent", metadata={"userId": "u-1"})
    client.end_span(root.trace_id, model="gpt-4o", input_tokens=512, output_tokens=128)

What writes never raises because the service is away: tracing must not end the program it looks at. What reads does.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import threading
import traceback
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tokentrace.errors import Rejected, TokentraceError, Unavailable, shorten

log = logging.getLogger("tokentrace.client")

DEFAULT_URL = "https://api.costkatana.com"
DEFAULT_TIMEOUT_MS = 30_000
_BUSY = (408, 425, 429)
#: Of a stack trace the end is kept, characters.
_MAX_TEXT = 16_000

Json = dict[str, Any]


class StartedSpan(NamedTuple):
    """A span's id (they call it the trace id) and the session it belongs to."""

    trace_id: str
    session_id: str


class TraceClient:
    """
    Starts and ends spans, records messages, reads sessions; may be shared between threads.

    Args:
        api_key: Sent as bearer token.
        project_id: Sent as ``X-Project-ID``.
        api_url: Base of ``/api/traces`` and ``/api/sessions``.
        timeout_ms: How long the network may be silent, milliseconds.
        headers: Sent with every request, besides.

    Attributes:
        failures: How many writes did not arrive.

    Raises:
        ValueError: api_key or project_id is missing, or api_url is none.
    """

    def __init__(
        self,
        api_key: str,
        project_id: str,
        api_url: str = DEFAULT_URL,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not api_key:
            raise ValueError("api_key: is missing")
        if not project_id:
            raise ValueError("project_id: is missing")
        parts = urlsplit(api_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"api_url: {shorten(api_url)!r} is not http://… or https://…")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_ms / 1000
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {api_key}",
            "X-Project-ID": project_id,
            **(headers or {}),
        }
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self.failures = 0

    def start_span(
        self,
        name: str,
        type: str = "custom",
        *,
        session_id: str | None = None,
        parent_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StartedSpan:
        """
        Start a span.

        The ids are made here and sent along, so they are as good when the answer is lost; a service that makes its own
        is believed.

        Args:
            type: One of the ten kinds.
            session_id: None = the parent's, or a new one.
            parent_id: The parent's trace_id.
        """
        trace_id = str(uuid.uuid4())
        if session_id is None and parent_id is None:
            session_id = str(uuid.uuid4())
        body = _filled(
            traceId=trace_id, sessionId=session_id, parentId=parent_id, name=name, type=type, metadata=metadata
        )
        answer = self._write("/api/traces/start", body)
        return StartedSpan(
            _text(answer, "traceId") or trace_id, _text(answer, "sessionId") or session_id or str(uuid.uuid4())
        )

    def end_span(
        self,
        trace_id: str,
        status: str = "ok",
        *,
        error: str | BaseException | Mapping[str, Any] | None = None,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
        tool: str | None = None,
        resource_ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """
        End a span.

        Args:
            status: ok, error or timeout.
            error: A text, an exception, or ``{"message", "stack"}``.
            cost_usd: US dollars; None = let the service price it.
            metadata: Merged over the start's.
        """
        tokens = None
        if input_tokens is not None or output_tokens is not None:
            tokens = {"input": input_tokens or 0, "output": output_tokens or 0}
        if isinstance(error, BaseException):
            stack = "".join(traceback.format_exception(error))
            error = {"message": str(error) or type(error).__name__, "stack": stack[-_MAX_TEXT:]}
        body = _filled(
            status=status,
            error=error,
            model=model,
            tokens=tokens,
            costUSD=cost_usd,
            tool=tool,
            resourceIds=resource_ids,
            metadata=metadata,
        )
        self._write(f"/api/traces/{quote(trace_id, safe='')}/end", body)

    def record_message(
        self,
        session_id: str,
        trace_id: str,
        role: str,
        content: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one message; *role* is user, assistant, system or tool."""
        body = _filled(
            messageId=str(uuid.uuid4()),
            sessionId=session_id,
            traceId=trace_id,
            role=role,
            content=content,
            metadata=metadata,
        )
        self._write("/api/traces/messages", body)

    def ingest_batch(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """Send spans that were collected elsewhere, in the service's own form (camelCase)."""
        self._write("/api/traces/ingest", {"spans": spans}, {"Idempotency-Key": str(uuid.uuid4())})

    def session_graph(self, session_id: str) -> Json:
        """
        ``{"nodes", "edges"}`` of a session.

        Raises:
            Rejected: The service refuses; ``status`` says how.
            Unavailable: It does not answer, or not in time.
        """
        return self._read(f"/api/sessions/{quote(session_id, safe='')}/graph")

    def session_details(self, session_id: str) -> Json:
        """
        A session with its messages.

        Raises:
            Rejected: 404 for one that nobody knows.
            Unavailable: As ``session_graph``.
        """
        return self._read(f"/api/sessions/{quote(session_id, safe='')}/details")

    def list_sessions(
        self,
        *,
        user_id: str | None = None,
        label: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        page: int | None = None,
        limit: int | None = None,
    ) -> Json:
        """
        ``{"sessions", "total", "page", "pages"}``, newest first.

        Args:
            since, until: When a session started: an aware datetime or RFC 3339, both inclusive.

        Raises:
            Rejected, Unavailable: As ``session_graph``.
        """
        asked = {"userId": user_id, "label": label, "from": since, "to": until, "page": page, "limit": limit}
        return self._read("/api/sessions", asked)

    def sessions_summary(self, *, since: datetime | str | None = None, until: datetime | str | None = None) -> Json:
        """
        Totals over the sessions that started from *since* to *until*.

        Raises:
            Rejected, Unavailable: As ``session_graph``.
        """
        return self._read("/api/sessions/summary", {"from": since, "to": until})

    def close(self) -> None:
        """Close what is open; the next call opens another connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> TraceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Json:
        """The answer; empty when it failed, which is counted and logged."""
        try:
            return self._request("POST", path, _encode(body), headers)
        except TokentraceError as exc:
            with self._lock:
                self.failures += 1
            log.warning("POST %s: %s", path, exc)
            return {}

    def _read(self, path: str, parameters: Mapping[str, Any] | None = None) -> Json:
        given = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in (parameters or {}).items()
            if value is not None
        }
        return self._request("GET", f"{path}?{urlencode(given)}" if given else path)

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        try:
            status, answer = self._exchange(method, self._base + path, body, {**self._headers, **(headers or {})})
        except TimeoutError as exc:
            raise Unavailable("Trace API request timeout") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Unavailable(f"Trace API error: {type(exc).__name__}") from exc
        except ValueError as exc:
            # A header or a path that HTTP cannot carry.
            raise Rejected(f"Trace API error: {shorten(exc)}") from exc
        if status >= 500 or status in _BUSY:
            raise Unavailable(f"Trace API error: {_message(answer, status)}")
        if status >= 300:
            raise Rejected(f"Trace API error: {_message(answer, status)}", status=max(status, 400))
        try:
            return msgspec.json.decode(answer, type=Json)
        except msgspec.DecodeError as exc:
            raise Unavailable("Trace API error: the answer is not a JSON object") from exc

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._ask(connection, method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as exc:
                # The service closed it while nobody used it. What is sent carries its own ids, so that sending it
                # twice makes it no two.
                log.debug("%s %s: %s, once more", method, path, type(exc).__name__)
        return self._ask(self._connect(), method, path, body, headers)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> tuple[int, bytes]:
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.read()
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        tls = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=tls)


def _encode(body: Mapping[str, Any]) -> bytes:
    """*body* as JSON; what JSON has no form for is written as its text."""
    try:
        return msgspec.json.encode(body, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Rejected(f"Trace API error: the request is no JSON: {shorten(exc)}") from exc


def _filled(**fields: Any) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _text(answer: Json, name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""


def _message(answer: bytes, status: int) -> str:
    try:
        found = msgspec.json.decode(answer, type=Json)
    except msgspec.DecodeError:
        found = {}
    return shorten(_text(found, "message") or _text(found, "error") or f"HTTP {status}", 400)
