"""The transport that posts spans to any server with the documented API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from tokentrace.client import lifecycle
from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.counted_queue import Delivered, Limits
from tokentrace.client.transports.notices import Notices
from tokentrace.client.transports.options import check_at_least, rebuilt
from tokentrace.client.transports.poster import Poster, Retries
from tokentrace.client.transports.span_queue import SpanQueue
from tokentrace.errors import ConfigError, Rejected, Unavailable, shorten
from tokentrace.records import Span
from tokentrace.redact import Redactor

#: Limit for the spans of a request, encoded; the JSON is about twice as large.
_MAX_BATCH_BYTES = 2 * 1024 * 1024


class HttpTransport:
    """
    Posts spans as JSON arrays to any server with the documented ``POST /spans``, in the background.

    ``send`` never blocks and never raises. A batch that the server does not accept within all attempts is lost and
    counted as failed. A ``Reporter`` with an ``http://`` URL is better against tokentrace itself: it is faster and
    repeats a batch until it is accepted.

    Args:
        endpoint: URL that takes the requests, such as ``http://127.0.0.1:8700/spans``; without a path, ``/spans``.
        batch_size: Most spans in one request.
        flush_interval: Longest time that a span waits for its batch, seconds.
        timeout: How long one attempt waits for the server, seconds.
        max_retries: Most attempts after the first one. Network errors and the statuses 408, 425, 429 and 5xx are
            repeated, and a ``Retry-After`` is honoured; any other status from 300 to 499 is final.
        retry_backoff: Pause before the first of these attempts, seconds; it doubles with each.
        headers: Headers of each request, such as ``{"Authorization": "Bearer ..."}``.
        compression: ``gzip`` compresses the bodies.
        max_queue_size: With this many spans waiting or being sent, new spans are dropped and counted.
        idempotent: Send an ``Idempotency-Key`` with each batch, so that the server counts a repeated one once.
        redactor: Removes secrets before a span leaves this process; None uses the default rules.

    Raises:
        ConfigError: *endpoint*, a header or a number cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        batch_size: int = 100,
        flush_interval: float = 2.0,
        timeout: float = 10.0,
        max_retries: int = 3,
        retry_backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip"] = "none",
        max_queue_size: int = 10_000,
        idempotent: bool = True,
        redactor: Redactor | None = None,
    ) -> None:
        check_at_least("batch_size", batch_size, 1)
        check_at_least("flush_interval", flush_interval, 0)
        check_at_least("timeout", timeout, 0.001)
        check_at_least("max_retries", max_retries, 0)
        check_at_least("retry_backoff", retry_backoff, 0)
        check_at_least("max_queue_size", max_queue_size, 1)
        if compression not in ("none", "gzip"):
            raise ConfigError(f"transport: compression {shorten(compression)} is neither none nor gzip")
        self._endpoint = endpoint
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "flush_interval": flush_interval,
            "timeout": timeout,
            "max_retries": max_retries,
            "retry_backoff": retry_backoff,
            "headers": dict(headers or {}),
            "compression": compression,
            "max_queue_size": max_queue_size,
            "idempotent": idempotent,
            "redactor": redactor,
        }
        fixed = {"Content-Type": "application/json", "Prefer": "handling=lenient"}
        if compression == "gzip":
            fixed["Content-Encoding"] = "gzip"
        self._compresses = compression == "gzip"
        self._poster = Poster(endpoint, {**fixed, **(headers or {})}, timeout, path="/spans")
        self._retries = Retries(max_retries, retry_backoff)
        self._idempotent = idempotent
        self._number_batches()
        self._queue = SpanQueue(
            Limits(batch_size, _MAX_BATCH_BYTES, flush_interval, max_queue_size),
            self._deliver,
            Notices(f"http transport {self._poster.shown}"),
            redactor,
            name="tokentrace-http",
            on_fork=self._forget_parent,
            release=self._poster.close,
        )

    def _number_batches(self) -> None:
        self._id, self._number = os.urandom(16).hex(), 0

    def _forget_parent(self) -> None:
        self._number_batches()
        self._poster.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), (self._endpoint,), self._options)

    def send(self, spans: Sequence[Span]) -> None:
        """
        Queue *spans* for sending. This never blocks and never raises.

        Args:
            spans: Finished calls. They are copied, so their attributes may be changed afterwards.
        """
        self._queue.put_spans(spans)

    def _deliver(self, batch: list[tuple[bytes, int]]) -> Delivered[bytes]:
        found = self._queue.rendered(batch)
        count = len(found.lines)
        if not count:
            return Delivered(rejected=found.rejected)
        body = b"[" + b",".join(line.json for line in found.lines) + b"]"
        if self._compresses:
            with lifecycle.importing:
                import gzip
            body = gzip.compress(body, 6, mtime=0)
        self._number += 1
        headers = {"Idempotency-Key": f"{self._id}-{self._number}"} if self._idempotent else {}
        queue = self._queue
        try:
            answer = self._poster.post(
                body, headers, self._retries, queue.pause, queue.remaining, queue.notices.failing
            )
        except (Unavailable, Rejected) as exc:
            if isinstance(exc, Unavailable) and queue.is_over:
                return Delivered(left=found.items, rejected=found.rejected)  # which counts them as dropped
            queue.notices.failed(str(exc), count)
            return Delivered(failed=count, rejected=found.rejected)
        refused = self._refused(answer, count)
        return Delivered(
            acked=count - refused,
            rejected=found.rejected + refused,
            truncated=min(found.truncated(count), count - refused),
        )

    def _refused(self, answer: bytes, count: int) -> int:
        """Return how many of *count* spans a server that takes the valid spans alone has refused, and log the first."""
        try:
            errors: Any = msgspec.json.decode(answer, type=dict).get("rejected")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 0  # another server, which need not answer in JSON
        if not isinstance(errors, list) or not errors:
            return 0
        first = errors[0].get("error") if isinstance(errors[0], dict) else None
        refused = min(len(errors), count)
        self._queue.notices.rejected(shorten(str(first or "the server gives no reason"), 300), refused)
        return refused

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Send what waits at once, and wait until every span is accepted or counted as lost.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return self._queue.flush(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Send the waiting spans and end the background thread; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not accepted by then are dropped and counted.
        """
        self._queue.close(timeout)

    def stats(self) -> Stats:
        """
        Return the counters of this transport.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        return self._queue.stats()
