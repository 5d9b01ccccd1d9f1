"""Finds sessions (conversations, workflows), computed from their spans and session ends, and their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tokentrace.dialect.costkatana import Session
from tokentrace.records import ChatMessage
from tokentrace_api.reads.outlines import PAGE_BYTES
from tokentrace_api.reads.sums import IN_SUMS
from tokentrace_api.store import MESSAGES, Store, Telling, contains_text, folded, telling_of

#: A query over all sessions reads every span that has a session; it is interrupted after this many seconds.
_LIMIT_S = 10.0
#: A larger offset does not fit into the integers of SQL; no store holds so many sessions.
_MAX_OFFSET = 2**62
_MESSAGE_SIZE = " + ".join(f"coalesce(strlen({name}), 0)" for name in ("content", "raw", "metadata"))
#: JSON is parsed only if the text contains the key, which few spans do.
_LABEL = "CASE WHEN contains({0}, '\"label\"') THEN json_extract_string({0}, '/label') END"


def _of_counted(aggregate: str) -> str:
    """Return SQL for *aggregate* over the tellings that count, or over the others if none of a session counts."""
    return f"CASE WHEN bool_or(counted) THEN {aggregate} FILTER (counted) ELSE {aggregate} END"


#: Yields a row for each session. Only tellings that count are summed; a span that has not ended has no cost, tokens or
#: error. If no telling of a session counts, the others give its start, end, user and label.
_TEMPLATE = f"""
WITH began AS (
    SELECT session_id, user_id, started_ns, {_LABEL.format("metadata")} AS label FROM {{started}} AS begun
    WHERE OWN AND NOT EXISTS (SELECT 1 FROM (SELECT session_id, trace_id, span_id FROM {{spans}} WHERE OWN) AS ended
        WHERE ended.session_id = begun.session_id AND ended.trace_id = begun.trace_id AND ended.span_id = begun.span_id)
), everything AS NOT MATERIALIZED (
    SELECT session_id, user_id, {_LABEL.format("attributes")} AS label, started_ns, ended_ns, status, source, error,
        counted, {IN_SUMS} AS summed, cost_nusd, cost_source, prompt_tokens, completion_tokens FROM {{spans}} WHERE OWN
    UNION ALL
    SELECT session_id, user_id, label, started_ns, NULL, 'pending', 'costkatana', '', true, false, NULL, '', 0, 0
    FROM began
), over AS (
    SELECT session_id, min(ended_ns) AS ended_ns, max(error) AS error FROM {{session_ends}} WHERE OWN
    GROUP BY session_id
), totals AS (
    SELECT session_id, {_of_counted("arg_min(user_id, started_ns)")} AS user_id,
        {_of_counted("arg_min(label, started_ns)")} AS label, {_of_counted("min(started_ns)")} AS started_ns,
        {_of_counted("max(ended_ns)")} AS last_ns, {_of_counted("arg_min(source, started_ns)")} AS source,
        count(*) FILTER (counted) AS spans, count(*) FILTER (status = 'pending') AS open,
        count(*) FILTER (counted AND status IN ('error', 'timeout')) AS errors,
        arg_min(error, started_ns) FILTER (counted AND error <> '') AS error,
        coalesce(sum(cost_nusd) FILTER (summed), 0)::HUGEINT AS cost_nusd,
        coalesce(sum(prompt_tokens) FILTER (summed), 0)::HUGEINT AS prompt_tokens,
        coalesce(sum(completion_tokens) FILTER (summed), 0)::HUGEINT AS completion_tokens,
        count(cost_nusd) FILTER (summed) AS priced,
        count(*) FILTER (summed AND cost_nusd IS NULL) AS unpriced,
        count(*) FILTER (summed AND cost_source = 'partly_priced') AS partly_priced
    FROM everything GROUP BY session_id
), sessions AS (
    SELECT totals.session_id, user_id, label, started_ns, over.ended_ns AS ended_ns, last_ns, spans, open, errors,
        coalesce(nullif(over.error, ''), totals.error, '') AS error,
        CASE WHEN priced > 0 OR unpriced = 0 THEN cost_nusd END AS cost_nusd, prompt_tokens, completion_tokens, source,
        CASE WHEN errors > 0 OR coalesce(over.error, '') <> '' THEN 'error'
            WHEN over.session_id IS NOT NULL THEN 'completed' ELSE 'active' END AS status,
        priced, unpriced, partly_priced
    FROM totals LEFT JOIN over ON over.session_id = totals.session_id
)
"""
_SESSION = _TEMPLATE.replace("OWN", "session_id = ?")
_SESSIONS = _TEMPLATE.replace("OWN", "session_id <> ''")
_SESSIONS_UPTO = _SESSIONS.replace("FROM {spans} WHERE", "FROM {spans} WHERE ordinal <= ? AND")


#: Order of a list -> SQL of the whole number by which it is sorted, the largest first; an unknown cost is last.
SESSION_ORDERS = {
    "started": "started_ns",
    "cost": "coalesce(cost_nusd, -1)",
    "duration": "greatest(coalesce(ended_ns, last_ns, started_ns) - started_ns, 0)",
    "tokens": "prompt_tokens + completion_tokens",
    "spans": "spans",
}


class SessionFilter(NamedTuple):
    """
    Conditions that a session must all meet; None = any.

    Attributes:
        user_id: The user; "" = sessions without a user; None = any.
        label: Text that the label contains, compared by ``folded``.
        since_ns, until_ns: Bounds of the session's start, both included, Unix nanoseconds.
        min_cost_nusd, max_cost_nusd: Bounds of the cost, both included, nano-dollars; a session of which no cost is
            known is not within any bounds.
        min_spans, max_spans: Bounds of the number of spans, both included.
    """

    user_id: str | None = None
    label: str | None = None
    status: str | None = None
    source: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    min_cost_nusd: int | None = None
    max_cost_nusd: int | None = None
    min_spans: int | None = None
    max_spans: int | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """Return (SQL condition, its parameters)."""
        conditions: list[tuple[str, Any]] = [
            ("coalesce(user_id, '') = ?", self.user_id),
            (contains_text("label"), folded(self.label) if self.label else None),
            ("status = ?", self.status),
            ("source = ?", self.source),
            ("started_ns >= ?", self.since_ns),
            ("started_ns <= ?", self.until_ns),
            ("cost_nusd >= ?", self.min_cost_nusd),
            ("cost_nusd <= ?", self.max_cost_nusd),
            ("spans >= ?", self.min_spans),
            ("spans <= ?", self.max_spans),
        ]
        present = [(text, value) for text, value in conditions if value is not None]
        return " AND ".join(text for text, _ in present) or "true", [value for _, value in present]


class SessionTotals(NamedTuple):
    """
    Sums over sessions.

    Attributes:
        sessions, active, completed, errors: Number of all sessions, and of the sessions with each status.
        cost_nusd: Cost in nano-dollars, without unknown costs; None = no cost is known and at least one is unknown.
        unpriced, partly_priced: Number of spans whose cost is unknown, and of those of which only a part is priced.
        duration_ns: Mean duration of the sessions that were ended by a request, nanoseconds; 0 if none was.
        ended: Number of the sessions that were ended by a request.
    """

    sessions: int
    active: int
    completed: int
    errors: int
    cost_nusd: int | None
    prompt_tokens: int
    completion_tokens: int
    duration_ns: float
    unpriced: int = 0
    partly_priced: int = 0
    ended: int = 0


class SessionMark(NamedTuple):
    """
    A place in an order of sessions: that of a session.

    Attributes:
        rank: What the order sorts by, as ``SESSION_ORDERS`` says.
    """

    rank: int
    session_id: str


def list_sessions(
    store: Store, filter_: SessionFilter, limit: int, offset: int, now_ns: int, order: str = "started"
) -> tuple[list[Session], int]:
    """
    Return (a page of the sessions that match *filter_*; number of all matching sessions).

    Args:
        order: A name in ``SESSION_ORDERS``; equal sessions are sorted by id.

    Raises:
        Unavailable: The store cannot be read, or the query took over 10 s.
    """
    condition, values = filter_.sql()
    rows = store.query(
        f"{_SESSIONS}, matching AS (SELECT * FROM sessions WHERE {condition}) "
        "SELECT *, (SELECT count(*) FROM matching) FROM matching "
        f"ORDER BY {SESSION_ORDERS[order]} DESC, session_id LIMIT {int(limit)} OFFSET {min(offset, _MAX_OFFSET)}",
        values,
        now_ns,
        limit_s=_LIMIT_S,
    )
    if rows:
        return [_session_of(row[:-1]) for row in rows], int(rows[0][-1])
    counted = store.query(f"{_SESSIONS} SELECT count(*) FROM sessions WHERE {condition}", values, now_ns)
    return [], int(counted[0][0]) if counted else 0


def sessions_after(
    store: Store, filter_: SessionFilter, mark: SessionMark | None, limit: int, upto: int, now_ns: int, order: str
) -> tuple[list[Session], SessionMark | None]:
    """
    Return (up to *limit* sessions that match *filter_* after *mark*; the mark of the last one).

    Args:
        mark: None = from the beginning.
        upto: Spans beyond this ordinal are left out, so that spans which arrive between two calls change no order.
        order: As in ``list_sessions``.

    Returns:
        The mark is None if there are no more sessions.

    Raises:
        Unavailable: The store cannot be read, or the query took over 10 s.
    """
    condition, values = filter_.sql()
    rank = SESSION_ORDERS[order]
    if mark is not None:
        condition += f" AND ({rank} < ? OR ({rank} = ? AND session_id > ?))"
        values += [mark.rank, mark.rank, mark.session_id]
    rows = store.query(
        f"{_SESSIONS_UPTO} SELECT *, ({rank})::HUGEINT FROM sessions WHERE {condition} "
        f"ORDER BY {rank} DESC, session_id LIMIT {int(limit)}",
        [upto, upto, *values],
        now_ns,
        limit_s=_LIMIT_S,
    )
    sessions = [_session_of(row[:-1]) for row in rows]
    return sessions, SessionMark(int(rows[-1][-1]), sessions[-1].session_id) if len(rows) == limit else None


def find_session(store: Store, session_id: str, now_ns: int) -> list[Session]:
    """Return a list with the session of this id; [] if there is none."""
    rows = store.query(f"{_SESSION} SELECT * FROM sessions", [session_id] * 4, now_ns)
    return [_session_of(row) for row in rows]


def sum_sessions(store: Store, filter_: SessionFilter, now_ns: int) -> SessionTotals:
    """
    Return sums over the sessions that match *filter_*.

    Raises:
        Unavailable: The store cannot be read, or the query took over 10 s.
    """
    condition, values = filter_.sql()
    rows = store.query(
        f"{_SESSIONS} SELECT count(*), count(*) FILTER (status = 'active'), count(*) FILTER (status = 'completed'), "
        "count(*) FILTER (status = 'error'), "
        "CASE WHEN sum(priced) > 0 OR sum(unpriced) = 0 THEN coalesce(sum(cost_nusd), 0) END::HUGEINT, "
        "coalesce(sum(prompt_tokens), 0)::HUGEINT, coalesce(sum(completion_tokens), 0)::HUGEINT, "
        "coalesce(avg(greatest(ended_ns - started_ns, 0)) FILTER (ended_ns IS NOT NULL), 0), "
        "coalesce(sum(unpriced), 0)::BIGINT, coalesce(sum(partly_priced), 0)::BIGINT, count(ended_ns) "
        f"FROM sessions WHERE {condition}",
        values,
        now_ns,
        limit_s=_LIMIT_S,
    )
    if not rows or not rows[0][0]:
        return SessionTotals(0, 0, 0, 0, 0, 0, 0, 0.0)
    row = rows[0]
    cost = None if row[4] is None else int(row[4])
    sessions, active, completed, errors, _, prompt, completion, duration_ns, unpriced, partly_priced, ended = row
    return SessionTotals(
        sessions, active, completed, errors, cost, int(prompt), int(completion), float(duration_ns), unpriced,
        partly_priced, ended,
    )  # fmt: skip


def _session_of(row: Sequence[Any]) -> Session:
    fields = dict(zip(Session._fields, row, strict=True))
    for name in ("cost_nusd", "prompt_tokens", "completion_tokens"):
        fields[name] = None if fields[name] is None else int(fields[name])
    return Session(**fields)


def first_failures(store: Store, session_id: str, now_ns: int) -> list[Telling]:
    """Return a list with the first span of a session that counts and has an error text; [] if there is none."""
    rows = store.query(
        "SELECT * FROM {spans} WHERE session_id = ? AND counted AND error <> '' ORDER BY started_ns, ordinal LIMIT 1",
        [session_id],
        now_ns,
    )
    return [telling_of(row) for row in rows]


def count_messages(store: Store, session_ids: Sequence[str], now_ns: int) -> dict[str, int]:
    """Return session id -> number of its messages."""
    rows = store.query(
        "SELECT session_id, count(*) FROM {messages} WHERE session_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL",
        [list(session_ids)],
        now_ns,
    )
    return dict.fromkeys(session_ids, 0) | {session_id: int(count) for session_id, count in rows}


def session_messages(store: Store, session_id: str, limit: int, offset: int, now_ns: int) -> list[ChatMessage]:
    """
    Return messages of a session after the first *offset* ones, oldest first.

    They are at most *limit*, and at most about ``PAGE_BYTES`` of text, but at least one if there is one.
    """
    # Messages of the same time stay in the order in which they were stored.
    order = "ORDER BY created_ns, arrived_ns, place"
    numbered = "SELECT *, row_number() OVER () AS place FROM {messages} WHERE session_id = ?"
    rows = store.query(
        f"SELECT {', '.join(MESSAGES)} FROM "
        f"(SELECT * FROM ({numbered}) {order} LIMIT {int(limit)} OFFSET {min(offset, _MAX_OFFSET)}) "
        f"WINDOW taken AS ({order} ROWS UNBOUNDED PRECEDING) "
        f"QUALIFY row_number() OVER taken = 1 OR sum({_MESSAGE_SIZE}) OVER taken <= {PAGE_BYTES} {order}",
        [session_id],
        now_ns,
    )
    return [message_of(row) for row in rows]


def message_of(row: Sequence[Any]) -> ChatMessage:
    """Return the message that a row of ``MESSAGES`` holds."""
    values = dict(zip(MESSAGES, row, strict=True))
    del values["arrived_ns"]
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return ChatMessage(**values)
