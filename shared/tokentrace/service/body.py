"""Reading of request bodies, with a limit and with gzip decompression."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from tokentrace.errors import Rejected

MAX_BODY_BYTES = 8 * 1024 * 1024


#: How much of a body over the limit is read and discarded before the answer, at most: bytes and seconds.
_MAX_DRAINED = 128 * 1024 * 1024
_DRAIN_S = 3.0


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
    return _inflate(packed, limit) if "gzip" in encoding else packed


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


def _inflate(packed: bytes, limit: int) -> bytes:
    """Return the decompressed members of a gzip body; Rejected if it is broken or over *limit* bytes."""
    parts: list[bytes] = []
    room, rest = limit, packed
    while rest:
        unpack = zlib.decompressobj(31)
        try:
            part = unpack.decompress(rest, room + 1)
        except zlib.error as exc:
            raise Rejected(f"body: not gzip ({exc})") from exc
        room -= len(part)
        if room < 0:
            raise Rejected(f"body: over {limit} bytes, which is the limit after decompression", status=413)
        if not unpack.eof:
            raise Rejected("body: gzip data ends too early")
        parts.append(part)
        rest = unpack.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)
