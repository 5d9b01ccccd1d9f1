"""
Carries batches over HTTP/1.1. Imported at the first connection.

All reporters of a process share one event loop, so a request must not block it, and threads cannot be started while the
interpreter ends. So requests are written to the streams of asyncio: the standard library has no client for them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec

from tokentrace.bus.access import tls_context
from tokentrace.client.reporter.destination import Answer, Carrier, Destination
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import BATCH_TYPE
from tokentrace.shown import shown_url

_TIMEOUT_S = 10.0
#: HTTP statuses below 500 that ask for another attempt: request timeout, too early, too many requests.
_RETRY_STATUSES = (408, 425, 429)
#: Limits for what is read of an answer, bytes; the answer to a batch is shorter.
_MAX_HEAD_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 256 * 1024

#: What stays in a path as it was written; "%" because it may be quoted already.
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"


@contextlib.asynccontextmanager
async def open_http(destination: Destination) -> AsyncIterator[Carrier]:
    """Yield a carrier that connects at its first batch."""
    carrier = _HttpCarrier(destination)
    try:
        yield carrier
    finally:
        carrier.close()
        # asyncio closes the socket of an aborted connection in its next iteration.
        await asyncio.sleep(0)


class _Response(NamedTuple):
    """An answer; ``keep`` = the connection can be used again."""

    status: int
    body: bytes
    keep: bool


class _Unreadable(Exception):
    """What the server sent is not an answer of HTTP/1.1."""


class _HttpCarrier:
    """One keep-alive connection, for one request at a time."""

    def __init__(self, destination: Destination) -> None:
        parts = urlsplit(destination.url)
        self._shown = shown_url(destination.url)
        self._access = destination.access
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._is_tls else 80)
        path = parts.path.rstrip("/")
        if not path.endswith("/spans"):
            path += "/spans"
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        default = parts.port in (None, 443 if self._is_tls else 80)
        lines = [
            f"POST {quote(path, safe=_PATH_SAFE)} HTTP/1.1",
            f"Host: {shown_host}" if default else f"Host: {shown_host}:{self._port}",
            f"Content-Type: {BATCH_TYPE}",
        ]
        user, password = self._access.user, self._access.password
        if not user and parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
        if self._access.token:
            lines.append(f"Authorization: Bearer {self._access.token}")
        elif user:
            lines.append(f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
        self._head = "\r\n".join(lines).encode() + b"\r\nContent-Length: "
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, payload: bytes, id: str, sequence: int, project: str | None = None) -> Answer:
        async with self._turn:
            response = await self._post(payload)
        if response.status < 300:
            try:
                return msgspec.json.decode(response.body, type=Answer)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return Answer()  # an earlier version, or not ours
        text = f"POST to {self._shown}: {response.status} {response.body[:120]!r}"
        if response.status >= 500 or response.status in _RETRY_STATUSES:
            raise Unavailable(text)
        raise Rejected(text, status=response.status)

    async def _post(self, payload: bytes) -> _Response:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = self._streams or await self._connect()
                writer.write(self._head + str(len(payload)).encode() + b"\r\n\r\n" + payload)
                response = await _read_response(reader)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, _Unreadable) as exc:
            self.close()
            reason = exc.verify_message if isinstance(exc, ssl.SSLCertVerificationError) else type(exc).__name__
            raise Unavailable(f"POST to {self._shown}: {reason}") from exc
        except asyncio.CancelledError:
            self.close()
            raise
        if not response.keep:
            self.close()
        return response

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = (tls_context(self._access) or ssl.create_default_context()) if self._is_tls else None
        self._streams = await asyncio.open_connection(self._host, self._port, ssl=context, limit=_MAX_HEAD_BYTES)
        return self._streams

    def close(self) -> None:
        """Close the connection, if there is one, without waiting for what was not sent."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read_response(reader: asyncio.StreamReader) -> _Response:
    """Read one answer; interim answers are skipped."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise _Unreadable
        status = int(rest[:3])
        if status >= 200:
            break
    fields = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip().lower()
    keep = version != "HTTP/1.0" and "close" not in fields.get("connection", "")
    if status in (204, 304):
        return _Response(status, b"", keep)
    if "chunked" in fields.get("transfer-encoding", ""):
        body = await _read_chunks(reader)
    elif "content-length" in fields:
        size = int(fields["content-length"])
        if size > _MAX_ANSWER_BYTES:
            return _Response(status, await reader.readexactly(_MAX_ANSWER_BYTES), keep=False)
        body = await reader.readexactly(size)
    else:
        return _Response(status, await reader.read(_MAX_ANSWER_BYTES), keep=False)
    return _Response(status, body, keep)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
        if size < 0 or len(body) + size > _MAX_ANSWER_BYTES:
            raise _Unreadable
        if size == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return bytes(body)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
