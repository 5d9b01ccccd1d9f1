"""
The reporter: takes spans from an application and sends them to the pipeline in the background.

Theory of operation
-------------------
``report()`` runs in the caller's thread. It encodes the span with msgpack and appends the bytes to a queue
(``span_queue``). It does no I/O and never waits for the network; it holds a lock only for a few statements. If the
queue is full or closed, it drops the span and counts it. Encoding at once also copies the span, so later changes to its
attributes do not matter.

One daemon thread for all reporters of a process (``hub``) starts with the first span. It runs an event loop, in which
each reporter has a sender (``sender``). The sender connects over NATS or HTTP (``carriers``) and takes batches from the
queue. A batch is sent when it has 256 spans or 512 KiB, or when its first span has waited 0.2 s, or at once during
``flush()`` and ``close()``. Before it is sent (``deliveries``), each span is decoded, cut if it is merely long
(``records.cut``), checked by the rules of ingest and redacted (``outgoing``). Long texts are redacted in windows with
pauses between them, so that the threads of the application run meanwhile. At most 16 batches are in flight. If a thread
cannot be started, the next span tries again; if a sender or the loop fails, it starts again and sends the batches that
were in flight once more.

A batch has an id: the reporter's random id and a number that counts from 1. A batch that was not accepted is sent
again with the same bytes under the same id, with pauses from 0.05 to 1 s, until it is accepted or refused for good, or
the reporter is closed. If the pipeline stored the batch but its reply was lost, the pipeline recognises the id and
counts the spans once.

Each span ends in exactly one counter of ``Stats``:

* acked: the pipeline has stored it;
* spooled: it is on disk (``spool``), until the pipeline accepts it or its file is dropped;
* dropped: the queue was full or closed, or the reporter was closed before the pipeline accepted the span;
* failed: the pipeline refused its batch for good;
* rejected: it is not valid. What the sender finds travels in the batch, without secrets, so that the pipeline shows it
  too. What ingest finds comes back: in the answer over HTTP, later over NATS, and then moves from acked to rejected.

``sent`` counts spans that were taken from the queue, and ``queue_depth`` spans that are in none of these counters
yet. Each batch contains these counters, and how many spans were dropped and failed since the last batch, so the
pipeline can add up the losses.

``close()`` gives the sender a deadline. Spans that are not accepted by then are dropped and counted. A reporter to
which nothing refers any more is closed without a deadline: it sends what it has, and then nothing of it is left. At the
end of the interpreter (``lifecycle``) all reporters are closed with a common deadline of 5 s. In a forked child a
reporter starts over with a new id, an empty queue and zero counters, because the parent still has its thread and sends
its own spans.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S, importing
from tokentrace.client.reporter.encoding import encoded
from tokentrace.client.reporter.notices import Notices
from tokentrace.client.reporter.settings import read_settings
from tokentrace.client.reporter.span_queue import Put, SpanQueue
from tokentrace.client.reporter.stats import Stats
from tokentrace.records import MAX_NAME, Span

if TYPE_CHECKING:
    from tokentrace.client.spool import Fsync
    from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.reporter")

MAX_QUEUE_SPANS = 100_000
MAX_QUEUE_BYTES = 64 * 1024 * 1024
MAX_SPOOL_BYTES = 256 * 1024 * 1024
#: How long ``flush`` waits by default, seconds.
FLUSH_TIMEOUT_S = 5.0

FilePath = str | os.PathLike[str]


class Reporter:
    """
    Reports spans to a tokentrace pipeline.

    ``report`` never blocks, never raises and does no I/O: a background thread batches, sends and retries. A reporter
    may be shared by any number of threads and used from async programs. A forked child starts over with an empty
    queue. When the interpreter exits, waiting spans are sent for up to 5 seconds; the rest is dropped and counted.

    An argument that is None is read from the environment: ``TOKENTRACE_URL``, ``TOKENTRACE_SOURCE`` and so on; see
    ``settings.VARIABLES``. ``user``, ``token``, ``creds`` and ``nkey`` exclude each other.

    Args:
        source: The name of this program, cut to 256 characters. It becomes the caller of spans that name none. Without
            it and the variable, the name of the program's main file is used.
        url: ``nats://host:port`` (recommended), ``tls://host:port`` or ``http(s)://host:port``; of a NATS cluster
            several, separated by commas. It may contain user and password. An empty URL makes a reporter that ignores
            all spans; without the variable, it says so in the log.
        project: The project that the spans belong to, as part of the NATS subjects; else ``default``.
        shards: How many raw subjects the batches are spread over, at least 1. It need not match the shard count.
        token: Bearer token for ``http(s)://``, or token of NATS. White space around it is removed.
        user, password: For NATS, or for basic authentication over HTTP; they hold instead of those in *url*.
        creds: File with the credentials of a NATS user, with the package ``nkeys``.
        nkey: File with the seed of a NATS key, with the package ``nkeys``.
        ca: File with the certificates of the authorities to trust, PEM, for ``tls://``, ``nats://`` and ``https://``.
        cert, key: Files with the certificate of this client and its private key, PEM; the key may be in *cert*.
        inbox_prefix: The beginning of the NATS subjects on which replies are received; else ``_INBOX``.
        redactor: Removes secrets before a span leaves this process; None uses the default rules. Ingest redacts again.
        max_queue_spans: With this many spans waiting or being sent, new spans are dropped and counted.
        max_queue_bytes: With this many bytes of spans waiting, new spans are dropped and counted.
        spool: Directory for batches that are not accepted within a second; a program that is killed loses only what it
            reported in the last 1.5 s. Processes may share it; another one sends what a dead one left. Not on NFS.
        spool_bytes: With this many bytes in *spool*, the oldest file of this reporter is dropped and counted.
        fsync: ``batch`` = a batch counts as kept when it is on the disk, so it survives a crash of the machine.

    Attributes:
        source: The name of this program, redacted.

    Raises:
        ConfigError: An argument or a variable cannot be used, or a file cannot be read.
    """

    def __init__(
        self,
        source: str | None = None,
        url: str | None = None,
        *,
        project: str | None = None,
        shards: int = 1,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        creds: FilePath | None = None,
        nkey: FilePath | None = None,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        inbox_prefix: str | None = None,
        redactor: Redactor | None = None,
        max_queue_spans: int = MAX_QUEUE_SPANS,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        spool: FilePath | None = None,
        spool_bytes: int = MAX_SPOOL_BYTES,
        fsync: Fsync = "never",
    ) -> None:
        settings = read_settings(
            source=source,
            url=url,
            project=project,
            shards=shards,
            inbox_prefix=inbox_prefix,
            token=token,
            user=user,
            password=password,
            creds=creds,
            nkey=nkey,
            ca=ca,
            cert=cert,
            key=key,
        )
        #: What another process needs to make the same reporter.
        self._arguments = {
            "source": settings.source,
            "url": settings.destination.url,
            "project": settings.destination.project,
            "shards": shards,
            "inbox_prefix": settings.destination.inbox_prefix,
            "redactor": redactor,
            "max_queue_spans": max_queue_spans,
            "max_queue_bytes": max_queue_bytes,
            "spool": spool,
            "spool_bytes": spool_bytes,
            "fsync": fsync,
            **settings.destination.access._asdict(),
        }
        with importing:  # not at the head, so that the import of the class is cheap
            from tokentrace.client.reporter.sender import Sender
            from tokentrace.client.reporter.spooling import spool_maker
            from tokentrace.redact import Redactor as Rules
        redactor = redactor or Rules()
        self.source = redactor.text(settings.source)[:MAX_NAME]
        if settings.says_nothing:
            log.warning("reporter %s: spans are ignored, because neither url nor TOKENTRACE_URL is set", self.source)
        destination = settings.destination._replace(name=f"reporter {self.source}")
        self._ignores = not destination.url
        self._queue = SpanQueue(max_queue_spans, max_queue_bytes)
        self._notices = Notices(self.source)
        make_spool = None
        if spool is not None and destination.url:
            make_spool = spool_maker(Path(spool), spool_bytes, fsync, destination.project, self.source)
        self._sender = Sender(self._queue, destination, self.source, redactor, self._notices, make_spool)
        if make_spool is not None and spool is not None and any(Path(spool).glob("*/*.ttspool")):
            self._sender.wake()  # a dead process left something to send
        # At exit, lifecycle closes all senders within the same time.
        weakref.finalize(self, self._sender.forget).atexit = False

    def __reduce__(self) -> tuple[Callable[..., Reporter], tuple[dict[str, Any]]]:
        """Pickle the arguments, secrets included: what is unpickled is a reporter of its own, with an empty queue."""
        return _reporter_of, (self._arguments,)

    @property
    def id(self) -> str:
        """The id of this reporter's batches; a forked child has another one."""
        return self._sender.id

    def report(self, span: Span) -> None:
        """
        Queue *span* for sending. This never blocks and never raises.

        A span that is not valid or cannot be encoded is counted as rejected and logged by the sender; a span is counted
        as dropped if the queue is full or the reporter is closed.

        Args:
            span: The finished call. It is copied, so its attributes may be changed afterwards. A span with neither
                start nor end ends now; one with a start alone ends ``latency_ns`` after it.
        """
        if self._ignores:
            return
        try:
            put = self._queue.put(encoded(span))
            if put is Put.WOKEN:
                self._sender.wake()
            elif put is Put.DROPPED:
                self._notices.dropping("the reporter is closed" if self._queue.closed else "too many of them wait")
        except Exception as exc:  # noqa: BLE001 - an application must not fail because it reports a call
            self._notices.fault("a span was not reported", exc)

    def flush(self, timeout: float | None = FLUSH_TIMEOUT_S) -> bool:
        """
        Wait until every span is accepted, failed or dropped, spans that are reported meanwhile included.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        if not self._queue.begin_flush():
            return True
        self._sender.wake()
        return self._queue.wait_until_empty(timeout)

    async def aflush(self, timeout: float | None = FLUSH_TIMEOUT_S) -> bool:
        """
        Do what ``flush`` does without blocking the event loop.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Send the waiting spans and end the sender; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not accepted by then are dropped and counted.
        """
        self._sender.begin_close(timeout)
        self._sender.finish_close()

    async def aclose(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Do what ``close`` does without blocking the event loop.

        Args:
            timeout: Seconds; spans that are not accepted by then are dropped and counted.
        """
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
        """
        Return the counters of this reporter.

        Returns:
            Counts of spans since the reporter was created, or since the fork in a forked child.
        """
        return self._queue.stats()

    @property
    def dropped(self) -> int:
        """How many spans were lost: the sum of ``Stats.dropped``, ``Stats.failed`` and ``Stats.rejected``."""
        stats = self._queue.stats()
        return stats.dropped + stats.failed + stats.rejected


def _reporter_of(arguments: dict[str, Any]) -> Reporter:
    return Reporter(**arguments)
