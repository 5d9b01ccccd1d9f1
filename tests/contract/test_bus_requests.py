"""Requests, answers and notices of the bus, on the bus in memory and on JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tokentrace.bus import Bus
from tokentrace.errors import Unavailable


async def test_a_request_is_answered(bus: Bus) -> None:
    async def echo(payload: bytes) -> AsyncIterator[bytes]:
        yield payload + b"!"

    async with bus.serve("ask.me", echo):
        assert await bus.request("ask.me", b"hi", timeout_s=2) == b"hi!"


async def test_a_request_that_nothing_serves_is_unavailable(bus: Bus) -> None:
    with pytest.raises(Unavailable):
        await bus.request("ask.nothing", b"", timeout_s=5)


async def test_request_many_returns_the_answers_of_several_servers(bus: Bus) -> None:
    async def answer(payload: bytes) -> AsyncIterator[bytes]:
        yield payload

    async with (
        bus.serve("ask.all", answer),
        bus.serve("ask.all", answer),
        bus.serve("ask.all", answer, group="g"),
        bus.serve("ask.all", answer, group="g"),
    ):
        got = await bus.request_many("ask.all", b"x", lambda answers: 0 if len(answers) >= 3 else 1)
    assert got == [b"x"] * 3


async def test_each_reply_arrives_at_once_and_may_extend_the_wait(bus: Bus) -> None:
    more = asyncio.Event()

    async def answer(payload: bytes) -> AsyncIterator[bytes]:
        yield b"in progress"
        await more.wait()
        yield payload

    def wait_policy(answers: list[bytes]) -> float:
        if answers:
            more.set()
        return (1, 30, 0)[len(answers)]

    async with bus.serve("ask.slow", answer):
        assert await bus.request_many("ask.slow", b"x", wait_policy) == [b"in progress", b"x"]
        more.clear()
        assert await bus.request_many("ask.slow", b"x", lambda answers: 0.2) == [b"in progress"]


async def test_the_wait_policy_is_asked_again_when_its_time_is_over(bus: Bus) -> None:
    asked: list[float] = []

    async def answer(payload: bytes) -> AsyncIterator[bytes]:
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        yield payload

    def wait_policy(answers: list[bytes]) -> float:
        asked.append(0.05 * (len(asked) + 1) if len(asked) < 2 else 30)
        return 0 if answers else asked[-1]

    async with bus.serve("ask.patient", answer):
        assert await bus.request_many("ask.patient", b"x", wait_policy) == [b"x"]
        asked.clear()
        assert await bus.request_many("ask.patient", b"x", lambda answers: 0.05) == []


async def test_a_slow_answer_delays_no_other(bus: Bus) -> None:
    begun, enough = asyncio.Event(), asyncio.Event()

    async def answer(payload: bytes) -> AsyncIterator[bytes]:
        if payload == b"slow":
            begun.set()
            await enough.wait()
        yield payload

    async with bus.serve("ask.some", answer):
        slow = asyncio.create_task(bus.request("ask.some", b"slow", timeout_s=30))
        await begun.wait()
        assert await bus.request("ask.some", b"quick", timeout_s=30) == b"quick"
        assert not slow.done()
        enough.set()
        assert await slow == b"slow"


async def test_an_answer_over_the_limit_arrives_whole(bus: Bus) -> None:
    big = bytes(range(256)) * (bus.max_payload // 256 * 2)

    async def answer(payload: bytes) -> AsyncIterator[bytes]:
        yield big
        yield b"small"

    async with bus.serve("ask.big", answer):
        got = await bus.request_many("ask.big", b"", lambda answers: 0 if len(answers) >= 2 else 10)
    assert sorted(got, key=len) == [b"small", big]


async def test_a_notice_reaches_those_who_serve_its_subject_and_nobody_else(bus: Bus) -> None:
    heard: list[bytes] = []

    async def listen(payload: bytes) -> AsyncIterator[bytes]:
        heard.append(payload)
        return
        yield b""

    await bus.notify("tell.me", b"no listener")
    async with bus.serve("tell.me", listen):
        await bus.notify("tell.you", b"not me")
        await bus.notify("tell.me", b"hello")
        async with asyncio.timeout(30):
            while not heard:
                await asyncio.sleep(0.01)
    assert heard == [b"hello"]
