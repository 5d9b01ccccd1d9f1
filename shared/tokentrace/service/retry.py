"""Retrying while a broker, service or disk is unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from tokentrace.errors import Unavailable

log = structlog.stdlib.get_logger(__name__)

#: Seconds of retrying after which reasons are logged; most outages are shorter.
_COMPLAIN_AFTER_S = 5.0
_MIN_PAUSE_S, _MAX_PAUSE_S, _JITTER_S = 0.05, 1.0, 0.05

T = TypeVar("T")


async def until_available(attempt: Callable[[], Awaitable[T]]) -> T:
    """
    Call *attempt* until it does not raise ``Unavailable``, and return its result or raise its other error.

    The pauses between the calls grow from 50 ms to 1 s, with jitter. After 5 s each distinct reason is logged once.
    There is no limit to the number of calls; a cancellation ends a call or a pause at once.
    """
    started = time.monotonic()
    logged: set[str] = set()

    def may_retry(error: Exception) -> bool:
        if not isinstance(error, Unavailable):
            return False
        reason = str(error)
        if time.monotonic() - started > _COMPLAIN_AFTER_S and reason not in logged:
            logged.add(reason)
            log.warning("still trying: %s", reason)
        return True

    # The first call is made without stamina, which costs more than most attempts do: ingest retries every commit.
    try:
        return await attempt()
    except Unavailable as exc:
        may_retry(exc)
    await asyncio.sleep(_MIN_PAUSE_S)
    # Imported here, because a service that finds everything available starts faster without stamina.
    import stamina
    import stamina.instrumentation

    # By default stamina logs a warning for every retry. Here each reason is logged once.
    stamina.instrumentation.set_on_retry_hooks([])
    retries = stamina.retry_context(
        on=may_retry,
        attempts=None,
        timeout=None,
        wait_initial=_MIN_PAUSE_S * 2,
        wait_max=_MAX_PAUSE_S,
        wait_jitter=_JITTER_S,
    )
    async for retry in retries:
        with retry:
            return await attempt()
    raise AssertionError("stamina ended an unlimited retry")
