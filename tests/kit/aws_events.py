"""Event streams of AWS as Bedrock sends them, written from the specification of the format."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return one frame; all headers are texts."""
    encoded = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 12 + len(encoded) + len(payload) + 4, len(encoded))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + encoded + payload
    return body + struct.pack(">I", zlib.crc32(body))


def event(name: str, body: object) -> bytes:
    """Return the frame of the event *name* of ``converse_stream``."""
    headers = {":message-type": "event", ":event-type": name, ":content-type": "application/json"}
    return frame(headers, json.dumps(body).encode())


def chunk(body: object) -> bytes:
    """Return the frame of an event of the model, in base64."""
    return event("chunk", {"bytes": base64.b64encode(json.dumps(body).encode()).decode()})


def exception(name: str, message: str) -> bytes:
    """Return the frame that ends a stream with an error."""
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return frame(headers, json.dumps({"message": message}).encode())
