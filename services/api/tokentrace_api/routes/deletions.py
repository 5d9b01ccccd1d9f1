"""``DELETE /traces/{id}`` and ``DELETE /api/users/{id}``: gone from every answer at once, and for good."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bus import subjects
from tokentrace.errors import Rejected
from tokentrace.records import Batch, Tombstone, encode_batches
from tokentrace.service.web import reply
from tokentrace.units import DAY, render_instant
from tokentrace_api.parameters import parameters
from tokentrace_api.store import Store

if TYPE_CHECKING:
    from tokentrace_api.service import Api

#: Tombstones of one message.
_STONES = 5000
#: Requests to the broker under way at once.
_AT_ONCE = 32
#: A span that was started longer ago is in ``tt_open_spans`` no more, however often it was ended.
_KEPT_NS = 3 * DAY


def routes(api: Api) -> list[BaseRoute]:
    """The routes of deletions."""

    async def trace(request: Request) -> Response:
        parameters(request, ())
        trace_id = request.path_params["trace_id"]
        return reply(await _delete(api, "trace_id", trace_id, {"trace_id": trace_id}))

    async def user(request: Request) -> Response:
        parameters(request, ())
        user_id = request.path_params["user_id"]
        return reply(await _delete(api, "user_id", user_id, {"user_id": user_id}))

    return [
        Route("/traces/{trace_id:path}", trace, methods=["DELETE"]),
        Route("/api/users/{user_id:path}", user, methods=["DELETE"]),
    ]


async def _delete(api: Api, column: str, id: str, named: dict[str, str]) -> dict[str, Any]:
    now_ns = time.time_ns()
    found = await api.find(lambda store: _held(store, column, id, now_ns))
    if not found:
        raise Rejected(f"{column.removesuffix('_id')} not found", status=404)
    held = found[0]
    # Whoever ends one of them from now on is told that there is none: else its start would come back with its end.
    await _forget_open(api, held.begun)
    # An ingest whose clock is ahead of ours has let in what arrives later than now.
    at_ns = max(now_ns, held.newest_ns)
    stones = [Tombstone(target="trace" if column == "trace_id" else "user", id=id, deleted_ns=at_ns)]
    stones += [Tombstone(target="session", id=session, deleted_ns=at_ns) for session in held.sessions]
    stones += [Tombstone(target="trace", id=trace, deleted_ns=at_ns) for trace in held.traces]
    for start in range(0, len(stones), _STONES):
        batch = Batch(id=f"delete.{uuid.uuid4().hex}", tombstones=stones[start : start + _STONES])
        await api.bus.publish(subjects.tombstones(api.config.project), encode_batches([batch]), id=batch.id)
    await api.store_writer.apply_deletions(stones)
    return {
        "deleted": True,
        **named,
        "span_count": held.spans,
        # What was said of it last, such as a score, may have come a moment ago.
        "log_aged_out_by": render_instant(at_ns + api.config.log_keeps_ns),
    }


async def _forget_open(api: Api, span_ids: Sequence[str]) -> None:
    """Take out of ``tt_open_spans`` what is kept there of spans for those who end them."""
    bucket, room = api.bus.kv(subjects.OPEN_SPANS), asyncio.Semaphore(_AT_ONCE)

    async def forget(span_id: str) -> None:
        key = subjects.open_span_key(span_id)
        async with room:
            if await bucket.get(key) is not None:
                await bucket.delete(key)

    await asyncio.gather(*map(forget, span_ids))


class _Held(NamedTuple):
    """
    What there is to be deleted.

    Attributes:
        spans: How many go, ended ones.
        newest_ns: Arrival of the newest record, Unix nanoseconds.
        sessions, traces: Those that go as a whole.
        begun: Ids of the spans among them that were started and may be ended.
    """

    spans: int
    newest_ns: int
    sessions: list[str]
    traces: list[str]
    begun: list[str]


#: Every record, and whose it is.
_NAMED = (
    "WITH named AS (SELECT session_id, trace_id, user_id FROM {spans} UNION ALL "
    "SELECT session_id, trace_id, user_id FROM {started} UNION ALL "
    "SELECT session_id, nullif(trace_id, ''), NULL FROM {messages}) "
)
#: Sessions, or traces, in which this user is named and nobody else: what names nobody is this user's.
_OWN = (
    "SELECT COLUMN FROM named WHERE COLUMN IN (SELECT COLUMN FROM named WHERE user_id = ?) "
    "GROUP BY COLUMN HAVING count(*) FILTER (user_id <> ?) = 0"
)


def _held(store: Store, column: str, id: str, now_ns: int) -> list[_Held]:
    """What is held of a trace, or a user; empty when there is nothing."""
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
    # The bucket forgets by itself what was started before.
    recent = f"SELECT DISTINCT span_id FROM {{started}} WHERE {going} AND arrived_ns > ?"
    begun = [row[0] for row in store.query(recent, [*values, now_ns - _KEPT_NS], now_ns)]
    others = traces if column == "user_id" else []
    return [_Held(spans, int(newest[0][0] or 0), sessions, others, begun)]
