"""``DELETE /traces/{id}`` and ``DELETE /api/users/{id}``: gone from every answer at once, and for good."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.bus import subjects
from tokentrace.errors import Rejected
from tokentrace.http import reply
from tokentrace.records import Batch, Tombstone, encode_batches
from tokentrace.units import render_instant
from tokentrace_api.routes.parameters import parameters
from tokentrace_api.store import Store

if TYPE_CHECKING:
    from tokentrace_api.service import Api


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
    held = await api.find(lambda store: _held(store, column, id, now_ns))
    if not held:
        raise Rejected(f"{column.removesuffix('_id')} not found", status=404)
    spans, newest_ns, sessions = held[0]
    stones = [Tombstone(target="trace" if column == "trace_id" else "user", id=id, deleted_ns=now_ns)]
    # What was said in a user's sessions names nobody: it goes with the session.
    stones += [Tombstone(target="session", id=session, deleted_ns=now_ns) for session in sessions]
    batch = Batch(id=f"delete.{uuid.uuid4().hex}", tombstones=stones)
    await api.bus.publish(subjects.tombstones(api.config.project), encode_batches([batch]), id=batch.id)
    await api.bury(api.store, stones)
    return {
        "deleted": True,
        **named,
        "span_count": spans,
        "log_aged_out_by": render_instant(newest_ns + api.config.log_keeps_ns),
    }


def _held(store: Store, column: str, id: str, now_ns: int) -> list[tuple[int, int, list[str]]]:
    """(Spans, arrival of the newest, sessions that are the user's); empty when there is nothing."""
    counted = []
    for table in ("spans", "started"):
        rows = store.query(f"SELECT count(*), max(arrived_ns) FROM {{{table}}} WHERE {column} = ?", [id], now_ns)
        counted += [(int(count), int(newest or 0)) for count, newest in rows]
    if not any(count for count, _ in counted):
        return []
    sessions: list[str] = []
    if column == "user_id":
        both = " UNION ".join(
            f"SELECT session_id FROM {{{table}}} WHERE user_id = ? AND session_id IS NOT NULL"
            for table in ("spans", "started")
        )
        sessions = sorted(row[0] for row in store.query(both, [id, id], now_ns))
    return [(counted[0][0] if counted else 0, max(newest for _, newest in counted), sessions)]
