"""
Event streams of AWS, in which Bedrock wraps the events of a model.

A frame is: length of the frame, length of its headers, CRC-32 of these two; headers; payload; CRC-32 of all before it.
Numbers are big-endian and have four bytes. A header is a name and a value, each behind its length, with the type of the
value between them. The payload of a ``chunk`` is a JSON object whose ``bytes`` are the event of the model in base64.
"""

from __future__ import annotations

import base64
import struct
import zlib

import msgspec

#: The media type of an answer that is made of frames.
AWS_STREAM = "application/vnd.amazon.eventstream"
#: Frames of AWS are at most this long, bytes; a longer one is no frame.
_MAX_FRAME = 24 * 1024 * 1024
_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
#: Type of a header's value -> its size, bytes. Types 6 and 7, bytes and text, say their size themselves.
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class _Chunk(msgspec.Struct):
    bytes: str = ""


class AwsFrames:
    """
    Cuts the frames of one stream, whatever the boundaries of the parts in which it arrives.

    Attributes:
        held: The beginning of a frame that is not complete.
        broken: True = what came is no frame; no frame is found any more.
    """

    def __init__(self) -> None:
        self.held = b""
        self.broken = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that *data*, the next part of the stream, completes, as they came."""
        frames: list[bytes] = []
        if self.broken:
            return frames
        text, at = self.held + data, 0
        while len(text) - at >= _PRELUDE.size:
            size, header_size, crc = _PRELUDE.unpack_from(text, at)
            if zlib.crc32(text[at : at + 8]) != crc or not _PRELUDE.size + header_size + 4 <= size <= _MAX_FRAME:
                self.broken, at = True, len(text)
                break
            if len(text) - at < size:
                break
            frames.append(text[at : at + size])
            at += size
        self.held = text[at:]
        return frames

    def finish(self) -> bytes:
        """Return what is left at the end of the stream, which is no whole frame."""
        rest, self.held = self.held, b""
        return rest

    def content(self, frame: bytes) -> bytes:
        """
        Return the event of the model in *frame*, a JSON text; b"" if there is none.

        A frame that reports an error holds an event of the form
        ``{"type": "error", "error": {"type": ..., "message": ...}}``.
        """
        start = _PRELUDE.size
        if len(frame) < start + 4 or zlib.crc32(frame[:-4]) != _CRC.unpack(frame[-4:])[0]:
            return b""
        end = start + _PRELUDE.unpack_from(frame)[1]
        return _event(frame[start:end], frame[end:-4])


def _event(headers: bytes, payload: bytes) -> bytes:
    """Return the event in a frame; b"" if the frame holds none."""
    texts = _texts(headers)
    kind = texts.get(":message-type", "event")
    if kind == "event":
        if texts.get(":event-type") != "chunk":
            return b""
        try:
            return base64.b64decode(msgspec.json.decode(payload, type=_Chunk).bytes, validate=True)
        except (ValueError, msgspec.DecodeError):
            return b""
    if kind == "error":
        return _error(texts.get(":error-code", "error"), texts.get(":error-message", ""))
    try:
        body = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        body = {}
    message = body.get("message") or body.get("Message") if isinstance(body, dict) else ""
    return _error(texts.get(":exception-type", kind), str(message or ""))


def _error(code: str, message: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": code, "message": message}})


def _texts(headers: bytes) -> dict[str, str]:
    """Return the headers that are text; those behind one that cannot be read are left out."""
    texts: dict[str, str] = {}
    at = 0
    while at + 2 <= len(headers):
        name_end = at + 1 + headers[at]
        name = headers[at + 1 : name_end].decode(errors="replace")
        if name_end >= len(headers):
            break
        kind = headers[name_end]
        at = name_end + 1
        if kind in (6, 7):
            size = int.from_bytes(headers[at : at + 2], "big")
            at += 2
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            break
        if kind == 7:
            texts[name] = headers[at : at + size].decode(errors="replace")
        at += size
    return texts
