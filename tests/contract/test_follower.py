"""Tests of ``Follower``, the loop in which services read a stream, on the bus in memory and on JetStream."""

from __future__ import annotations

import asyncio

import pytest

from tokentrace.bus import Bus, Stream
from tokentrace.records import Position
from tokentrace.service.follow import Follower


async def publish(bus: Bus, *payloads: bytes) -> int:
    """Publish *payloads* and return the time at which the stream was created, Unix nanoseconds."""
    for payload in payloads:
        await bus.publish("log.a", payload)
    return (await bus.state("LOG")).created_ns


async def read(follower: Follower) -> list[bytes]:
    payloads: list[bytes] = []
    async with asyncio.timeout(20), follower as chunks:
        async for chunk in chunks:
            payloads += [message.payload for message in chunk.messages]
    return payloads


async def test_a_reader_until_caught_up_ends_after_the_last_message(bus: Bus) -> None:
    created_ns = await publish(bus, b"1", b"2", b"3")
    follower = Follower(bus, "LOG", ["log.>"], Position(created_ns, 1), reader="test", until_caught_up=True)
    assert await read(follower) == [b"2", b"3"]
    assert follower.position == Position(created_ns, 3)
    assert follower.caught_up.is_set()


async def test_a_reader_of_an_empty_stream_has_caught_up(bus: Bus) -> None:
    calls: list[str] = []
    caught_up = Follower(
        bus, "LOG", ["log.>"], None, reader="test", until_caught_up=True, on_caught_up=lambda: calls.append("caught up")
    )
    assert await read(caught_up) == []
    assert calls == ["caught up"]


async def test_a_chunk_is_applied_when_the_next_one_is_asked_for(bus: Bus) -> None:
    created_ns = await publish(bus, b"1")
    follower = Follower(bus, "LOG", ["log.>"], None, reader="test")
    async with asyncio.timeout(20), follower as chunks:
        async for chunk in chunks:
            if chunk.messages:
                assert follower.position is None
                assert not follower.caught_up.is_set()
                break
        later = asyncio.ensure_future(anext(aiter(chunks)))
        await follower.caught_up.wait()
        assert follower.position == Position(created_ns, 1)
        await publish(bus, b"2")
        assert [message.payload for message in (await later).messages] == [b"2"]


async def test_leaving_the_loop_closes_the_feed(bus: Bus) -> None:
    await publish(bus, b"1")
    follower = Follower(bus, "LOG", ["log.>"], None, reader="test")
    async with follower as chunks:
        async for _ in chunks:
            break
    with pytest.raises(StopAsyncIteration):
        await anext(aiter(follower))


@pytest.mark.parametrize("needs_every_message", [True, False])
async def test_discarded_messages_are_logged_for_a_reader_that_needs_every_message(
    bus: Bus, needs_every_message: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.ensure(Stream(name="LOG", subjects=("log.>",), max_bytes=4096))
    created_ns = await publish(bus, *[bytes(300)] * 40)
    first = (await bus.state("LOG")).first_sequence
    follower = Follower(
        bus,
        "LOG",
        ["log.>"],
        Position(created_ns, 0),
        reader="test",
        until_caught_up=True,
        needs_every_message=needs_every_message,
    )
    await read(follower)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == [
        f"messages 1 to {first - 1} were discarded by the stream before they were read"
    ] * needs_every_message
    assert {record.__dict__["reader"] for record in errors} <= {"test"}


async def test_a_recreated_stream_is_logged_and_read_from_its_first_message(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    created_ns = await publish(bus, b"1", b"2")
    follower = Follower(bus, "LOG", ["log.>"], Position(created_ns - 1, 1), reader="test", until_caught_up=True)
    assert await read(follower) == [b"1", b"2"]
    assert follower.position == Position(created_ns, 2)
    assert any("the stream was recreated" in record.getMessage() for record in caplog.records)
