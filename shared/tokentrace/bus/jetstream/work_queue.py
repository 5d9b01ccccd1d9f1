"""Consuming a work queue: one durable consumer that several processes share."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tokentrace.bad_data import reading
from tokentrace.bus.contract import Message
from tokentrace.bus.jetstream.errors import NO_CONSUMER, ApiError, translate_errors
from tokentrace.bus.jetstream.pull import Inbox, Pull, parse_meta
from tokentrace.bus.jetstream.requests import Requests
from tokentrace.errors import Unavailable
from tokentrace.units import SECOND

log = logging.getLogger("tokentrace.bus")

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0


class JetStreamDelivery:
    """``Delivery`` of a durable consumer."""

    __slots__ = ("_client", "_reply", "deliveries", "message")

    def __init__(self, client: Client, msg: Msg) -> None:
        meta = parse_meta(msg.reply)
        self._client, self._reply = client, msg.reply
        self.deliveries = meta.deliveries
        self.message = Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {})

    async def ack(self) -> None:
        """As ``Delivery.ack``; if the acknowledgement is lost, the message is delivered again."""
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


async def consume(
    client: Client, requests: Requests, stream: str, durable: str, *, batch: int, ack_wait_s: float
) -> AsyncGenerator[Sequence[JetStreamDelivery], None]:
    """Yield deliveries without end, as ``Bus.consume``; Unavailable once the connection is closed for good."""
    config = {
        "name": durable,
        "durable_name": durable,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * SECOND),
        # A message that reaches this limit would stay in the queue for ever, so the reader itself counts deliveries.
        "max_deliver": -1,
        "max_ack_pending": 20_000,
        "deliver_policy": "all",
    }
    pause = _MIN_PAUSE_S
    while True:
        try:
            settings = {**config, "num_replicas": await _replicas(requests, stream, durable)}
            await requests.api(f"CONSUMER.CREATE.{stream}.{durable}", {"stream_name": stream, "config": settings})
            async with Inbox(client) as inbox:
                pull = Pull(client, stream, inbox, batch, consumer=durable)
                async for messages in pull.batches():
                    pause = _MIN_PAUSE_S
                    yield [JetStreamDelivery(client, msg) for msg in messages]
        except (Unavailable, ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
            if client.is_closed:
                raise Unavailable("the connection to NATS is closed") from exc
            log.debug("consume %s: %s", stream, exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE_S)


async def _replicas(requests: Requests, stream: str, durable: str) -> int:
    """Return the replicas of a consumer, on which the operator decides; 0 = as many as the stream has."""
    info = await _info(requests, stream, durable)
    return 0 if info is None else int(info["config"].get("num_replicas", 0))


async def done_up_to(requests: Requests, stream: str, durable: str) -> int:
    """As ``Bus.done_up_to``."""
    with translate_errors(stream), reading("consumer"):
        info = await _info(requests, stream, durable)
        return 0 if info is None else int(info["ack_floor"]["stream_seq"])


async def delivered_up_to(requests: Requests, stream: str, durable: str) -> int | None:
    """As ``Bus.delivered_up_to``."""
    with translate_errors(stream), reading("consumer"):
        info = await _info(requests, stream, durable)
        return None if info is None else int(info["delivered"]["stream_seq"])


async def _info(requests: Requests, stream: str, durable: str) -> dict[str, Any] | None:
    """Return what the broker says of a consumer; None = it does not exist."""
    try:
        return await requests.api(f"CONSUMER.INFO.{stream}.{durable}", {})
    except ApiError as exc:
        if exc.code != NO_CONSUMER:
            raise
        return None
