"""What is asked for and what arrives: private subjects, pull consumers that notice when they have died."""

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

from tokentrace.bus.contract import Message
from tokentrace.bus.jetstream.errors import translate_errors
from tokentrace.errors import Unavailable
from tokentrace.units import SECOND

_BEAT_S = 1.0
_EXPIRES_S = 30.0


class Inbox:
    """A private subject and what has arrived on it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.subject = client.new_inbox()
        self.name = self.subject.rpartition(".")[2]
        self._got: list[Msg] = []
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
        self._got.append(msg)
        self._wake.set()

    async def take(self) -> list[Msg]:
        """Everything that has arrived, at least one message."""
        while not self._got:
            self._wake.clear()
            await self._wake.wait()
        got, self._got = self._got, []
        return got


async def unsubscribe(client: Client, subscription: Subscription) -> None:
    if client.is_closed:
        return
    # Gone with the connection is as good as unsubscribed.
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()


class Pull:
    """Keeps a pull consumer asked, and notices when it has died."""

    def __init__(self, client: Client, stream: str, inbox: Inbox, batch: int, consumer: str | None = None) -> None:
        self._client, self._inbox, self._batch = client, inbox, batch
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer or inbox.name}"
        ask = {"batch": batch, "expires": int(_EXPIRES_S * SECOND), "idle_heartbeat": int(_BEAT_S * SECOND)}
        self._ask = json.dumps(ask).encode()

    async def batches(self) -> AsyncGenerator[list[Msg], None]:
        """Lists of messages, never empty. Unavailable when nothing, not even a heartbeat, comes any more."""
        room = 0
        connection = self._client.stats["reconnects"]
        while True:
            if room <= self._batch // 2:
                await self._client.publish(self._next, self._ask, reply=self._inbox.subject)
                room += self._batch
            try:
                async with asyncio.timeout(2.5 * _BEAT_S):
                    arrived = await self._inbox.take()
            except TimeoutError as exc:
                raise Unavailable("the consumer is silent") from exc
            if self._client.stats["reconnects"] != connection:
                raise Unavailable("connected anew")
            messages = []
            trouble = ""
            for msg in arrived:
                if msg.reply.startswith("$JS.ACK."):
                    messages.append(msg)
                    room -= 1
                    continue
                headers = msg.headers or {}
                status = headers.get("Status")
                if status in ("404", "408"):
                    room -= int(headers.get("Nats-Pending-Messages", self._batch))
                elif status != "100":
                    trouble = f"{status} {headers.get('Description')}"
            if messages:
                yield messages
            if trouble:
                raise Unavailable(trouble)


class JetStreamDelivery:
    """``Delivery`` of a durable consumer."""

    __slots__ = ("_client", "_reply", "deliveries", "message")

    def __init__(self, client: Client, msg: Msg) -> None:
        meta = parse_meta(msg.reply)
        self._client, self._reply = client, msg.reply
        self.deliveries = meta.deliveries
        self.message = Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {})

    async def ack(self) -> None:
        """As ``Delivery.ack``; one that is lost brings the message again, and its readers know it."""
        await self._answer(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """As ``Delivery.nak``."""
        await self._answer(b"-NAK " + json.dumps({"delay": int(delay_s * SECOND)}).encode())

    async def term(self, reason: str) -> None:
        """As ``Delivery.term``."""
        await self._answer(b"+TERM " + reason.encode("ascii", "replace")[:200])

    async def in_progress(self) -> None:
        """As ``Delivery.in_progress``."""
        await self._answer(b"+WPI")

    async def _answer(self, word: bytes) -> None:
        with translate_errors("acknowledge"):
            await self._client.publish(self._reply, word)


class Meta(NamedTuple):
    deliveries: int
    sequence: int
    consumer_sequence: int
    time_ns: int
    pending: int


def parse_meta(reply: str) -> Meta:
    """``$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<ns>.<pending>``, or longer."""
    t = reply.split(".")
    at = 4 if len(t) == 9 else 6
    return Meta(int(t[at]), int(t[at + 1]), int(t[at + 2]), int(t[at + 3]), int(t[at + 4]))
