"""``GET /health``: is the whole pipeline well, as far as the api can see."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.metrics import Query
from tokentrace.service.reader_positions import read_backlog
from tokentrace.service.set_aside import read_set_aside
from tokentrace.service.web import reply
from tokentrace.units import SECOND, render_instant
from tokentrace.version import __version__

if TYPE_CHECKING:
    from tokentrace_api.service import Api


def routes(api: Api) -> list[BaseRoute]:
    """The route of the pipeline's health."""

    async def health(_: Request) -> Response:
        problems: list[str] = list(api.health().missing)
        lost: list[dict[str, Any]] = []
        shown: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "uptime_s": int(time.monotonic() - api.started),
            "span_count": 0,
            "stored_spans": 0,
            "transport": "nats",
            "queue_depth": api.store_writer.queue_depth,
        }
        try:
            answer = await api.aggregators.query(Query(what="lifetime"))
            shown["span_count"] = answer.total.sums.spans
            lost = [
                {"service": "aggregator", "shard": shard, "first": first, "last": last}
                for shard, first, last in answer.cumulative.lost
            ]
            problems += [f"aggregator: shard {shard} does not answer" for shard in answer.missing_shards]
        except Unavailable as exc:
            problems.append(str(exc))
        try:
            shown |= await _log(api)
        except TokentraceError as exc:
            problems.append(str(exc))
        try:
            shown |= await _set_aside(api)
        except TokentraceError as exc:
            problems.append(str(exc))
        try:
            shown["stored_spans"] = await api.read(lambda store: store.count(time.time_ns()))
            shown["disk"] = await api.read(
                lambda store: {
                    "store_bytes": store.disk_bytes(),
                    "store_max_bytes": api.config.max_bytes or None,
                    "free_bytes": store.free_bytes(),
                }
            )
        except Unavailable as exc:
            problems.append(str(exc))
        shown |= api.details()
        if lost:
            shown["lost"] = [*shown.get("lost", []), *lost]
        if problems:
            shown["status"] = "unhealthy"
            shown["error"] = "; ".join(dict.fromkeys(problems))
        return reply(shown, 503 if problems else 200)

    return [Route(api.config.health_path, health)]


async def _set_aside(api: Api) -> dict[str, Any]:
    """What could not be read in streams, buckets, objects and files: named, and no reason to be unhealthy."""
    totals, records = await read_set_aside(api.bus)
    if not totals:
        return {}
    newest = [
        {
            "place": record.place,
            "which": record.which,
            "reason": record.reason,
            "count": record.count,
            "last_at": render_instant(record.last_ns),
        }
        for record in records
    ]
    return {"set_aside": {"total": sum(totals.values()), "places": totals, "newest": newest}}


async def _log(api: Api) -> dict[str, Any]:
    """What the stream covers, and which readers are more than half of it behind."""
    state, behind = await read_backlog(api.bus)
    covered = (time.time_ns() - state.first_time_ns) // SECOND if state.messages else 0
    shown: dict[str, Any] = {
        "log": {
            "from": render_instant(state.first_time_ns) if state.messages else None,
            "covers_s": covered,
            "bytes": state.bytes,
            "max_bytes": state.max_bytes,
        }
    }
    late = {reader: part for reader, part in behind.items() if part > 0.5}
    if late:
        shown["warnings"] = [f"{reader} is {part:.0%} of the log behind" for reader, part in late.items()]
    return shown
