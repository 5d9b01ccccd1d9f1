"""The rows of lists of traces: what a list says about each trace."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from tokentrace_api.reads.search import Search
from tokentrace_api.reads.sums import SUMS, Sums
from tokentrace_api.store import ONE_TELLING, Store, attribute_text, trace_hash

#: Maximum number of models that a row names.
MAX_MODELS = 20
STATUS = (
    "CASE WHEN bool_or(status = 'error') THEN 'error' WHEN bool_or(status = 'timeout') THEN 'timeout' ELSE 'ok' END"
)
#: SQL of the first fields of ``TraceRow`` after the id, for the spans of one trace.
COLUMNS = (
    "coalesce(arg_min(name, (started_ns, ordinal)) FILTER (parent_span_id IS NULL), "
    "arg_min(name, (started_ns, ordinal))), "
    f"min(started_ns) AS began, max(ended_ns), {STATUS}, {SUMS}"
)


class TraceDetails(NamedTuple):
    """
    What a row of a list says about a trace besides its name, times, status and sums.

    Attributes:
        error: Text of the first span, by start, that has an error text; "" = none has.
        models: The models of its spans, sorted, at most ``MAX_MODELS``.
        caller, session_id, user_id: Those of the root that has one, or else of the first span that has one; "" = none
            has.
        score: Sum of the scores of the spans that count, in 10⁻⁹.
        scored: Number of these scores.
    """

    error: str = ""
    models: tuple[str, ...] = ()
    caller: str = ""
    session_id: str = ""
    user_id: str = ""
    score: int = 0
    scored: int = 0


class TraceRow(NamedTuple):
    """
    A trace in ``GET /traces``. Times in Unix nanoseconds.

    A span of which no telling counts here, because the same call was told in another trace first, is part of the trace
    but of none of its sums.
    """

    trace_id: str
    name: str
    started_ns: int
    ended_ns: int
    status: str
    sums: Sums
    details: TraceDetails = TraceDetails()


def row_of(row: Sequence[Any]) -> TraceRow:
    """Return the trace in *row*: its id and the values of ``COLUMNS``; further values are ignored."""
    trace_id, name, began, ended, status, cost, unpriced, partly, tokens, spans, *_ = row
    sums = Sums(None if cost is None else int(cost), unpriced, partly, int(tokens), spans)
    return TraceRow(trace_id, name, began, ended, status, sums)


def summed(store: Store, trace_ids: Collection[str], search: Search, now_ns: int) -> list[TraceRow]:
    """Return the traces among *trace_ids* that match *search*, without details; bounds of time are not considered."""
    if not trace_ids:
        return []
    having, values = search.of_trace()
    rows = store.query(
        f"SELECT trace_id, {COLUMNS} FROM (SELECT * FROM {{spans}} WHERE {_OF_TRACES} {ONE_TELLING}) "
        f"GROUP BY trace_id {f'HAVING {having}' if having else ''}",
        [*_parameters(trace_ids), *values],
        now_ns,
    )
    return [row_of(row) for row in rows]


def with_details(store: Store, rows: Sequence[TraceRow], now_ns: int) -> list[TraceRow]:
    """Return *rows* with their details; those of a trace that was deleted meanwhile are empty."""
    if not rows:
        return []
    (session, sessions), (user, users) = attribute_text("session_id"), attribute_text("user_id")
    found = store.query(
        "SELECT trace_id, coalesce(arg_min(error, (started_ns, ordinal)) FILTER (error <> ''), ''), "
        f"list_sort(list(DISTINCT model) FILTER (model <> ''))[:{MAX_MODELS}], "
        f"{_first('caller')}, {_first('session')}, {_first('owner')}, "
        "coalesce(sum(score) FILTER (counted), 0)::HUGEINT, count(score) FILTER (counted) "
        f"FROM (SELECT *, {session} AS session, {user} AS owner FROM {{spans}} WHERE {_OF_TRACES} {ONE_TELLING}) "
        "GROUP BY trace_id",
        [*sessions, *users, *_parameters([row.trace_id for row in rows])],
        now_ns,
    )
    details = {
        trace_id: TraceDetails(error, tuple(models or ()), caller, session_id, user_id, int(score), scored)
        for trace_id, error, models, caller, session_id, user_id, score, scored in found
    }
    return [row._replace(details=details.get(row.trace_id, TraceDetails())) for row in rows]


def attributes_of(
    store: Store, trace_ids: Sequence[str], keys: Sequence[str], now_ns: int
) -> dict[str, dict[str, str | None]]:
    """
    Return trace -> key -> the attribute's text: that of the root, or else of the first span that has it; None = none.

    Args:
        keys: As for ``attribute_text``, each once.
    """
    if not trace_ids or not keys:
        return {trace_id: {} for trace_id in trace_ids}
    texts = [attribute_text(key) for key in keys]
    held = ", ".join(f"{text} AS held{at}" for at, (text, _) in enumerate(texts))
    found = store.query(
        f"SELECT trace_id, {', '.join(_first(f'held{at}') for at in range(len(keys)))} "
        f"FROM (SELECT *, {held} FROM {{spans}} WHERE {_OF_TRACES} {ONE_TELLING}) GROUP BY trace_id",
        [*(path for _, paths in texts for path in paths), *_parameters(trace_ids)],
        now_ns,
    )
    by_trace = {row[0]: {key: text or None for key, text in zip(keys, row[1:], strict=True)} for row in found}
    return {trace_id: by_trace.get(trace_id, dict.fromkeys(keys)) for trace_id in trace_ids}


_OF_TRACES = "trace_hash IN (SELECT unnest(?::UINTEGER[])) AND trace_id IN (SELECT unnest(?::VARCHAR[]))"


def _parameters(trace_ids: Collection[str]) -> list[Any]:
    return [sorted({trace_hash(trace_id) for trace_id in trace_ids}), sorted(trace_ids)]


def _first(column: str) -> str:
    """Return SQL for *column* of the first root that has one, or else of the first span that has one."""
    first = f"arg_min({column}, (started_ns, ordinal)) FILTER"
    return (
        f"coalesce({first} (parent_span_id IS NULL AND nullif({column}, '') IS NOT NULL), "
        f"{first} (nullif({column}, '') IS NOT NULL), '')"
    )
