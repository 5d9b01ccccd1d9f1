"""A trace: the spans of one logical operation, which travel together when it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, Unpack

from msgspec.structs import replace

from tokentrace.client.fields import SpanFields, as_span, completed, filled, merged, values_of, with_notes
from tokentrace.client.tracing import context
from tokentrace.client.tracing.failures import Failures, failure
from tokentrace.client.tracing.open_span import OpenSpan
from tokentrace.client.tracing.owner import Owner
from tokentrace.client.tracing.propagate import RemoteParent, inject, new_span_id
from tokentrace.records import Span

#: With this many finished spans waiting, an open trace hands them over before its end.
MAX_WAITING = 10_000


class Trace:
    """
    One logical operation, such as the answer to a request. Made by ``Tracer.start`` and ``Tracer.trace``.

    Its spans wait until ``end``, and at most 10,000 of them. All methods can be called from any thread, and none raises
    because of a value. As a block, with ``with`` or ``async with``, it ends at the end of the block, is what
    ``current`` returns inside it, and an exception that leaves the block is recorded unless a span of the trace
    recorded it.

    Args:
        owner: The tracer.
        trace_id: The id of the trace.
        name: The name of spans that have none.
        parent: What called this program; its span is above the topmost spans.
        defaults: Fields of ``Span`` for spans that have no value of their own.
    """

    def __init__(
        self, owner: Owner, trace_id: str, name: str, parent: RemoteParent, defaults: Mapping[str, Any]
    ) -> None:
        self._owner, self._id, self._name, self._parent, self._defaults = owner, trace_id, name, parent, defaults
        self._lock = threading.RLock()
        self._waiting: list[Span] = []
        self._ended = False
        self._before: object = None
        self._failures = Failures()

    @property
    def id(self) -> str:
        """The id of the trace."""
        return self._id

    @property
    def trace_id(self) -> str:
        """The id of the trace, under the name that open spans have for it."""
        return self._id

    @property
    def name(self) -> str:
        """The name of spans that have none."""
        return self._name

    @property
    def session_id(self) -> str | None:
        """The session of the spans; None = none."""
        return self._defaults.get("session_id")

    @property
    def owner(self) -> Owner:
        """The tracer."""
        return self._owner

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Fields of ``Span`` for spans that have no value of their own."""
        return self._defaults

    @property
    def state(self) -> str:
        """``tracestate`` of other vendors, which the caller of this program sent."""
        return self._parent.state

    def record(self, span: Span | None = None, /, **fields: Unpack[SpanFields]) -> Span:
        """
        Record a finished call.

        A field that is not given has a default: the name and the session are those of the trace, the parent is the
        open span of this code, the kind is ``llm`` for a call with a model and ``custom`` otherwise, and the call ended
        now and started its latency before. A value that cannot be used is left out, and ``adjusted`` says so.

        Args:
            span: The call; None = *fields* alone describe it.
            fields: The fields, as ``SpanFields`` describes them; they win over those of *span*.

        Returns:
            The span as it was recorded, with its ids.
        """
        notes: list[str] = []
        values = values_of(fields, notes)
        recorded = as_span(completed(values)) if span is None else merged(span, values)
        recorded = replace(
            recorded,
            trace_id=self._id,
            span_id=recorded.span_id or new_span_id(),
            parent_span_id=recorded.parent_span_id or self.parent_id,
            name=recorded.name or self._name,
        )
        recorded = with_notes(filled(self._timed(recorded), self._defaults), notes)
        self.add(recorded)
        return recorded

    def _timed(self, span: Span) -> Span:
        started, ended = span.started_ns, span.ended_ns
        if not ended:
            ended = started + span.latency_ns if started and span.latency_ns else time.time_ns()
        if not started:
            started = ended - span.latency_ns
        return replace(span, started_ns=started, ended_ns=ended)

    def record_error(self, error: BaseException | str, /, **fields: Unpack[SpanFields]) -> Span:
        """
        Record a call that failed: with the status ``error``, or ``timeout`` for an exception that says so.

        Args:
            error: The exception, or a message.
            fields: Further fields, as ``SpanFields`` describes them.

        Returns:
            The span as it was recorded, with its ids.
        """
        if isinstance(error, BaseException):
            self.failed_with(error)
        described: SpanFields = {**failure(error), **fields}
        return self.record(**described)

    def span(self, name: str, /, **fields: Unpack[SpanFields]) -> OpenSpan:
        """
        Open a span: below the open span of this code, if that belongs to this trace.

        Args:
            name: The name of the span.
            fields: Fields of the span, as ``SpanFields`` describes them. Without a kind, a span that has a model at its
                end is of kind ``llm``, else of kind ``custom``.

        Returns:
            The open span.
        """
        return OpenSpan(self, name, self.parent_id, fields)

    @property
    def parent_id(self) -> str | None:
        """The span above new spans: the open span of this code, or the caller of this program; None = none."""
        inner = context.get()
        if isinstance(inner, OpenSpan) and inner.trace_id == self._id:
            return inner.span_id
        return self._parent.span_id or None

    def end(self) -> None:
        """End the trace and hand its spans over; a second call does nothing. Later spans are handed over at once."""
        with self._lock:
            self._ended = True
        self._hand_over()
        self._owner.forget(self)

    def end_and_flush(self, timeout: float | None = 5.0) -> bool:
        """
        End the trace, and wait until all spans of the tracer are accepted or lost.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        self.end()
        return self._owner.flush(timeout)

    async def aend_and_flush(self, timeout: float | None = 5.0) -> bool:
        """
        Do what ``end_and_flush`` does without blocking the event loop.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return await asyncio.to_thread(self.end_and_flush, timeout)

    def headers(self) -> dict[str, str]:
        """
        Return the headers that make spans of another program part of this trace.

        Returns:
            ``traceparent``, ``tracestate`` and, with a session, ``x-session-id``.
        """
        return inject(self._id, self.parent_id or "", self.session_id, self._parent.state)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """
        Make this trace the current one inside a block, in another thread for example. The trace does not end.

        Returns:
            A context manager; the value of its block is None.
        """
        before = context.enter(self)
        try:
            yield
        finally:
            context.leave(before)

    def add(self, span: Span) -> None:
        """
        Take a finished span of this trace.

        Args:
            span: The span, with its ids and times.
        """
        with self._lock:
            self._waiting.append(span)
            if not self._ended and len(self._waiting) < MAX_WAITING:
                return
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if waiting:
            self._owner.hand_over(waiting)

    def discard(self) -> None:
        """End the trace without its spans: in a forked child, because they are the parent's."""
        self._lock, self._failures = threading.RLock(), Failures()
        self._waiting, self._ended = [], True

    def failed_with(self, error: BaseException) -> bool:
        """
        Take note that a span recorded *error*.

        Args:
            error: The exception.

        Returns:
            True if spans had recorded it before; of a group, each of its exceptions.
        """
        return self._failures.note(error)

    def __del__(self) -> None:
        # A trace that the program forgot to end.
        if getattr(self, "_waiting", None):
            self.end()

    def __enter__(self) -> Self:
        self._before = context.enter(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        context.leave(self._before)
        if isinstance(error, Exception) and not self.failed_with(error):
            self.record_error(error, kind="custom")
        self.end()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)


#: What a new trace or span can be below.
Parent = Trace | OpenSpan | RemoteParent


def current() -> Trace | OpenSpan | None:
    """
    Return what new spans of this task or thread belong to.

    Returns:
        The innermost open span or trace whose block this code is in; None outside of all.
    """
    inner: Trace | OpenSpan | None = context.get()
    return inner
