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
from tokentrace.service.alive import Roll, Seen
from tokentrace.service.call_readers import read_calls, that_differ
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.health import Health
from tokentrace.service.reader_positions import read_backlog
from tokentrace.service.set_aside import read_set_aside
from tokentrace.service.web import TRY_AGAIN, reply
from tokentrace.units import MS, SECOND, nusd_to_usd, render_instant
from tokentrace.version import __version__
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.rejected_history import RejectedHistory
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.health_limits import ReportersState, SeriesState, limits, warnings_of
from tokentrace_api.routes.rejected import RejectedCounts, render_counts
from tokentrace_api.store import Store

#: Services without which spans are not taken or alerts do not fire. The aggregators are asked for their counts, and
#: the api answers itself.
NEEDED = ("ingest", "alerter")
#: A larger skew of a host's clock is a warning, nanoseconds.
MAX_SKEW_NS = 2 * SECOND


class StoreState(Protocol):
    """The api service as this route uses it; ``Api`` implements it."""

    started: float
    roll: Roll

    @property
    def queue_depth(self) -> int:
        """Number of messages in the log that wait to be stored."""
        ...

    def health(self) -> Health:
        """Return what the service waits for; ``missing`` is empty if it is ready."""
        ...

    def details(self) -> dict[str, object]:
        """Return how far the store is behind, and lost messages and damaged files as the answer shows them."""
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


class ServiceState(msgspec.Struct, kw_only=True):
    """
    The processes of one service.

    Attributes:
        processes: Number of processes that answer.
        missing: What all of them wait for before they are ready; absent if one is ready.
    """

    processes: Natural
    missing: list[str] | UnsetType = UNSET


class PipelineHealth(msgspec.Struct, kw_only=True):
    """
    The state of the pipeline.

    Attributes:
        span_count: Number of spans that the aggregators have counted since the stream began.
        stored_spans: Number of rows of spans that the store shows.
        queue_depth: Number of messages in the log that wait to be stored.
        store_behind_s: How long the oldest message that the api has read has waited to be stored, seconds.
        behind_s: Spans of about the last so many seconds are not in the metrics yet; absent below one second.
        services: Service -> its processes.
        clock: Service -> by how much the clock of its host is ahead of the broker's, milliseconds; of several
            processes the one that is furthest off. The broker's clock decides, so a wrong clock changes no number.
        rejected: Refused spans.
        warnings: Readers whose unread messages take more than half of the size limit of the log, or that differ, and
            services whose host's clock is more than 2 s off, and dimensions with too many values.
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
    services: dict[str, ServiceState] | UnsetType = UNSET
    clock: dict[str, float] | UnsetType = UNSET
    rejected: RejectedCounts | UnsetType = UNSET
    store_behind_s: float
    log: LogState | UnsetType = UNSET
    calls: CallsState | UnsetType = UNSET
    reporters: ReportersState | UnsetType = UNSET
    series: SeriesState | UnsetType = UNSET
    behind_s: float | UnsetType = UNSET
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
    "services": {
        "ingest": {"processes": 2},
        "aggregator": {"processes": 1},
        "alerter": {"processes": 1},
        "api": {"processes": 1},
    },
    "clock": {"ingest": 0.4, "aggregator": 0.4, "alerter": -1.2, "api": 0.1},
    "rejected": {"spans": 3, "by_reason": {"model": 3}, "last_at": "2026-03-15T14:23:01.441Z"},
    "store_behind_s": 0.0,
    "log": {"from": "2026-03-15T14:23:01.441Z", "covers_s": 3600, "bytes": 5242880, "max_bytes": 8589934592},
    "calls": {
        "repeated_spans": 12,
        "conflicting_spans": 1,
        "conflicting_cost_usd": 0.0021,
        "response_ids_reused": 0,
        "remembered": 8941,
        "reach_s": 3600,
    },
    "reporters": {"remembered": 12, "limit": 50000, "reach_s": 691200},
    "series": {
        "kept": 84,
        "limit": 2000,
        "dimensions": {
            "model": {"kept": 6, "limit": 500, "folded": 0},
            "provider": {"kept": 3, "limit": 100, "folded": 0},
            "caller": {"kept": 9, "limit": None, "folded": 0},
            "name": {"kept": 31, "limit": None, "folded": 0},
        },
    },
    "disk": {"store_bytes": 4194304, "store_max_bytes": 17179869184, "free_bytes": 107374182400},
}
_HEALTH = operation(
    "getHealth",
    "Get the state of the pipeline",
    """
    503 if a part of the pipeline does not answer or is not ready; `error` names it. Data that is lost, damaged,
    unreadable or refused is listed in any case.
    """,
    Answer(PipelineHealth, "Every part of the pipeline answers.", _EXAMPLE),
    Answer(
        PipelineHealth,
        "A part of the pipeline does not answer.",
        {**_EXAMPLE, "status": "unhealthy", "error": "no aggregator answers"},
        status=503,
        headers={"Retry-After": "Seconds after which to ask again."},
    ),
)


def router(
    path: str,
    state: StoreState,
    store: StoreReader,
    aggregators: AggregatorClient,
    refused: RejectedHistory,
    bus: Bus,
    max_bytes: int,
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
        warnings: list[str] = []
        shown: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "uptime_s": int(time.monotonic() - state.started),
            "span_count": 0,
            "stored_spans": 0,
            "transport": "nats",
            "queue_depth": state.queue_depth,
            "rejected": render_counts(refused),
        }
        # These parts do not depend on each other, and each waits for another program.
        others = await asyncio.gather(
            _or_problem(_counted(aggregators)), _or_problem(_alive(state.roll)), _or_problem(_readers(bus))
        )
        # The store is counted after the others, because the count would be out of date by the time they take.
        for part in (*others, await _or_problem(_stored(store, max_bytes))):
            shown |= part.shown
            lost += map(dict, part.lost)
            # A problem of the broker is one of every service that uses it; it is named once.
            problems += [problem for problem in part.problems if not any(map(problem.endswith, problems))]
            warnings += part.warnings
        if warnings:
            shown["warnings"] = warnings
        shown |= state.details()
        if "differing" in shown:
            shown.setdefault("calls", {})["readers_that_differ"] = shown.pop("differing")
        if lost:
            shown["lost"] = [*shown.get("lost", []), *lost]
        if problems:
            shown["status"] = "unhealthy"
            shown["error"] = "; ".join(dict.fromkeys(problems))
        return reply(shown, 503, TRY_AGAIN) if problems else reply(shown)

    return routes


class _Part(NamedTuple):
    """What one source adds to the answer: keys, lost messages, problems that make the pipeline unhealthy, warnings."""

    shown: Mapping[str, Any]
    lost: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()


async def _or_problem(part: Awaitable[_Part]) -> _Part:
    """Return *part*, or its error as a problem."""
    try:
        return await part
    except TokentraceError as exc:
        return _Part({}, problems=[str(exc)])


async def _counted(aggregators: AggregatorClient) -> _Part:
    """Return what the aggregators have counted, left out and lost, and how much they keep apart and remember."""
    answer = await aggregators.query(Query(what="lifetime"))
    lost = [
        {"service": "aggregator", "shard": shard, "first": first, "last": last}
        for shard, first, last in answer.cumulative.lost
    ]
    problems = [f"aggregator: shard {shard} does not answer" for shard in answer.missing_shards]
    left_out, oldest_ms = answer.cumulative.left_out, answer.cumulative.oldest_call_ms
    now_ms = aggregators.now_ns() // MS
    calls = {
        "repeated_spans": left_out.repeated,
        "conflicting_spans": left_out.conflicting,
        "conflicting_cost_usd": nusd_to_usd(left_out.conflicting_nusd),
        "response_ids_reused": left_out.reused,
        "remembered": answer.cumulative.remembered,
        "reach_s": max(now_ms - oldest_ms, 0) // 1000 if oldest_ms else None,
    }
    shown = {"span_count": answer.total.sums.spans, "calls": calls, **limits(answer, now_ms)}
    return _Part(shown, lost, problems, warnings_of(answer))


async def _alive(roll: Roll) -> _Part:
    """Return the processes of every service, and how far the clocks of their hosts are off."""
    seen = await roll.call()
    services: dict[str, dict[str, Any]] = {}
    clock: dict[str, float] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for name, service in seen.items():
        answers = service.answers
        services[name] = {"processes": len(answers)}
        if not answers:
            if name in NEEDED:
                problems.append(_silent(name, service))
            continue
        if all(answer.missing for answer in answers):
            missing = list(dict.fromkeys(item for answer in answers for item in answer.missing))
            services[name]["missing"] = missing
            if name in NEEDED:
                problems += [f"{name} is not ready: {item}" for item in missing]
        skews = [answer.skew_ns for answer in answers if answer.skew_ns is not None]
        if skews:
            worst_ns = max(skews, key=abs)
            clock[name] = round(worst_ns / MS, 3)
            if abs(worst_ns) > MAX_SKEW_NS:
                off = f"{abs(worst_ns) / SECOND:.1f} s {'ahead of' if worst_ns > 0 else 'behind'} the broker's"
                warnings.append(f"{name}: the clock of its host is {off}; the broker's is used")
    return _Part({"services": services, "clock": clock}, problems=problems, warnings=warnings)


def _silent(name: str, seen: Seen) -> str:
    """Return that no process of the service answers, and since when if it is known."""
    since = "" if seen.silent_s is None else f"; the last one answered {seen.silent_s:.0f} s ago"
    return f"no {name} answers{since}"


async def _stored(store: StoreReader, max_bytes: int) -> _Part:
    """Return the number of spans in the store, and the space of its disk."""

    def read(spans: Store) -> _Part:
        disk = {
            "store_bytes": spans.disk_bytes(),
            "store_max_bytes": max_bytes or None,
            "free_bytes": spans.free_bytes(),
        }
        return _Part({"stored_spans": spans.count(store.now_ns()), "disk": disk})

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
    covered = (bus.clock.now_ns() - state.first_time_ns) // SECOND if state.messages else 0
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
    shown |= _set_aside(bus, entries) | ({"differing": differing} if differing else {})
    return _Part(shown, warnings=warnings)
