"""Tests of what ``Runner``, the loop around a machine, saves and restores, on a bus in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kit.snapshots import (
    CUSTOM_METRIC,
    BusWith,
    ObjectsWith,
    World,
    fresh_numbers,
    manifests,
    pieces,
    restarted,
)
from kit.whole_snapshots import CAPACITY
from tokentrace.bus import Bus, subjects
from tokentrace.service.runner import Runner
from tokentrace.service.snapshots import Snapshots
from tokentrace.units import DAY
from tokentrace_aggregator.shard import Shard


def make_runner(bus: Bus, shard: Shard, save_every_s: float) -> Runner:
    return Runner(
        bus,
        shard,
        stream=subjects.SPANS,
        filters=[subjects.shard_spans(0)],
        service="aggregator",
        shard=0,
        save_every_s=save_every_s,
    )


def make_shard() -> Shard:
    return Shard(0, 1, (CUSTOM_METRIC,), capacity=CAPACITY)


async def publish(world: World, count: int, pause_s: float = 0.0) -> None:
    for _ in range(count):
        world.add(0, 6 * DAY)
        message = world.log[-1]
        await world.bus.publish(message.subject, message.payload)
        await asyncio.sleep(pause_s)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.long
async def test_two_runners_of_a_shard_leave_an_exact_state() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shards = [make_shard(), make_shard()]
    for turn in range(3):
        stopping = asyncio.Event()
        running = [
            asyncio.create_task(make_runner(world.bus, shard, pause).run(stopping))
            for shard, pause in zip(shards, (0.02, 0.05), strict=True)
        ]
        await publish(world, 80, 0.01)
        for shard in shards:
            await until(partial(lambda shard: shard.spans == 2 * len(world.log), shard))
        stopping.set()
        await asyncio.gather(*running)
        for manifest in await manifests(world.objects):
            assert manifest.pieces <= await pieces(world.objects)
        again = await restarted(world)
        again.follow()
        assert again.numbers() == fresh_numbers(world), turn
        shards = [make_shard(), make_shard()]


async def test_a_runner_that_is_stopped_saves_a_last_snapshot() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shard, stopping = make_shard(), asyncio.Event()
    running = asyncio.create_task(make_runner(world.bus, shard, 3600).run(stopping))
    await publish(world, 3)
    await until(lambda: shard.spans == 6)
    assert await manifests(world.objects) == []
    stopping.set()
    await running
    assert (await restarted(world)).read == 3


async def test_a_runner_that_is_stopped_while_it_saves_saves_again() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shard, stopping, begun = make_shard(), asyncio.Event(), asyncio.Event()
    first = True

    async def put(name: str, data: bytes) -> None:
        nonlocal first
        if first:
            first = False
            begun.set()
            await asyncio.sleep(30)
        await world.objects.put(name, data)

    bus: Any = BusWith(world.bus, ObjectsWith(world.objects, put))
    runner = make_runner(bus, shard, 0)
    running = asyncio.create_task(runner.run(stopping))
    await publish(world, 3)
    await begun.wait()
    await until(lambda: shard.spans == 6)
    stopping.set()
    await running
    assert (await restarted(world)).read == 3


async def test_a_runner_with_a_damaged_snapshot_reports_it_and_continues() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    await publish(world, 3)
    for expected in (False, True):
        shard, stopping = make_shard(), asyncio.Event()
        runner = make_runner(world.bus, shard, 3600)
        running = asyncio.create_task(runner.run(stopping))
        await until(partial(lambda shard: shard.spans == 2 * len(world.log), shard))
        assert bool(runner.progress.problem) is expected
        await publish(world, 1)
        await until(partial(lambda shard: shard.spans == 2 * len(world.log), shard))
        stopping.set()
        await running
        (*_, newest) = await manifests(world.objects)
        await world.objects.delete(newest.state)
    problem = await Snapshots(world.bus, "aggregator", 0).load_into(make_shard())
    assert problem is not None
    assert "is gone" in problem
