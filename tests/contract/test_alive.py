"""Which services are alive: who answers, who has stopped and who never started, on both buses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tokentrace.bus import Bus, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Unavailable
from tokentrace.service.alive import Roll, answer_alive
from tokentrace.service.health import Health


@contextlib.asynccontextmanager
async def process(bus: Bus, *services: str, missing: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """Answer for one process that runs *services*."""
    stopping = asyncio.Event()
    parts = dict.fromkeys(services, lambda: Health(missing, {}))
    task = asyncio.create_task(answer_alive(bus, parts, stopping))
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        stopping.set()
        await task


async def processes(roll: Roll) -> dict[str, int]:
    return {name: len(seen.answers) for name, seen in (await roll.call()).items()}


async def test_a_service_that_never_started_does_not_answer(bus: Bus) -> None:
    roll = Roll(bus, ("ingest", "alerter"))
    async with process(bus, "ingest"):
        seen = await roll.call()
    assert len(seen["ingest"].answers) == 1
    assert (seen["alerter"].answers, seen["alerter"].silent_s) == ([], None)


async def test_a_service_that_has_stopped_does_not_answer_and_was_seen(bus: Bus) -> None:
    roll = Roll(bus, ("alerter",))
    async with process(bus, "alerter"):
        assert await processes(roll) == {"alerter": 1}
    seen = (await roll.call())["alerter"]
    assert seen.answers == []
    assert seen.silent_s is not None
    async with process(bus, "alerter"):
        assert await processes(roll) == {"alerter": 1}


async def test_one_process_answers_for_every_service_that_it_runs(bus: Bus) -> None:
    roll = Roll(bus, ("ingest", "aggregator", "alerter", "api"))
    async with process(bus, "ingest", "aggregator", "alerter", "api"):
        assert await processes(roll) == {"ingest": 1, "aggregator": 1, "alerter": 1, "api": 1}


async def test_all_processes_of_a_service_are_counted_and_those_that_stop_no_more(bus: Bus) -> None:
    roll = Roll(bus, ("ingest",))
    async with process(bus, "ingest"):
        async with process(bus, "ingest"), process(bus, "ingest"):
            await roll.count()
            assert await processes(roll) == {"ingest": 3}
        assert await processes(roll) == {"ingest": 1}
        assert await processes(roll) == {"ingest": 1}


async def test_an_answer_names_what_the_service_waits_for(bus: Bus) -> None:
    async with process(bus, "ingest", missing=("nats",)):
        [answer] = (await Roll(bus, ("ingest",)).call())["ingest"].answers
    assert answer.missing == ["nats"]


async def test_foreign_answers_are_set_aside_and_the_right_one_is_awaited(bus: Bus) -> None:
    async def rubbish(_: bytes) -> AsyncIterator[bytes]:
        for payload in (b"\xff", b"{}", b"[]", b"", b'{"missing":5,"skew_ns":0}'):
            yield payload

    roll = Roll(bus, ("ingest",))
    async with bus.serve(subjects.alive("ingest"), rubbish):
        await asyncio.sleep(0.1)
        assert await processes(roll) == {"ingest": 0}
        async with process(bus, "ingest"):
            assert await processes(roll) == {"ingest": 1}
    assert bus.set_aside.totals == {subjects.alive("ingest"): 1}
    [record] = bus.set_aside.records
    assert record.count >= 5


async def test_without_the_broker_nothing_is_known() -> None:
    broker = MemoryBroker()
    broker.up = False
    with pytest.raises(Unavailable):
        await Roll(MemoryBus(broker), ("ingest",)).call()
