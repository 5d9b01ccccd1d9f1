"""The guard: a fault of tracking is counted, logged once for each place and kind, and never reaches the application."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

log = logging.getLogger("tokentrace.track")
P = ParamSpec("P")
R = TypeVar("R")

_MAX_KINDS = 100
_kinds: set[str] = set()
#: One item for each fault. Neither this nor the set needs a lock, which a forked child might find held.
_faults: deque[None] = deque()


def faults() -> int:
    """Return how many faults of tracking this process had."""
    return len(_faults)


def report_fault(where: str, error: Exception) -> None:
    """Count *error*, a fault of tracking itself, and log it if it is the first of its kind at *where*."""
    kind = f"{where}: {type(error).__name__}"
    _faults.append(None)
    known = kind in _kinds or len(_kinds) >= _MAX_KINDS
    _kinds.add(kind)
    if not known:
        log.warning("a call was not tracked as it should be: %s: %s", kind, error, exc_info=error)


def safely(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """Return what *function* returns; None if it raises an Exception, which is reported as a fault."""
    try:
        return function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - the application must not notice a fault of tracking
        # A log handler of the application may fail too.
        with suppress(Exception):
            report_fault(getattr(function, "__qualname__", repr(function)), exc)
        return None


async def asafely(function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """Do what ``safely`` does for a coroutine function."""
    try:
        return await function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - the application must not notice a fault of tracking
        with suppress(Exception):
            report_fault(getattr(function, "__qualname__", repr(function)), exc)
        return None


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Make *function* return None where it would raise an Exception, which is reported as a fault."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return safely(function, *args, **kwargs)

    return call
