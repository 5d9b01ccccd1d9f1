"""Reading of request bodies, with limits and with decompression."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import ClientDisconnect, Request

from tokentrace.errors import Rejected, Unavailable

MAX_BODY_BYTES = 8 * 1024 * 1024


#: How much of a body over the limit is read and discarded before the answer, at most: bytes and seconds.
_MAX_DRAINED = 128 * 1024 * 1024
_DRAIN_S = 3.0
#: A compressed body of at most this size is decompressed at once, and a larger one in a thread; bytes.
_INLINE_BYTES = 16 * 1024
#: Few threads, so that the bodies that are decompressed at a time take little memory.
_threads = ThreadPoolExecutor(2, thread_name_prefix="inflate")
#: Sizes of the first and of the longest slice of a member that is passed to zlib, bytes.
_FIRST_SLICE, _MOST_SLICE = 512, 64 * 1024
#: ``wbits`` of zlib for the formats of gzip and of zlib.
_GZIP, _ZLIB = 31, 15
_NAMES = {_GZIP: "gzip", _ZLIB: "deflate"}


class Room:
    """
    The memory for large bodies that are read or processed at the same time.

    Args:
        limit: The number of bytes of all bodies together.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Yield the share of one request, which gives its bytes back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._held -= share.held

    def take(self, size: int) -> None:
        """
        Take *size* bytes.

        Raises:
            Unavailable: There is no room for so many.
        """
        if self._held + size > self._limit:
            raise Unavailable("too many large requests at the same time")
        self._held += size


class Share:
    """What one request has taken from a ``Room``: *held* bytes."""

    def __init__(self, room: Room) -> None:
        self._room, self.held = room, 0

    def take(self, size: int) -> None:
        """Take *size* more bytes; raise as ``Room.take``."""
        self._room.take(size)
        self.held += size


async def read_body(
    request: Request, limit: int = MAX_BODY_BYTES, *, deflate: bool = False, share: Share | None = None
) -> bytes:
    """
    Return the body, decompressed if it is gzip, without holding more than *limit* bytes of it.

    Args:
        deflate: True = the body may also be compressed with ``deflate``, which is the format of zlib.
        share: The memory that the body takes; None = it is not limited.

    Raises:
        Rejected: 413, the body is over *limit* bytes before or after decompression; 415, the encoding is not gzip; 400,
            the compressed data is broken or the client disconnected.
        Unavailable: *share* has no room for the body.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    formats = {"gzip": _GZIP, "x-gzip": _GZIP, **({"deflate": _ZLIB} if deflate else {})}
    if encoding not in ("identity", "", *formats):
        known = "gzip and deflate are" if deflate else "gzip is"
        raise Rejected(f"Content-Encoding: {encoding[:40]!r} is not supported, only {known}", status=415)
    packed = await _read(request, limit, share)
    if encoding not in formats:
        return packed
    body = await _inflated(packed, limit, formats[encoding])
    if share is not None:
        share.take(len(body))
    return body


async def read_raw(request: Request, limit: int = MAX_BODY_BYTES, *, share: Share | None = None) -> bytes:
    """
    Return the body as it was sent, without holding more than *limit* bytes of it.

    Raises:
        Rejected: 413, the body is over *limit* bytes; 400, the client disconnected.
        Unavailable: *share* has no room for the body.
    """
    return await _read(request, limit, share)


async def _read(request: Request, limit: int, share: Share | None) -> bytes:
    declared = request.headers.get("content-length", "")
    too_long = declared.isdigit() and int(declared) > limit
    chunks: list[bytes] = []
    size = 0
    try:
        if not too_long:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    too_long = True
                    break
                if share is not None:
                    share.take(len(chunk))
                chunks.append(chunk)
        if too_long:
            await _drain(request)
    except Unavailable:
        await _drain(request)
        raise
    except ClientDisconnect as exc:
        raise Rejected("body: the client disconnected before its end") from exc
    if too_long:
        raise Rejected(f"body: {declared[:20] or f'over {limit}'} bytes, at most {limit} are taken", status=413)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _drain(request: Request) -> None:
    """Read and discard the rest of a body for a moment: a client that still sends would not read the answer."""
    size = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            while size <= _MAX_DRAINED:
                message = await request.receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _inflated(packed: bytes, limit: int, window: int) -> bytes:
    """Return the decompressed body; a large one is decompressed in a thread, so that other requests are answered."""
    if len(packed) <= _INLINE_BYTES:
        return inflate(packed, limit, window)
    return await asyncio.get_running_loop().run_in_executor(_threads, inflate, packed, limit, window)


def inflate(packed: bytes, limit: int, window: int = _GZIP) -> bytes:
    """
    Return the decompressed members of the gzip body *packed*, in time proportional to its size.

    Whatever follows the end of a member is copied by zlib, so the body is passed on in slices: with all of it at once,
    a body of many empty members would be copied once for each of them.

    Args:
        window: ``wbits`` of zlib: ``_GZIP`` or ``_ZLIB``.

    Raises:
        Rejected: 413, the result is over *limit* bytes; 400, *packed* is of another format or ends within a member.
    """
    parts: list[bytes] = []
    room, at, view = limit, 0, memoryview(packed)
    unpack = zlib.decompressobj(window)
    size = _FIRST_SLICE
    within = False
    while at < len(packed):
        piece = view[at : at + size]
        try:
            part = unpack.decompress(piece, room + 1)
        except zlib.error as exc:
            raise Rejected(f"body: not {_NAMES[window]} ({exc})") from exc
        if part:
            room -= len(part)
            if room < 0:
                raise Rejected(f"body: over {limit} bytes, which is the limit after decompression", status=413)
            parts.append(part)
        at += len(piece)
        if unpack.eof:
            at -= len(unpack.unused_data)
            unpack = zlib.decompressobj(window)
            size = _FIRST_SLICE
            within = False
        else:
            # A long member is read in longer slices, because each call has a price of its own.
            size = min(2 * size, _MOST_SLICE)
            within = True
    if within:
        raise Rejected(f"body: {_NAMES[window]} data ends too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)
