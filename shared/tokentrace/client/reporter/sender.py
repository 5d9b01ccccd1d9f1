"""The sender of a reporter: a task of the hub that connects, takes batches from the queue and has them delivered."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

from tokentrace.bus.subjects import escape
from tokentrace.bus.urls import shown_urls
from tokentrace.client import lifecycle, native
from tokentrace.client.reporter.carriers import open_carrier
from tokentrace.client.reporter.deliveries import Deliveries
from tokentrace.client.reporter.destination import Carrier, Destination
from tokentrace.client.reporter.hub import hub
from tokentrace.client.reporter.notices import Notices
from tokentrace.client.reporter.outgoing import Outgoing
from tokentrace.client.reporter.span_queue import SpanQueue, TakenBatch
from tokentrace.client.reporter.spooling import Spooling
from tokentrace.client.spool import Spool
from tokentrace.errors import ConfigError, Unavailable
from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.reporter")

#: Most batches in flight at a time.
_MAX_IN_FLIGHT = 16
#: The first and the longest pauses before another attempt to connect, or after a fault; each is twice the one before.
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 2.0
#: How often a closing sender compares the time with its deadline, seconds.
_CLOSING_POLL_S = 0.05
#: How often a sender with waiting spans checks whether any was accepted, seconds.
_WATCH_S = 1.0
_STOP_GRACE_S = 0.5  # how long the sender may take to end after its deadline


class Sender:
    """
    Sends the spans of a queue; the hub runs it from the first ``wake`` until the queue is closed.

    Args:
        queue: The queue of spans, which also counts what became of them.
        destination: Where batches go.
        source: The name of the program, which each batch contains.
        redactor: Removes secrets from each span before it is sent.
        notices: What is logged.
        make_spool: Returns the spool for an id, of which a forked child has another one; None = without a spool.

    Attributes:
        id: The id of the batches of this sender: ``<project>.<source>.<128 random bits>``.
    """

    def __init__(
        self,
        queue: SpanQueue,
        destination: Destination,
        source: str,
        redactor: Redactor,
        notices: Notices,
        make_spool: Callable[[str], Spool] | None = None,
    ) -> None:
        self._queue, self._destination, self._source, self._redactor = queue, destination, source, redactor
        self._notices, self._make_spool = notices, make_spool
        self._start_over()
        lifecycle.register(self)

    def _start_over(self) -> None:
        self.id = f"{escape(self._destination.project)[:128]}.{escape(self._source)[:128]}.{os.urandom(16).hex()}"
        self._deliveries = Deliveries(self.id, self._source, self._queue, self._redactor, self._notices)
        self._spooling: Spooling | None = None
        if self._make_spool is not None:
            self._deliveries.spool = self._make_spool(self.id)
            self._spooling = Spooling(self._deliveries.spool, self._queue, self._deliveries)
        self._deadline = math.inf
        #: True from the first ``wake`` on, if a thread could be started.
        self._is_running = False
        self._ended = native.make_event()
        #: These belong to the loop of the hub. ``_busy`` is set while it has to be watched whether spans are accepted.
        self._wake: asyncio.Event | None = None
        self._busy: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Take a new id and discard the thread and all spans of the parent, in a forked child."""
        self._queue.reset()
        self._notices.reset()
        if self._deliveries.spool is not None:
            self._deliveries.spool.let_go()
        self._start_over()

    # -- called from other threads

    def wake(self) -> None:
        """Make the sender look at the queue; let the hub run it if it does not yet."""
        if self._is_running:
            hub.call(self._look)
            return
        with self._queue.lock:
            first = not self._is_running
            self._is_running = True
        if first:
            hub.add(self)

    def not_started(self, error: Exception) -> None:
        """Let the next span try again, because the system has no thread to spare, or the interpreter ends."""
        self._is_running = False
        self._queue.wake_at_next()
        self._notices.fault("no thread can be started, and the next span tries again", error)

    def _look(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def forget(self) -> None:
        """Send what waits, however long it takes, and then end: nothing refers to the reporter any more."""
        if not self._queue.closed:
            self.begin_close(math.inf)

    def begin_close(self, timeout: float) -> None:
        """Close the queue and give the sender *timeout* seconds to send the waiting spans; return at once."""
        self._queue.close()
        self._deadline = time.monotonic() + timeout
        if self._is_running:
            hub.call(self._hurry)
        elif self._queue.has_waiting:
            self.wake()

    def finish_close(self) -> None:
        """Wait for the end of the sender, until 0.5 s after the deadline at most, and drop spans not accepted."""
        if self._is_running and not hub.is_this_thread:
            self._ended.wait(max(self._deadline - time.monotonic(), 0.0) + _STOP_GRACE_S)
            hub.wait_until_gone(_STOP_GRACE_S)
        self.ended()

    # -- called by the hub, in its thread

    def failed(self, error: Exception) -> None:
        """Say that the loop of the hub failed."""
        self._notices.fault("the sender failed and starts again", error)

    @property
    def is_over(self) -> bool:
        """True if the deadline of ``begin_close`` has passed."""
        return self._queue.closed and time.monotonic() >= self._deadline

    def ended(self) -> None:
        """Drop what was not sent, and say how much was lost: without a sender, nothing would empty the queue."""
        self._queue.close()
        if not self._ended.is_set() and self._deliveries.spool is not None:
            self._deliveries.keep_rest()
            self._deliveries.spool.close()
        self._queue.abandon()
        stats = self._queue.stats()
        self._notices.ended(stats.dropped, stats.failed, stats.rejected, self._deliveries.trouble)
        self._ended.set()

    async def run(self) -> None:
        """Send until the queue is closed, and start again after a fault."""
        pause = _FIRST_PAUSE_S
        while True:
            self._wake, self._busy = asyncio.Event(), asyncio.Event()
            self._task = asyncio.create_task(self._connect_and_send())
            if self._queue.closed:
                self._hurry()
            try:
                await asyncio.wait([self._task])
            finally:
                self._task.cancel()
            if self._task.cancelled():
                return  # at the deadline
            error = self._task.exception()
            if error is None:
                return
            self._notices.fault("the sender failed and starts again", error)
            self._wake.clear()
            await self._pause(pause)
            if self.is_over:
                return
            pause = min(pause * 2, _MAX_PAUSE_S)

    def _hurry(self) -> None:
        """Wake, and end at the deadline, because a connection attempt does not look at the deadline itself."""
        self._look()
        if self._task is not None and self._deadline < math.inf:
            asyncio.get_running_loop().call_later(max(self._deadline - time.monotonic(), 0.0), self._task.cancel)

    async def _pause(self, seconds: float) -> None:
        """Wait for *seconds*; while closing not beyond the deadline, and after ``begin_close`` only for a moment."""
        assert self._wake is not None
        if self._queue.closed:
            await asyncio.sleep(min(seconds, max(self._deadline - time.monotonic(), 0.01)))
            return
        until = time.monotonic() + seconds
        while not self._queue.closed and (left := until - time.monotonic()) > 0:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def _connect_and_send(self) -> None:
        watcher = asyncio.create_task(self._watch())
        try:
            async with nullcontext() if self._spooling is None else self._spooling.running():
                await self._connect_until_closed()
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        """Say so if spans wait and none is accepted."""
        assert self._busy is not None
        deliveries = self._deliveries
        while True:
            await self._busy.wait()
            deliveries.accepted_at = time.monotonic()
            while self._queue.depth:
                await asyncio.sleep(_WATCH_S)
                if self._queue.depth:
                    waited = time.monotonic() - deliveries.accepted_at
                    self._notices.waiting(waited, self._queue.depth, deliveries.trouble)
            self._busy.clear()

    async def _connect_until_closed(self) -> None:
        assert self._busy is not None
        self._busy.set()
        deliveries = self._deliveries
        pause = _FIRST_PAUSE_S
        if self._spooling is not None:
            self._spooling.away_since = time.monotonic()
        while True:
            deliveries.trouble = deliveries.trouble or f"not connected to {shown_urls(self._destination.url)}"
            try:
                async with (
                    open_carrier(self._destination, self.id, deliveries.noticed) as carrier,
                    nullcontext() if self._spooling is None else self._spooling.connected(carrier),
                ):
                    await self._send_until_closed(carrier)
                return
            except (Unavailable, ConfigError) as exc:  # a file of the access may be missing now
                deliveries.trouble = str(exc)
                log.debug("the reporter cannot connect and tries again: %s", exc)
                if self.is_over or (self._queue.closed and not self._queue.depth):
                    return
                await self._pause(pause)
                pause = min(pause * 2, _MAX_PAUSE_S)

    async def _send_until_closed(self, carrier: Carrier) -> None:
        """Send batches until the queue is closed and empty, or the deadline has passed."""
        in_flight: set[asyncio.Task[None]] = set()

        def send(batch: TakenBatch | Outgoing) -> None:
            self._deliveries.in_flight[batch.sequence] = batch
            task = asyncio.create_task(self._deliveries.send(carrier, batch))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)

        assert self._busy is not None
        try:
            for batch in list(self._deliveries.in_flight.values()):  # those that were in flight when the sender failed
                send(batch)
            while True:
                while len(in_flight) < _MAX_IN_FLIGHT and self._queue.batch_is_due():
                    self._busy.set()
                    send(self._queue.take_batch())
                    await asyncio.sleep(0)
                if self._queue.closed and not self._queue.has_waiting and not in_flight:
                    return
                if self.is_over:
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
