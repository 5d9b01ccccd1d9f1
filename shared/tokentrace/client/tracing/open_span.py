"""A span that is still running: it measures its time, and becomes a span when it ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, Self, Unpack

from tokentrace.client.fields import SpanFields, as_span, completed, filled, note, values_of, with_notes
from tokentrace.client.tracing import context
from tokentrace.client.tracing.failures import failure
from tokentrace.client.tracing.propagate import inject, new_span_id
from tokentrace.records import Span


class Home(Protocol):
    """The trace that an open span belongs to."""

    @property
    def id(self) -> str:
        """The id of the trace."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Fields of ``Span`` for spans that have no value of their own."""
        ...

    @property
    def state(self) -> str:
        """``tracestate`` of other vendors."""
        ...

    def add(self, span: Span) -> None:
        """Take a finished span."""
        ...

    def failed_with(self, error: BaseException) -> bool:
        """Return True if spans of the trace have recorded *error*; from now on they have."""
        ...


class OpenSpan:
    """
    A call that is running. Made by ``Tracer.span``, ``Trace.span`` and ``OpenSpan.span``.

    As a block, with ``with`` or ``async with``, it ends at the end of the block, is what ``current`` returns inside
    it, and an exception that leaves the block makes its status ``error`` or ``timeout``. Outside of a block, ``end``
    must be called. All methods can be called from any thread, and none raises because of a value.

    Args:
        home: The trace that the span belongs to.
        name: The name of the span.
        parent_id: The span above; None = there is none.
        fields: Fields of the span, as ``set`` takes them.
        owns_home: Called after the end of the span; None = nothing has to be done.

    Attributes:
        span_id: The id of the span.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        parent_id: str | None,
        fields: Mapping[str, Any],
        owns_home: Any = None,
    ) -> None:
        self._home, self._owns_home, self._process_id = home, owns_home, os.getpid()
        self._lock = threading.RLock()
        self._notes: list[str] = []
        self._values: dict[str, Any] = {"parent_span_id": parent_id}
        self._before: object = None
        self._span: Span | None = None
        self.set(**{"name": name, **fields})
        self.span_id: str = self._values.get("span_id") or new_span_id()
        self._started_ns: int = self._values.get("started_ns") or time.time_ns()
        self._clock_ns = time.perf_counter_ns()

    @property
    def trace_id(self) -> str:
        """The id of the trace that the span belongs to."""
        return self._home.id

    @property
    def session_id(self) -> str | None:
        """The session of the span; None = none."""
        return self._values.get("session_id") or self._home.defaults.get("session_id")

    @property
    def is_inherited(self) -> bool:
        """True in a forked child of the process that opened the span: that one ends it, and it is nothing here."""
        return self._process_id != os.getpid()

    @property
    def home(self) -> Home:
        """The trace that the span belongs to."""
        return self._home

    def set(self, **fields: Unpack[SpanFields]) -> Self:
        """
        Set fields; attributes are added to those set before. After the end of the span this changes nothing.

        Args:
            fields: The fields, as ``SpanFields`` describes them.

        Returns:
            The span itself.
        """
        if self.is_inherited:
            # The lock may have been held by a thread that this process does not have.
            return self
        with self._lock:
            values = values_of(fields, self._notes)
            attributes = values.pop("attributes", None)
            if attributes is not None:
                self._values.setdefault("attributes", {}).update(attributes)
            self._values.update(values)
        return self

    def usage(self, response: object) -> Self:
        """
        Set what a response of a provider tells: tokens, model, finish reason, response id.

        Args:
            response: An object of an SDK, or its JSON as a dict. One of an unknown form changes nothing.

        Returns:
            The span itself.
        """
        from tokentrace.client import usage

        try:
            return self.set(**usage.read(response))
        except Exception as exc:  # noqa: BLE001 - a response has any form, and must not stop the program
            note(self._notes, "usage", f"not read: {type(exc).__name__}")
            return self

    def first_token(self) -> None:
        """Say that the first token has arrived now; only the first call counts."""
        # One operation, so it needs no lock.
        self._values.setdefault("ttft_ns", time.perf_counter_ns() - self._clock_ns)

    def fail(self, error: BaseException | str) -> None:
        """
        Make the status ``error``, or ``timeout`` for a ``TimeoutError`` or an exception with Timeout in its name.

        Args:
            error: The exception, or a message.
        """
        if self.is_inherited:
            return
        self.set(**failure(error))
        if isinstance(error, BaseException):
            self._home.failed_with(error)

    def span(self, name: str, /, **fields: Unpack[SpanFields]) -> OpenSpan:
        """
        Open a span below this one.

        Args:
            name: The name of the span.
            fields: Fields of the span, as ``SpanFields`` describes them. Without a kind, a span that has a model at its
                end is of kind ``llm``, else of kind ``custom``.

        Returns:
            The open span.
        """
        return OpenSpan(self._home, name, self.span_id, fields)

    def headers(self) -> dict[str, str]:
        """
        Return the headers that make spans of another program children of this one.

        Returns:
            ``traceparent``, ``tracestate`` and, with a session, ``x-session-id``.
        """
        return inject(self.trace_id, self.span_id, self.session_id, self._home.state)

    def end(self) -> Span:
        """
        End the span and hand it to its trace; a second call does nothing.

        In a forked child, a span that was opened before the fork is not handed over: its own process does that.

        Returns:
            The span as it was handed over.
        """
        if self.is_inherited:
            return self._span or self._finished()
        with self._lock:
            if self._span is not None:
                return self._span
            self._span = span = self._finished()
        self._home.add(span)
        if self._owns_home is not None:
            self._owns_home()
        return span

    def _finished(self) -> Span:
        values = {**self._values, "trace_id": self._home.id, "span_id": self.span_id, "started_ns": self._started_ns}
        values.setdefault("latency_ns", max(time.perf_counter_ns() - self._clock_ns, 0))
        values.setdefault("ended_ns", self._started_ns + values["latency_ns"])
        return with_notes(filled(as_span(completed(values)), self._home.defaults), self._notes)

    def __enter__(self) -> Self:
        self._before = context.enter(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        context.leave(self._before)
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            # The program stopped the call; the call did not fail.
            self.set(attributes={"stream_end": "cancelled"})
        elif error is not None:
            self.fail(error)
        self.end()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)
