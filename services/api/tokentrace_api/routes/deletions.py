"""``DELETE /traces/{id}`` and ``DELETE /api/users/{id}``: delete the records of a trace or a user for good."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from tokentrace_api.erasure import ERASED_WITHIN_NS
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.traces import TraceId
from tokentrace_api.store import USER_OF_SPAN, Store

#: Maximum number of tombstones in one message.
_MAX_TOMBSTONES = 5000
#: Maximum number of simultaneous requests to the broker.
_MAX_REQUESTS = 32
#: ``tt_open_spans`` holds a span for less than this time after its start, although its end renews the entry.
_KEPT_NS = 3 * DAY


class Deleted(msgspec.Struct, kw_only=True):
    """
    What was deleted.

    Attributes:
        span_count: Number of ended spans that were deleted.
        log_expires_at: When the log will have discarded the last of the deleted records, which stay hidden until then.
        log_aged_out_by: Deprecated: the old name of ``log_expires_at``; it goes with the next release.
        clean_by: Place -> when nothing of the deleted records is left there, at the latest. ``answers`` are those of
            this api; another one reads the deletion within a second. ``store`` are the files of the span store.
    """

    deleted: Literal[True] = True
    trace_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    span_count: Natural
    log_aged_out_by: InstantText
    log_expires_at: InstantText
    clean_by: dict[str, InstantText]


class LogOfDeletions(NamedTuple):
    """
    What deletions use.

    Attributes:
        bus: Publishes the tombstones, and holds the bucket of open spans.
        project: Project under which the tombstones are published.
        log_keeps_ns: How long the log keeps a record, nanoseconds.
        store_keeps_ns: How long the store keeps a file after its last record, nanoseconds.
        erase: Erases what names users (id -> when the user was deleted) from the streams of alerts and dead letters.
        apply: Applies tombstones to the store of this api.
    """

    bus: Bus
    project: str
    log_keeps_ns: int
    store_keeps_ns: int
    erase: Callable[[Mapping[str, int]], Awaitable[int]]
    apply: Callable[[list[Tombstone]], Awaitable[None]]


_LOG = "2026-03-22T14:23:01.441Z"
_PLACES = {"answers": "2026-03-15T14:23:01.441Z", "open_spans": "2026-03-18T14:23:01.441Z", "log": _LOG}
_PLACES |= {"store": "2026-03-23T14:23:01.441Z"}
_EXPIRES = {"log_aged_out_by": _LOG, "log_expires_at": _LOG, "clean_by": _PLACES}
_FROM_STREAMS = dict.fromkeys(("alerts", "deliveries"), "2026-03-15T14:29:01.441Z") | {"dead_letters": _LOG}
_ERRORS = {400: "limit: unknown parameter; allowed are none", 503: "the broker is away"}
_DELETE_TRACE = operation(
    "deleteTrace",
    "Delete a trace",
    "The spans, open spans and messages of the trace are deleted at once. The aggregators still count them.",
    Answer(Deleted, "The trace is deleted.", {"deleted": True, "trace_id": "t1", "span_count": 1, **_EXPIRES}),
    errors={**_ERRORS, 404: "trace not found"},
)
_DELETE_USER = operation(
    "deleteUser",
    "Delete a user",
    "The spans of the user are deleted, and the sessions and traces in which no other user is named. Rules that are "
    "grouped by user forget the user, and their events, delivery records and dead letters about the user are erased.",
    Answer(
        Deleted,
        "The user is deleted.",
        {
            "deleted": True,
            "user_id": "u-7",
            "span_count": 3,
            **_EXPIRES,
            "clean_by": {**_PLACES, **_FROM_STREAMS},
        },
    ),
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
    now_ns = store.now_ns()
    matches = await store.find(lambda spans: _removed_by(spans, column, id, now_ns))
    if not matches:
        raise Rejected(f"{column.removesuffix('_id')} not found", status=404)
    removed = matches[0]
    # From now on, ending one of these spans is a 404; otherwise the span would be stored again with its end.
    await _forget_open(deletions.bus, removed.open_span_ids)
    # The clock of an ingest may be ahead, so the arrival of a record may be later than now.
    at_ns = max(now_ns, removed.newest_ns)
    tombstones = [Tombstone(target="trace" if column == "trace_id" else "user", id=id, deleted_ns=at_ns)]
    tombstones += [Tombstone(target="session", id=session, deleted_ns=at_ns) for session in removed.sessions]
    tombstones += [Tombstone(target="trace", id=trace, deleted_ns=at_ns) for trace in removed.traces]
    for start in range(0, len(tombstones), _MAX_TOMBSTONES):
        batch = Batch(id=f"delete.{uuid.uuid4().hex}", tombstones=tombstones[start : start + _MAX_TOMBSTONES])
        subject = subjects.tombstones(deletions.project)
        await deletions.bus.publish(subject, encode_batches([batch]), id=batch.id)
    await deletions.apply(tombstones)
    # The last record may have arrived a moment ago, for example a score of one of the spans.
    expires = render_instant(at_ns + deletions.log_keeps_ns)
    clean_by_ns = {
        "answers": at_ns,
        "open_spans": at_ns + _KEPT_NS,
        "log": at_ns + deletions.log_keeps_ns,
        # A file holds what arrived on one day and goes as a whole.
        "store": at_ns + deletions.store_keeps_ns + DAY,
    }
    if column == "user_id":
        # Later passes erase what the alerter publishes because of the deletion.
        await deletions.erase({id: at_ns})
        clean_by_ns |= dict.fromkeys(("alerts", "deliveries"), at_ns + ERASED_WITHIN_NS)
        # A letter that cannot be told to be about the user stays until it ages out.
        clean_by_ns["dead_letters"] = at_ns + subjects.REJECTED_AGE_NS
    return Deleted(
        span_count=removed.spans,
        log_aged_out_by=expires,
        log_expires_at=expires,
        clean_by={place: render_instant(time_ns) for place, time_ns in clean_by_ns.items()},
    )


async def _forget_open(bus: Bus, span_ids: Sequence[str]) -> None:
    """Delete the entries of *span_ids* from ``tt_open_spans``, so that these spans can no longer be ended."""
    bucket, room = bus.kv(subjects.OPEN_SPANS), asyncio.Semaphore(_MAX_REQUESTS)

    async def forget(key: str) -> None:
        async with room:
            if await bucket.get(key) is not None:
                await bucket.delete(key)

    keys = [key_of(span_id) for span_id in span_ids for key_of in (subjects.open_span_key, subjects.place_key)]
    await asyncio.gather(*map(forget, keys))


class _Removed(NamedTuple):
    """
    What a deletion removes.

    Attributes:
        spans: Number of ended spans.
        newest_ns: Arrival of the newest record, Unix nanoseconds.
        sessions, traces: Ids of further sessions and traces that are deleted as a whole.
        open_span_ids: Ids of spans that ``tt_open_spans`` may hold.
    """

    spans: int
    newest_ns: int
    sessions: list[str]
    traces: list[str]
    open_span_ids: list[str]


#: Defines ``named``: the session, trace and user of every span, started span and message.
_NAMED = (
    f"WITH named AS (SELECT session_id, trace_id, {USER_OF_SPAN.format('')} AS user_id FROM {{spans}} UNION ALL "
    "SELECT session_id, trace_id, user_id FROM {started} UNION ALL "
    "SELECT session_id, nullif(trace_id, ''), NULL FROM {messages}) "
)
#: Selects the sessions, or traces, that name this user and no other; they may also hold records that name no user.
_OWN = (
    "SELECT COLUMN FROM named WHERE COLUMN IN (SELECT COLUMN FROM named WHERE user_id = ?) "
    "GROUP BY COLUMN HAVING count(*) FILTER (user_id <> ?) = 0"
)


def _removed_by(store: Store, column: str, id: str, now_ns: int) -> list[_Removed]:
    """Return a list with what a deletion of a trace or a user removes; [] if the store holds nothing of it."""
    tables = ("spans", "started", "messages") if column == "trace_id" else ("spans", "started")
    of_span = USER_OF_SPAN.format("") if column == "user_id" else column
    every = " UNION ALL ".join(
        f"SELECT 1 FROM {{{table}}} WHERE {of_span if table == 'spans' else column} = ?" for table in tables
    )
    if not store.query(f"{every} LIMIT 1", [id] * len(tables), now_ns):
        return []
    sessions: list[str] = []
    traces = [id] if column == "trace_id" else []
    if column == "user_id":
        rows = store.query(_NAMED + _OWN.replace("COLUMN", "session_id"), [id, id], now_ns)
        sessions = sorted(row[0] for row in rows)
        loose = "count(*) FILTER (user_id IS NULL AND coalesce(session_id NOT IN (SELECT unnest(?::VARCHAR[])), true))"
        sql = f"{_NAMED}{_OWN.replace('COLUMN', 'trace_id')} AND {loose} > 0"
        traces = sorted(row[0] for row in store.query(sql, [id, id, sessions], now_ns))
    in_whole = "session_id IN (SELECT unnest(?::VARCHAR[])) OR trace_id IN (SELECT unnest(?::VARCHAR[]))"
    is_removed, values = f"({column} = ? OR {in_whole})", [id, sessions, traces]
    is_removed_span = f"({of_span} = ? OR {in_whole})"
    sql = f"SELECT count(*) FROM (SELECT DISTINCT trace_id, span_id FROM {{spans}} WHERE {is_removed_span})"
    spans = int(store.query(sql, values, now_ns)[0][0])
    arrivals = (
        f"SELECT arrived_ns FROM {{spans}} WHERE {is_removed_span} "
        f"UNION ALL SELECT arrived_ns FROM {{started}} WHERE {is_removed} "
        f"UNION ALL SELECT arrived_ns FROM {{messages}} WHERE {in_whole}"
    )
    newest = store.query(f"SELECT max(arrived_ns) FROM ({arrivals})", [*values, *values, sessions, traces], now_ns)
    # The bucket no longer holds spans that started earlier.
    recent = f"SELECT DISTINCT span_id FROM {{started}} WHERE {is_removed} AND arrived_ns > ?"
    open_span_ids = [row[0] for row in store.query(recent, [*values, now_ns - _KEPT_NS], now_ns)]
    others = traces if column == "user_id" else []
    return [_Removed(spans, int(newest[0][0] or 0), sessions, others, open_span_ids)]
