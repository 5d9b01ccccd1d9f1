"""
A client of the sessions API with the methods of Cost Katana's ``TraceClient``.

    client = TraceClient(api_key="…", project_id="shop", api_url="http://localhost:9090")
    root = client.start_span("answer", "agent", metadata={"userId": "u-1"})
    client.end_span(root.trace_id, model="gpt-4o", input_tokens=512, output_tokens=128)

Methods that write never raise because of the network or the service: they log the failure and count it in
``TraceClient.failures``, because tracing must not stop the traced program. Methods that read raise.
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

from tokentrace.errors import Rejected, TokentraceError, Unavailable, quoted, shorten
from tokentrace.shown import shown_url

log = logging.getLogger("tokentrace.client")

DEFAULT_URL = "https://api.costkatana.com"
DEFAULT_TIMEOUT_MS = 30_000
#: HTTP statuses below 500 that ask for another attempt: request timeout, too early, too many requests.
_RETRY_STATUSES = (408, 425, 429)
#: How many characters of a stack trace are sent, counted from its end.
_MAX_TEXT = 16_000

Json = dict[str, Any]


class StartedSpan(NamedTuple):
    """
    The ids of a span that ``start_span`` started.

    Attributes:
        trace_id: The id of the span. The sessions API calls it the trace id.
        session_id: The id of the session that the span belongs to.
    """

    trace_id: str
    session_id: str


class TraceClient:
    """
    Starts and ends spans, records messages and reads sessions. It may be shared between threads.

    Args:
        api_key: Sent as bearer token.
        project_id: Sent as the header ``X-Project-ID``.
        api_url: The base URL, without ``/api/traces`` or ``/api/sessions``.
        timeout_ms: The time limit of each network operation, milliseconds.
        headers: More headers for each request.

    Attributes:
        failures: How many writes failed since the client was created.

    Raises:
        ValueError: *api_key* or *project_id* is empty, or *api_url* is not an HTTP URL.
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
            raise ValueError("api_key is empty")
        if not project_id:
            raise ValueError("project_id is empty")
        parts = urlsplit(api_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"api_url: {quoted(shown_url(api_url))} is not http://… or https://…")
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
        Start a span. A failure is logged and counted, and the ids can be used all the same.

        The client chooses the id of the span, so this id is valid even if the response is lost. If the service
        responds with other ids, those are returned. A child without *session_id* belongs to the session that the
        service responds with; if the response is lost, the session id that is returned is a new one.

        Args:
            name: The operation.
            type: llm, embedding, tool, retrieval, database, custom, http, agent, workflow or chain.
            session_id: None stands for the session of the parent, or for a new session without a parent.
            parent_id: The ``trace_id`` of the parent.
            metadata: Further values by key; a value without a JSON form is sent as text.

        Returns:
            The ids of the span and of its session.
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
        End a span. A failure is logged and counted.

        Args:
            trace_id: The ``trace_id`` that ``start_span`` returned.
            status: ok, error or timeout.
            error: A message, an exception, or ``{"message": ..., "stack": ...}``.
            model: The model that was called, such as ``gpt-4o``.
            input_tokens: Tokens of the whole input, cached tokens included.
            output_tokens: Tokens of the whole output, reasoning tokens included.
            cost_usd: The cost in US dollars; None lets the service compute it.
            tool: The tool that was called.
            resource_ids: Ids of resources that the call used.
            metadata: Further values by key; a value replaces that of the same key from the start.
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
        """
        Record one message of a conversation. A failure is logged and counted.

        Args:
            session_id: The session of the conversation.
            trace_id: The ``trace_id`` of the span that the message belongs to.
            role: user, assistant, system or tool.
            content: The text.
            metadata: Further values by key.
        """
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
        """
        Send finished spans. A failure is logged and counted.

        Args:
            spans: Objects with the camelCase keys of ``POST /api/traces/ingest``, such as ``traceId``.
        """
        self._write("/api/traces/ingest", {"spans": spans}, {"Idempotency-Key": str(uuid.uuid4())})

    def session_graph(self, session_id: str) -> Json:
        """
        Read the graph of a session, with one request for every 5,000 spans or so.

        Args:
            session_id: The id of the session.

        Returns:
            ``{"nodes": [...], "edges": [...]}``.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, or 400 for a redirect.
            Unavailable: The service cannot be reached, does not respond in time or not with a JSON object, or responds
                with status 408, 425, 429 or 5xx.
        """
        path = f"/api/sessions/{quote(session_id, safe='')}/graph"
        page = graph = self._read(path)
        while cursor := page.pop("nextCursor", None):
            page = self._read(path, {"cursor": cursor})
            graph["nodes"] += page["nodes"]
            graph["edges"] += page["edges"]
        return graph

    def session_details(self, session_id: str) -> Json:
        """
        Read a session with all its messages, with one request for every 1,000 messages or so.

        Args:
            session_id: The id of the session.

        Returns:
            The session as ``GET /api/sessions/{id}/details`` describes it.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, 404 for an unknown session.
            Unavailable: The service cannot be reached, does not respond in time or not with a JSON object, or responds
                with status 408, 425, 429 or 5xx.
        """
        path = f"/api/sessions/{quote(session_id, safe='')}/details"
        page = details = self._read(path)
        while page["messages"] and len(details["messages"]) < details.get("messageCount", 0):
            page = self._read(path, {"offset": len(details["messages"])})
            details["messages"] += page["messages"]
        return details

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
        Read a page of sessions; the session that started last comes first.

        Args:
            user_id: Only sessions of this user; None for all.
            label: Only sessions with this label; None for all.
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.
            page: The number of the page, from 1; None for the first.
            limit: Most sessions on a page; None for the default of the service.

        Returns:
            ``{"sessions": [...], "total": ..., "page": ..., "pages": ...}``.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, or 400 for a redirect.
            Unavailable: The service cannot be reached, does not respond in time or not with a JSON object, or responds
                with status 408, 425, 429 or 5xx.
        """
        parameters = {"userId": user_id, "label": label, "from": since, "to": until, "page": page, "limit": limit}
        return self._read("/api/sessions", parameters)

    def sessions_summary(self, *, since: datetime | str | None = None, until: datetime | str | None = None) -> Json:
        """
        Read totals over sessions.

        Args:
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.

        Returns:
            The totals as ``GET /api/sessions/summary`` describes them.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, or 400 for a redirect.
            Unavailable: The service cannot be reached, does not respond in time or not with a JSON object, or responds
                with status 408, 425, 429 or 5xx.
        """
        return self._read("/api/sessions/summary", {"from": since, "to": until})

    def close(self) -> None:
        """Close all idle connections. The client can still be used: the next call opens a new connection."""
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
        """Return the decoded response; after a failure, count and log it and return an empty object."""
        try:
            return self._request("POST", path, _encode(body), headers)
        except TokentraceError as exc:
            with self._lock:
                self.failures += 1
            log.warning("POST %s: %s", path, exc)
            return {}

    def _read(self, path: str, parameters: Mapping[str, Any] | None = None) -> Json:
        query = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in (parameters or {}).items()
            if value is not None
        }
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path)

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
            # http.client refuses characters that a header or a path must not contain.
            raise Rejected(f"Trace API error: {shorten(exc)}") from exc
        if status >= 500 or status in _RETRY_STATUSES:
            raise Unavailable(f"Trace API error: {_message(answer, status)}")
        if status >= 300:
            raise Rejected(f"Trace API error: {_message(answer, status)}", status=max(status, 400))
        try:
            return msgspec.json.decode(answer, type=Json)
        except msgspec.DecodeError as exc:
            raise Unavailable("Trace API error: the response is not a JSON object") from exc

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._exchange_over(connection, method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as exc:
                # The service closed the idle connection, perhaps after it read the request. Every request can be sent
                # again safely: it only reads, or contains ids by which the service recognises the repetition.
                log.debug("%s: %s on an idle connection, sending again", method, type(exc).__name__)
        return self._exchange_over(self._connect(), method, path, body, headers)

    def _exchange_over(
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
    """Encode *body* as JSON; a value without a JSON form is written as ``str(value)``."""
    try:
        return msgspec.json.encode(body, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Rejected(f"Trace API error: the request cannot be encoded as JSON: {shorten(exc)}") from exc


def _filled(**fields: Any) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _text(answer: Json, name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""


def _message(answer: bytes, status: int) -> str:
    try:
        body = msgspec.json.decode(answer, type=Json)
    except msgspec.DecodeError:
        body = {}
    return shorten(_text(body, "message") or _text(body, "error") or f"HTTP {status}", 400)
