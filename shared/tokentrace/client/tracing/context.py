"""
The current trace or span of a task or thread.

A context variable holds it, so tasks that asyncio starts inherit it; a new thread does not, and enters it by
``Trace.activate``. Leaving a block restores the value from before, not a token: a token can be used only in the context
that made it, and a generator may be closed in another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: A ``Trace`` or an ``OpenSpan``; None = neither.
_current: ContextVar[Any] = ContextVar("tokentrace_current", default=None)
_suppressed: ContextVar[bool] = ContextVar("tokentrace_suppressed", default=False)


def get() -> Any:
    """Return the current trace or open span, or None."""
    return _current.get()


def enter(value: object) -> Any:
    """Make *value* the current one and return the one before, for ``leave``."""
    before = _current.get()
    _current.set(value)
    return before


def leave(before: object) -> None:
    """Make *before*, which ``enter`` returned, the current one again."""
    _current.set(before)


@contextmanager
def suppress() -> Iterator[None]:
    """
    Track nothing inside the block: calls of instrumented clients make no spans.

    Spans that the program opens or records itself are not affected.

    Returns:
        A context manager; the value of its block is None.
    """
    before = _suppressed.get()
    _suppressed.set(True)
    try:
        yield
    finally:
        _suppressed.set(before)


def is_suppressed() -> bool:
    """Return True inside a block of ``suppress``."""
    return _suppressed.get()
