"""``otlp.forward``: the backends to which ingest sends on what it accepted."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from tokentrace.config.section import LARGEST, Duration, Section
from tokentrace.errors import ConfigError, quoted
from tokentrace.units import DAY, MINUTE, SECOND, render_duration

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: Headers that the forwarder sets.
_RESERVED = frozenset({"content-length", "content-type", "content-encoding", "transfer-encoding", "host", "connection"})
_MIN_BYTES = 16 * 1024 * 1024
_MIN_TIMEOUT_NS, _MAX_TIMEOUT_NS = SECOND // 10, MINUTE
_MIN_AGE_NS = SECOND


class ForwardTarget(Section, frozen=True, kw_only=True):
    """
    A backend that takes OTLP over HTTP.

    Attributes:
        timeout: Limit of one request, nanoseconds.
        max_bytes: Maximum size of what waits to be sent, bytes.
        max_age: How long a request waits at most, nanoseconds.
    """

    name: Annotated[
        str, Meta(description="Name in metrics and /health: at most 32 lower-case letters, digits and `-`; unique.")
    ]
    url: Annotated[
        str, Meta(description="URL without /v1/traces, such as https://collector.example.com:4318; may hold secrets.")
    ]
    headers: Annotated[dict[str, str], Meta(description="Headers of each request, such as Authorization.")] = (
        msgspec.field(default_factory=dict)
    )
    signals: Annotated[
        list[Literal["traces", "logs", "metrics"]], Meta(description="What is sent on. Metrics are not stored.")
    ] = msgspec.field(default_factory=lambda: ["traces", "logs", "metrics"])
    redact: Annotated[
        bool,
        Meta(description="Remove from requests what `redaction` removes from records. false = send them as they came."),
    ] = True
    spans: Annotated[
        bool,
        Meta(description="Also send spans that did not come by OTLP, in OpenTelemetry's conventions, as stored."),
    ] = False
    timeout: Annotated[Duration, Meta(description="Timeout of one request, 100ms to 1m.")] = Duration(10 * SECOND)
    max_bytes: Annotated[
        int,
        Meta(
            ge=_MIN_BYTES,
            le=LARGEST,
            description="Maximum size of what waits to be sent, compressed, in bytes; then the oldest is discarded.",
        ),
    ] = 256 * 1024 * 1024
    max_age: Annotated[Duration, Meta(description="How long a request waits to be sent before it is discarded.")] = (
        Duration(DAY)
    )

    def check_at(self, where: str) -> None:
        """
        Check the values; *where* is the path of this target in the settings.

        Raises:
            ConfigError: A value is invalid; the text names its key and shows no secret.
        """
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{where}.name: {quoted(self.name)} is not 1-32 lower-case letters, digits and -, beginning without -"
            )
        _check_url(self.url, f"{where}.url")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ConfigError(f"{where}.headers: {quoted(name)} is not the name of a header")
            if name.lower() in _RESERVED:
                raise ConfigError(f"{where}.headers: {name} is set by tokentrace")
            if not _HEADER_VALUE.fullmatch(value):
                raise ConfigError(f"{where}.headers.{name}: has a character that no header may have")
        if not self.signals:
            raise ConfigError(f"{where}.signals: is empty, so nothing would be sent")
        if self.spans and "traces" not in self.signals:
            raise ConfigError(f"{where}.spans: has no effect, because signals does not list traces")
        if not _MIN_TIMEOUT_NS <= self.timeout <= _MAX_TIMEOUT_NS:
            raise ConfigError(f"{where}.timeout: {render_duration(self.timeout)} is not between 100ms and 1m")
        if self.max_age < _MIN_AGE_NS:
            raise ConfigError(f"{where}.max_age: {render_duration(self.max_age)} is less than 1s")


def _check_url(url: str, where: str) -> None:
    """Raise ``ConfigError`` if *url* is not the base of HTTP URLs; the text does not repeat it, as it may be secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ConfigError(f"{where}: is not a URL such as https://collector.example.com:4318")
    if "?" in url or "#" in url:
        raise ConfigError(f"{where}: has a query or a fragment, but paths such as /v1/traces are appended to it")
    if parts.username is not None:
        raise ConfigError(f"{where}: has a user; send credentials in headers, such as Authorization")
    if re.search(r"/v1/(traces|logs|metrics)/?$", parts.path):
        raise ConfigError(f"{where}: ends with /v1/..., which is appended; leave it out")
