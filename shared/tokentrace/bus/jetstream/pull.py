"""Receiving: an inbox with a private subject, and a pull request that notices when its consumer has died."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tokentrace.bus.jetstream.errors import translate_errors
from tokentrace.errors import Unavailable
from tokentrace.units import SECOND

_HEARTBEAT_S = 1.0
#: A consumer counts as dead if no message arrives for this long, not even a heartbeat; seconds.
_SILENCE_S = 2.5 * _HEARTBEAT_S
_EXPIRES_S = 30.0


class Inbox:
    """A subscription to a private subject; *name* is the last token of the subject."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.subject = client.new_inbox()
        self.name = self.subject.rpartition(".")[2]
        self._arrived: list[Msg] = []
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Inbox:
        with translate_errors("subscribe"):
            self._subscription = await self._client.subscribe(
                self.subject, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            await unsubscribe(self._client, self._subscription)

    async def _on_message(self, msg: Msg) -> None:
        self._arrived.append(msg)
        self._wake.set()

    async def take(self) -> list[Msg]:
        """Return the messages that have arrived, after waiting for at least one."""
        while not self._arrived:
            self._wake.clear()
            await self._wake.wait()
        arrived, self._arrived = self._arrived, []
        return arrived


async def unsubscribe(client: Client, subscription: Subscription) -> None:
    """End *subscription*; a lost connection has ended it already."""
    if client.is_closed:
        return
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()


class Pull:
    """Requests messages of a consumer in batches, the next batch before the current one has ended."""

    def __init__(self, client: Client, stream: str, inbox: Inbox, batch: int, consumer: str | None = None) -> None:
        self._client, self._inbox, self._batch = client, inbox, batch
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer or inbox.name}"
        request = {"batch": batch, "expires": int(_EXPIRES_S * SECOND), "idle_heartbeat": int(_HEARTBEAT_S * SECOND)}
        self._request = json.dumps(request).encode()

    async def batches(self) -> AsyncGenerator[list[Msg], None]:
        """
        Yield lists of messages, never empty.

        Raises:
            Unavailable: The consumer is silent or gone, the broker ended a request with an error, or the connection
                was lost and restored.
            nats.errors.Error: The connection is lost, so no batch can be requested.
        """
        # How many messages the broker may still send for the requests so far.
        outstanding = 0
        reconnects = self._client.stats["reconnects"]
        while True:
            if outstanding <= self._batch // 2:
                await self._client.publish(self._next, self._request, reply=self._inbox.subject)
                outstanding += self._batch
            try:
                async with asyncio.timeout(_SILENCE_S):
                    arrived = await self._inbox.take()
            except TimeoutError as exc:
                raise Unavailable(f"the consumer sent nothing for {_SILENCE_S} s") from exc
            if self._client.stats["reconnects"] != reconnects:
                raise Unavailable("the connection was lost and restored")
            messages = []
            problem = ""
            for msg in arrived:
                if msg.reply.startswith("$JS.ACK."):
                    messages.append(msg)
                    outstanding -= 1
                    continue
                headers = msg.headers or {}
                status = headers.get("Status")
                if status in ("404", "408"):
                    outstanding -= int(headers.get("Nats-Pending-Messages", self._batch))
                elif status != "100":
                    problem = f"{status} {headers.get('Description')}"
            if messages:
                yield messages
            if problem:
                raise Unavailable(problem)


class Meta(NamedTuple):
    """
    What the reply subject of a delivered message says about it.

    Attributes:
        deliveries: How often the message was delivered, this delivery included.
        sequence: Its sequence in the stream.
        consumer_sequence: How many messages the consumer has sent, this one included.
        time_ns: When the broker stored it, Unix nanoseconds.
        pending: How many further messages the consumer has to send.
    """

    deliveries: int
    sequence: int
    consumer_sequence: int
    time_ns: int
    pending: int


def parse_meta(reply: str) -> Meta:
    """
    Decode a reply subject.

    *reply* is ``$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>``; newer
    servers insert a domain and an account hash after ``ACK`` and may append further tokens.
    """
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 else 6
    return Meta(
        deliveries=int(tokens[at]),
        sequence=int(tokens[at + 1]),
        consumer_sequence=int(tokens[at + 2]),
        time_ns=int(tokens[at + 3]),
        pending=int(tokens[at + 4]),
    )
