"""The sender thread of a reporter: it connects, redacts, publishes batches and retries until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

import msgspec

from tokentrace.bus.subjects import escape
from tokentrace.client import lifecycle
from tokentrace.client.span_queue import SpanQueue, TakenBatch
from tokentrace.client.transport import BatchTransport, Destination, open_transport
from tokentrace.errors import Unavailable, cut_quoted
from tokentrace.records import ReporterStats, Span
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
#: How long the sender may take to end after its deadline, seconds.
_STOP_GRACE_S = 0.5

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Span)


class _RawBatch(msgspec.Struct, array_like=True):
    """The first fields of ``records.Batch``, with spans that are already encoded."""

    id: str
    sequence: int
    part: int
    arrived_ns: int
    source: str
    spans: list[msgspec.Raw]
    reporter: ReporterStats


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

    Attributes:
        id: The id of the batches of this sender: ``<project>.<source>.<128 random bits>``.
    """

    def __init__(self, queue: SpanQueue, destination: Destination, source: str, redactor: Redactor) -> None:
        self._queue, self._destination, self._source, self._redactor = queue, destination, source, redactor
        self._start_over()
        lifecycle.register(self)

    def _start_over(self) -> None:
        self.id = f"{escape(self._destination.project)[:128]}.{escape(self._source)[:128]}.{os.urandom(16).hex()}"
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._loop: _SenderLoop | None = None
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Take a new id and discard the thread and all spans of the parent, in a forked child."""
        self._start_over()
        self._queue.reset()

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
                lifecycle.close_at_exit_of_child()
                thread.start()
                return
        with self._queue.lock:
            loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # close() has just closed the loop
                loop.call_soon_threadsafe(wake.set)

    def begin_close(self, timeout: float) -> None:
        """Close the queue and give the thread *timeout* seconds to send the waiting spans; return at once."""
        with self._queue.lock:
            self._queue.close()
            self._deadline = time.monotonic() + timeout
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed by itself
                loop.call_soon_threadsafe(self._cancel_at_deadline)
        if self._thread is not None:
            self.wake()

    def finish_close(self) -> None:
        """Wait for the end of the thread, until 0.5 s after the deadline at most, and drop spans not accepted."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
            thread.join(max(self._deadline - time.monotonic(), 0.0) + _STOP_GRACE_S)
        self._queue.abandon()

    # -- in the sender thread

    def _run(self) -> None:
        loop = _SenderLoop()
        try:
            asyncio.set_event_loop(loop)
            with self._queue.lock:
                self._loop, self._wake = loop, asyncio.Event()
                self._task = loop.create_task(self._connect_and_send())
                closing = self._queue.closed
            if closing:
                self._cancel_at_deadline()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._task)
        finally:
            self._queue.abandon()
            with self._queue.lock:
                self._loop = None
            _end_tasks(loop)
            loop.close()

    def _cancel_at_deadline(self) -> None:
        """Cancel the main task at the deadline, because a connection attempt does not look at the deadline itself."""
        if self._loop is not None and self._task is not None:
            self._loop.call_later(max(self._deadline - time.monotonic(), 0.0), self._task.cancel)

    async def _connect_and_send(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with open_transport(self._destination) as transport:
                    await self._send_until_closed(transport)
                return
            except Unavailable as exc:
                log.info("the reporter cannot connect and tries again: %s", exc)
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
        try:
            while True:
                while len(in_flight) < _MAX_IN_FLIGHT and self._queue.batch_is_due():
                    task = asyncio.create_task(self._send_batch(transport, self._queue.take_batch()))
                    in_flight.add(task)
                    task.add_done_callback(in_flight.discard)
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

    async def _send_batch(self, transport: BatchTransport, batch: TakenBatch) -> None:
        """Drop invalid spans of *batch* and send the others, again and under the same id until accepted or refused."""
        clean = [raw for encoded in batch.spans if (raw := self._redact(encoded)) is not None]
        if len(clean) < len(batch.spans):
            self._queue.finish(len(batch.spans) - len(clean), accepted=False)
        if not clean:
            self._queue.restore_unreported(batch.stats)
            return
        payload = _encoder.encode([_RawBatch(self.id, batch.sequence, 0, 0, self._source, clean, batch.stats)])
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await transport.send(payload, f"{self.id}:{batch.sequence}", batch.sequence)
            except Unavailable as exc:
                log.debug("batch %d was not accepted and is sent again: %s", batch.sequence, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MAX_SEND_PAUSE_S)
            except Exception as exc:  # noqa: BLE001 - refused, or a defect: the next batches must go on
                log.error("batch %d is refused and its %d spans are lost: %s", batch.sequence, len(clean), exc)
                self._queue.finish(len(clean), accepted=False)
                self._queue.restore_unreported(batch.stats)
                return
            else:
                self._queue.finish(len(clean), accepted=True)
                return

    def _redact(self, encoded: bytes) -> msgspec.Raw | None:
        """Return the span without secrets; None if it is not valid, because only a valid span can be redacted."""
        try:
            span = _decoder.decode(encoded)
            clean = self._redactor.span(span)
            return msgspec.Raw(encoded if clean is span else _encoder.encode(clean))
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as exc:
            log.warning("a span is not valid and is not sent: %s", cut_quoted(str(exc)))
            return None


def _end_tasks(loop: _SenderLoop) -> None:
    """Cancel all tasks of *loop* and let them close their sockets."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _STOP_GRACE_S))
    loop.run_until_complete(asyncio.sleep(0))
