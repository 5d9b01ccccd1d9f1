"""Tests of ``position_at``, which finds the position that belongs to a time, on the memory bus and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from kit.rule_store import open_bus
from tokentrace.bus import Bus, Stream
from tokentrace.records import Position
from tokentrace.units import HOUR, SECOND
from tokentrace_alerter import rule_store as rule_store


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request) as opened:
        yield opened


async def test_in_an_empty_stream_the_position_of_any_time_is_the_beginning(bus: Bus) -> None:
    created = (await bus.state("LOG")).created_ns
    for at in (0, time.time_ns(), time.time_ns() + HOUR):
        assert await bus.position_at("LOG", at) == Position(created, 0)


async def fill(bus: Bus, count: int) -> list[int]:
    """Publish *count* messages a few milliseconds apart and return their stream times."""
    for number in range(count):
        await bus.publish("log.a", str(number).encode())
        await asyncio.sleep(0.005)
    times: list[int] = []
    async with asyncio.timeout(10), contextlib.aclosing(bus.follow("LOG", ["log.>"], None)) as feed:
        async for chunk in feed:
            times += [message.time_ns for message in chunk.messages]
            if len(times) >= count:
                break
    return times


async def test_the_position_of_a_time_misses_nothing_and_is_at_most_a_millisecond_early(bus: Bus) -> None:
    times = await fill(bus, 12)
    created = (await bus.state("LOG")).created_ns
    for asked in (0, *times, *(at + 1 for at in times), *(at - 1 for at in times), times[-1] + HOUR):
        position = await bus.position_at("LOG", asked)
        assert position.created_ns == created
        assert position.sequence <= sum(at < asked for at in times)
        assert position.sequence >= sum(at < asked - SECOND // 1000 for at in times)


async def test_a_reader_continues_from_the_position_of_a_time(bus: Bus) -> None:
    times = await fill(bus, 8)
    position = await bus.position_at("LOG", times[5])
    async with asyncio.timeout(10), contextlib.aclosing(bus.follow("LOG", ["log.>"], position)) as feed:
        async for chunk in feed:
            if chunk.messages:
                assert not chunk.rewound
                assert chunk.messages[0].sequence in (5, 6)
                assert chunk.messages[-1].sequence == 8
                break


async def test_a_time_before_the_first_message_gives_the_position_of_the_beginning(bus: Bus) -> None:
    await bus.ensure(Stream(name="LOG", subjects=("log.>",), max_bytes=4096))
    for _ in range(40):
        await bus.publish("log.a", bytes(300))
    state = await bus.state("LOG")
    assert state.first_sequence > 1
    for at in (0, state.first_time_ns - HOUR, state.first_time_ns):
        position = await bus.position_at("LOG", at)
        assert position.sequence <= state.first_sequence - 1
    assert (await bus.position_at("LOG", time.time_ns() + HOUR)).sequence == 40
