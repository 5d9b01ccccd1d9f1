"""
The span of one call that the program makes itself, told to a service of sessions or to a tracer.

What a program passes in to be called, such as ``start_span``, may fail: that is logged, and the call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from tokentrace.client.tracing import OpenSpan, Parent, Trace, Tracer
from tokentrace.client.track.faults import safely

Json = dict[str, Any]


class TraceContext(NamedTuple):
    """
    Where a call of a request belongs.

    Attributes:
        session_id: The session of the request.
        trace_id: The id of the span that the request has, as ``start_span`` returned it.
        parent_id: The span above that one; None = there is none.
    """

    session_id: str
    trace_id: str
    parent_id: str | None = None


class Started(Protocol):
    """What ``start_span`` returns."""

    @property
    def trace_id(self) -> str:
        """The id of the span."""
        ...

    @property
    def session_id(self) -> str:
        """The session of the span."""
        ...


class Observer(Protocol):
    """Reports one call to a service or a tracer. Its methods raise no Exception."""

    def say(self, role: str, content: str) -> None:
        """Record a message of the call."""
        ...

    def end(self, response: object, told: Json) -> None:
        """End the span with what the provider answered; *told* are arguments of ``end_span``."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the span with what was raised."""
        ...


class ServiceObserver:
    """
    Tells a service of sessions.

    Args:
        started: What ``start_span`` returned.
        end_span: The method of the service; None = it is not told of the end.
        record_message: The method of the service; None = messages are not recorded.
    """

    def __init__(
        self,
        started: Started,
        end_span: Callable[..., object] | None,
        record_message: Callable[..., object] | None,
    ) -> None:
        self._started, self._end_span, self._record_message = started, end_span, record_message
        self._clock_ns = time.perf_counter_ns()

    def say(self, role: str, content: str) -> None:
        """Record a message of the call."""
        if self._record_message is not None:
            safely(self._record_message, self._started.session_id, self._started.trace_id, role, content)

    def end(self, response: object, told: Json) -> None:
        """End the span with what *told* says."""
        self._end(**{**told, "metadata": {"latency": self._latency_ms(), **told.get("metadata", {})}})

    def fail(self, error: BaseException) -> None:
        """End the span with what was raised."""
        self._end(status="error", error=error, metadata={"latency": self._latency_ms()})

    def _end(self, **told: Any) -> None:
        if self._end_span is not None:
            safely(self._end_span, self._started.trace_id, **told)

    def _latency_ms(self) -> int:
        return (time.perf_counter_ns() - self._clock_ns) // 1_000_000


class SpanObserver:
    """
    Tells a tracer.

    Args:
        span: The open span of the call.
    """

    def __init__(self, span: OpenSpan) -> None:
        self._span = span

    def say(self, role: str, content: str) -> None:
        """Do nothing: a span of a tracer has no messages."""

    def end(self, response: object, told: Json) -> None:
        """End the span; the usage is that of *response*."""
        safely(self._span.usage, response)
        safely(lambda: self._span.set(attributes=told.get("metadata")))
        safely(self._span.end)

    def fail(self, error: BaseException) -> None:
        """End the span with what was raised."""
        safely(self._span.fail, error)
        safely(self._span.end)


def observe(
    name: str,
    metadata: Mapping[str, Any],
    context: object,
    *,
    tracer: Tracer | None = None,
    start_span: Callable[..., Started] | None = None,
    end_span: Callable[..., object] | None = None,
    record_message: Callable[..., object] | None = None,
    model: str = "",
    provider: str = "",
) -> Observer | None:
    """
    Start the span of a call.

    Args:
        name: The name of the span.
        metadata: What is known of the call before it is made; None is left out.
        context: Where the call belongs: a trace, an open span, a ``TraceContext`` or an object or mapping like it.
        tracer: Where the span goes if *context* is no part of a trace.
        start_span, end_span, record_message: Methods of a service of sessions.
        model, provider: What is called.

    Returns:
        None if there is neither a context nor a tracer, or if the span cannot be started.
    """
    given = {key: value for key, value in metadata.items() if value is not None}
    if isinstance(context, Trace | OpenSpan) or (context is None and start_span is None and tracer is not None):
        opened = safely(_open, tracer, context, name, model, provider, given)
        return SpanObserver(opened) if opened is not None else None
    if context is None or start_span is None:
        return None
    started = safely(
        start_span,
        name,
        "llm",
        session_id=_part(context, "session_id", "sessionId"),
        parent_id=_part(context, "trace_id", "traceId"),
        metadata=given,
    )
    return ServiceObserver(started, end_span, record_message) if started is not None else None


def _open(
    tracer: Tracer | None, parent: Parent | None, name: str, model: str, provider: str, given: Json
) -> OpenSpan | None:
    if isinstance(parent, Trace | OpenSpan):
        return parent.span(name, kind="llm", model=model or None, provider=provider or None, attributes=given)
    if tracer is None:
        return None
    return tracer.span(name, kind="llm", model=model or None, provider=provider or None, attributes=given)


def _part(context: object, *names: str) -> str | None:
    """Return the id in *context* that has one of *names*."""
    for name in names:
        value = context.get(name) if isinstance(context, Mapping) else getattr(context, name, None)
        if isinstance(value, str) and value:
            return value
    return None
