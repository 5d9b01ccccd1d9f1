"""``bus.clock`` on the bus in memory and on JetStream: it is the clock that stamps the messages of the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from kit.broker import Broker
from tokentrace.bus import Bus, Stream, jetstream, subjects
from tokentrace.service.broker_clock import keep_measured

OTHER = Stream(name="OTHER", subjects=("other.>",), max_bytes=1024 * 1024)


@pytest.fixture
async def broker_bus(broker: Broker) -> AsyncIterator[Bus]:
    """Connect to a real broker without any stream."""
    async with jetstream.connect(broker.url, name="clock") as connected:
        yield connected


async def ensure_log(bus: Bus) -> None:
    [log] = [stream for stream in subjects.streams() if stream.name == subjects.SPANS]
    await bus.ensure(log)


async def stored_at(bus: Bus) -> int:
    """Publish a message to the log and return when it was stored."""
    ack = await bus.publish(subjects.spans("default", 0), b"x")
    async with asyncio.timeout(60), contextlib.aclosing(bus.follow(subjects.SPANS, [subjects.ALL_SPANS], None)) as feed:
        async for chunk in feed:
            for message in chunk.messages:
                if message.sequence == ack.sequence:
                    return message.time_ns
    raise AssertionError("the message did not arrive")


async def test_the_clock_is_the_one_that_stamps_the_messages_of_the_log(bus: Bus) -> None:
    await ensure_log(bus)
    await bus.state(subjects.SPANS)
    for _ in range(5):
        before_ns = bus.clock.passed_ns()
        time_ns = await stored_at(bus)
        await bus.state(subjects.SPANS)
        assert 0 < before_ns <= time_ns <= bus.clock.passed_ns()
    skew_ns = bus.clock.skew_ns()
    assert skew_ns is not None


async def test_the_clock_is_measured_until_the_process_stops(bus: Bus) -> None:
    await ensure_log(bus)
    stopping = asyncio.Event()
    measuring = asyncio.create_task(keep_measured(bus, stopping))
    async with asyncio.timeout(60):
        while not bus.clock.is_known:
            await asyncio.sleep(0.01)
        stopping.set()
        await measuring


async def test_a_clock_is_not_measured_from_a_stream_that_another_server_may_lead(broker_bus: Bus) -> None:
    await broker_bus.ensure(OTHER)
    await broker_bus.state(OTHER.name)
    assert not broker_bus.clock.is_known


async def test_an_absent_log_leaves_the_clock_unknown_and_ends_nothing(broker_bus: Bus) -> None:
    stopping = asyncio.Event()
    measuring = asyncio.create_task(keep_measured(broker_bus, stopping))
    await asyncio.sleep(0.2)
    assert not measuring.done()
    assert not broker_bus.clock.is_known
    stopping.set()
    async with asyncio.timeout(60):
        await measuring
