"""Up to where a work queue is done, on both buses."""

from __future__ import annotations

import asyncio
import contextlib

from tokentrace.bus import MIN_STREAM_BYTES, Bus, Delivery, Stream


async def test_a_queue_is_done_up_to_the_message_before_the_first_that_is_not_acknowledged(bus: Bus) -> None:
    await bus.ensure(Stream(name="QUEUE", subjects=("queue.>",), work_queue=True, max_bytes=MIN_STREAM_BYTES))
    assert await bus.done_up_to("QUEUE", "ingest") == 0
    for n in range(3):
        await bus.publish("queue.a", str(n).encode())
    taken: list[Delivery] = []
    async with (
        asyncio.timeout(60),
        contextlib.aclosing(bus.consume("QUEUE", "ingest", batch=8, ack_wait_s=60)) as feed,
    ):
        async for deliveries in feed:
            taken += deliveries
            if len(taken) == 3:
                break

    async def until_done(sequence: int) -> None:
        async with asyncio.timeout(60):
            while await bus.done_up_to("QUEUE", "ingest") != sequence:
                await asyncio.sleep(0.02)

    first, second, third = taken
    await until_done(0)
    await second.ack()
    await third.nak(60)
    await until_done(0)
    await first.term("bad")
    await until_done(2)
    await third.ack()
    await until_done(3)
