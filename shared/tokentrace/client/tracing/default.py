"""The tracer that programs use without making one, and the functions that use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, Unpack, overload

from tokentrace.client.tracing.starting import TraceFields
from tokentrace.client.tracing.trace import Trace
from tokentrace.client.tracing.traced import decorate
from tokentrace.client.tracing.tracer import Tracer
from tokentrace.records import Kind

F = TypeVar("F", bound=Callable[..., Any])
_lock = threading.RLock()
_tracer: Tracer | None = None


def default_tracer() -> Tracer:
    """
    Return the tracer of ``start``, ``traced`` and ``instrument``; it is made at the first use.

    Without ``set_default_tracer`` the environment variables ``TOKENTRACE_URL``, ``TOKENTRACE_SOURCE``,
    ``TOKENTRACE_PROJECT`` and ``TOKENTRACE_TOKEN`` describe it.

    Returns:
        The tracer.
    """
    global _tracer
    with _lock:
        if _tracer is None:
            _tracer = Tracer()
        return _tracer


def set_default_tracer(tracer: Tracer | None) -> None:
    """
    Make *tracer* the one that ``default_tracer`` returns.

    Args:
        tracer: The tracer; None = a new one is made from the environment at the next use.
    """
    global _tracer
    with _lock:
        _tracer = tracer


def start(name: str, **fields: Unpack[TraceFields]) -> Trace:
    """
    Start a trace of the default tracer.

    Args:
        name: The name of the operation, and of spans that have no name of their own.
        fields: The other arguments of ``Tracer.start``.

    Returns:
        The trace.
    """
    return default_tracer().start(name, **fields)


@overload
def traced(fn: F) -> F: ...


@overload
def traced(fn: None = None, *, name: str | None = None, kind: Kind = "custom") -> Callable[[F], F]: ...


def traced(fn: F | None = None, *, name: str | None = None, kind: Kind = "custom") -> F | Callable[[F], F]:
    """
    Make a span of each call of a function, by the default tracer: ``@traced`` or ``@traced(kind="tool")``.

    Args:
        fn: A function, a coroutine function, a generator or an asynchronous generator.
        name: The name of the spans; None = the qualified name of the function.
        kind: The kind of the spans.

    Returns:
        A function of the same kind and signature, or a decorator that makes one.
    """
    result: F | Callable[[F], F] = decorate(default_tracer, fn, name, kind)
    return result
