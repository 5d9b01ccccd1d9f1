"""The sender thread of a reporter: it connects, redacts, publishes batches and retries until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from tokentrace.bus.jetstream import shown_urls
from tokentrace.bus.subjects import escape
from tokentrace.client import lifecycle
from tokentrace.client.notices import Notices
from tokentrace.client.outgoing import Outgoing
from tokentrace.client.span_queue import SpanQueue, TakenBatch
from tokentrace.client.transport import Answer, BatchTransport, Destination, open_transport
from tokentrace.errors import Unavailable, shorten
from tokentrace.records import RefusalNotice, SpanError
from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.reporter")

#: Most batches in flight at a time.
_MAX_IN_FLIGHT = 16
#: The first and the longest pauses between attempts, seconds; each pause is twice the one before.
_FIRST_PAUSE_S = 0.05
_MAX_CONNECT_PAUSE_S = 2.0
_MAX_SEND_PAUSE_S = 1.0
#: How often a closing sender compares the time with its deadline, seconds.
_CLOSING_POLL_S = 0.05
#: How often a sender with waiting spans checks whether any was accepted, seconds.
_WATCH_S = 1.0
#: The accepted batches of which ingest may still say that spans are invalid.
_MAX_REMEMBERED = 4096
#: How long the sender may take to end after its deadline, seconds.
_STOP_GRACE_S = 0.5


class _SenderLoop(asyncio.SelectorEventLoop):
    """
    An event loop that resolves host names in the thread that runs the loop.

    Other loops of asyncio use a thread pool for this, which is closed before ``atexit`` handlers run, so a program that
    ends right after its first span could not connect any more.
    """

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        """Do what ``loop.getaddrinfo`` does, but block the loop meanwhile."""
        return socket.getaddrinfo(host, port, **kwargs)


class Sender:
    """
    Sends the spans of a queue from a daemon thread, which starts at the first ``wake``.

    Args:
        queue: The queue of spans, which also counts what became of them.
        destination: Where batches go.
        source: The name of the program, which each batch contains.
        redactor: Removes secrets from each span before it is sent.
        notices: What is logged.

    Attributes:
        id: The id of the batches of this sender: ``<project>.<source>.<128 random bits>``.
    """

    def __init__(
        self, queue: SpanQueue, destination: Destination, source: str, redactor: Redactor, notices: Notices
    ) -> None:
        self._queue, self._destination, self._source, self._redactor = queue, destination, source, redactor
        self._notices = notices
        self._start_over()
        lifecycle.register(self)

    def _start_over(self) -> None:
        self.id = f"{escape(self._destination.project)[:128]}.{escape(self._source)[:128]}.{os.urandom(16).hex()}"
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._loop: _SenderLoop | None = None
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        #: Set while the sender has to watch whether spans are accepted.
        self._busy: asyncio.Event | None = None
        #: Ends a pause after a fault.
        self._closing = threading.Event()
        #: Batches that were taken from the queue and are neither accepted nor refused, by number; also after a fault.
        self._in_flight: dict[int, TakenBatch | Outgoing] = {}
        #: Number of an accepted batch -> its valid spans, until ingest says that some of them are not valid.
        self._valid: dict[int, int] = {}
        #: Notices about batches whose acceptance is not known yet.
        self._early: dict[int, RefusalNotice] = {}
        #: When spans were last accepted, or began to wait; monotonic seconds.
        self._accepted_at = 0.0
        #: Why spans are not accepted, "" = unknown.
        self._trouble = ""

    def reset(self) -> None:
        """Take a new id and discard the thread and all spans of the parent, in a forked child."""
        self._start_over()
        self._queue.reset()
        self._notices.reset()

    # -- called from other threads

    def wake(self) -> None:
        """Make the sender thread look at the queue; start the thread if there is none."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="tokentrace-reporter", daemon=True)
            with self._queue.lock:
                first = self._thread is None
                if first:
                    self._thread = thread
            if first:
                self._start(thread)
                return
        with self._queue.lock:
            loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # close() has just closed the loop
                loop.call_soon_threadsafe(wake.set)

    def _start(self, thread: threading.Thread) -> None:
        try:
            lifecycle.close_at_exit_of_child()
            thread.start()
        except Exception as exc:  # noqa: BLE001 - the system has no thread to spare, or the interpreter ends
            with self._queue.lock:
                self._thread = None
            self._queue.wake_at_next()
            self._notices.fault("no thread can be started, and the next span tries again", exc)

    def begin_close(self, timeout: float) -> None:
        """Close the queue and give the thread *timeout* seconds to send the waiting spans; return at once."""
        with self._queue.lock:
            self._queue.close()
            self._deadline = time.monotonic() + timeout
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed by itself
                loop.call_soon_threadsafe(self._cancel_at_deadline)
        self._closing.set()
        if self._thread is not None or self._queue.has_waiting:
            self.wake()

    def finish_close(self) -> None:
        """Wait for the end of the thread, until 0.5 s after the deadline at most, and drop spans not accepted."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
            thread.join(max(self._deadline - time.monotonic(), 0.0) + _STOP_GRACE_S)
        self._queue.abandon()
        stats = self._queue.stats()
        self._notices.ended(stats.dropped, stats.failed, stats.rejected, self._trouble)

    # -- in the sender thread

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        try:
            while not self._ran_to_the_end():
                if self._closing.wait(pause):
                    time.sleep(_CLOSING_POLL_S)
                pause = min(pause * 2, _MAX_CONNECT_PAUSE_S)
                if self._deadline_passed():
                    return
        finally:
            # Without a thread nothing would empty the queue: from now on, spans are dropped and counted.
            self._queue.close()
            self._queue.abandon()

    def _ran_to_the_end(self) -> bool:
        """Send until the queue is closed; return False if something failed and the sender has to start again."""
        loop = None
        try:
            loop = _SenderLoop()
            asyncio.set_event_loop(loop)
            with self._queue.lock:
                self._loop, self._wake, self._busy = loop, asyncio.Event(), asyncio.Event()
                self._task = loop.create_task(self._connect_and_send())
                closing = self._queue.closed
            if closing:
                self._cancel_at_deadline()
            try:
                loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                return self._queue.closed
        except Exception as exc:  # noqa: BLE001 - whatever fails, later spans must be sent
            self._notices.fault("the sender failed and starts again", exc)
            return False
        finally:
            with self._queue.lock:
                self._loop = None
            if loop is not None:
                _end_tasks(loop)
                loop.close()
        return True

    def _cancel_at_deadline(self) -> None:
        """Cancel the main task at the deadline, because a connection attempt does not look at the deadline itself."""
        if self._loop is not None and self._task is not None:
            self._loop.call_later(max(self._deadline - time.monotonic(), 0.0), self._task.cancel)

    async def _connect_and_send(self) -> None:
        pause = _FIRST_PAUSE_S
        watcher = asyncio.create_task(self._watch())
        try:
            await self._connect_until_closed(pause)
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        """Say so if spans wait and none is accepted."""
        assert self._busy is not None
        while True:
            await self._busy.wait()
            self._accepted_at = time.monotonic()
            while self._queue.depth:
                await asyncio.sleep(_WATCH_S)
                if self._queue.depth:
                    self._notices.waiting(time.monotonic() - self._accepted_at, self._queue.depth, self._trouble)
            self._busy.clear()

    async def _connect_until_closed(self, pause: float) -> None:
        assert self._busy is not None
        self._busy.set()
        while True:
            self._trouble = self._trouble or f"not connected to {shown_urls(self._destination.url)}"
            try:
                async with open_transport(self._destination, self.id, self._noticed) as transport:
                    await self._send_until_closed(transport)
                return
            except Unavailable as exc:
                self._trouble = str(exc)
                log.debug("the reporter cannot connect and tries again: %s", exc)
                if self._deadline_passed():
                    return
                left = max(self._deadline - time.monotonic(), 0.01) if self._queue.closed else pause
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _MAX_CONNECT_PAUSE_S)

    def _deadline_passed(self) -> bool:
        return self._queue.closed and time.monotonic() >= self._deadline

    async def _send_until_closed(self, transport: BatchTransport) -> None:
        """Send batches until the queue is closed and empty, or the deadline has passed."""
        in_flight: set[asyncio.Task[None]] = set()

        def send(batch: TakenBatch | Outgoing) -> None:
            self._in_flight[batch.sequence] = batch
            task = asyncio.create_task(self._send_batch(transport, batch))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)

        assert self._busy is not None
        try:
            for batch in list(self._in_flight.values()):  # those that were in flight when the sender failed
                send(batch)
            while True:
                while len(in_flight) < _MAX_IN_FLIGHT and self._queue.batch_is_due():
                    self._busy.set()
                    send(self._queue.take_batch())
                    await asyncio.sleep(0)
                if self._queue.closed and not self._queue.has_waiting and not in_flight:
                    return
                if self._deadline_passed():
                    return
                await self._wait_for_work(in_flight)
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _wait_for_work(self, in_flight: set[asyncio.Task[None]]) -> None:
        """Wait until the sender is woken, the oldest span is due, or a batch in flight is done if that matters."""
        assert self._wake is not None
        full = len(in_flight) >= _MAX_IN_FLIGHT
        closing = self._queue.closed
        limit = self._queue.seconds_until_due()
        if closing:
            limit = _CLOSING_POLL_S
        elif full:
            limit = None
        wake = asyncio.ensure_future(self._wake.wait())
        # The end of a batch makes another batch due only when all places were taken, or lets a closing sender end.
        done = in_flight if full or closing else ()
        try:
            await asyncio.wait([wake, *done], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wake.cancel()
        self._wake.clear()

    async def _send_batch(self, transport: BatchTransport, taken: TakenBatch | Outgoing) -> None:
        """Send the valid spans of a batch, again and under the same id, until the batch is accepted or refused."""
        try:
            batch = taken if isinstance(taken, Outgoing) else self._outgoing(taken)
            self._in_flight[batch.sequence] = batch
            await self._send_until_accepted(transport, batch)
        except Exception as exc:  # noqa: BLE001 - a defect: the next batches must go on
            self._notices.fault("a batch was not sent and its spans are lost", exc)
            if self._in_flight.pop(taken.sequence, None) is not None:
                self._queue.finish(failed=taken.size)

    def _outgoing(self, taken: TakenBatch) -> Outgoing:
        return Outgoing(self.id, self._source, taken, self._redactor, self._notices.refused)

    async def _send_until_accepted(self, transport: BatchTransport, batch: Outgoing) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answer = await transport.send(batch.payload, f"{self.id}:{batch.sequence}", batch.sequence)
            except Unavailable as exc:
                self._trouble = str(exc)
                log.debug("batch %d was not accepted and is sent again: %s", batch.sequence, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MAX_SEND_PAUSE_S)
            except Exception as exc:  # noqa: BLE001 - refused, or a defect: sending it again would not help
                self._notices.failed(batch.valid, str(exc))
                self._finish(batch, failed=batch.valid, rejected=batch.rejected)
                self._queue.restore_unreported(batch.stats)
                return
            else:
                self._accepted(batch, answer)
                return

    def _finish(
        self, batch: Outgoing, *, acked: int = 0, failed: int = 0, rejected: int = 0, truncated: int = 0
    ) -> None:
        del self._in_flight[batch.sequence]
        self._queue.finish(acked=acked, failed=failed, rejected=rejected, truncated=truncated)

    def _accepted(self, batch: Outgoing, answer: Answer) -> None:
        self._accepted_at, self._trouble = time.monotonic(), ""
        notice = self._early.pop(batch.sequence, None)
        if notice is not None:
            answer = Answer(notice.rejected, notice.errors)
        there = min(answer.rejected, batch.valid)
        if there:
            self._say_refused(there, answer.errors)
        else:
            self._valid[batch.sequence] = batch.valid
            if len(self._valid) > _MAX_REMEMBERED:
                del self._valid[next(iter(self._valid))]
        self._finish(
            batch, acked=batch.valid - there, rejected=batch.rejected + there, truncated=max(batch.truncated - there, 0)
        )
        self._notices.accepted(self._queue.depth)

    def _noticed(self, notice: RefusalNotice) -> None:
        """Count the spans that ingest found invalid after their batch was accepted; a notice may come twice."""
        if notice.id != self.id:
            return
        if notice.sequence in self._in_flight:
            self._early[notice.sequence] = notice
            return
        refused = min(notice.rejected, self._valid.pop(notice.sequence, 0))
        if refused:
            self._queue.reject_acked(refused)
            self._say_refused(refused, notice.errors)

    def _say_refused(self, count: int, errors: Sequence[SpanError]) -> None:
        """Log the reasons in *errors*, which are the first of *count*."""
        for error in errors[:count]:
            self._notices.refused(shorten(error.error, 300))
        if count > len(errors):
            self._notices.refused("ingest names no reason", count - len(errors))


def _end_tasks(loop: _SenderLoop) -> None:
    """Cancel all tasks of *loop* and let them close their sockets."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _STOP_GRACE_S))
    loop.run_until_complete(asyncio.sleep(0))
