"""The part of the client of sessions that reads. Its methods raise if the service cannot answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from tokentrace.client.sessions.http import Connections
from tokentrace.client.sessions.words import Json


class SessionReads:
    """
    Reads sessions from a service.

    Args:
        connections: The connections to the service.
        read_timeout_s: The time limit of each network operation, seconds.
    """

    def __init__(self, connections: Connections, read_timeout_s: float) -> None:
        self._connections, self._read_timeout_s = connections, read_timeout_s

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
            label: Only sessions whose label contains this text; None for all.
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.
            page: The number of the page, from 1; None for the first.
            limit: Most sessions on a page; None for the default of the service.

        Returns:
            ``{"sessions": [...], "total": ..., "page": ..., "pages": ...}``.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, or 400 for a redirect.
            Unavailable: As ``session_graph``.
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
            Unavailable: As ``session_graph``.
        """
        return self._read("/api/sessions/summary", {"from": since, "to": until})

    def _read(self, path: str, parameters: Mapping[str, Any] | None = None) -> Json:
        query = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in (parameters or {}).items()
            if value is not None
        }
        whole = f"{path}?{urlencode(query)}" if query else path
        return self._connections.request("GET", whole, None, None, self._read_timeout_s)
