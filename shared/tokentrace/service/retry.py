"""Trying again while the world is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tokentrace.errors import Unavailable

log = logging.getLogger(__name__)


_COMPLAIN_AFTER_S = 5.0


T = TypeVar("T")


async def until_available(attempt: Callable[[], Awaitable[T]]) -> T:
    """What *attempt* returns, tried again with growing pauses while the world is away; each reason is logged once."""
    pause = 0.05
    started = time.monotonic()
    told: set[str] = set()
    while True:
        try:
            return await attempt()
        except Unavailable as exc:
            if time.monotonic() - started > _COMPLAIN_AFTER_S and str(exc) not in told:
                told.add(str(exc))
                log.warning("still trying: %s", exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
