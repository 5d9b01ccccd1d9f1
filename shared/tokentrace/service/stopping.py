"""Waiting for a result, but only until the program is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

#: Seconds after which a cancellation is repeated, because asyncio.wait_for in nats-py can lose one in Python 3.11.
_REPEAT_S = 0.5

T = TypeVar("T")


class Stopped(Exception):
    """The program was stopped before the work that it waited for had a result."""


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """
    Return the result of *work* or raise its error; cancel *work* when *stopping* is set.

    Raises:
        Stopped: *stopping* is set, and *work* was cancelled or failed.
    """
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_REPEAT_S)
    failed = task.cancelled() or task.exception() is not None
    if failed and stopping.is_set():
        raise Stopped
    return task.result()
