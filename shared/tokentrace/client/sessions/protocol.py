"""What a service of sessions does, in this process or behind HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from tokentrace.client.sessions.words import Error, Json, StartedSpan
from tokentrace.records import Kind, Role, Status


class TraceService(Protocol):
    """
    A service of sessions. ``TraceClient`` sends everything to a pipeline, ``LocalTraceService`` keeps it itself.

    Their methods have the same arguments and the same results, so that a program can use either. They differ in three
    points: ``TraceClient`` logs and counts a write that fails, where ``LocalTraceService`` raises; the graph of an
    unknown session is empty in ``LocalTraceService``, and an error of ``TraceClient``; and a list of
    ``LocalTraceService`` has the messages of its sessions and finds labels by case.
    """

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
        Start a span.

        Args:
            name: The operation.
            type: llm, embedding, tool, retrieval, database, custom, http, agent, workflow or chain.
            session_id: None stands for the session of the parent, or for a new session without a parent.
            parent_id: The ``trace_id`` of the parent.
            metadata: Further values by key; a value without a JSON form is kept as text.

        Returns:
            The ids of the span and of its session.

        Raises:
            Rejected: *type* is not one of these words.
        """
        ...

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
        End a span.

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
        ...

    def record_message(
        self, session_id: str, trace_id: str, role: Role, content: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """
        Record one message of a conversation.

        Args:
            session_id: The session of the conversation.
            trace_id: The ``trace_id`` of the span that the message belongs to.
            role: user, assistant, system or tool.
            content: The text.
            metadata: Further values by key.

        Raises:
            Rejected: *role* is not one of these words.
        """
        ...

    def ingest_batch(self, spans: Sequence[Mapping[str, Any]]) -> None:
        """
        Store finished spans.

        Args:
            spans: Objects with the camelCase keys of ``POST /api/traces/ingest``, such as ``traceId``.
        """
        ...

    def end_session(self, session_id: str, error: Error | None = None) -> None:
        """
        End a session. The first end counts.

        Args:
            session_id: The id of the session.
            error: Why the session failed; None = it is completed, unless one of its spans failed.
        """
        ...

    def session_graph(self, session_id: str) -> Json:
        """
        Return the graph of a session.

        Args:
            session_id: The id of the session.

        Returns:
            ``{"nodes": [...], "edges": [...]}``.
        """
        ...

    def session_details(self, session_id: str) -> Json:
        """
        Return a session with all its messages.

        Args:
            session_id: The id of the session.

        Returns:
            The session as ``GET /api/sessions/{id}/details`` describes it.

        Raises:
            Rejected: The session is unknown; ``status`` is 404.
        """
        ...

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
        Return a page of sessions; the session that started last comes first.

        Args:
            user_id: Only sessions of this user; None for all.
            label: Only sessions whose label contains this text; None for all.
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.
            page: The number of the page, from 1; None for the first.
            limit: Most sessions on a page; None for 20.

        Returns:
            ``{"sessions": [...], "total": ..., "page": ..., "pages": ...}``.
        """
        ...

    def sessions_summary(self, *, since: datetime | str | None = None, until: datetime | str | None = None) -> Json:
        """
        Return totals over sessions.

        Args:
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.

        Returns:
            The totals as ``GET /api/sessions/summary`` describes them.
        """
        ...
