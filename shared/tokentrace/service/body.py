"""Reading of request bodies, with a limit and with gzip decompression."""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import ClientDisconnect, Request

from tokentrace.errors import Rejected

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


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """
    Return the body, decompressed if it is gzip, without holding more than *limit* bytes of it.

    Raises:
        Rejected: 413, the body is over *limit* bytes before or after decompression; 415, the encoding is not gzip; 400,
            the gzip data is broken or the client disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise Rejected(f"Content-Encoding: {encoding[:40]!r} is not supported, only gzip is", status=415)
    packed = await _read(request, limit)
    return await _inflated(packed, limit) if "gzip" in encoding else packed


async def read_raw(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """
    Return the body as it was sent, without holding more than *limit* bytes of it.

    Raises:
        Rejected: 413, the body is over *limit* bytes; 400, the client disconnected.
    """
    return await _read(request, limit)


async def _read(request: Request, limit: int) -> bytes:
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
                chunks.append(chunk)
        if too_long:
            await _drain(request)
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


async def _inflated(packed: bytes, limit: int) -> bytes:
    """Return the decompressed body; a large one is decompressed in a thread, so that other requests are answered."""
    if len(packed) <= _INLINE_BYTES:
        return inflate(packed, limit)
    return await asyncio.get_running_loop().run_in_executor(_threads, inflate, packed, limit)


def inflate(packed: bytes, limit: int) -> bytes:
    """
    Return the decompressed members of the gzip body *packed*, in time proportional to its size.

    Whatever follows the end of a member is copied by zlib, so the body is passed on in slices: with all of it at once,
    a body of many empty members would be copied once for each of them.

    Raises:
        Rejected: 413 if the result is over *limit* bytes, 400 if *packed* is not gzip or ends within a member.
    """
    parts: list[bytes] = []
    room, at, view = limit, 0, memoryview(packed)
    unpack = zlib.decompressobj(31)
    size = _FIRST_SLICE
    within = False
    while at < len(packed):
        piece = view[at : at + size]
        try:
            part = unpack.decompress(piece, room + 1)
        except zlib.error as exc:
            raise Rejected(f"body: not gzip ({exc})") from exc
        if part:
            room -= len(part)
            if room < 0:
                raise Rejected(f"body: over {limit} bytes, which is the limit after decompression", status=413)
            parts.append(part)
        at += len(piece)
        if unpack.eof:
            at -= len(unpack.unused_data)
            unpack = zlib.decompressobj(31)
            size = _FIRST_SLICE
            within = False
        else:
            # A long member is read in longer slices, because each call has a price of its own.
            size = min(2 * size, _MOST_SLICE)
            within = True
    if within:
        raise Rejected("body: gzip data ends too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)
