"""
A client of the sessions API with the methods of Cost Katana's ``TraceClient``.

    client = TraceClient(api_key="…", project_id="shop", api_url="http://localhost:9090")
    root = client.start_span("answer", "agent", metadata={"userId": "u-1"})
    client.end_span(root.trace_id, model="gpt-4o", input_tokens=512, output_tokens=128)

Methods that write never raise because of the network or the service: they log the failure and count it in
``TraceClient.failures``, because tracing must not stop the traced program. A wrong word, such as an unknown status, is
an error of the program and raises. Methods that read raise.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tokentrace.client.sessions.http import Connections
from tokentrace.client.sessions.reads import SessionReads
from tokentrace.client.sessions.words import (
    Error,
    Json,
    StartedSpan,
    encode,
    end_body,
    error_text,
    filled,
    message_body,
    start_body,
)
from tokentrace.errors import ConfigError, Rejected, TokentraceError
from tokentrace.records import Kind, Role, Status

log = logging.getLogger("tokentrace.client")

#: The variable that names the service if the program does not.
URL_VARIABLE = "TOKENTRACE_API_URL"


class TraceClient(SessionReads):
    """
    Starts and ends spans, records messages and reads sessions. It may be shared between threads and used after a fork.

    Its methods wait for the service. In an async program, call them with ``asyncio.to_thread``.

    Args:
        api_key: Sent as bearer token.
        project_id: Sent as the header ``X-Project-ID``.
        api_url: The base URL, without ``/api/traces`` or ``/api/sessions``; None = ``TOKENTRACE_API_URL``.
        timeout_ms: The time limit of each network operation of a write, milliseconds.
        headers: More headers for each request.
        read_timeout_ms: The time limit of each network operation of a read, milliseconds.

    Raises:
        ConfigError: *api_key* or *project_id* is empty, or neither *api_url* nor ``TOKENTRACE_API_URL`` is an HTTP URL.
    """

    def __init__(
        self,
        api_key: str,
        project_id: str,
        api_url: str | None = None,
        timeout_ms: int = 2_000,
        headers: Mapping[str, str] | None = None,
        *,
        read_timeout_ms: int = 30_000,
    ) -> None:
        if not api_key:
            raise ConfigError("api_key is empty")
        if not project_id:
            raise ConfigError("project_id is empty")
        for name, value in (("timeout_ms", timeout_ms), ("read_timeout_ms", read_timeout_ms)):
            if value <= 0:
                raise ConfigError(f"{name}: {value} is not above 0")
        url = api_url or os.environ.get(URL_VARIABLE, "")
        if not url:
            raise ConfigError(f"api_url and {URL_VARIABLE} are empty: one of them has to name the service")
        connections = Connections(
            url,
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {api_key}",
                "X-Project-ID": project_id,
                **(headers or {}),
            },
        )
        super().__init__(connections, read_timeout_ms / 1000)
        self._timeout_s = timeout_ms / 1000

    @property
    def failures(self) -> int:
        """How many writes failed since the client was created, or since the fork in a forked child."""
        return self._connections.failures

    def start_span(
        self,
        name: str,
        type: Kind = "custom",
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

        Raises:
            Rejected: *type* is not one of these words.
        """
        body = start_body(name, type, session_id, parent_id, metadata)
        answer = self._write("/api/traces/start", body)
        ids = (_text(answer, key) or body.get(key) or str(uuid.uuid4()) for key in ("traceId", "sessionId"))
        return StartedSpan(*ids)

    def end_span(
        self,
        trace_id: str,
        status: Status | None = None,
        *,
        error: Error | None = None,
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
            status: ok, error or timeout; None = error if there is an *error*, otherwise ok.
            error: A message, an exception, or ``{"message": ..., "stack": ...}``. With it, ok is error.
            model: The model that was called, such as ``gpt-4o``.
            input_tokens: Tokens of the whole input, cached tokens included.
            output_tokens: Tokens of the whole output, reasoning tokens included.
            cost_usd: The cost in US dollars; None lets the service compute it.
            tool: The tool that was called.
            resource_ids: Ids of resources that the call used.
            metadata: Further values by key; a value replaces that of the same key from the start.

        Raises:
            Rejected: *status* is not one of these words.
        """
        body = end_body(
            status,
            error,
            input_tokens,
            output_tokens,
            model=model,
            costUSD=cost_usd,
            tool=tool,
            resourceIds=resource_ids,
            metadata=metadata,
        )
        self._write(f"/api/traces/{quote(trace_id, safe='')}/end", body)

    def record_message(
        self, session_id: str, trace_id: str, role: Role, content: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """
        Record one message of a conversation. A failure is logged and counted.

        Args:
            session_id: The session of the conversation.
            trace_id: The ``trace_id`` of the span that the message belongs to.
            role: user, assistant, system or tool.
            content: The text.
            metadata: Further values by key.

        Raises:
            Rejected: *role* is not one of these words.
        """
        self._write("/api/traces/messages", message_body(session_id, trace_id, role, content, metadata))

    def ingest_batch(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """
        Send finished spans. A failure is logged and counted.

        Args:
            spans: Objects with the camelCase keys of ``POST /api/traces/ingest``, such as ``traceId``.
        """
        self._write("/api/traces/ingest", {"spans": spans}, {"Idempotency-Key": str(uuid.uuid4())})

    def end_session(self, session_id: str, error: Error | None = None) -> None:
        """
        End a session; the first end counts. A failure is logged and counted.

        Args:
            session_id: The id of the session.
            error: Why the session failed; None = it is completed, unless one of its spans failed.
        """
        self._write(f"/api/sessions/{quote(session_id, safe='')}/end", filled(error=error_text(error) or None))

    def close(self) -> None:
        """Close all idle connections. The client can still be used: the next call opens a new connection."""
        self._connections.close()

    def __enter__(self) -> TraceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Json:
        """Return the decoded response; after a failure, count and log it and return an empty object."""
        try:
            return self._connections.request("POST", path, _encoded(body), headers, self._timeout_s)
        except TokentraceError as exc:
            self._connections.count_failure()
            log.warning("POST %s: %s", path, exc)
            return {}


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return encode(body)
    except Rejected as exc:
        raise Rejected(f"Trace API error: {exc}") from exc


def _text(answer: Json, name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""
