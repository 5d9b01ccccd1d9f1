"""Keeps the broker's time of a process measured; ``bus.clock`` tells it to everything that asks for the time."""

from __future__ import annotations

import asyncio

import structlog

from tokentrace.bus import Bus, subjects
from tokentrace.errors import TokentraceError

log = structlog.stdlib.get_logger(__name__)

_MEASURE_EVERY_S = 10.0


async def keep_measured(bus: Bus, stopping: asyncio.Event) -> None:
    """
    Ask the broker for its time every 10 s until *stopping* is set.

    The state of the log is asked for, because its answer names the time of the server that stamps the log's messages.
    """
    stop = asyncio.create_task(stopping.wait())
    try:
        while not stopping.is_set():
            try:
                await bus.state(subjects.SPANS)
            except TokentraceError as exc:
                log.debug("the broker's time was not measured: %s", exc)
            await asyncio.wait([stop], timeout=_MEASURE_EVERY_S)
    finally:
        stop.cancel()
