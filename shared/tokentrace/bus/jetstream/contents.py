"""Reading and removing the messages of a stream by subject, on which buckets and object stores are built."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from tokentrace.bad_data import SetAside
from tokentrace.bus.contract import Message
from tokentrace.bus.jetstream.codec import parse_headers
from tokentrace.bus.jetstream.errors import NO_MESSAGE, NO_SEQUENCE, ApiError, translate_errors
from tokentrace.bus.jetstream.follow import Followers
from tokentrace.bus.jetstream.publisher import Publisher
from tokentrace.bus.jetstream.requests import Requests
from tokentrace.units import parse_instant

_READ_TIMEOUT_S = 30.0
#: If no message arrives for this long during a read, check whether the messages were removed; seconds.
_STALLED_S = 0.5


class StreamContents:
    """
    Direct access to the messages of streams.

    Attributes:
        publish: ``Publisher.publish``.
        set_aside: Records data that cannot be decoded.
    """

    def __init__(self, requests: Requests, publisher: Publisher, followers: Followers, set_aside: SetAside) -> None:
        self._requests, self._followers = requests, followers
        self.publish = publisher.publish
        self.set_aside = set_aside

    async def last(self, stream: str, subject: str) -> Message | None:
        """Return the last message of *subject*, or None if it has none."""
        with translate_errors(stream):
            try:
                stored = (await self._requests.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))["message"]
            except ApiError as exc:
                if exc.code == NO_MESSAGE:
                    return None
                raise
        headers = parse_headers(base64.b64decode(stored.get("hdrs") or ""))
        payload = base64.b64decode(stored.get("data") or "")
        return Message(stored["subject"], payload, int(stored["seq"]), parse_instant(stored["time"]), headers)

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """Return the subjects that match *pattern* and hold messages, sorted."""
        with translate_errors(stream):
            info = await self._requests.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return sorted(info["state"].get("subjects") or {})

    async def erase(self, stream: str, sequence: int) -> None:
        """Remove and overwrite one message, as ``Bus.erase``; a purge would leave its bytes on disk."""
        with translate_errors(stream):
            try:
                await self._requests.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
            except ApiError as exc:
                if exc.code not in (NO_MESSAGE, NO_SEQUENCE):
                    raise

    async def purge(self, stream: str, subject: str) -> None:
        """Remove the messages of *subject*."""
        with translate_errors(stream):
            await self._requests.api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def read(self, stream: str, subject: str, count: int) -> list[bytes]:
        """Return the first *count* payloads of *subject*; fewer if some are removed during the read."""
        payloads: list[bytes] = []
        chunks = self._followers.follow_once(stream, [subject], None)
        with translate_errors(stream):
            async with contextlib.aclosing(chunks), asyncio.timeout(_READ_TIMEOUT_S):
                while len(payloads) < count:
                    step = asyncio.ensure_future(anext(chunks))
                    try:
                        while not (await asyncio.wait([step], timeout=_STALLED_S))[0]:
                            if not await self.subjects(stream, subject):
                                return payloads
                    finally:
                        step.cancel()
                        await asyncio.wait([step])
                    chunk = step.result()
                    payloads += [message.payload for message in chunk.messages]
                    if chunk.pending == 0:
                        break
        return payloads[:count]
