"""What every process could not read, brought together in ``tt_meta``: so ``/health`` of the api names all of it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping

import msgspec

from tokentrace.bad_data import Record, SetAside, reading
from tokentrace.bus import Bus, subjects
from tokentrace.errors import TokentraceError
from tokentrace.records import Natural
from tokentrace.units import MINUTE

log = logging.getLogger(__name__)

_PREFIX = "set_aside."
_LOOK_EVERY_S = 1.0
#: What has not changed is told again so often, and is forgotten when it has not been for ``_FORGET_NS``.
_AGAIN_S = 30.0
_FORGET_NS = 5 * MINUTE
#: Records of one process that are told.
_TOLD = 50


class _Told(msgspec.Struct, frozen=True):
    """An entry of ``tt_meta``: what one process has set aside since it started."""

    told_ns: Natural
    totals: dict[str, Natural]
    records: list[Record]


async def tell_set_aside(bus: Bus, service: str, stopping: asyncio.Event) -> None:
    """Keep the entry of this process up to date until *stopping* is set; it goes with the process."""
    meta, key = bus.kv(subjects.META), f"{_PREFIX}{service}.{uuid.uuid4().hex}"
    told_at, told = 0.0, _Told(0, {}, [])
    stop = asyncio.create_task(stopping.wait())
    try:
        while not stopping.is_set():
            now = _told_of(bus.set_aside)
            changed = (now.totals, now.records) != (told.totals, told.records)
            if changed or (now.totals and time.monotonic() - told_at > _AGAIN_S):
                try:
                    await meta.put(key, msgspec.json.encode(now))
                    told, told_at = now, time.monotonic()
                except TokentraceError as exc:
                    log.debug("%s: %s", key, exc)
            await asyncio.wait([stop], timeout=_LOOK_EVERY_S)
        if told.totals:
            await meta.delete(key)
    except TokentraceError as exc:
        log.debug("%s: %s", key, exc)
    finally:
        stop.cancel()


def _told_of(found: SetAside) -> _Told:
    return _Told(time.time_ns(), dict(found.totals), found.records[-_TOLD:])


async def read_set_aside(bus: Bus) -> tuple[Mapping[str, int], list[Record]]:
    """
    What all processes could not read: place -> how much of it, and the records met last, newest first.

    Of one thing that several processes have met there is one record; a place's number is the highest any tells.

    Raises:
        Unavailable: The broker is away.
    """
    now_ns = time.time_ns()
    everyone = [_told_of(bus.set_aside)]
    for key, entry in (await bus.kv(subjects.META).items()).items():
        if key.startswith(_PREFIX):
            which = f"key {key} revision {entry.revision}"
            with bus.set_aside.guard(subjects.META, which), reading("what was set aside"):
                told = msgspec.json.decode(entry.value, type=_Told)
                if told.told_ns > now_ns - _FORGET_NS:
                    everyone.append(told)
    totals: Counter[str] = Counter()
    records: dict[tuple[str, str], Record] = {}
    for told in everyone:
        totals |= Counter(told.totals)
        for record in told.records:
            held = records.setdefault((record.place, record.which), record)
            if held.last_ns < record.last_ns:
                records[record.place, record.which] = record
    newest = sorted(records.values(), key=lambda record: record.last_ns, reverse=True)
    return dict(sorted(totals.items())), newest[:_TOLD]
