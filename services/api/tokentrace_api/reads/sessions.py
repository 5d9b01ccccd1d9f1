"""Finds sessions (conversations, workflows), computed from their spans and session ends, and their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tokentrace.records import ROLLUP_KINDS, ChatMessage, Span, Started
from tokentrace_api.reads.spans import newest_ordinal, open_spans
from tokentrace_api.store import MESSAGES, Store, span_of

#: A query over all sessions reads every span that has a session; it is interrupted after this many seconds.
_LIMIT_S = 10.0
#: A larger offset does not fit into the integers of SQL; no store holds so many sessions.
_MAX_OFFSET = 2**62
_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
#: JSON is parsed only if the text contains the key, which few spans do.
_LABEL = "CASE WHEN contains({0}, '\"label\"') THEN json_extract_string({0}, '/label') END"
_COLUMNS = (
    "session_id, trace_id, span_id, user_id, kind, status, source, started_ns, ended_ns, cost_nusd, "
    f"prompt_tokens, completion_tokens, error, {_LABEL.format('attributes')} AS label"
)
_LAST = "QUALIFY row_number() OVER (PARTITION BY session_id, trace_id, span_id ORDER BY ordinal DESC) = 1"
_KEY = "hash(session_id, trace_id, span_id)"
#: Yields a row for each session. A span counts once; a span that has not ended has no cost, tokens or error.
_TEMPLATE = f"""
-- Materialized, the spans of all sessions would not fit into the memory limit.
WITH ended AS NOT MATERIALIZED (ENDED
), began AS (
    SELECT session_id, user_id, started_ns, {_LABEL.format("metadata")} AS label FROM {{started}} AS begun
    WHERE OWN AND NOT EXISTS (SELECT 1 FROM (SELECT session_id, trace_id, span_id FROM {{spans}} WHERE OWN) AS ended
        WHERE ended.session_id = begun.session_id AND ended.trace_id = begun.trace_id AND ended.span_id = begun.span_id)
), everything AS NOT MATERIALIZED (
    SELECT session_id, user_id, label, started_ns, ended_ns, status, source, error, prompt_tokens, completion_tokens,
        CASE WHEN kind IN ({_ROLLUPS}) THEN 0 ELSE coalesce(cost_nusd, 0) END AS cost_nusd FROM ended
    UNION ALL
    SELECT session_id, user_id, label, started_ns, NULL, 'pending', 'costkatana', '', 0, 0, 0 FROM began
), over AS (
    SELECT session_id, min(ended_ns) AS ended_ns, max(error) AS error FROM {{session_ends}} WHERE OWN
    GROUP BY session_id
), summed AS (
    SELECT session_id, arg_min(user_id, started_ns) AS user_id, arg_min(label, started_ns) AS label,
        min(started_ns) AS started_ns, max(ended_ns) AS last_ns, count(*) AS spans,
        count(*) FILTER (status = 'pending') AS open,
        count(*) FILTER (status IN ('error', 'timeout')) AS errors,
        arg_min(error, started_ns) FILTER (error <> '') AS error,
        sum(cost_nusd)::HUGEINT AS cost_nusd, sum(prompt_tokens)::HUGEINT AS prompt_tokens,
        sum(completion_tokens)::HUGEINT AS completion_tokens, arg_min(source, started_ns) AS source
    FROM everything GROUP BY session_id
), sessions AS (
    SELECT summed.session_id, user_id, label, started_ns, over.ended_ns AS ended_ns, last_ns, spans, open, errors,
        coalesce(nullif(over.error, ''), summed.error, '') AS error,
        cost_nusd, prompt_tokens, completion_tokens, source,
        CASE WHEN errors > 0 OR coalesce(over.error, '') <> '' THEN 'error'
            WHEN over.session_id IS NOT NULL THEN 'completed' ELSE 'active' END AS status
    FROM summed LEFT JOIN over ON over.session_id = summed.session_id
)
"""
_ENDED = f"SELECT {_COLUMNS} FROM {{spans}} WHERE OWN"
_SESSION = _TEMPLATE.replace("ENDED", f"{_ENDED} {_LAST}").replace("OWN", "session_id = ?")
_ANY = "session_id <> ''"


class Session(NamedTuple):
    """
    A session.

    Attributes:
        user_id, label, source: Value of the first span that has one.
        started_ns: Start of the first span, Unix nanoseconds.
        ended_ns: When the session was ended by a request, Unix nanoseconds; None = it was not.
        last_ns: When its last span ended, Unix nanoseconds; None = no span has ended.
        spans: Number of spans.
        open: Number of spans that have not ended.
        errors: Number of spans that ended with status error or timeout.
        error: Message of the session's end, otherwise of the first span that has one; "" = none.
        cost_nusd: Cost of the spans that are not of a roll-up kind, nano-dollars.
        status: error = a span failed or the session ended with an error; otherwise completed = it was ended by a
            request, active = it was not.
    """

    session_id: str
    user_id: str | None
    label: str | None
    started_ns: int
    ended_ns: int | None
    last_ns: int | None
    spans: int
    open: int
    errors: int
    error: str
    cost_nusd: int
    prompt_tokens: int
    completion_tokens: int
    source: str
    status: str


class SessionFilter(NamedTuple):
    """
    Conditions that a session must all meet; "" and None = any.

    Attributes:
        user_id: The user; "" = sessions without a user; None = any.
        label: Text that the label contains, regardless of case.
        since_ns, until_ns: Bounds of the session's start, both included, Unix nanoseconds.
        min_cost_nusd, max_cost_nusd: Bounds of the cost, both included, nano-dollars.
        min_spans, max_spans: Bounds of the number of spans, both included.
    """

    user_id: str | None = None
    label: str = ""
    status: str = ""
    source: str = ""
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
            ("contains(lower(label), lower(?))", self.label or None),
            ("status = ?", self.status or None),
            ("source = ?", self.source or None),
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
        cost_nusd: Cost in nano-dollars.
        duration_ns: Mean duration of the sessions that were ended by a request, nanoseconds; 0 if none was.
    """

    sessions: int
    active: int
    completed: int
    errors: int
    cost_nusd: int
    prompt_tokens: int
    completion_tokens: int
    duration_ns: float


def _sessions(store: Store, now_ns: int) -> tuple[str, list[Any]]:
    """
    Return (SQL that defines a table ``sessions`` with all sessions, its parameters).

    Finding the last version of each span would sort millions of rows, but hardly any span has several versions. So
    the spans with several versions are found first, and only their rows are sorted.
    """
    upto = newest_ordinal(store, now_ns)
    known = f"{_ANY} AND ordinal <= {upto}"
    repeated = f"SELECT {_KEY} FROM {{spans}} WHERE {known} GROUP BY 1 HAVING count(*) > 1"
    keys = [key for (key,) in store.query(repeated, [], now_ns, limit_s=_LIMIT_S)]
    ended = _ENDED.replace("OWN", known)
    if not keys:
        return _TEMPLATE.replace("ENDED", ended).replace("OWN", _ANY), []
    among = f"{_KEY} IN (SELECT unnest(?::UBIGINT[]))"
    ended = f"{ended} AND NOT {among} UNION ALL SELECT * FROM ({ended} AND {among} {_LAST})"
    return _TEMPLATE.replace("ENDED", ended).replace("OWN", _ANY), [keys, keys]


def list_sessions(
    store: Store, filter_: SessionFilter, limit: int, offset: int, now_ns: int
) -> tuple[list[Session], int]:
    """
    Return (a page of the sessions that match *filter_*, newest start first; number of all matching sessions).

    Raises:
        Unavailable: The store cannot be read, or the query took over 10 s.
    """
    condition, values = filter_.sql()
    sessions, parameters = _sessions(store, now_ns)
    values = [*parameters, *values]
    rows = store.query(
        f"{sessions}, matching AS (SELECT * FROM sessions WHERE {condition}) "
        "SELECT *, (SELECT count(*) FROM matching) FROM matching "
        f"ORDER BY started_ns DESC, session_id LIMIT {int(limit)} OFFSET {min(offset, _MAX_OFFSET)}",
        values,
        now_ns,
        limit_s=_LIMIT_S,
    )
    if rows:
        return [_session_of(row[:-1]) for row in rows], int(rows[0][-1])
    counted = store.query(f"{sessions} SELECT count(*) FROM sessions WHERE {condition}", values, now_ns)
    return [], int(counted[0][0]) if counted else 0


def find_session(store: Store, session_id: str, now_ns: int) -> list[Session]:
    """Return a list with the session of this id; [] if there is none."""
    rows = store.query(f"{_SESSION} SELECT * FROM sessions", [session_id] * 4, now_ns)
    return [_session_of(row) for row in rows]


def sum_sessions(store: Store, since_ns: int | None, until_ns: int | None, now_ns: int) -> SessionTotals:
    """
    Return sums over the sessions that started in [*since_ns*, *until_ns*], Unix nanoseconds; None = no bound.

    Raises:
        Unavailable: The store cannot be read, or the query took over 10 s.
    """
    condition, values = SessionFilter(since_ns=since_ns, until_ns=until_ns).sql()
    sessions, parameters = _sessions(store, now_ns)
    rows = store.query(
        f"{sessions} SELECT count(*), count(*) FILTER (status = 'active'), count(*) FILTER (status = 'completed'), "
        "count(*) FILTER (status = 'error'), coalesce(sum(cost_nusd), 0)::HUGEINT, "
        "coalesce(sum(prompt_tokens), 0)::HUGEINT, coalesce(sum(completion_tokens), 0)::HUGEINT, "
        "coalesce(avg(greatest(ended_ns - started_ns, 0)) FILTER (ended_ns IS NOT NULL), 0) "
        f"FROM sessions WHERE {condition}",
        [*parameters, *values],
        now_ns,
        limit_s=_LIMIT_S,
    )
    if not rows:
        return SessionTotals(0, 0, 0, 0, 0, 0, 0, 0.0)
    row = rows[0]
    return SessionTotals(row[0], row[1], row[2], row[3], int(row[4]), int(row[5]), int(row[6]), float(row[7]))


def _session_of(row: Sequence[Any]) -> Session:
    fields = dict(zip(Session._fields, row, strict=True))
    for name in ("cost_nusd", "prompt_tokens", "completion_tokens"):
        fields[name] = int(fields[name])
    return Session(**fields)


def session_spans(store: Store, session_id: str, now_ns: int) -> tuple[list[Span], list[Started]]:
    """Return (the ended spans of a session, its open spans), both by start."""
    # Started spans are read first: a span that ends between the two queries is then in both results, not in neither.
    pending = open_spans(store, "session_id", session_id, now_ns)
    rows = store.query(
        "SELECT * FROM {spans} WHERE session_id = ? "
        "QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY ordinal DESC) = 1 "
        "ORDER BY started_ns, ordinal",
        [session_id],
        now_ns,
    )
    spans = [span_of(row) for row in rows]
    ended = {(span.trace_id, span.span_id) for span in spans}
    return spans, [span for span in pending if (span.trace_id, span.span_id) not in ended]


def session_messages(store: Store, session_ids: Sequence[str], now_ns: int) -> dict[str, list[ChatMessage]]:
    """Return session id -> messages, oldest first; [] for a session without messages."""
    messages: dict[str, list[ChatMessage]] = {session_id: [] for session_id in session_ids}
    rows = store.query(
        "SELECT * FROM {messages} WHERE session_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY created_ns, arrived_ns",
        [list(session_ids)],
        now_ns,
    )
    for row in rows:
        message = _message_of(row)
        messages[message.session_id].append(message)
    return messages


def _message_of(row: Sequence[Any]) -> ChatMessage:
    values = dict(zip(MESSAGES, row, strict=True))
    del values["arrived_ns"]
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return ChatMessage(**values)
