"""The answer of ``GET /health`` as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.service.contract import Answer, operation
from tokentrace.service.forward_state import ForwardState
from tokentrace.version import __version__
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.health_limits import ReportersState, SeriesState
from tokentrace_api.routes.rejected import RejectedCounts


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
        max_age_s: How long it keeps a message at most, seconds.
        bytes_per_s: How fast it grew in the last ten minutes; null = it was not followed for a minute yet.
        will_cover_s: How far it reaches back once it is full, at this rate, seconds; null = the rate is not known.
    """

    from_: InstantText | None = msgspec.field(name="from")
    covers_s: int
    bytes: Natural
    max_bytes: int
    max_age_s: Natural
    bytes_per_s: float | None
    will_cover_s: Natural | None


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


PartName = Literal["nats", "ingest", "aggregator", "store", "alerter", "log"]


class PartState(msgspec.Struct):
    """
    A part of the pipeline.

    Attributes:
        name: nats, ingest, aggregator, store (of this api), alerter, or log (the readers of the log together).
        ok: False = something is wrong with it, which makes the status unhealthy.
        lag_s: By how much it is behind the log, seconds; null = that is not measured, or not known now.
        detail: What is wrong; warnings if it is ok; "" = nothing.
    """

    name: PartName
    ok: bool
    lag_s: float | None
    detail: str


class PipelineHealth(msgspec.Struct, kw_only=True):
    """
    The state of the pipeline.

    Attributes:
        span_count: Number of spans that the aggregators have counted since the stream began.
        stored_spans: Number of rows of spans that the store shows.
        queue_depth: Number of messages in the log that wait to be stored.
        late_spans: Number of spans that were too old for any window of the metrics when they arrived. They are stored,
            and counted in totals since the beginning.
        clamped_spans: Number of spans that say to have ended over five minutes after they arrived; metrics count them
            at their arrival.
        store_behind_s: How long the oldest message that the api has read has waited to be stored, seconds.
        behind_s: Spans of about the last so many seconds are not in the metrics yet; absent below one second.
        services: Service -> its processes.
        clock: Service -> by how much the clock of its host is ahead of the broker's, milliseconds; of several
            processes the one that is furthest off. The broker's clock decides, so a wrong clock changes no number.
        rejected: Refused spans.
        forward: Target of `otlp.forward` -> its state, of all processes of ingest together; absent without targets.
        warnings: Readers whose unread messages take more than half of the size limit of the log, or that differ, and
            services whose host's clock is more than 2 s off, dimensions with too many values, and targets of
            `otlp.forward` that take nothing, have refused requests, or for which some were lost.
        lost: Messages that the log discarded before a service read them.
        damaged: Files of the store that could not be read.
        error: What is wrong if status is unhealthy.
        parts: The state of each part of the pipeline, always in the same order.
    """

    status: Literal["ok", "unhealthy"]
    version: str
    uptime_s: Natural
    span_count: Natural
    stored_spans: Natural
    late_spans: Natural | UnsetType = UNSET
    clamped_spans: Natural | UnsetType = UNSET
    transport: str
    queue_depth: Natural
    services: dict[str, ServiceState] | UnsetType = UNSET
    clock: dict[str, float] | UnsetType = UNSET
    rejected: RejectedCounts | UnsetType = UNSET
    forward: dict[str, ForwardState] | UnsetType = UNSET
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
    parts: list[PartState]


EXAMPLE = {
    "status": "ok",
    "version": __version__,
    "uptime_s": 3612,
    "span_count": 8941,
    "stored_spans": 8941,
    "late_spans": 0,
    "clamped_spans": 0,
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
    "log": {
        "from": "2026-03-15T14:23:01.441Z",
        "covers_s": 3600,
        "bytes": 5242880,
        "max_bytes": 8589934592,
        "max_age_s": 604800,
        "bytes_per_s": 1456.4,
        "will_cover_s": 604800,
    },
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
    "parts": [
        {"name": "nats", "ok": True, "lag_s": None, "detail": ""},
        {"name": "ingest", "ok": True, "lag_s": None, "detail": ""},
        {"name": "aggregator", "ok": True, "lag_s": 0.0, "detail": ""},
        {"name": "store", "ok": True, "lag_s": 0.0, "detail": ""},
        {"name": "alerter", "ok": True, "lag_s": None, "detail": ""},
        {"name": "log", "ok": True, "lag_s": None, "detail": ""},
    ],
    "disk": {"store_bytes": 4194304, "store_max_bytes": 17179869184, "free_bytes": 107374182400},
}
HEALTH = operation(
    "getHealth",
    "Get the state of the pipeline",
    """
    503 if a part of the pipeline does not answer or is not ready; `error` names it. Data that is lost, damaged,
    unreadable or refused is listed in any case.
    """,
    Answer(PipelineHealth, "Every part of the pipeline answers.", EXAMPLE),
    Answer(
        PipelineHealth,
        "A part of the pipeline does not answer.",
        {**EXAMPLE, "status": "unhealthy", "error": "no aggregator answers"},
        status=503,
        headers={"Retry-After": "Seconds after which to ask again."},
    ),
)
