"""
The reporter: takes spans from an application and sends them to the pipeline in the background.

Theory of operation
-------------------
``report()`` runs in the caller's thread. It encodes the span with msgpack and appends the bytes to a queue
(``span_queue``). It does no I/O and never waits for the network; it holds a lock only for a few statements. If the
queue is full or closed, it drops the span and counts it. Encoding at once also copies the span, so later changes to its
attributes do not matter.

One daemon thread for each reporter (``sender``) starts with the first span. It runs its own event loop, connects
over NATS or HTTP (``transport``) and takes batches from the queue. A batch is sent when it has 256 spans or 512 KiB, or
when its first span has waited 0.2 s, or at once during ``flush()`` and ``close()``. Before it is sent, each span is
decoded, cut if it is merely long (``records.cut``), checked by the rules of ingest and redacted. At most 16 batches
are in flight. If a thread cannot be started, the next span tries again; if the sender fails, it starts again and sends
the batches that were in flight once more.

A batch has an id: the reporter's random id and a number that counts from 1. A batch that was not accepted is sent
again with the same bytes under the same id, with pauses from 0.05 to 1 s, until it is accepted or refused for good, or
the reporter is closed. If the pipeline stored the batch but its reply was lost, the pipeline recognises the id and
counts the spans once.

Each span ends in exactly one counter of ``Stats``:

* acked: the pipeline has stored it;
* dropped: the queue was full or closed, or the reporter was closed before the pipeline accepted the span;
* failed: the pipeline refused its batch for good;
* rejected: it is not valid. What the sender finds travels in the batch, without secrets, so that the pipeline shows it
  too. What ingest finds comes back: in the answer over HTTP, later over NATS, and then moves from acked to rejected.

``sent`` counts spans that were taken from the queue, and ``queue_depth`` spans that are in none of the four counters
yet. Each batch contains these counters, and how many spans were dropped and failed since the last batch, so the
pipeline can add up the losses.

``close()`` gives the thread a deadline. Spans that are not accepted by then are dropped and counted. At the end of the
interpreter (``lifecycle``) all reporters are closed with a common deadline of 5 s. In a forked child a reporter starts
over with a new id, an empty queue and zero counters, because the parent still has its thread and sends its own spans.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Self

import msgspec
from msgspec.structs import replace

from tokentrace.bus.subjects import DEFAULT_PROJECT, MAX_PROJECT, escape
from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S
from tokentrace.client.notices import Notices
from tokentrace.client.sender import Sender
from tokentrace.client.span_queue import Put, SpanQueue, Stats, Unencodable
from tokentrace.client.transport import Destination, check_url
from tokentrace.errors import ConfigError, cut_quoted, shorten
from tokentrace.records import MAX_NAME, SPAN_FIELDS, Span, whole_amounts, without_surrogates
from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.reporter")

MAX_QUEUE_SPANS = 100_000
MAX_QUEUE_BYTES = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()


class Reporter:
    """
    Reports spans to a tokentrace pipeline.

    ``report`` never blocks, never raises and does no I/O: a background thread batches, sends and retries. A reporter
    may be shared by any number of threads and used from async programs. A forked child starts over with an empty
    queue. When the interpreter exits, waiting spans are sent for up to 5 seconds; the rest is dropped and counted.

    Args:
        source: The name of this program, cut to 256 characters. It becomes the caller of spans that name none.
        url: ``nats://host:port`` (recommended), ``tls://host:port`` or ``http(s)://host:port``. None reads the
            environment variable ``TOKENTRACE_URL``. An empty URL makes a reporter that ignores all spans; without the
            variable, it says so in the log.
        project: The project that the spans belong to, as part of the NATS subjects.
        shards: How many raw subjects the batches are spread over, at least 1. It need not match the shard count.
        token: Bearer token for ``http(s)://``; "" sends none. White space around it is removed.
        redactor: Removes secrets before a span leaves this process; None uses the default rules. Ingest redacts again.
        max_queue_spans: With this many spans waiting or being sent, new spans are dropped and counted.
        max_queue_bytes: With this many bytes of spans waiting, new spans are dropped and counted.

    Attributes:
        source: The name of this program, redacted.

    Raises:
        ConfigError: *url*, *project* or *token* cannot be used.
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
            raise ConfigError("reporter: the token contains characters that are not printable ASCII")
        redactor = redactor or Redactor()
        self.source = redactor.text(source[:MAX_NAME])[:MAX_NAME]
        if url is None and "TOKENTRACE_URL" not in os.environ:
            log.warning("reporter %s: spans are ignored, because neither url nor TOKENTRACE_URL is set", self.source)
        destination = Destination(self._url, f"reporter {self.source}", project, max(shards, 1), token)
        self._queue = SpanQueue(max_queue_spans, max_queue_bytes)
        self._notices = Notices(self.source)
        self._sender = Sender(self._queue, destination, self.source, redactor, self._notices)

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
        if not self._url:
            return
        try:
            put = self._queue.put(_encoded(span))
            if put is Put.WOKEN:
                self._sender.wake()
            elif put is Put.DROPPED:
                self._notices.dropping("the reporter is closed" if self._queue.closed else "too many of them wait")
        except Exception as exc:  # noqa: BLE001 - an application must not fail because it reports a call
            self._notices.fault("a span was not reported", exc)

    def flush(self, timeout: float | None = None) -> bool:
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

    async def aflush(self, timeout: float | None = None) -> bool:
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
        Send the waiting spans and end the background thread; closing twice is allowed.

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


def _encoded(span: Span) -> bytes | Unencodable:
    """Return *span* in MessagePack, with an end if it has no time at all."""
    try:
        if span.usage and any(isinstance(amount, float) for amount in span.usage.values()):
            span = replace(span, usage=whole_amounts(span.usage))
        if not span.ended_ns and not span.started_ns:
            span = replace(span, ended_ns=time.time_ns())
        try:
            return _encoder.encode(span)
        except UnicodeEncodeError:
            return _encoder.encode(Span(**{name: without_surrogates(getattr(span, name)) for name in SPAN_FIELDS}))
    except Exception as exc:  # noqa: BLE001 - a value may be an object of the application, with any behaviour
        return Unencodable(shorten(f"cannot be encoded: {cut_quoted(str(exc)) or type(exc).__name__}", 300))
