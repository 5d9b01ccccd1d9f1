"""
Traces of Celery tasks.

The headers of a message carry the context of the program that sends a task, and the worker makes a span of each run of
it. Celery's signals are the way: they fire in the process and thread that runs the task, before and after it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tokentrace.client.middleware.request import guarded
from tokentrace.client.tracing import OpenSpan, Trace, Tracer, context, current, default_tracer

if TYPE_CHECKING:
    from celery import Celery

#: After a flush that took too long, no task waits for another one for this time, seconds.
_PAUSE_S = 30.0
#: The headers that ``Tracer.extract`` reads.
_HEADERS = ("traceparent", "tracestate", "x-session-id")


def instrument_celery(app: Celery, tracer: Tracer | None = None, *, flush_timeout: float = 5.0) -> None:
    """
    Make a span of each run of a task of *app*, in the trace of the program that sent the task.

    Call it where the application is made, so that it holds for the programs that send tasks and for the workers. The
    spans are of kind ``workflow``; inside a task ``tokentrace.current()`` is its span. A retry is a span of its own.
    A task whose process was killed is recorded by the worker. Calling it again for the same application replaces the
    tracer.

    Args:
        app: The Celery application.
        tracer: Makes the spans; None = the default tracer.
        flush_timeout: Seconds that a process of the pool ``prefork`` waits after a task until its spans are accepted,
            because the process may be replaced or killed after it; 0 = it does not wait. While the pipeline is away,
            one task in 30 s waits.
    """
    from celery import signals

    hooks = _Hooks(app, tracer, flush_timeout)
    for signal, hook in (
        (signals.before_task_publish, hooks.publish),
        (signals.task_prerun, hooks.begin),
        (signals.task_retry, hooks.retry),
        (signals.task_failure, hooks.fail),
        (signals.task_postrun, hooks.end),
    ):
        identity = f"tokentrace.{id(app)}"
        signal.disconnect(dispatch_uid=identity)
        signal.connect(hook, weak=False, dispatch_uid=identity)


class _Run(NamedTuple):
    """
    A task that is running.

    Attributes:
        trace: The trace to end with it; None = it belongs to the trace of the code that runs it eagerly.
        before: What was current before.
    """

    span: OpenSpan
    trace: Trace | None
    before: object


class _Hooks:
    """The receivers of Celery's signals, which fire for all applications of a process."""

    def __init__(self, app: Celery, tracer: Tracer | None, flush_timeout: float) -> None:
        self._app, self._given, self._flush_timeout = app, tracer, flush_timeout
        self._runs: dict[str, _Run] = {}
        self._no_flush_before = 0.0

    @property
    def _tracer(self) -> Tracer:
        return self._given or default_tracer()

    def _is_own(self, task: Any) -> bool:
        return getattr(task, "app", None) is self._app

    @guarded
    def publish(self, headers: MutableMapping[str, Any] | None = None, **_: Any) -> None:
        """Put the context of this code into the headers of a message."""
        inner = current()
        if inner is not None and headers is not None:
            for name, value in inner.headers().items():
                headers.setdefault(name, value)

    @guarded
    def begin(self, task_id: str = "", task: Any = None, **_: Any) -> None:
        """Open the span of a task that begins."""
        if not self._is_own(task):
            return
        request = task.request
        attributes = {
            "celery.task_id": task_id,
            "celery.queue": (request.delivery_info or {}).get("routing_key") or "",
            "celery.retries": request.retries,
        }
        before = context.get()
        if before is not None:
            span, trace = before.span(task.name, kind="workflow", attributes=attributes), None
        else:
            parent = self._tracer.extract(_headers(request))
            trace = self._tracer.start(task.name, parent=parent)
            span = trace.span(task.name, kind="workflow", attributes=attributes)
        self._runs[task_id] = _Run(span, trace, context.enter(span))

    @guarded
    def retry(self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
        """Take note that a task asks to be run again; it has failed if it says why."""
        run = self._runs.get(getattr(request, "id", ""))
        if run is not None and self._is_own(sender):
            cause = getattr(reason, "exc", None)
            if cause is not None:
                run.span.fail(cause)

    @guarded
    def fail(self, sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: Any) -> None:
        """Take note that a task has failed, in its process, or in that of the worker if its process was killed."""
        if not self._is_own(sender) or exception is None:
            return
        run = self._runs.get(task_id)
        if run is None:
            trace = self._tracer.start(sender.name)
            trace.record_error(exception, kind="workflow", attributes={"celery.task_id": task_id})
            trace.end()
            return
        run.span.fail(exception)
        if "TimeLimit" in type(exception).__name__:
            run.span.set(status="timeout")

    @guarded
    def end(self, task_id: str = "", task: Any = None, state: str = "", **_: Any) -> None:
        """End the span of a task, whatever became of it, and wait for its spans where the process may be replaced."""
        run = self._runs.pop(task_id, None)
        if run is None or not self._is_own(task):
            return
        context.leave(run.before)
        run.span.set(attributes={"celery.state": state})
        run.span.end()
        if run.trace is not None:
            run.trace.end()
            self._flush()

    def _flush(self) -> None:
        now = time.monotonic()
        if self._flush_timeout <= 0 or now < self._no_flush_before or not _is_pool_process():
            return
        if not self._tracer.flush(self._flush_timeout):
            self._no_flush_before = time.monotonic() + _PAUSE_S


def _headers(request: Any) -> dict[str, str]:
    """Return the headers of the message that carry a context."""
    found: Mapping[str, Any] = getattr(request, "headers", None) or {}
    values = {name: found.get(name) for name in _HEADERS}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _is_pool_process() -> bool:
    """Return True in a process of the pool ``prefork``, in the thread that runs its tasks."""
    process = sys.modules.get("billiard.process")
    if process is None or threading.current_thread() is not threading.main_thread():
        return False
    return type(process.current_process()).__name__ != "_MainProcess"
