"""How a reporter's batches travel: to NATS, or over HTTP to ingest."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, Protocol
from urllib.parse import urlsplit

from tokentrace.bus import jetstream, subjects
from tokentrace.errors import ConfigError, Rejected, Unavailable
from tokentrace.records import BATCH_TYPE

_HTTP_TIMEOUT_S = 10.0


class Carrier(Protocol):
    """Delivers one message; returns once the pipeline has accepted it."""

    async def send(self, payload: bytes, id: str, sequence: int) -> None:
        """
        Deliver *payload*.

        Raises:
            Unavailable: Not accepted now; the same id may be sent again.
            Rejected: Never will be.
        """
        ...


@contextlib.asynccontextmanager
async def open_carrier(url: str, *, name: str, project: str, shards: int, token: str) -> AsyncIterator[Carrier]:
    """
    The carrier for *url*: ``nats://``, ``tls://``, ``http://`` or ``https://``.

    Raises:
        Unavailable: Nobody there.
        ConfigError: Another scheme.
    """
    scheme = url.partition("://")[0]
    if scheme in ("nats", "tls"):
        async with jetstream.connect(url, name=name, wait_s=5.0) as bus:
            yield _Nats(bus, project, shards)
    elif scheme in ("http", "https"):
        carrier = _Http(url, token)
        try:
            yield carrier
        finally:
            carrier.close()
    else:
        raise ConfigError(f"reporter: {scheme}:// is none of nats://, tls://, http://, https://")


class _Nats:
    def __init__(self, bus: jetstream.JetStream, project: str, shards: int) -> None:
        self._bus, self._project, self._shards = bus, project, shards

    async def send(self, payload: bytes, id: str, sequence: int) -> None:
        await self._bus.publish(subjects.raw(self._project, sequence % self._shards), payload, id=id)


class _Http:
    """One kept-alive connection; it blocks, which holds up nobody but the reporter's own thread."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
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

    async def send(self, payload: bytes, id: str, sequence: int) -> None:
        try:
            self._connection.request("POST", self._path, payload, self._headers)
            response = self._connection.getresponse()
            body = response.read(200)
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise Unavailable(f"POST {self._path}: {type(exc).__name__}") from exc
        if response.status < 300:
            return
        text = f"POST {self._path}: {response.status} {body[:120]!r}"
        if response.status >= 500 or response.status in (408, 425, 429):
            raise Unavailable(text)
        raise Rejected(text, status=response.status)

    def close(self) -> None:
        self._connection.close()


class SenderLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose name look-ups run in place.

    The thread pool that asyncio uses for them is closed before ``atexit`` runs, so a program that ends right after its
    first span could not connect any more.
    """

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        """As ``loop.getaddrinfo``."""
        return socket.getaddrinfo(host, port, **kwargs)
