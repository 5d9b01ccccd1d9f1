"""Compression of JSON answers with gzip, for clients that accept it; streams are passed on as they are."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: An answer of fewer bytes fits one packet, compressed or not.
_LEAST_BYTES = 1024
#: A longer body is compressed in a thread, so that other requests are answered; bytes.
_INLINE_BYTES = 64 * 1024
#: Level 4 takes half the time of 6, and the answers of this API are 5 % larger.
_LEVEL = 4
_TYPES = (b"application/json", b"text/javascript", b"text/css")


class Compressed:
    """
    An application that compresses the answers of *app* to GET and HEAD.

    Only a whole body of JSON, script or style is compressed: an export or an event stream has no end to wait for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD"):
            send = _Answer(send, accepts_gzip=_accepts_gzip(scope)).send
        await self._app(scope, receive, send)


class _Answer:
    """One answer on its way: its head is held back until its body shows whether it is compressed."""

    def __init__(self, send: Send, *, accepts_gzip: bool) -> None:
        self._send, self._accepts = send, accepts_gzip
        self._head: MutableMapping[str, Any] | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _may_be_compressed(message["headers"]):
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            body = message.get("body", b"")
            if len(body) >= _LEAST_BYTES and not message.get("more_body", False):
                head["headers"] = [*head["headers"], (b"vary", b"Accept-Encoding")]
                if self._accepts:
                    message = {**message, "body": await _packed(body)}
                    _note(head, len(message["body"]))
            await self._send(head)
        await self._send(message)


async def _packed(body: bytes) -> bytes:
    if len(body) <= _INLINE_BYTES:
        return gzip.compress(body, _LEVEL, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL, mtime=0)


def _note(head: MutableMapping[str, Any], size: int) -> None:
    kept = [(name, value) for name, value in head["headers"] if name.lower() != b"content-length"]
    head["headers"] = [*kept, (b"content-length", str(size).encode()), (b"content-encoding", b"gzip")]


def _may_be_compressed(headers: list[tuple[bytes, bytes]]) -> bool:
    found = {name.lower(): value for name, value in headers}
    if b"content-encoding" in found or b"content-length" not in found:
        return False
    return found.get(b"content-type", b"").partition(b";")[0] in _TYPES


def _accepts_gzip(scope: Scope) -> bool:
    """Return True if ``Accept-Encoding`` names gzip or everything, and not with a weight of 0."""
    weights = {}
    for name, value in scope["headers"]:
        if name == b"accept-encoding":
            for part in value.lower().split(b","):
                coding, _, parameters = part.partition(b";")
                weights[coding.strip()] = parameters.replace(b" ", b"")
    weight = weights.get(b"gzip", weights.get(b"*"))
    return weight is not None and weight.rstrip(b"0") not in (b"q=", b"q=0.")
