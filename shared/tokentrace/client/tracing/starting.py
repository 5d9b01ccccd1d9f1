"""The part of a tracer that makes traces and spans, and knows which traces are open."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

from tokentrace.client.field_values import identifier, short_text, shown, text
from tokentrace.client.fields import SpanFields, note, plain_attributes
from tokentrace.client.tracing.open_span import OpenSpan
from tokentrace.client.tracing.otel_context import OTEL_SPAN_ID, otel_parent
from tokentrace.client.tracing.propagate import RemoteParent, extract, new_trace_id
from tokentrace.client.tracing.trace import Parent, Trace, current
from tokentrace.client.tracing.traced import decorate
from tokentrace.records import Kind, Span

log = logging.getLogger("tokentrace.tracer")

F = TypeVar("F", bound=Callable[..., Any])


class TraceFields(TypedDict, total=False):
    """The arguments of ``Tracer.start`` but the name, as its documentation describes them."""

    trace_id: str
    parent: Parent | None
    session_id: str | None
    user_id: str | None
    caller: str
    attributes: Mapping[str, object] | None


class Stoppable(Protocol):
    """A call that is running: it ends with the tracer at the latest."""

    def stop(self) -> None:
        """End the call with what is known of it. Never raises."""
        ...


class TraceMaker:
    """
    Makes traces. ``Tracer`` adds where their spans go.

    Args:
        caller: The caller of spans that name none.
    """

    def __init__(self, caller: str) -> None:
        self._caller = caller
        self._lock = threading.RLock()
        self._open: weakref.WeakSet[Trace] = weakref.WeakSet()
        self._running: weakref.WeakSet[Stoppable] = weakref.WeakSet()

    def hand_over(self, spans: Sequence[Span]) -> None:
        """Take finished spans."""
        raise NotImplementedError

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until all spans that were handed over are accepted or lost."""
        raise NotImplementedError

    def start(
        self,
        name: str,
        *,
        trace_id: str = "",
        parent: Parent | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        caller: str = "",
        attributes: Mapping[str, object] | None = None,
    ) -> Trace:
        """
        Start a trace. Its spans are handed over when ``Trace.end`` is called, or at the end of the program.

        Args:
            name: The name of the operation, and of spans that have no name of their own.
            trace_id: The id of the trace; "" = that of *parent*, else that of the current span of OpenTelemetry (whose
                own id becomes the attribute ``otel.span_id``), else a new one.
            parent: What the trace continues: a trace, an open span, or what ``extract`` returned.
            session_id: The session of the spans; None = that of *parent*.
            user_id: The user of the spans.
            caller: The caller of the spans; "" = the source of the tracer.
            attributes: Attributes of all spans.

        Returns:
            The trace.
        """
        above = _remote(parent)
        notes: list[str] = []
        trace_id = _usable("trace_id", trace_id, identifier, notes) or above.trace_id
        if not trace_id and (otel := otel_parent()) is not None:
            trace_id, attributes = otel.trace_id, {OTEL_SPAN_ID: otel.span_id, **(attributes or {})}
        defaults = {
            "session_id": _usable("session_id", session_id, short_text, notes) or above.session_id,
            "user_id": _usable("user_id", user_id, short_text, notes),
            "caller": _usable("caller", caller, text, notes) or self._caller,
            "attributes": plain_attributes(attributes, notes) if attributes else {},
        }
        name = _usable("name", name, text, notes) or "trace"
        for what in notes:
            log.warning("trace %s: %s", name, what)
        trace = Trace(self, trace_id or new_trace_id(), name, above, defaults)
        with self._lock:
            self._open.add(trace)
        return trace

    def trace(self, name: str, **fields: Unpack[TraceFields]) -> Trace:
        """
        Start a trace for a block: ``with tracer.trace("answer") as trace:``, or with ``async with``.

        Args:
            name: The name of the operation, and of spans that have no name of their own.
            fields: The other arguments of ``start``.

        Returns:
            The trace, which is the current one inside its block and ends with the block.
        """
        return self.start(name, **fields)

    @overload
    def traced(self, fn: F) -> F: ...

    @overload
    def traced(self, fn: None = None, *, name: str | None = None, kind: Kind = "custom") -> Callable[[F], F]: ...

    def traced(self, fn: F | None = None, *, name: str | None = None, kind: Kind = "custom") -> F | Callable[[F], F]:
        """
        Make a span of each call of a function: ``@tracer.traced`` or ``@tracer.traced(name="search", kind="tool")``.

        Args:
            fn: A function, a coroutine function, a generator or an asynchronous generator.
            name: The name of the spans; None = the qualified name of the function.
            kind: The kind of the spans.

        Returns:
            A function of the same kind and signature, or a decorator that makes one.
        """
        result: F | Callable[[F], F] = decorate(lambda: self, fn, name, kind)
        return result

    def span(self, name: str, /, *, parent: Parent | None = None, **fields: Unpack[SpanFields]) -> OpenSpan:
        """
        Open a span: below *parent*, else below what ``current`` returns, else in a trace that ends with the span.

        Args:
            name: The name of the span.
            parent: What the span is below.
            fields: Fields of the span, as ``SpanFields`` describes them. Without a kind, a span that has a model at its
                end is of kind ``llm``, else of kind ``custom``.

        Returns:
            The open span.
        """
        above = current() if parent is None else parent
        if isinstance(above, (Trace, OpenSpan)):
            return above.span(name, **fields)
        trace = self.start(name, parent=above)
        return OpenSpan(trace, name, _remote(above).span_id or None, fields, owns_home=trace.end)

    def extract(self, headers: Mapping[str, str]) -> Parent | None:
        """
        Return the context that the headers of a request carry, for ``start(parent=...)``.

        W3C ``traceparent`` and ``tracestate`` are read, else B3, else ``x-parent-trace-id``; the session comes from
        ``x-session-id`` or ``x-trace-session-id``.

        Args:
            headers: Names, in any case, and values.

        Returns:
            None if the headers carry no context that is valid.
        """
        return extract(headers)

    def forget(self, trace: Trace) -> None:
        """
        Take note that *trace* has ended.

        Args:
            trace: A trace of this tracer.
        """
        with self._lock:
            self._open.discard(trace)

    def keep(self, call: Stoppable) -> None:
        """
        Stop *call* at the end of the tracer, if it still runs: a stream that the application has left, for example.

        Args:
            call: A call with a span of this tracer.
        """
        with self._lock:
            self._running.add(call)

    # -- called by lifecycle

    def begin_close(self, timeout: float) -> None:
        """
        End the calls that are running and the open traces, which hand over their spans.

        Args:
            timeout: Seconds; not used, because a trace does not wait.
        """
        with self._lock:
            calls, traces = list(self._running), list(self._open)
            self._running.clear()
        for call in calls:
            call.stop()
        for trace in traces:
            trace.end()

    def finish_close(self) -> None:
        """Close what closes only with the tracer."""
        raise NotImplementedError

    def reset(self) -> None:
        """Discard the open traces of the parent, in a forked child."""
        self._lock = threading.RLock()
        for trace in list(self._open):
            trace.discard()
        self._open.clear()
        self._running.clear()


def _usable(name: str, value: object, convert: Callable[[Any], str], notes: list[str]) -> str | None:
    """Return *value* as a text; None, and a note, if it is given and is none."""
    if value is None or value == "":
        return None
    try:
        return convert(value)
    except Exception:  # noqa: BLE001 - a value may be an object of the application, with any behaviour
        note(notes, name, f"{shown(value)} left out")
        return None


def _remote(parent: Parent | None) -> RemoteParent:
    """Return the ids that a trace continues."""
    if parent is None:
        return RemoteParent()
    if isinstance(parent, RemoteParent):
        return parent
    if isinstance(parent, OpenSpan):
        return RemoteParent(parent.trace_id, parent.span_id, parent.session_id, parent.home.state)
    if not isinstance(parent, Trace):
        raise TypeError(f"parent: {type(parent).__name__} is no trace, no open span and nothing that extract returns")
    return RemoteParent(parent.id, parent.parent_id or "", parent.session_id, parent.state)
