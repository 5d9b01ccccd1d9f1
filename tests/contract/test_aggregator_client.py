"""Queries to aggregators over a real broker: slow, silent and missing aggregators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import msgspec
import pytest

import tokentrace_api.aggregator_client
from kit.broker import Broker
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.errors import Unavailable
from tokentrace.metrics import Query, ShardResult, encode_pending, encode_result
from tokentrace.records import Position
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace.units import SECOND
from tokentrace_api.aggregator_client import AggregatorClient

QUERY = Query(what="series", from_s=0, to_s=60, now_s=60, step_s=60)


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    async with jetstream.connect(broker.url, name="test") as connected:
        yield connected


def answers(*steps: bytes | float | asyncio.Event) -> Callable[[bytes], AsyncIterator[bytes]]:
    """Return a handler that performs *steps* in order: reply with bytes, wait for an event, sleep for seconds."""

    async def answer(_: bytes) -> AsyncIterator[bytes]:
        for step in steps:
            if isinstance(step, bytes):
                yield step
            elif isinstance(step, asyncio.Event):
                await step.wait()
            else:
                await asyncio.sleep(step)

    return answer


def part(shard: int, sequence: int = 1, behind_ms: int = 0) -> bytes:
    return encode_result(
        ShardResult(shard=shard, position=Position(1, sequence), caught_up=True, to_s=60, behind_ms=behind_ms)
    )


async def test_an_aggregator_that_replies_in_progress_gets_more_time(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 0.1)
    async with AsyncExitStack() as stack:
        serve = stack.enter_async_context
        await serve(bus.serve(subjects.QUERY_METRICS, answers(encode_pending(0), 1.0, part(0))))
        await serve(bus.serve(subjects.QUERY_METRICS, answers(part(1))))
        assert (await AggregatorClient(bus, 2).query(QUERY)).missing_shards == []
        # No aggregator has shard 2; the client stops waiting after the others have answered.
        assert (await asyncio.wait_for(AggregatorClient(bus, 3).query(QUERY), 8)).missing_shards == [2]


async def test_an_aggregator_that_only_replies_in_progress_times_out(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(tokentrace_api.aggregator_client, "ACK_WAIT_S", 0.5)
    async with bus.serve(subjects.QUERY_METRICS, answers(encode_pending(0), asyncio.Event())):
        with pytest.raises(Unavailable, match="no aggregator answers"):
            await AggregatorClient(bus, 1).query(QUERY)
        async with bus.serve(subjects.QUERY_METRICS, answers(part(1))):
            assert (await AggregatorClient(bus, 2).query(QUERY)).missing_shards == [0]


async def test_a_shard_whose_aggregator_runs_behind_gets_more_time(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokentrace_api.aggregator_client, "TIMEOUT_S", 0.1)
    for stream in subjects.streams():
        await bus.ensure(stream)
    await bus.kv(subjects.META).put(reader_key("aggregator", 1), encode_position(Position(1, 7), bus.clock.now_ns()))
    async with (
        bus.serve(subjects.QUERY_METRICS, answers(part(0))),
        bus.serve(subjects.QUERY_METRICS, answers(1.5, part(1, behind_ms=2500))),
    ):
        answer = await AggregatorClient(bus, 2).query(QUERY)
        assert (answer.missing_shards, answer.behind_s) == ([], 2.5)
        # Shard 2 has told nothing.
        assert (await AggregatorClient(bus, 3).query(QUERY)).missing_shards == [2]


async def test_a_shard_whose_aggregator_told_its_position_long_ago_gets_half_a_second(bus: Bus) -> None:
    for stream in subjects.streams():
        await bus.ensure(stream)
    long_ago = msgspec.json.encode([1, 7, bus.clock.now_ns() - 60 * SECOND])
    await bus.kv(subjects.META).put(reader_key("aggregator", 1), long_ago)
    async with (
        bus.serve(subjects.QUERY_METRICS, answers(part(0))),
        bus.serve(subjects.QUERY_METRICS, answers(asyncio.Event())),
    ):
        answer = await asyncio.wait_for(AggregatorClient(bus, 2).query(QUERY), 8)
    assert answer.missing_shards == [1]


async def test_another_aggregator_of_the_shard_may_send_the_result(bus: Bus) -> None:
    async with (
        bus.serve(subjects.QUERY_METRICS, answers(encode_pending(0), asyncio.Event())),
        bus.serve(subjects.QUERY_METRICS, answers(encode_pending(0), part(0))),
    ):
        answer = await asyncio.wait_for(AggregatorClient(bus, 1).query(QUERY), 8)
    assert (answer.missing_shards, answer.caught_up) == ([], True)


async def test_replies_that_cannot_be_decoded_are_ignored(bus: Bus) -> None:
    async with bus.serve(subjects.QUERY_METRICS, answers(b"rubbish", b"", part(0))):
        assert (await AggregatorClient(bus, 1).query(QUERY)).missing_shards == []


async def test_without_aggregators_a_query_is_unavailable(bus: Bus) -> None:
    with pytest.raises(Unavailable, match="no aggregator answers"):
        await asyncio.wait_for(AggregatorClient(bus, 1).query(QUERY), 8)
