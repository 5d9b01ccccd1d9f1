"""Transports: how a reporter sends a batch to the pipeline, over NATS or over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from tokentrace.bus import jetstream, subjects
from tokentrace.errors import ConfigError, Rejected, TokentraceError, Unavailable
from tokentrace.records import BATCH_TYPE, RefusalNotice, SpanError, decode_notice
from tokentrace.shown import shown_url

_CONNECT_TIMEOUT_S = 5.0
_HTTP_TIMEOUT_S = 10.0
#: HTTP statuses below 500 that ask for another attempt: request timeout, too early, too many requests.
_RETRY_STATUSES = (408, 425, 429)
#: How much of an answer is read, bytes; the answer to a batch is shorter.
_MAX_ANSWER_BYTES = 256 * 1024


class Destination(NamedTuple):
    """
    Where a reporter sends its batches.

    Attributes:
        url: ``nats://``, ``tls://``, ``http://`` or ``https://``.
        name: The name of the connection, shown by the monitoring of NATS.
        project: Part of the raw subjects; NATS only.
        shards: Number of raw subjects that the batches are spread over, at least 1; NATS only.
        token: Bearer token, "" for none; HTTP only.
    """

    url: str
    name: str
    project: str
    shards: int
    token: str


class Answer(msgspec.Struct):
    """
    What ingest says at once about an accepted batch; over NATS it says nothing at once.

    Attributes:
        rejected: Number of spans that it found invalid.
        errors: The first of them.
    """

    rejected: int = 0
    errors: list[SpanError] = []


#: Called with what ingest says later about an accepted batch.
OnNotice = Callable[[RefusalNotice], None]


class BatchTransport(Protocol):
    """Sends encoded batches and waits until the pipeline has accepted each."""

    async def send(self, payload: bytes, id: str, sequence: int) -> Answer:
        """
        Send one encoded batch and return once the pipeline has stored it.

        Args:
            payload: The batch in the form that ``records.decode_batches`` reads.
            id: The message id by which the broker recognises a repetition; NATS only.
            sequence: The number of the batch, which chooses the raw subject; NATS only.

        Raises:
            Unavailable: The batch was not acknowledged and may or may not have been stored; sending it again under the
                same id is safe.
            Rejected: The pipeline refuses the batch and always will.
        """
        ...


def check_url(url: str) -> None:
    """
    Check that a reporter can send to *url*.

    Raises:
        ConfigError: The scheme of *url* is unknown, the host is missing, or the port is not usable.
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
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        # The text of the exception repeats what stands in the place of the port, which may be part of a password.
        raise ConfigError("reporter: the host or port of the URL cannot be read") from exc
    if not parts.hostname:
        raise ConfigError("reporter: the URL names no host")
    if port == 0:
        raise ConfigError("reporter: the URL names port 0, which cannot be connected to")


@contextlib.asynccontextmanager
async def open_transport(destination: Destination, id: str, on_notice: OnNotice) -> AsyncIterator[BatchTransport]:
    """
    Connect to *destination*; the connection is closed at the end of the block.

    Args:
        id: The id of the reporter.
        on_notice: Called with what ingest says later about batches of this reporter; NATS only.

    Raises:
        Unavailable: The broker does not answer. HTTP connects later, at the first ``send``.
        ConfigError: The URL is not usable, as ``check_url``.
    """
    scheme = destination.url.partition("://")[0]
    if scheme in ("nats", "tls"):
        async with (
            jetstream.connect(destination.url, name=destination.name, wait_s=_CONNECT_TIMEOUT_S) as bus,
            _listening(bus, destination.project, id, on_notice),
        ):
            yield _NatsTransport(bus, destination.project, destination.shards)
    elif scheme in ("http", "https"):
        transport = _HttpTransport(destination.url, destination.token)
        try:
            yield transport
        finally:
            transport.close()
    else:
        raise ConfigError(f"reporter: {scheme}:// is not one of nats://, tls://, http://, https://")


@contextlib.asynccontextmanager
async def _listening(bus: jetstream.JetStream, project: str, id: str, on_notice: OnNotice) -> AsyncIterator[None]:
    """Pass the notices for this reporter on, as far as the broker lets it subscribe."""

    async def take(payload: bytes) -> AsyncIterator[bytes]:
        with contextlib.suppress(Rejected):  # anyone may publish here
            on_notice(decode_notice(payload))
        return
        yield b""

    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(TokentraceError):  # refusals are then only in the counters of ingest
            await stack.enter_async_context(bus.serve(subjects.refused(project, id), take))
        yield


class _NatsTransport:
    def __init__(self, bus: jetstream.JetStream, project: str, shards: int) -> None:
        self._bus, self._project, self._shards = bus, project, shards

    async def send(self, payload: bytes, id: str, sequence: int) -> Answer:
        await self._bus.publish(subjects.raw(self._project, sequence % self._shards), payload, id=id)
        return Answer()


class _HttpTransport:
    """One keep-alive connection. A request blocks the event loop, which runs nothing but the reporter's sender."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._shown = shown_url(url)
        self._path = parts.path.rstrip("/")
        if not self._path.endswith("/spans"):
            self._path += "/spans"
        self._headers = {"Content-Type": BATCH_TYPE}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or "127.0.0.1"
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=_HTTP_TIMEOUT_S, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=_HTTP_TIMEOUT_S)
        )

    async def send(self, payload: bytes, id: str, sequence: int) -> Answer:
        try:
            self._connection.request("POST", self._path, payload, self._headers)
            response = self._connection.getresponse()
            body = response.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise Unavailable(f"POST to {self._shown}: {type(exc).__name__}") from exc
        if response.status < 300:
            try:
                return msgspec.json.decode(body, type=Answer)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return Answer()  # an earlier version, or not ours
        text = f"POST to {self._shown}: {response.status} {body[:120]!r}"
        if response.status >= 500 or response.status in _RETRY_STATUSES:
            raise Unavailable(text)
        raise Rejected(text, status=response.status)

    def close(self) -> None:
        self._connection.close()
