"""Publishing with an acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import nats.errors
from nats.aio.client import Client

from tokentrace.bus.contract import PubAck
from tokentrace.bus.jetstream.errors import ApiError, Full, translate_errors
from tokentrace.bus.jetstream.requests import Requests
from tokentrace.errors import Unavailable

#: Most messages that wait for an acknowledgement at a time.
_WINDOW = 2048


class Publisher:
    """Stores messages, at most 2,048 at a time, and remembers which subjects the broker fails to store."""

    def __init__(self, client: Client, requests: Requests) -> None:
        self._client, self._requests = client, requests
        self._window = asyncio.Semaphore(_WINDOW)
        #: First two tokens of a subject -> reason of the last failure, until a publish succeeds again.
        self._failing: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """One text for each kind of subject on which the last publish failed; a full stream is no failure."""
        return [f"nats stores nothing on {subject}: {reason}" for subject, reason in sorted(self._failing.items())]

    def forget_problems(self) -> None:
        """Drop what is known about failures; called when the connection is lost."""
        self._failing.clear()

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        id: str | None = None,
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Store a message, as ``Bus.publish``; the broker has 5 s to acknowledge."""
        sent: dict[str, str] = dict(headers or {})
        if id is not None:
            sent["Nats-Msg-Id"] = id
        if expect_last is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        beginning = ".".join(subject.split(".", 2)[:2])
        async with self._window:
            try:
                ack = await self._send(subject, payload, sent)
            except Unavailable as exc:
                # A healthy broker may answer that a stream is full. Any other failure may be a disk that keeps failing.
                if self._client.is_connected and not isinstance(exc, Full):
                    self._failing[beginning] = str(exc).removeprefix(f"publish {subject}: ")
                raise
            self._failing.pop(beginning, None)
            return ack

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        with translate_errors(f"publish {subject}"):
            try:
                answer = await self._requests.send(subject, payload, headers or None)
            except nats.errors.NoRespondersError as exc:
                raise Unavailable("no stream takes this subject yet") from exc
            if "error" in answer:
                raise ApiError(answer["error"])
            return PubAck(answer["seq"], bool(answer.get("duplicate")))
