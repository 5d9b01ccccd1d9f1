"""Bare publishing with nats-py: counts acknowledgements, without retries, error checks and message ids."""

from __future__ import annotations

import asyncio
import time

import nats


async def bare_publish(url: str, subject: str, payloads: list[bytes], count: int) -> float:
    """Publish *count* messages, at most 256 of them unacknowledged; return the messages per second."""
    client = await nats.connect(url)
    inbox = client.new_inbox()
    got = 0
    more = asyncio.Event()

    async def on_ack(_: object) -> None:
        nonlocal got
        got += 1
        more.set()

    await client.subscribe(inbox, cb=on_ack)
    began = time.perf_counter()
    for index in range(count):
        while index - got >= 256:
            more.clear()
            await more.wait()
        await client.publish(subject, payloads[index % len(payloads)], reply=inbox)
    while got < count:
        more.clear()
        await more.wait()
    rate = count / (time.perf_counter() - began)
    await client.close()
    return rate
