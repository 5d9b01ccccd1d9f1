"""The part of ``LocalTraceService`` that reads."""

from __future__ import annotations

import threading
from datetime import datetime

from tokentrace.client.sessions.memory import DEFAULT_LIMIT, Memory
from tokentrace.client.sessions.words import Json
from tokentrace.errors import Rejected
from tokentrace.units import parse_instant


class LocalReads:
    """
    Reads sessions from memory.

    Args:
        memory: The sessions.
    """

    def __init__(self, memory: Memory) -> None:
        self._lock, self._memory = threading.RLock(), memory

    def session_graph(self, session_id: str) -> Json:
        """
        Return the graph of a session; that of an unknown session is empty.

        Args:
            session_id: The id of the session.

        Returns:
            ``{"nodes": [...], "edges": [...]}``.
        """
        with self._lock:
            return self._memory.graph(session_id)

    def session_details(self, session_id: str) -> Json:
        """
        Return a session with its messages.

        Args:
            session_id: The id of the session.

        Returns:
            The session as ``GET /api/sessions/{id}/details`` describes it.

        Raises:
            Rejected: The session is unknown; ``status`` is 404.
        """
        with self._lock:
            return self._memory.session(session_id).explained()

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
        Return a page of sessions with their messages; the session that started last comes first.

        Args:
            user_id: Only sessions of this user; None for all.
            label: Only sessions whose label contains this text, in the same case; None for all.
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.
            page: The number of the page, from 1; None for the first.
            limit: Most sessions on a page; None for 20.

        Returns:
            ``{"sessions": [...], "total": ..., "page": ..., "pages": ...}``.

        Raises:
            Rejected: An instant is not RFC 3339.
        """
        first, last = _instant(since), _instant(until)
        pages = max(1 if page is None else page, 1), max(DEFAULT_LIMIT if limit is None else limit, 1)
        with self._lock:
            return self._memory.listed(first, last, user_id, label, *pages)

    def sessions_summary(self, *, since: datetime | str | None = None, until: datetime | str | None = None) -> Json:
        """
        Return totals over sessions.

        Args:
            since, until: Only sessions that started in this interval, ends included: aware datetimes or RFC 3339 texts.

        Returns:
            The totals as ``GET /api/sessions/summary`` describes them.

        Raises:
            Rejected: An instant is not RFC 3339.
        """
        first, last = _instant(since), _instant(until)
        with self._lock:
            return self._memory.summary(first, last)


def _instant(at: datetime | str | None) -> int | None:
    """
    Return Unix nanoseconds; None = no bound.

    Raises:
        Rejected: A text is not RFC 3339, or a datetime has no time zone.
    """
    if at is None:
        return None
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise Rejected("a datetime has no time zone")
        at = at.isoformat()
    return parse_instant(at)
