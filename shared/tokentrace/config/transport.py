"""``transport``: where a client program sends its spans. The server does not use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tokentrace.config.section import Duration, Section
from tokentrace.errors import ConfigError


class FileTransport(Section, frozen=True, kw_only=True):
    """Spans are written to a file as JSON lines."""

    path: Annotated[str, Meta(description="The file.")] = "./traces.jsonl"
    rotate: Annotated[bool, Meta(description="Start a new file when the file reaches max_size_mb.")] = False
    max_size_mb: Annotated[int, Meta(description="Size at which a file is rotated, in MiB.")] = 100
    max_files: Annotated[int, Meta(description="Number of rotated files that are kept.")] = 7
    sync: Annotated[bool, Meta(description="Call fsync after each write.")] = False
    buffer_size_kb: Annotated[int, Meta(description="Size of the write buffer, in KiB.")] = 256


class HttpTransport(Section, frozen=True, kw_only=True):
    """Spans are posted to an endpoint."""

    endpoint: Annotated[str, Meta(description="URL that takes POST requests.")]
    batch_size: Annotated[int, Meta(description="Maximum number of spans in one request.")] = 100
    flush_interval: Annotated[Duration, Meta(description="Longest time that a span waits for its batch.")] = Duration(
        2_000_000_000
    )
    timeout: Annotated[Duration, Meta(description="Timeout of one request.")] = Duration(10_000_000_000)
    max_retries: Annotated[int, Meta(description="Maximum number of attempts after the first one.")] = 3
    retry_backoff: Annotated[
        Duration, Meta(description="Pause before the first retry; it doubles with each retry.")
    ] = Duration(500_000_000)
    compression: Annotated[Literal["none", "gzip"], Meta(description="Compression of the request body.")] = "none"
    max_queue_size: Annotated[
        int, Meta(description="Maximum number of spans that wait; further spans are dropped.")
    ] = 10_000
    headers: Annotated[dict[str, str], Meta(description="Headers of each request.")] = msgspec.field(
        default_factory=dict
    )


class ChildTransport(Section, frozen=True, kw_only=True):
    """One of the transports of a transport of type multi."""

    type: Annotated[Literal["file", "http", "stdout", "noop"], Meta(description="The kind of transport.")] = "stdout"
    file: Annotated[FileTransport | None, Meta(description="Settings of type file.")] = None
    http: Annotated[HttpTransport | None, Meta(description="Settings of type http, which needs them.")] = None


class Transport(Section, frozen=True, kw_only=True):
    """Where a client program sends its spans."""

    type: Annotated[Literal["file", "http", "stdout", "multi", "noop"], Meta(description="The kind of transport.")] = (
        "stdout"
    )
    file: Annotated[FileTransport | None, Meta(description="Settings of type file.")] = None
    http: Annotated[HttpTransport | None, Meta(description="Settings of type http, which needs them.")] = None
    multi: Annotated[list[ChildTransport], Meta(description="The transports of type multi.")] = msgspec.field(
        default_factory=list
    )

    def check(self) -> None:
        """
        Check that each transport of type http has an endpoint.

        Raises:
            ConfigError: A transport has none; the message names the key.
        """
        for key, transport in self._named():
            if transport.type == "http" and transport.http is None:
                raise ConfigError(f"{key}.http.endpoint: required when the type is http")

    def _named(self) -> Iterator[tuple[str, Transport | ChildTransport]]:
        yield "transport", self
        for index, child in enumerate(self.multi):
            yield f"transport.multi[{index}]", child
