"""The reporter: hands spans over to the pipeline without ever holding up the program that makes them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from tokentrace.bus import jetstream
from tokentrace.bus.subjects import DEFAULT_PROJECT, MAX_PROJECT, escape
from tokentrace.client.carrier import Carrier, SenderLoop, open_carrier
from tokentrace.errors import ConfigError, Unavailable, cut_quoted
from tokentrace.records import MAX_NAME, ReporterStats, Span
from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.reporter")

BATCH_SPANS = 256
BATCH_BYTES = 512 * 1024
BATCH_AGE_S = 0.2
MAX_QUEUE_SPANS = 100_000
MAX_QUEUE_BYTES = 64 * 1024 * 1024
_IN_FLIGHT = 16
_EXIT_S = 5.0
#: How long a sender that was told to stop may take to do so.
_GRACE_S = 0.5

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Span)


class Stats(NamedTuple):
    """
    A reporter's account, in spans, since it was made.

    Attributes:
        sent: Handed to the network at least once.
        acked: Accepted by the pipeline.
        dropped: Thrown away: the queue was full, or the program ended before they were accepted.
        failed: Refused for good, or impossible to encode.
        queue_depth: Waiting or under way now.
    """

    sent: int
    acked: int
    dropped: int
    failed: int
    queue_depth: int


class _RawBatch(msgspec.Struct, array_like=True):
    """``records.Batch`` with spans that are encoded already."""

    id: str
    sequence: int
    part: int
    arrived_ns: int
    source: str
    spans: list[msgspec.Raw]
    reporter: ReporterStats


class Reporter:
    """
    Reports spans to a tokentrace pipeline.

    ``report`` never blocks, never raises and does no I/O: a thread of its own batches, publishes and retries. Usable
    from any number of threads and from async programs; a forked child starts afresh; what is left is sent when the
    interpreter exits.

    Args:
        source: What this program is called; fills in the caller of spans that name none.
        url: ``nats://host:port`` (the main path) or ``http(s)://host:port``; None = the environment variable
            ``TOKENTRACE_URL``; empty = report nothing, silently.
        project: Whose spans they are.
        shards: Spreads raw subjects; the pipeline decides by itself where a span belongs.
        token: Bearer token for ``http(s)://``.
        redactor: Takes secrets out before anything leaves this process; ingest does it again.
        max_queue_spans, max_queue_bytes: Beyond either, new spans are dropped and counted.

    Raises:
        ConfigError: *url* has another scheme.
    """

    def __init__(
        self,
        source: str,
        url: str | None = None,
        *,
        project: str = DEFAULT_PROJECT,
        shards: int = 1,
        token: str = "",
        redactor: Redactor | None = None,
        max_queue_spans: int = MAX_QUEUE_SPANS,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
    ) -> None:
        self._url = os.environ.get("TOKENTRACE_URL", "") if url is None else url
        if self._url:
            check_url(self._url)
        if len(escape(project)) > MAX_PROJECT:
            raise ConfigError(f"reporter: the project's name is longer than {MAX_PROJECT} characters")
        token = token.strip()
        if not (token.isascii() and (token.isprintable() or not token)):
            raise ConfigError("reporter: the token is not printable ASCII")
        self._redactor = redactor or Redactor()
        self.source = self._redactor.text(source[:MAX_NAME])[:MAX_NAME]
        self._project, self._shards, self._token = project, max(shards, 1), token
        self._max_spans, self._max_bytes = max_queue_spans, max_queue_bytes
        self._begin()
        _reporters.add(self)

    def _begin(self) -> None:
        """The state of a reporter that has reported nothing; also what a forked child starts with."""
        self.id = f"{escape(self._project)[:128]}.{escape(self.source)[:128]}.{os.urandom(16).hex()}"
        # Re-entrant: a finaliser or a signal handler may report while this very thread holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._depth = 0
        self._sent = self._acked = self._dropped = self._failed = 0
        self._told_dropped = self._told_failed = 0
        self._sequence = 0
        self._idle = True
        self._urgent = False
        #: When the sender first saw what waits now, monotonic; None = nothing waits.
        self._waits_since: float | None = None
        self._closing = False
        self._given_up = False
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._loop: SenderLoop | None = None
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    # -- the caller's side

    def report(self, span: Span) -> None:
        """Queue *span*; it is copied here, so the caller may go on changing its attributes."""
        if not self._url:
            return
        try:
            encoded = _encoder.encode(span if span.ended_ns else replace(span, ended_ns=time.time_ns()))
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            log.warning("a span cannot be encoded and is not reported: %s", exc)
            with self._lock:
                self._failed += 1
            return
        with self._lock:
            if self._closing or self._depth >= self._max_spans or self._queue_bytes + len(encoded) > self._max_bytes:
                self._dropped += 1
                return
            self._queue.append(encoded)
            self._queue_bytes += len(encoded)
            self._depth += 1
            due = self._idle or len(self._queue) % BATCH_SPANS == 0
            self._idle = False
        if due:
            self._wake_sender()

    def _wake_sender(self) -> None:
        if self._thread is None:
            fresh = threading.Thread(target=self._run, name="tokentrace-reporter", daemon=True)
            with self._lock:
                first = self._thread is None
                if first:
                    self._thread = fresh
            if first:
                _close_at_exit_of_child()
                fresh.start()
                return
        with self._lock:
            loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed: close() is under way
                loop.call_soon_threadsafe(wake.set)

    def flush(self, timeout: float | None = None) -> bool:
        """
        Wait until everything reported so far is accepted, refused or dropped.

        Args:
            timeout: Seconds; None = as long as it takes.

        Returns:
            False when the time was over first.
        """
        with self._lock:
            if self._depth == 0:
                return True
            self._urgent = True
        self._wake_sender()
        with self._changed:
            return self._changed.wait_for(lambda: self._depth == 0, timeout)

    async def aflush(self, timeout: float | None = None) -> bool:
        """``flush`` for async programs."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float = _EXIT_S) -> None:
        """Send what is left, at most *timeout* seconds long; what is not accepted by then is dropped and counted."""
        self._begin_close(timeout)
        self._end_close()

    def _begin_close(self, timeout: float) -> None:
        with self._lock:
            self._closing = True
            self._deadline = time.monotonic() + timeout
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed by itself
                loop.call_soon_threadsafe(self._end_at_deadline)
        if self._thread is not None:
            self._wake_sender()

    def _end_at_deadline(self) -> None:
        """In the sender's thread: whatever it waits for then, a connection even, it waits no longer."""
        if self._loop is not None and self._task is not None:
            self._loop.call_later(max(self._deadline - time.monotonic(), 0.0), self._task.cancel)

    def _end_close(self) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
            thread.join(max(self._deadline - time.monotonic(), 0.0) + _GRACE_S)
        self._give_up()

    async def aclose(self, timeout: float = _EXIT_S) -> None:
        """``close`` for async programs."""
        await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def stats(self) -> Stats:
        """The account so far."""
        with self._lock:
            return Stats(self._sent, self._acked, self._dropped, self._failed, self._depth)

    @property
    def dropped(self) -> int:
        """Spans that never arrived: dropped or refused."""
        with self._lock:
            return self._dropped + self._failed

    # -- the sender's thread

    def _run(self) -> None:
        loop = SenderLoop()
        try:
            asyncio.set_event_loop(loop)
            with self._lock:
                self._loop, self._wake = loop, asyncio.Event()
                self._task = loop.create_task(self._main())
                closing = self._closing
            if closing:
                self._end_at_deadline()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._task)
        finally:
            self._give_up()
            with self._lock:
                self._loop = None
            _end_tasks(loop)
            loop.close()

    def _give_up(self) -> None:
        with self._changed:
            self._given_up = True
            self._dropped += self._depth
            self._depth = self._queue_bytes = 0
            self._queue.clear()
            self._changed.notify_all()

    async def _main(self) -> None:
        pause = 0.05
        while True:
            try:
                async with open_carrier(
                    self._url,
                    name=f"reporter {self.source}",
                    project=self._project,
                    shards=self._shards,
                    token=self._token,
                ) as carrier:
                    await self._send_all(carrier)
                return
            except Unavailable as exc:
                log.info("%s", exc)
                if self._over():
                    return
                await asyncio.sleep(
                    min(pause, max(self._deadline - time.monotonic(), 0.01)) if self._closing else pause
                )
                pause = min(pause * 2, 2.0)

    def _over(self) -> bool:
        return self._closing and time.monotonic() >= self._deadline

    async def _send_all(self, carrier: Carrier) -> None:
        """Send batches until the reporter is closed and empty, or its time is over."""
        under_way: set[asyncio.Task[None]] = set()
        assert self._wake is not None
        try:
            while True:
                while len(under_way) < _IN_FLIGHT and self._due():
                    task = asyncio.create_task(self._deliver(carrier, *self._take()))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                    await asyncio.sleep(0)
                if self._closing and not self._queue and not under_way:
                    return
                if self._over():
                    return
                await self._rest(under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _due(self) -> bool:
        with self._lock:
            if not self._queue:
                self._urgent = False
                return False
            whole = len(self._queue) >= BATCH_SPANS or self._queue_bytes >= BATCH_BYTES
            return whole or self._urgent or self._closing or self._age() >= BATCH_AGE_S

    def _age(self) -> float:
        return 0.0 if self._waits_since is None else time.monotonic() - self._waits_since

    async def _rest(self, under_way: set[asyncio.Task[None]]) -> None:
        """Until there is a whole batch, one is old enough, or somebody is in a hurry."""
        assert self._wake is not None
        full = len(under_way) >= _IN_FLIGHT
        with self._lock:
            self._idle = not self._queue
            if self._idle:
                self._waits_since = None
            elif self._waits_since is None:
                self._waits_since = time.monotonic()
            limit = None if self._idle or full else max(BATCH_AGE_S - self._age(), 0.0)
        wake = asyncio.ensure_future(self._wake.wait())
        # One that is over makes no other due: it is waited for only where there is room for no more.
        over = under_way if full or self._closing else ()
        try:
            await asyncio.wait(
                [wake, *over], timeout=0.05 if self._closing else limit, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            wake.cancel()
        self._wake.clear()

    def _take(self) -> tuple[list[bytes], int, ReporterStats]:
        with self._lock:
            taken: list[bytes] = []
            size = 0
            while self._queue and len(taken) < BATCH_SPANS:
                size += len(self._queue[0])
                if taken and size > BATCH_BYTES:
                    break
                taken.append(self._queue.popleft())
            self._waits_since = time.monotonic() if self._queue else None
            taken_bytes = sum(map(len, taken))
            self._queue_bytes -= taken_bytes
            self._sequence += 1
            self._sent += len(taken)
            account = ReporterStats(
                sent=self._sent,
                acked=self._acked,
                dropped=self._dropped,
                failed=self._failed,
                queue_depth=self._depth,
                newly_dropped=self._dropped - self._told_dropped,
                newly_failed=self._failed - self._told_failed,
            )
            self._told_dropped, self._told_failed = self._dropped, self._failed
            return taken, self._sequence, account

    async def _deliver(self, carrier: Carrier, spans: list[bytes], sequence: int, account: ReporterStats) -> None:
        """One batch, tried again under the same id until it is accepted or refused."""
        clean = [raw for encoded in spans if (raw := self._without_secrets(encoded)) is not None]
        if len(clean) < len(spans):
            self._settle(len(spans) - len(clean), accepted=False)
        if not clean:
            self._untell(account)
            return
        payload = _encoder.encode([_RawBatch(self.id, sequence, 0, 0, self.source, clean, account)])
        pause = 0.05
        while True:
            try:
                await carrier.send(payload, f"{self.id}:{sequence}", sequence)
            except Unavailable as exc:
                log.debug("batch %d: %s", sequence, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
            except Exception as exc:  # noqa: BLE001 - a refusal, or a fault of ours: these spans are lost, the next are not
                log.error("batch %d is refused, %d spans are lost: %s", sequence, len(clean), exc)
                self._settle(len(clean), accepted=False)
                self._untell(account)
                return
            else:
                self._settle(len(clean), accepted=True)
                return

    def _settle(self, count: int, *, accepted: bool) -> None:
        with self._changed:
            if self._given_up:
                return
            if accepted:
                self._acked += count
            else:
                self._failed += count
            self._depth -= count
            if self._depth == 0:
                self._changed.notify_all()

    def _untell(self, account: ReporterStats) -> None:
        """The batch that carried *account* never arrives: a later one has to tell what is new in it."""
        with self._lock:
            self._told_dropped -= account.newly_dropped
            self._told_failed -= account.newly_failed

    def _without_secrets(self, encoded: bytes) -> msgspec.Raw | None:
        """A span as it may leave this process; None for one that is out of bounds, which nobody could redact."""
        try:
            span = _decoder.decode(encoded)
            clean = self._redactor.span(span)
            return msgspec.Raw(encoded if clean is span else _encoder.encode(clean))
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as exc:
            log.warning("a span is not valid and is not reported: %s", cut_quoted(str(exc)))
            return None


_reporters: weakref.WeakSet[Reporter] = weakref.WeakSet()


def check_url(url: str) -> None:
    """
    Raises:
        ConfigError: *url* is not a place a reporter can send to.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("nats", "tls", "http", "https") or not rest:
        raise ConfigError("reporter: the URL must start with nats://, tls://, http:// or https://")
    if scheme in ("nats", "tls"):
        try:
            jetstream.parse_urls(url)
        except ConfigError as exc:
            raise ConfigError(f"reporter: {exc}") from exc
        return
    try:
        port = urlsplit(url).port
    except ValueError as exc:
        raise ConfigError(f"reporter: {exc}") from exc
    if port == 0:
        raise ConfigError("reporter: port 0 is no place to send to")


def _end_tasks(loop: SenderLoop) -> None:
    """Let whatever still runs on *loop* end, and its sockets close."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _GRACE_S))
    loop.run_until_complete(asyncio.sleep(0))


def _close_all() -> None:
    reporters = list(_reporters)
    for reporter in reporters:
        reporter._begin_close(_EXIT_S)
    for reporter in reporters:
        reporter._end_close()


def _close_at_exit_of_child() -> None:
    """A child of ``multiprocessing`` ends without ``atexit``; it has finalisers of its own."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    from multiprocessing.util import Finalize

    Finalize(None, _close_all, exitpriority=10)


def _after_fork() -> None:
    for reporter in list(_reporters):
        reporter._begin()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
