"""``GET /health``: the state of the whole pipeline, as the api sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import TokentraceError
from tokentrace.metrics import Query
from tokentrace.service.call_readers import read_calls, that_differ
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.health import Health
from tokentrace.service.reader_positions import read_backlog
from tokentrace.service.set_aside import read_set_aside
from tokentrace.service.web import reply
from tokentrace.units import MS, SECOND, nusd_to_usd, render_instant
from tokentrace.version import __version__
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.store import Store


class StoreState(Protocol):
    """The api service as this route uses it; ``Api`` implements it."""

    started: float

    @property
    def queue_depth(self) -> int:
        """Number of messages in the log that wait to be stored."""
        ...

    def health(self) -> Health:
        """Return what the service waits for; ``missing`` is empty if it is ready."""
        ...

    def details(self) -> dict[str, object]:
        """Return the lost messages and damaged files as the answer shows them; a key without entries is left out."""
        ...


class LostMessages(msgspec.Struct):
    """
    Messages of a shard that the log discarded before a service read them: sequence numbers *first* to *last*.

    Attributes:
        service: ``aggregator``; absent = the api.
    """

    shard: int
    first: int
    last: int
    service: str | UnsetType = UNSET


class LogState(msgspec.Struct):
    """
    What the log holds.

    Attributes:
        from_: When its oldest message was stored; null = the log is empty.
        covers_s: Seconds since that instant.
    """

    from_: InstantText | None = msgspec.field(name="from")
    covers_s: int
    bytes: Natural
    max_bytes: int


class DiskState(msgspec.Struct):
    """The size of the files of the store, its limit (null = none), and the free space on the disk."""

    store_bytes: Natural
    store_max_bytes: Natural | None
    free_bytes: Natural


class SetAsideRecord(msgspec.Struct):
    """
    Data that could not be decoded.

    Attributes:
        place: The stream, bucket, request subject or store that holds it.
        which: Which message, key or file it is.
        reason: Why it cannot be decoded.
        count: How often it was read.
        last_at: When it was last read.
    """

    place: str
    which: str
    reason: str
    count: Natural
    last_at: InstantText


class CallsState(msgspec.Struct, kw_only=True):
    """
    How calls that were told more than once were counted: once, by the first telling.

    Attributes:
        repeated_spans: Number of spans that told a call again.
        conflicting_spans: Number of those with another usage or cost than the first telling.
        conflicting_cost_usd: Sum of the costs of the conflicting spans, which no sum contains, US dollars.
        response_ids_reused: Number of spans that were counted although another call had the same response id.
        remembered: Number of calls that are recognised when they are told again.
        reach_s: How long ago the oldest of them started, seconds; null = none is remembered.
        readers_that_differ: Readers that remember other calls than most readers at the same message of the log.
    """

    repeated_spans: Natural
    conflicting_spans: Natural
    conflicting_cost_usd: float
    response_ids_reused: Natural
    remembered: Natural
    reach_s: Natural | None
    readers_that_differ: list[str] | UnsetType = UNSET


class SetAsideState(msgspec.Struct):
    """Data in streams, buckets, objects and files that could not be decoded: counts, and the newest records."""

    total: Natural
    places: dict[str, Natural]
    newest: list[SetAsideRecord]


class PipelineHealth(msgspec.Struct, kw_only=True):
    """
    The state of the pipeline.

    Attributes:
        span_count: Number of spans that the aggregators have counted since the stream began.
        stored_spans: Number of rows of spans that the store shows.
        queue_depth: Number of messages in the log that wait to be stored.
        warnings: Readers whose unread messages take more than half of the size limit of the log, or that differ.
        lost: Messages that the log discarded before a service read them.
        damaged: Files of the store that could not be read.
        error: What is wrong if status is unhealthy.
    """

    status: Literal["ok", "unhealthy"]
    version: str
    uptime_s: Natural
    span_count: Natural
    stored_spans: Natural
    transport: str
    queue_depth: Natural
    log: LogState | UnsetType = UNSET
    calls: CallsState | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    set_aside: SetAsideState | UnsetType = UNSET
    disk: DiskState | UnsetType = UNSET
    lost: list[LostMessages] | UnsetType = UNSET
    damaged: Any = UNSET
    error: str | UnsetType = UNSET


_EXAMPLE = {
    "status": "ok",
    "version": __version__,
    "uptime_s": 3612,
    "span_count": 8941,
    "stored_spans": 8941,
    "transport": "nats",
    "queue_depth": 0,
    "log": {"from": "2026-03-15T14:23:01.441Z", "covers_s": 3600, "bytes": 5242880, "max_bytes": 8589934592},
    "calls": {
        "repeated_spans": 12,
        "conflicting_spans": 1,
        "conflicting_cost_usd": 0.0021,
        "response_ids_reused": 0,
        "remembered": 8941,
        "reach_s": 3600,
    },
    "disk": {"store_bytes": 4194304, "store_max_bytes": 17179869184, "free_bytes": 107374182400},
}
_HEALTH = operation(
    "getHealth",
    "Get the state of the pipeline",
    "503 if a part of the pipeline does not answer. Data that is lost, damaged or unreadable is listed in any case.",
    Answer(PipelineHealth, "Every part of the pipeline answers.", _EXAMPLE),
    Answer(
        PipelineHealth,
        "A part of the pipeline does not answer.",
        {**_EXAMPLE, "status": "unhealthy", "error": "no aggregator answers"},
        status=503,
    ),
)


def router(
    path: str, state: StoreState, store: StoreReader, aggregators: AggregatorClient, bus: Bus, max_bytes: int
) -> Router:
    """
    Return the route at *path*.

    Args:
        max_bytes: Maximum size of the files of the store, bytes; 0 = no limit.
    """
    routes = Router("service", lenient=True)

    @routes.get(path, **_HEALTH)
    async def health() -> Response:
        problems: list[str] = list(state.health().missing)
        lost: list[dict[str, Any]] = []
        shown: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "uptime_s": int(time.monotonic() - state.started),
            "span_count": 0,
            "stored_spans": 0,
            "transport": "nats",
            "queue_depth": state.queue_depth,
        }
        # These parts do not depend on each other, and each waits for another program.
        others = await asyncio.gather(_or_problem(_counted(aggregators)), _or_problem(_readers(bus)))
        # The store is counted after the others, because the count would be out of date by the time they take.
        for part in (*others, await _or_problem(_stored(store, max_bytes))):
            shown |= part.shown
            lost += map(dict, part.lost)
            problems += part.problems
        shown |= state.details()
        if "differing" in shown:
            shown.setdefault("calls", {})["readers_that_differ"] = shown.pop("differing")
        if lost:
            shown["lost"] = [*shown.get("lost", []), *lost]
        if problems:
            shown["status"] = "unhealthy"
            shown["error"] = "; ".join(dict.fromkeys(problems))
        return reply(shown, 503 if problems else 200)

    return routes


class _Part(NamedTuple):
    """What one source adds to the answer: keys, lost messages, and problems that make the pipeline unhealthy."""

    shown: Mapping[str, Any]
    lost: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()


async def _or_problem(part: Awaitable[_Part]) -> _Part:
    """Return *part*, or its error as a problem."""
    try:
        return await part
    except TokentraceError as exc:
        return _Part({}, problems=[str(exc)])


async def _counted(aggregators: AggregatorClient) -> _Part:
    """Return the number of spans that the aggregators have counted, what they left out, and messages that they lost."""
    answer = await aggregators.query(Query(what="lifetime"))
    lost = [
        {"service": "aggregator", "shard": shard, "first": first, "last": last}
        for shard, first, last in answer.cumulative.lost
    ]
    problems = [f"aggregator: shard {shard} does not answer" for shard in answer.missing_shards]
    left_out, oldest_ms = answer.cumulative.left_out, answer.cumulative.oldest_call_ms
    calls = {
        "repeated_spans": left_out.repeated,
        "conflicting_spans": left_out.conflicting,
        "conflicting_cost_usd": nusd_to_usd(left_out.conflicting_nusd),
        "response_ids_reused": left_out.reused,
        "remembered": answer.cumulative.remembered,
        "reach_s": max(time.time_ns() // MS - oldest_ms, 0) // 1000 if oldest_ms else None,
    }
    return _Part({"span_count": answer.total.sums.spans, "calls": calls}, lost, problems)


async def _stored(store: StoreReader, max_bytes: int) -> _Part:
    """Return the number of spans in the store, and the space of its disk."""

    def read(spans: Store) -> _Part:
        disk = {
            "store_bytes": spans.disk_bytes(),
            "store_max_bytes": max_bytes or None,
            "free_bytes": spans.free_bytes(),
        }
        return _Part({"stored_spans": spans.count(time.time_ns()), "disk": disk})

    return await store.read(read)


def _set_aside(bus: Bus, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the key ``set_aside`` with the data that could not be decoded; no key if there is none."""
    totals, records = read_set_aside(bus, entries)
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


async def _readers(bus: Bus) -> _Part:
    """Return what ``tt_meta`` and the log tell of the readers: how far they are, what differs, what was set aside."""
    entries = await bus.kv(subjects.META).items()
    state, behind = await read_backlog(bus, entries)
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
    differing = that_differ(read_calls(entries, bus.set_aside))
    warnings = [f"{reader} is behind by {part:.0%} of the log's size limit" for reader, part in late.items()]
    warnings += [f"{reader} remembers other calls than the other readers" for reader in differing]
    if warnings:
        shown["warnings"] = warnings
    return _Part(shown | _set_aside(bus, entries) | ({"differing": differing} if differing else {}))
