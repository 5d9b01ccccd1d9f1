"""The transports that send spans to a pipeline through a ``Reporter``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from tokentrace.client.lifecycle import CLOSE_TIMEOUT_S
from tokentrace.client.reporter import Reporter, Stats
from tokentrace.client.transports.options import rebuilt
from tokentrace.errors import ConfigError
from tokentrace.records import Span
from tokentrace.redact import Redactor


class ReporterOptions(TypedDict, total=False):
    """
    The options of a ``Reporter`` beside its source and URL; None stands for the default.

    Attributes:
        project: The project that the spans belong to.
        shards: How many raw subjects the batches are spread over.
        token: Bearer token for ``http(s)://``, or token of NATS.
        user, password: For NATS, or for basic authentication over HTTP.
        creds, nkey: Files with the credentials or the seed of a NATS user.
        ca, cert, key: Files with trusted certificates, the certificate of this client and its key, PEM.
        inbox_prefix: The beginning of the NATS subjects on which replies are received.
        redactor: Removes secrets before a span leaves this process.
        max_queue_spans: With this many spans waiting or being sent, new spans are dropped and counted.
        max_queue_bytes: With this many bytes of spans waiting, new spans are dropped and counted.
    """

    project: str | None
    shards: int | None
    token: str | None
    user: str | None
    password: str | None
    creds: str | os.PathLike[str] | None
    nkey: str | os.PathLike[str] | None
    ca: str | os.PathLike[str] | None
    cert: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None
    inbox_prefix: str | None
    redactor: Redactor | None
    max_queue_spans: int | None
    max_queue_bytes: int | None


class PipelineTransport:
    """
    Sends spans to a pipeline in the background, as a ``Reporter`` does.

    Args:
        url: ``nats://``, ``tls://``, ``http://`` or ``https://`` and a host; None reads ``TOKENTRACE_URL``.
        source: The name of this program; None reads ``TOKENTRACE_SOURCE``, or else takes the name of its main file.
        options: Those of a ``Reporter``; see ``ReporterOptions``.

    Attributes:
        reporter: What sends the spans.

    Raises:
        ConfigError: *url* or an option cannot be used.
    """

    def __init__(
        self, url: str | None = None, *, source: str | None = None, **options: Unpack[ReporterOptions]
    ) -> None:
        self._url, self._source = url, source
        self._options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self.reporter = Reporter(source, url, **self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), (self._url,), {"source": self._source, **self._options})

    def send(self, spans: Sequence[Span]) -> None:
        """
        Queue *spans* for sending. This never blocks and never raises.

        Args:
            spans: Finished calls. They are copied, so their attributes may be changed afterwards.
        """
        for span in spans:
            self.reporter.report(span)

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Wait until every span is accepted, failed or dropped, spans that are sent meanwhile included.

        Args:
            timeout: Seconds; None waits without a limit.

        Returns:
            False if *timeout* passed first.
        """
        return self.reporter.flush(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """
        Send the waiting spans and end the background thread; closing twice is allowed.

        Args:
            timeout: Seconds; spans that are not accepted by then are dropped and counted.
        """
        self.reporter.close(timeout)

    def stats(self) -> Stats:
        """
        Return the counters of the reporter.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        return self.reporter.stats()


class NatsTransport(PipelineTransport):
    """
    Sends spans to a pipeline over NATS in the background, as a ``Reporter`` does.

    A batch is sent when it has 256 spans or 512 KiB, or after 0.2 s, and again until it is accepted.

    Args:
        url: ``nats://host:port`` or ``tls://host:port``.
        source: The name of this program; None reads ``TOKENTRACE_SOURCE``, or else takes the name of its main file.
        options: Those of a ``Reporter``; see ``ReporterOptions``.

    Raises:
        ConfigError: *url* or an option cannot be used.
    """

    def __init__(self, url: str, *, source: str | None = None, **options: Unpack[ReporterOptions]) -> None:
        if not url.startswith(("nats://", "tls://")):
            raise ConfigError("transport: the URL of a NatsTransport must start with nats:// or tls://")
        super().__init__(url, source=source, **options)
