"""Reports of the data that each process could not decode, in ``tt_meta``, so that ``/health`` of the api shows all."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping

import msgspec
import structlog

from tokentrace.bad_data import Record, reading
from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import TokentraceError
from tokentrace.records import Natural
from tokentrace.units import MINUTE

log = structlog.stdlib.get_logger(__name__)

_PREFIX = "set_aside."
_LOOK_EVERY_S = 1.0
#: An unchanged report is published again after this many seconds; a report older than ``_FORGET_NS`` is ignored.
_AGAIN_S = 30.0
_FORGET_NS = 5 * MINUTE
#: Most records in a report, and in the result of ``read_set_aside``.
_PUBLISHED = 50


class _Report(msgspec.Struct, frozen=True):
    """
    An entry of ``tt_meta``: the data that one process has set aside since it started.

    Attributes:
        told_ns: When the report was made, Unix nanoseconds.
        totals: As ``SetAside.totals``.
        records: The records read last.
    """

    told_ns: Natural
    totals: dict[str, Natural]
    records: list[Record]


async def publish_set_aside(bus: Bus, service: str, stopping: asyncio.Event) -> None:
    """Keep the report of this process up to date until *stopping* is set, then delete it."""
    meta, key = bus.kv(subjects.META), f"{_PREFIX}{service}.{uuid.uuid4().hex}"
    published_at, published = 0.0, _Report(0, {}, [])
    stop = asyncio.create_task(stopping.wait())
    try:
        while not stopping.is_set():
            report = _report(bus)
            changed = (report.totals, report.records) != (published.totals, published.records)
            if changed or (report.totals and time.monotonic() - published_at > _AGAIN_S):
                try:
                    await meta.put(key, msgspec.json.encode(report))
                    published, published_at = report, time.monotonic()
                except TokentraceError as exc:
                    log.debug("%s: %s", key, exc)
            await asyncio.wait([stop], timeout=_LOOK_EVERY_S)
        if published.totals:
            await meta.delete(key)
    except TokentraceError as exc:
        log.debug("%s: %s", key, exc)
    finally:
        stop.cancel()


def _report(bus: Bus) -> _Report:
    return _Report(bus.clock.now_ns(), dict(bus.set_aside.totals), bus.set_aside.records[-_PUBLISHED:])


def read_set_aside(bus: Bus, entries: Mapping[str, Entry]) -> tuple[Mapping[str, int], list[Record]]:
    """
    Return what all processes have set aside: place -> count, and the 50 records read last, newest first.

    Data that several processes have read is in one record. The count of a place is the highest of any process.

    Args:
        entries: The entries of ``tt_meta``.
    """
    now_ns = bus.clock.now_ns()
    reports = [_report(bus)]
    for key, entry in entries.items():
        if key.startswith(_PREFIX):
            which = f"key {key} revision {entry.revision}"
            with bus.set_aside.guard(subjects.META, which), reading("what was set aside"):
                report = msgspec.json.decode(entry.value, type=_Report)
                if report.told_ns > now_ns - _FORGET_NS:
                    reports.append(report)
    totals: Counter[str] = Counter()
    records: dict[tuple[str, str], Record] = {}
    for report in reports:
        totals |= Counter(report.totals)
        for record in report.records:
            known = records.setdefault((record.place, record.which), record)
            if known.last_ns < record.last_ns:
                records[record.place, record.which] = record
    newest = sorted(records.values(), key=lambda record: record.last_ns, reverse=True)
    return dict(sorted(totals.items())), newest[:_PUBLISHED]
