"""Sessions: conversations and workflows, made of the spans, messages and ends that name them (SPEC A.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from tokentrace.records import ROLLUP_KINDS, ChatMessage, Span, Started
from tokentrace_api.reads.spans import newest_ordinal, open_spans
from tokentrace_api.store import MESSAGES, Store, span_of

#: Asking for all sessions reads every span that is in one: given up after so long.
_LIMIT_S = 10.0
#: No page begins further behind; a larger number is none of SQL's.
_MAX_OFFSET = 2**62
_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
#: JSON is read only of what may have one: few spans of a session do.
_LABEL = "CASE WHEN contains({0}, '\"label\"') THEN json_extract_string({0}, '/label') END"
_COLUMNS = (
    "session_id, trace_id, span_id, user_id, kind, status, source, started_ns, ended_ns, cost_nusd, "
    f"prompt_tokens, completion_tokens, error, {_LABEL.format('attributes')} AS label"
)
_LAST = "QUALIFY row_number() OVER (PARTITION BY session_id, trace_id, span_id ORDER BY ordinal DESC) = 1"
_KEY = "hash(session_id, trace_id, span_id)"
#: What each session comes to; a span counts once, and one that has not ended only as a span.
_TEMPLATE = f"""
-- Written out, the spans of all sessions would not fit into the memory.
WITH ended AS NOT MATERIALIZED (ENDED
), began AS (
    SELECT session_id, user_id, started_ns, {_LABEL.format("metadata")} AS label FROM {{started}} AS one
    WHERE OWN AND NOT EXISTS (SELECT 1 FROM (SELECT session_id, trace_id, span_id FROM {{spans}} WHERE OWN) AS ended
        WHERE ended.session_id = one.session_id AND ended.trace_id = one.trace_id AND ended.span_id = one.span_id)
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
        ended_ns: When somebody ended it; None = nobody has.
        last_ns: When its last span ended; None = none has.
        spans, open, errors: How many; how many of them have not ended; how many did not end well.
        status: active, completed, or error once any span has failed.
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


class Wanted(NamedTuple):
    """
    Which sessions.

    Attributes:
        label: Part of it, whatever the case.
        since_ns, until_ns: When it started, both included.
    """

    user_id: str = ""
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
        """(Condition, values of its parameters)."""
        given: list[tuple[str, Any]] = [
            ("user_id = ?", self.user_id or None),
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
        held = [(text, value) for text, value in given if value is not None]
        return " AND ".join(text for text, _ in held) or "true", [value for _, value in held]


class SessionTotals(NamedTuple):
    """
    What sessions come to together.

    Attributes:
        duration_ns: Mean of those that have ended; 0 when none has.
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
    (SQL that says what ``sessions`` are, all of them; its values).

    Hardly any span is stored twice, and finding the last version of each would sort millions of them: those that are
    stored twice are found first, and only they are sorted.
    """
    upto = newest_ordinal(store, now_ns)
    known = f"{_ANY} AND ordinal <= {upto}"
    twice = f"SELECT {_KEY} FROM {{spans}} WHERE {known} GROUP BY 1 HAVING count(*) > 1"
    keys = [key for (key,) in store.query(twice, [], now_ns, limit_s=_LIMIT_S)]
    ended = _ENDED.replace("OWN", known)
    if not keys:
        return _TEMPLATE.replace("ENDED", ended).replace("OWN", _ANY), []
    among = f"{_KEY} IN (SELECT unnest(?::UBIGINT[]))"
    ended = f"{ended} AND NOT {among} UNION ALL SELECT * FROM ({ended} AND {among} {_LAST})"
    return _TEMPLATE.replace("ENDED", ended).replace("OWN", _ANY), [keys, keys]


def list_sessions(store: Store, wanted: Wanted, limit: int, offset: int, now_ns: int) -> tuple[list[Session], int]:
    """(A page of the sessions, newest start first, how many there are)."""
    condition, values = wanted.sql()
    sessions, given = _sessions(store, now_ns)
    values = [*given, *values]
    rows = store.query(
        f"{sessions}, found AS (SELECT * FROM sessions WHERE {condition}) "
        "SELECT *, (SELECT count(*) FROM found) FROM found "
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
    """The session called so, if there is one."""
    rows = store.query(f"{_SESSION} SELECT * FROM sessions", [session_id] * 4, now_ns)
    return [_session_of(row) for row in rows]


def sum_sessions(store: Store, since_ns: int | None, until_ns: int | None, now_ns: int) -> SessionTotals:
    """What the sessions that started in [since_ns, until_ns] come to."""
    condition, values = Wanted(since_ns=since_ns, until_ns=until_ns).sql()
    sessions, given = _sessions(store, now_ns)
    rows = store.query(
        f"{sessions} SELECT count(*), count(*) FILTER (status = 'active'), count(*) FILTER (status = 'completed'), "
        "count(*) FILTER (status = 'error'), coalesce(sum(cost_nusd), 0)::HUGEINT, "
        "coalesce(sum(prompt_tokens), 0)::HUGEINT, coalesce(sum(completion_tokens), 0)::HUGEINT, "
        "coalesce(avg(greatest(ended_ns - started_ns, 0)) FILTER (ended_ns IS NOT NULL), 0) "
        f"FROM sessions WHERE {condition}",
        [*given, *values],
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
    """(The spans of a session by start, those that have not ended)."""
    # In this order, so that a span that ends meanwhile is not missed; of both it is the end that is shown.
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
    return spans, [one for one in pending if (one.trace_id, one.span_id) not in ended]


def session_messages(store: Store, session_ids: Sequence[str], now_ns: int) -> dict[str, list[ChatMessage]]:
    """Session -> its messages, oldest first."""
    found: dict[str, list[ChatMessage]] = {session_id: [] for session_id in session_ids}
    rows = store.query(
        "SELECT * FROM {messages} WHERE session_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY created_ns, arrived_ns",
        [list(session_ids)],
        now_ns,
    )
    for row in rows:
        message = _message_of(row)
        found[message.session_id].append(message)
    return found


def _message_of(row: Sequence[Any]) -> ChatMessage:
    values = dict(zip(MESSAGES, row, strict=True))
    del values["arrived_ns"]
    values["metadata"] = msgspec.json.decode(values["metadata"]) if values["metadata"] else {}
    return ChatMessage(**values)
