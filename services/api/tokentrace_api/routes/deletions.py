"""``DELETE /traces/{id}`` and ``DELETE /api/users/{id}``: gone from every answer at once, and for good."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from fastapi import Path as PathName
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected
from tokentrace.records import Batch, Tombstone, encode_batches
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import DAY, render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.traces import TraceId
from tokentrace_api.store import Store

#: Tombstones of one message.
_STONES = 5000
#: Requests to the broker under way at once.
_AT_ONCE = 32
#: ``tt_open_spans`` forgets a span this long after its start, however often it was ended.
_KEPT_NS = 3 * DAY


class Deleted(msgspec.Struct, kw_only=True):
    """
    What was deleted.

    Attributes:
        span_count: Ended spans that went.
        log_expires_at: When the log, which nothing is shown from, will have discarded the last record.
        log_aged_out_by: Deprecated: the old name of ``log_expires_at``; it goes with the next release.
    """

    deleted: Literal[True] = True
    trace_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    span_count: Natural
    log_aged_out_by: InstantText
    log_expires_at: InstantText


class LogOfDeletions(NamedTuple):
    """
    Where deletions are written down.

    Attributes:
        bus: Takes the tombstones, and holds the bucket of open spans.
        project: Whose deletions they are.
        log_keeps_ns: How long the log keeps a record.
        apply: Applies tombstones to the store at once.
    """

    bus: Bus
    project: str
    log_keeps_ns: int
    apply: Callable[[list[Tombstone]], Awaitable[None]]


_EXPIRES = {"log_aged_out_by": "2026-03-22T14:23:01.441Z", "log_expires_at": "2026-03-22T14:23:01.441Z"}
_ERRORS = {400: "limit: unknown parameter; allowed are none", 503: "the broker is away"}
_DELETE_TRACE = operation(
    "deleteTrace",
    "Delete a trace",
    "Its spans are gone from every answer at once. Totals keep their sums.",
    Answer(Deleted, "It is deleted.", {"deleted": True, "trace_id": "t1", "span_count": 1, **_EXPIRES}),
    errors={**_ERRORS, 404: "trace not found"},
)
_DELETE_USER = operation(
    "deleteUser",
    "Delete a user",
    "The user's spans go, and with them the sessions and traces in which no other user is named.",
    Answer(Deleted, "They are deleted.", {"deleted": True, "user_id": "u-7", "span_count": 3, **_EXPIRES}),
    errors={**_ERRORS, 404: "user not found"},
)


def router(store: StoreReader, deletions: LogOfDeletions) -> Router:
    """Return the routes of deletions."""
    routes = Router("traces")

    @routes.delete("/traces/{trace_id:path}", **_DELETE_TRACE)
    async def trace(trace_id: TraceId) -> Response:
        deleted = await _delete(store, deletions, "trace_id", trace_id)
        deleted.trace_id = trace_id
        return reply(deleted)

    @routes.delete("/api/users/{user_id:path}", **_DELETE_USER)
    async def user(user_id: Annotated[str, PathName(description="Id of the user.", examples=["u-7"])]) -> Response:
        deleted = await _delete(store, deletions, "user_id", user_id)
        deleted.user_id = user_id
        return reply(deleted)

    return routes


async def _delete(store: StoreReader, deletions: LogOfDeletions, column: str, id: str) -> Deleted:
    now_ns = time.time_ns()
    matches = await store.find(lambda spans: _held(spans, column, id, now_ns))
    if not matches:
        raise Rejected(f"{column.removesuffix('_id')} not found", status=404)
    held = matches[0]
    # From now on the end of such a span is a 404; otherwise its start would come back with its end.
    await _forget_open(deletions.bus, held.begun)
    # The clock of an ingest may be ahead, so records may have arrived later than now.
    at_ns = max(now_ns, held.newest_ns)
    stones = [Tombstone(target="trace" if column == "trace_id" else "user", id=id, deleted_ns=at_ns)]
    stones += [Tombstone(target="session", id=session, deleted_ns=at_ns) for session in held.sessions]
    stones += [Tombstone(target="trace", id=trace, deleted_ns=at_ns) for trace in held.traces]
    for start in range(0, len(stones), _STONES):
        batch = Batch(id=f"delete.{uuid.uuid4().hex}", tombstones=stones[start : start + _STONES])
        subject = subjects.tombstones(deletions.project)
        await deletions.bus.publish(subject, encode_batches([batch]), id=batch.id)
    await deletions.apply(stones)
    # Counted from now: a record about these spans, such as a score, may have arrived a moment ago.
    expires = render_instant(at_ns + deletions.log_keeps_ns)
    return Deleted(span_count=held.spans, log_aged_out_by=expires, log_expires_at=expires)


async def _forget_open(bus: Bus, span_ids: Sequence[str]) -> None:
    """Delete open spans from ``tt_open_spans``, where their ends would look them up."""
    bucket, room = bus.kv(subjects.OPEN_SPANS), asyncio.Semaphore(_AT_ONCE)

    async def forget(span_id: str) -> None:
        key = subjects.open_span_key(span_id)
        async with room:
            if await bucket.get(key) is not None:
                await bucket.delete(key)

    await asyncio.gather(*map(forget, span_ids))


class _Held(NamedTuple):
    """
    What a deletion takes.

    Attributes:
        spans: How many ended spans.
        newest_ns: Arrival of the newest record, Unix nanoseconds.
        sessions, traces: Ids of those that go as a whole.
        begun: Ids of the spans among them that are open and may still be ended.
    """

    spans: int
    newest_ns: int
    sessions: list[str]
    traces: list[str]
    begun: list[str]


#: Every record, with its session, trace and user.
_NAMED = (
    "WITH named AS (SELECT session_id, trace_id, user_id FROM {spans} UNION ALL "
    "SELECT session_id, trace_id, user_id FROM {started} UNION ALL "
    "SELECT session_id, nullif(trace_id, ''), NULL FROM {messages}) "
)
#: Sessions, or traces, in which this user is named and no other; records that name no user count as this user's.
_OWN = (
    "SELECT COLUMN FROM named WHERE COLUMN IN (SELECT COLUMN FROM named WHERE user_id = ?) "
    "GROUP BY COLUMN HAVING count(*) FILTER (user_id <> ?) = 0"
)


def _held(store: Store, column: str, id: str, now_ns: int) -> list[_Held]:
    """Return what the store holds of a trace or a user; an empty list when there is nothing."""
    tables = ("spans", "started", "messages") if column == "trace_id" else ("spans", "started")
    every = " UNION ALL ".join(f"SELECT 1 FROM {{{table}}} WHERE {column} = ?" for table in tables)
    if not store.query(f"{every} LIMIT 1", [id] * len(tables), now_ns):
        return []
    sessions: list[str] = []
    traces = [id] if column == "trace_id" else []
    if column == "user_id":
        found = store.query(_NAMED + _OWN.replace("COLUMN", "session_id"), [id, id], now_ns)
        sessions = sorted(row[0] for row in found)
        loose = "count(*) FILTER (user_id IS NULL AND coalesce(session_id NOT IN (SELECT unnest(?::VARCHAR[])), true))"
        sql = f"{_NAMED}{_OWN.replace('COLUMN', 'trace_id')} AND {loose} > 0"
        traces = sorted(row[0] for row in store.query(sql, [id, id, sessions], now_ns))
    whole = "session_id IN (SELECT unnest(?::VARCHAR[])) OR trace_id IN (SELECT unnest(?::VARCHAR[]))"
    going, values = f"({column} = ? OR {whole})", [id, sessions, traces]
    sql = f"SELECT count(*) FROM (SELECT DISTINCT trace_id, span_id FROM {{spans}} WHERE {going})"
    spans = int(store.query(sql, values, now_ns)[0][0])
    arrivals = (
        f"SELECT arrived_ns FROM {{spans}} WHERE {going} UNION ALL SELECT arrived_ns FROM {{started}} WHERE {going} "
        f"UNION ALL SELECT arrived_ns FROM {{messages}} WHERE {whole}"
    )
    newest = store.query(f"SELECT max(arrived_ns) FROM ({arrivals})", [*values, *values, sessions, traces], now_ns)
    # The bucket has forgotten spans that were started before.
    recent = f"SELECT DISTINCT span_id FROM {{started}} WHERE {going} AND arrived_ns > ?"
    begun = [row[0] for row in store.query(recent, [*values, now_ns - _KEPT_NS], now_ns)]
    others = traces if column == "user_id" else []
    return [_Held(spans, int(newest[0][0] or 0), sessions, others, begun)]
