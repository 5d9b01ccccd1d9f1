"""
The queue of a transport and the thread that empties it.

``put`` runs in the caller's thread and only appends, under a lock that is held for a few statements. A daemon thread
takes the waiting items in batches and hands each batch to ``deliver``. It starts with the first item and ends when
nothing has come for some seconds, so that a forgotten transport keeps no thread. If no thread can be started, ``flush``
and ``close`` deliver in the thread that calls them.

Each item ends in exactly one counter of ``Stats``. The lock is re-entrant, because a finalizer or a signal handler may
put an item at any point of the code, in a thread that holds the lock already. Nothing is logged under the lock: a
finalizer may put an item in a thread that holds the lock of a log handler.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tokentrace.client import lifecycle
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.counted_queue import CountedQueue, Delivered, Limits
from tokentrace.client.transports.notices import Notices

T = TypeVar("T")

#: The thread ends when nothing has waited for so long, seconds.
_IDLE_S = 5.0
#: How long ``finish_close`` waits for the thread beyond its deadline, seconds.
_GRACE_S = 0.1


class Background(Generic[T]):
    """
    Items that wait to be delivered. All methods may be called from any thread.

    Args:
        limits: When a batch is delivered, and how much may wait.
        deliver: Called with a batch, (item, its size in bytes) each, by one thread at a time.
        notices: The log.
        name: Name of the thread.
        on_fork: Called in a forked child, to forget files and connections of the parent.
        release: Called with the lock held when nothing has waited for some seconds, and at the end, to close files and
            connections.

    Attributes:
        notices: The log.
    """

    def __init__(
        self,
        limits: Limits,
        deliver: Callable[[list[tuple[T, int]]], Delivered[T]],
        notices: Notices,
        *,
        name: str,
        on_fork: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        self._limits, self._deliver, self._name = limits, deliver, name
        self.notices = notices
        self._on_fork, self._release = on_fork, release
        self._start_over()
        lifecycle.register(self)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: CountedQueue[T] = CountedQueue(self._limits)
        self._thread: threading.Thread | None = None
        #: The thread that delivers, which is another one if no thread could be started.
        self._deliverer: threading.Thread | None = None
        self._flushing = False
        #: Monotonic seconds: when the oldest waiting item came, and before which nothing is delivered.
        self._since = self._not_before = 0.0
        #: Monotonic seconds at which delivering ends; None until ``begin_close``.
        self._deadline: float | None = None
        self._ended = False
        self._closes_at_exit = False

    # -- used by any thread

    def put(self, item: T, size: int) -> None:
        """Append *item*, which has *size* bytes; drop and count it if too many wait or the transport is closed."""
        with self._changed:
            closed = self._deadline is not None
            dropped = closed or not self._queue.put(item, size)
            if dropped:
                self._queue.dropped += 1
            elif len(self._queue.waiting) == 1 or self._queue.is_full:
                # The thread knows when the oldest item is due. It is woken for the first one and for a full batch.
                if len(self._queue.waiting) == 1:
                    self._since = time.monotonic()
                self._start()
                self._wake()
        if dropped:
            self.notices.dropping("the transport is closed" if closed else "too many of them wait")

    def reject(self, reason: str) -> None:
        """Count an item that cannot be delivered, whatever happens."""
        with self._lock:
            self._queue.rejected += 1
        self.notices.rejected(reason)

    def flush(self, timeout: float | None) -> bool:
        """Deliver without delay; return False if not everything is delivered or lost within *timeout* seconds."""
        with self._changed:
            if not self._queue.depth:
                return True
            self._flushing = True
            started = self._start()
            self._wake()
        until = None if timeout is None else time.monotonic() + timeout
        if not started:
            self._deliver_here(until)
        with self._changed:
            rest = None if until is None else until - time.monotonic()
            return self._changed.wait_for(lambda: self._queue.depth == 0, rest)

    def stats(self) -> Stats:
        """Return the counters, in items."""
        with self._lock:
            return self._queue.stats()

    def close(self, timeout: float) -> None:
        """Deliver what waits for at most *timeout* seconds, and count the rest as dropped."""
        self.begin_close(timeout)
        self.finish_close()

    def _wake(self) -> None:
        """Wake all waiting threads. The caller holds the lock."""
        with contextlib.suppress(RuntimeError):  # a finalizer has woken the same thread meanwhile
            self._changed.notify_all()

    # -- used by lifecycle

    def begin_close(self, timeout: float) -> None:
        """Take no further items, and deliver what waits until *timeout* seconds have passed."""
        with self._changed:
            deadline = time.monotonic() + max(timeout, 0.0)
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            if self._queue.depth:
                self._start()
            self._wake()

    def finish_close(self) -> None:
        """Wait until everything is delivered or the time is up, and count the rest as dropped."""
        with self._changed:
            thread, deadline = self._thread, self._deadline or 0.0
            if thread is not None:
                self._changed.wait_for(lambda: self._queue.depth == 0, max(deadline - time.monotonic(), 0.0))
        if thread is None:
            self._deliver_here(deadline)
        elif thread is not threading.current_thread():
            thread.join(max(deadline - time.monotonic(), 0.0) + _GRACE_S)
        with self._changed:
            self._ended = True
            self._queue.abandon()
            self._wake()
            lost = (self._queue.dropped, self._queue.failed, self._queue.rejected)
        self.notices.ended(*lost)

    def reset(self) -> None:
        """Start over in a forked child, which has no thread and must not wait for locks of the parent's threads."""
        self._start_over()
        self.notices.reset()
        self._on_fork()

    # -- used by the delivering thread

    def pause(self, seconds: float) -> bool:
        """Wait for *seconds* within ``deliver``; return False at once or later if the time for delivering is up."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                if self._deadline is not None and now >= self._deadline:
                    return False
                if now >= until:
                    return True
                # A later ``close`` brings a deadline and wakes this thread.
                self._changed.wait(min(until, until if self._deadline is None else self._deadline) - now)

    def remaining(self, seconds: float) -> float:
        """Return *seconds*, or less if the time for delivering is up earlier; at least 0.05."""
        deadline = self._deadline
        return seconds if deadline is None else max(min(seconds, deadline - time.monotonic()), 0.05)

    @property
    def is_over(self) -> bool:
        """True if the time for delivering is up."""
        return self._is_late(None)

    @property
    def in_a_hurry(self) -> bool:
        """True if the queue is closed or more than half full."""
        return self._deadline is not None or self._queue.is_crowded

    def _start(self) -> bool:
        """Start the thread if there is none; return False if that is not possible. The caller holds the lock."""
        if self._thread is not None:
            return True
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            self._thread = thread
            thread.start()
        except (RuntimeError, MemoryError):  # no more threads, or the interpreter is ending
            self._thread = None
            return False
        if not self._closes_at_exit:
            self._closes_at_exit = True
            lifecycle.close_at_exit_of_child()
        return True

    def _run(self) -> None:
        mine = threading.current_thread()
        try:
            while self._thread is mine:
                self._deliver_all(None)
                with self._changed:
                    if not self._queue.waiting and self._deadline is None:
                        self._changed.wait_for(lambda: self._queue.waiting or self._deadline is not None, _IDLE_S)
                    if not self._queue.waiting or self._is_late(None):
                        # Under the lock, so that the next ``put`` either is seen here or starts another thread.
                        self._thread = None
                        self._release()
        finally:
            with self._changed:
                if self._thread is mine:
                    self._thread = None

    def _deliver_here(self, until: float | None) -> None:
        """Deliver in this thread, because no other could be started."""
        self._deliver_all(until)
        with self._changed:
            if self._thread is None and self._deliverer is None:
                self._release()

    def _deliver_all(self, until: float | None) -> None:
        """Deliver batches as they become due, until nothing waits, or until *until*, monotonic seconds."""
        mine = threading.current_thread()
        with self._changed:
            if self._deliverer is mine:
                return  # ``deliver`` itself, such as a redactor of the application, has called flush or close
            rest = None if until is None else until - time.monotonic()
            if not self._changed.wait_for(lambda: self._deliverer is None, rest):
                return
            self._deliverer = mine
        try:
            while (batch := self._next_batch(until)) is not None:
                try:
                    done = self._deliver(batch)
                except Exception as exc:  # noqa: BLE001 - one batch must not end the thread, and is counted
                    self.notices.fault(exc, len(batch))
                    done = Delivered(failed=len(batch))
                except BaseException:  # Ctrl-C in a thread of the application that delivers itself
                    self._finish(batch, Delivered(left=batch))
                    raise
                self._finish(batch, done)
        finally:
            with self._changed:
                self._deliverer = None
                self._wake()

    def _next_batch(self, until: float | None) -> list[tuple[T, int]] | None:
        """Wait until a batch is due and take it; None = nothing waits, or the time is up."""
        with self._changed:
            while self._queue.waiting and not self._is_late(until):
                now = time.monotonic()
                wait = self._not_before - now
                if not (self._flushing or self._deadline is not None or self._queue.is_full):
                    wait = max(wait, self._since + self._limits.age_s - now)
                if wait <= 0:
                    self._since = now
                    return self._queue.take()
                ends = [end - now for end in (until, self._deadline) if end is not None]
                self._changed.wait(max(min([wait, *ends]), 0.001))
            return None

    def _is_late(self, until: float | None) -> bool:
        now = time.monotonic()
        return self._ended or any(end is not None and now >= end for end in (until, self._deadline))

    def _finish(self, batch: Sequence[tuple[T, int]], done: Delivered[T]) -> None:
        if done.acked and not done.left:
            self.notices.delivered(self._queue.depth - len(batch))
        with self._changed:
            if self._ended:
                return  # the batch was counted as dropped
            self._queue.finish(batch, done)
            self._not_before = time.monotonic() + done.pause_s if done.left else 0.0
            if not self._queue.depth:
                self._flushing = False
                self._wake()
