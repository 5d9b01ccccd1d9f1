"""
Reads what the senders of calls tell about them: sums by caller, instrumentation and way in, and newest calls in detail.

How it works. A first read over all that is stored counts the calls of each caller in steps of time. It finds callers
that have fallen silent, and the part of the interval that the other reads look at, so that they look at ``MOST_CALLS``
calls at most. Sums come from columns. What only attributes and prices tell is read from the newest calls of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.records import MODEL_KINDS, Span
from tokentrace.units import MINUTE
from tokentrace_api.reads.coverage_pairs import Call
from tokentrace_api.reads.newest import LIMIT_S
from tokentrace_api.reads.search import value_is
from tokentrace_api.store import Store, span_of

#: Limits for the calls that are added up, and for those among which the same call told twice is looked for.
MOST_CALLS, MOST_PAIRED = 1_000_000, 20_000
#: How many of the newest calls of each row are looked at in detail, and how many of those that report a cost.
SAMPLED, COMPARED = 100, 50
#: Most callers that are named as silent.
MOST_SILENT = 100
#: About how many steps the stored time is divided into, and the shortest step.
_STEPS, _MIN_STEP_NS = 1000, MINUTE
#: A caller is silent after a pause that is so many times its longest one, if it has called in so many steps.
_LONGER, _MIN_ACTIVE = 2, 3
_IS_CALL = f"kind IN ({', '.join(repr(kind) for kind in sorted(MODEL_KINDS))})"
#: A call without token counts whose cost nothing but counts could give, or that reports its cost.
_LACKS_USAGE = "(total_tokens = 0 AND (unpriced_reason = 'no_usage' OR (cost_source = 'reported' AND cost_nusd > 0)))"
_SCOPE = "coalesce(scope, '')"
_SUMS = (
    "count(*)",
    "count(*) FILTER (status = 'ok')",
    f"count(*) FILTER (status = 'ok' AND NOT {_LACKS_USAGE})",
    "count(*) FILTER (total_tokens > 0)",
    "count(*) FILTER (cache_read_tokens > 0 OR cache_write_tokens > 0)",
    "count(*) FILTER (cache_write_tokens > 0)",
    "count(*) FILTER (cache_write_1h_tokens > 0)",
    "count(*) FILTER (ttft_ns > 0)",
    "count(*) FILTER (session_id <> '')",
    "count(*) FILTER (user_id <> '')",
    "count(*) FILTER (status = 'ok' AND response_id <> '')",
    "count(*) FILTER (cost_source = 'reported' AND cost_nusd > 0)",
    "min(event_ns)",
    "max(event_ns)",
    f"max(ordinal, {SAMPLED})",
    f"max(ordinal, {COMPARED}) FILTER (cost_source = 'reported' AND cost_nusd > 0 AND total_tokens > 0)",
)


class Told(NamedTuple):
    """
    The calls of one caller that came from one instrumentation by one way in.

    Attributes:
        scope: The instrumentation; "" = unknown.
        source: The way in, as ``Span.source``.
        ok: Number of calls that succeeded; *used* and *responses* count some of these.
        used: Number of calls of which it is known what they used.
        counted: Number of calls with token counts.
        cached: Number of calls with cached tokens.
        writes, writes_1h: Number of calls with tokens written to a cache, and with some that are kept for an hour.
        ttft, sessions, users: Number of calls with a time to the first token, a session, a user.
        responses: Number of calls with a response id.
        reported: Number of calls whose cost is the one that they report.
        first_ns, last_ns: Event times of the first and the last call, Unix nanoseconds.
        newest, newest_reported: Rows of the newest calls, and of the newest ones that report a cost and token counts.
    """

    caller: str
    scope: str
    source: str
    calls: int
    ok: int
    used: int
    counted: int
    cached: int
    writes: int
    writes_1h: int
    ttft: int
    sessions: int
    users: int
    responses: int
    reported: int
    first_ns: int
    last_ns: int
    newest: tuple[int, ...]
    newest_reported: tuple[int, ...]


class Quiet(NamedTuple):
    """
    A caller, or one of its instrumentations, that used to send calls.

    Attributes:
        scope: The instrumentation; "" = all calls of the caller.
        last_ns: Event time of its last call, Unix nanoseconds.
        longest_ns: The longest pause between two of its calls before, rounded up to whole steps, nanoseconds.
        last_span_ns: Event time of its last span of any kind, Unix nanoseconds.
    """

    caller: str
    scope: str
    last_ns: int
    longest_ns: int
    last_span_ns: int


class Rhythm(NamedTuple):
    """
    When calls were made.

    Attributes:
        step_ns: Length of a step, nanoseconds.
        counts: (Number of a step, calls in it), the newest first.
        silent: The callers that have fallen silent, the one that called last first.
    """

    step_ns: int
    counts: list[tuple[int, int]]
    silent: list[Quiet]

    def floor(self, from_ns: int, most: int) -> int:
        """Return the instant from *from_ns* on since which at most *most* calls were made, or those of one step."""
        seen = 0
        for number, calls in self.counts:
            seen += calls
            if seen > most and seen > calls:
                return max(from_ns, (number + 1) * self.step_ns)
        return from_ns


class Detail(NamedTuple):
    """
    What the attributes of a call say.

    Attributes:
        has_ttft: Whether its time to the first token is known.
        streamed: Whether its answer was a stream; None = it does not say so.
        cost_nusd, reported_usd: Its cost, and the one that it reports and that does not count; None = unknown.
    """

    has_ttft: bool
    streamed: bool | None
    cost_nusd: int | None
    reported_usd: float | None


def rhythm(store: Store, to_ns: int, caller: str | None, now_ns: int) -> Rhythm:
    """
    Return when the calls before *to_ns* were made, and which callers used to call and do not any more.

    Args:
        caller: Only this one; None = all.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    step_ns = max((now_ns - store.shown_since(now_ns)) // _STEPS, _MIN_STEP_NS)
    where, values = _of_caller(caller)
    rows = store.query(
        f"WITH steps AS MATERIALIZED (SELECT caller, event_ns // {step_ns} AS number, count(*) FILTER ({_IS_CALL}) "
        f"AS calls, max(event_ns) FILTER ({_IS_CALL}) AS last, max(event_ns) AS last_span "
        f"FROM {{spans}} WHERE counted AND event_ns < ? {where} GROUP BY ALL) "
        "SELECT NULL, number, sum(calls)::BIGINT AS calls, NULL FROM steps GROUP BY number HAVING sum(calls) > 0 "
        f"UNION ALL (SELECT * FROM ({_quiet('steps', 'caller')}) "
        f"WHERE last_ns < ? - {_LONGER * step_ns} * longest ORDER BY last_ns DESC LIMIT {MOST_SILENT})",
        [to_ns, *values, to_ns],
        now_ns,
        limit_s=LIMIT_S,
    )
    counts = sorted(((int(number), int(calls)) for name, number, calls, _ in rows if name is None), reverse=True)
    quiet = [
        Quiet(name, "", last, int(longest) * step_ns, last_span)
        for name, last, longest, last_span in rows
        if name is not None
    ]
    return Rhythm(step_ns, counts, sorted(quiet, key=lambda each: (-each.last_ns, each.caller)))


def _quiet(table: str, keys: str) -> str:
    """Return SQL with, for each of *keys* in *table*, its last call, its longest pause in steps and its last span."""
    return (
        f"SELECT {keys}, max(last) AS last_ns, max(number - before) AS longest, max(last_span) AS last_span FROM "
        f"(SELECT *, CASE WHEN calls > 0 THEN lag(CASE WHEN calls > 0 THEN number END IGNORE NULLS) "
        f"OVER (PARTITION BY {keys} ORDER BY number) END AS before FROM {table}) "
        f"GROUP BY {keys} HAVING count(*) FILTER (calls > 0) >= {_MIN_ACTIVE}"
    )


def quiet_scopes(store: Store, rows: Sequence[Told], step_ns: int, to_ns: int, now_ns: int) -> list[Quiet]:
    """
    Return the instrumentations of *rows* that used to tell calls, and neither tell any nor tell them again any more.

    Only callers with another instrumentation are looked at: the others are silent as a whole or not at all.

    Raises:
        Unavailable: As ``rhythm``.
    """
    last = {row.caller: max(other.last_ns for other in rows if other.caller == row.caller) for row in rows}
    late = {row.caller for row in rows if row.last_ns < min(to_ns, last[row.caller]) - _LONGER * step_ns}
    if not late:
        return []
    found = store.query(
        f"WITH steps AS MATERIALIZED (SELECT caller, {_SCOPE} AS scope, event_ns // {step_ns} AS number, "
        # A call that is told twice in one request is a chain in all but one of its tellings.
        f"count(*) AS calls, max(event_ns) AS last, max(event_ns) AS last_span FROM {{spans}} "
        f"WHERE event_ns < ? AND scope <> '' AND ({_IS_CALL} OR kind = 'chain') "
        "AND list_contains(?::VARCHAR[], caller) GROUP BY ALL) "
        f"SELECT * FROM ({_quiet('steps', 'caller, scope')}) WHERE last_ns < ? - {_LONGER * step_ns} * longest",
        [to_ns, sorted(late), to_ns],
        now_ns,
        limit_s=LIMIT_S,
    )
    return [Quiet(caller, scope, at, int(longest) * step_ns, at) for caller, scope, at, longest, _ in found]


def told(
    store: Store, from_ns: int, to_ns: int, caller: str | None, limit: int, now_ns: int
) -> tuple[list[Told], bool]:
    """
    Return the calls in [*from_ns*, *to_ns*) by caller, scope and source, those with the most calls first.

    Args:
        caller: Only this one; None = all.
        limit: Number of rows.

    Returns:
        (Rows, whether there are more).

    Raises:
        Unavailable: As ``rhythm``.
    """
    where, values = _of_caller(caller)
    rows = store.query(
        f"SELECT caller, {_SCOPE} AS scope, source, {', '.join(_SUMS)} FROM {{spans}} "
        f"WHERE counted AND {_IS_CALL} AND event_ns >= ? AND event_ns < ? {where} "
        f"GROUP BY caller, coalesce(scope, ''), source ORDER BY count(*) DESC, caller, scope, source LIMIT {limit + 1}",
        [from_ns, to_ns, *values],
        now_ns,
        limit_s=LIMIT_S,
    )
    found = [Told._make([*row[:-2], tuple(row[-2] or ()), tuple(row[-1] or ())]) for row in rows[:limit]]
    return found, len(rows) > limit


def details(store: Store, ordinals: Sequence[int], now_ns: int) -> dict[int, Detail]:
    """
    Return row -> what the attributes of the call in it say.

    Raises:
        Unavailable: As ``rhythm``.
    """
    if not ordinals:
        return {}
    flags = ", ".join(f"json_extract_string(attributes, '/{name}')" for name in _STREAM_FLAGS)
    rows = store.query(
        f"SELECT ordinal, ttft_ns > 0, coalesce({flags}), json_extract_string(attributes, '/ai.operationId'), "
        "cost_nusd, TRY_CAST(json_extract_string(attributes, '/cost.reported_usd') AS DOUBLE) "
        "FROM {spans} WHERE ordinal >= ? AND ordinal IN (SELECT unnest(?::BIGINT[]))",
        [min(ordinals), list(ordinals)],
        now_ns,
        limit_s=LIMIT_S,
    )
    return {
        ordinal: Detail(has_ttft, _streamed(flag, operation), cost, reported)
        for ordinal, has_ttft, flag, operation, cost, reported in rows
    }


#: Attributes of instrumentations that say whether an answer was a stream; Vercel's SDK has it in its operation.
_STREAM_FLAGS = ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")


def _streamed(flag: str | None, operation: str | None) -> bool | None:
    if flag is not None:
        return flag.lower() == "true"
    return operation.endswith("doStream") if operation else None


def reporting(store: Store, ordinals: Sequence[int], now_ns: int) -> dict[int, Span]:
    """
    Return row -> the span in it, without its attributes.

    Raises:
        Unavailable: As ``rhythm``.
    """
    if not ordinals:
        return {}
    rows = store.query(
        "SELECT * REPLACE (NULL AS attributes) FROM {spans} "
        "WHERE ordinal >= ? AND ordinal IN (SELECT unnest(?::BIGINT[]))",
        [min(ordinals), list(ordinals)],
        now_ns,
        limit_s=LIMIT_S,
    )
    return {row[0]: span_of(row) for row in rows}


def newest_calls(store: Store, from_ns: int, to_ns: int, callers: Sequence[str], now_ns: int) -> list[Call]:
    """
    Return the newest ``MOST_PAIRED`` calls of *callers* in [*from_ns*, *to_ns*) that name their instrumentation.

    Raises:
        Unavailable: As ``rhythm``.
    """
    if not callers:
        return []
    rows: list[Any] = store.query(
        # The name of the price is the same for all names of a model.
        "SELECT caller, scope, provider, coalesce(nullif(split_part(cost_model, '@', 1), ''), model), status, "
        "started_ns, ended_ns, prompt_tokens, completion_tokens, response_id <> '' FROM {spans} "
        f"WHERE counted AND {_IS_CALL} AND scope <> '' AND event_ns >= ? AND event_ns < ? "
        f"AND list_contains(?::VARCHAR[], caller) ORDER BY event_ns DESC LIMIT {MOST_PAIRED}",
        [from_ns, to_ns, list(callers)],
        now_ns,
        limit_s=LIMIT_S,
    )
    return [Call(*row) for row in rows]


def _of_caller(caller: str | None) -> tuple[str, list[str]]:
    if caller is None:
        return "", []
    text, values = value_is("caller", caller)
    return f"AND {text}", values
