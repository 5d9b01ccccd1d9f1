"""``GET /health``: the state of the whole pipeline, as the api sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.responses import Response

from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import TokentraceError
from tokentrace.metrics import Query
from tokentrace.service.alive import Roll, Seen
from tokentrace.service.call_readers import read_calls, that_differ
from tokentrace.service.contract import Router
from tokentrace.service.forward_state import add_up
from tokentrace.service.forward_state import warnings_of as warnings_of_targets
from tokentrace.service.health import Health
from tokentrace.service.reader_positions import read_backlog
from tokentrace.service.set_aside import read_set_aside
from tokentrace.service.web import TRY_AGAIN, reply
from tokentrace.units import MS, SECOND, nusd_to_usd, render_instant
from tokentrace.version import __version__
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.log_coverage import LogCoverage
from tokentrace_api.rejected_history import RejectedHistory
from tokentrace_api.routes.health_answer import HEALTH, PartName, PartState
from tokentrace_api.routes.health_limits import limits, warnings_of
from tokentrace_api.routes.rejected import render_counts
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
    log_coverage: LogCoverage

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

    @routes.get(path, **HEALTH)
    async def health() -> Response:
        own = state.health().missing
        problems: list[str] = list(own)
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
            _or_problem(_counted(aggregators)),
            _or_problem(_alive(state.roll)),
            _or_problem(_readers(bus, state.log_coverage)),
        )
        # The store is counted after the others, because the count would be out of date by the time they take.
        stored = await _or_problem(_stored(store, max_bytes))
        for part in (*others, stored):
            shown |= part.shown
            lost += map(dict, part.lost)
            # A problem of the broker is one of every service that uses it; it is named once.
            problems += [problem for problem in part.problems if not any(map(problem.endswith, problems))]
            warnings += part.warnings
        if warnings:
            shown["warnings"] = warnings
        shown |= state.details()
        shown["parts"] = _states(bus, own, shown, *others, stored)
        if "differing" in shown:
            shown.setdefault("calls", {})["readers_that_differ"] = shown.pop("differing")
        if lost:
            shown["lost"] = [*shown.get("lost", []), *lost]
        if problems:
            shown["status"] = "unhealthy"
            shown["error"] = "; ".join(dict.fromkeys(problems))
        return reply(shown, 503, TRY_AGAIN) if problems else reply(shown)

    return routes


def _states(
    bus: Bus, own: Sequence[str], shown: Mapping[str, Any], counted: _Part, alive: _Part, readers: _Part, stored: _Part
) -> list[PartState]:
    """
    Return the state of each part of the pipeline, as its spans pass it.

    Args:
        own: What this api waits for: problems of the broker, and those of the store.
        shown: The answer so far.
        counted, alive, readers, stored: What each source of the answer adds.
    """
    store = list(dict.fromkeys([*(item for item in own if item not in bus.problems), *stored.problems]))
    counts = "span_count" in counted.shown
    ingest, alerter = ([problem for problem in alive.problems if _is_about(problem, name)] for name in NEEDED)
    # The processes are asked over the broker: without an answer at all, nothing is known of any.
    unknown = [problem for problem in alive.problems if not any(_is_about(problem, name) for name in NEEDED)]
    return [
        _state("nats", bus.problems, (), None),
        _state("ingest", [*ingest, *unknown], _about(alive.warnings, "ingest"), None),
        _state("aggregator", counted.problems, counted.warnings, shown.get("behind_s", 0.0) if counts else None),
        _state("store", store, (), shown["store_behind_s"]),
        _state("alerter", [*alerter, *unknown], _about(alive.warnings, "alerter"), None),
        _state("log", readers.problems, readers.warnings, None),
    ]


def _is_about(problem: str, name: str) -> bool:
    return problem.startswith((f"no {name} answers", f"{name} is not ready"))


def _about(warnings: Sequence[str], name: str) -> list[str]:
    return [warning for warning in warnings if warning.startswith(f"{name}:")]


def _state(name: PartName, problems: Sequence[str], warnings: Sequence[str], lag_s: float | None) -> PartState:
    return PartState(name, not problems, lag_s, "; ".join([*problems, *warnings]))


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
    shown = {
        "span_count": answer.total.sums.spans,
        "late_spans": answer.cumulative.late,
        "clamped_spans": answer.cumulative.clamped,
        "calls": calls,
        **limits(answer, now_ms),
    }
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
    targets = add_up(answer.forward for service in seen.values() for answer in service.answers)
    warnings += warnings_of_targets(targets)
    shown = {"services": services, "clock": clock} | ({"forward": targets} if targets else {})
    return _Part(shown, problems=problems, warnings=warnings)


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


async def _readers(bus: Bus, coverage: LogCoverage) -> _Part:
    """Return what ``tt_meta`` and the log tell of the readers: how far they are, what differs, what was set aside."""
    entries = await bus.kv(subjects.META).items()
    state, behind = await read_backlog(bus, entries)
    rate = coverage.bytes_per_s(state)
    covered = (bus.clock.now_ns() - state.first_time_ns) // SECOND if state.messages else 0
    shown: dict[str, Any] = {
        "log": {
            "from": render_instant(state.first_time_ns) if state.messages else None,
            "covers_s": covered,
            "bytes": state.bytes,
            "max_bytes": state.max_bytes,
            "max_age_s": coverage.keeps_ns // SECOND,
            "bytes_per_s": None if rate is None else round(rate, 1),
            "will_cover_s": coverage.will_cover_s(state),
        }
    }
    late = {reader: part for reader, part in behind.items() if part > 0.5}
    differing = that_differ(read_calls(entries, bus.set_aside))
    warnings = [f"{reader} is behind by {part:.0%} of the log's size limit" for reader, part in late.items()]
    warnings += [f"{reader} remembers other calls than the other readers" for reader in differing]
    shown |= _set_aside(bus, entries) | ({"differing": differing} if differing else {})
    return _Part(shown, warnings=warnings)
