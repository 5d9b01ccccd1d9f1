"""GroupCommit: a commit returns only after the broker has stored all its batches; commits share messages."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from kit.builders import make_batch, make_span
from tokentrace.bus import subjects
from tokentrace.bus.memory import MAX_PAYLOAD, MemoryBroker, MemoryBus
from tokentrace.dedup import shard_of_key, span_key
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import (
    Batch,
    decode_batches,
)
from tokentrace_ingest.group_commit import GroupCommit


async def make_bus() -> tuple[MemoryBroker, MemoryBus]:
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    for stream in subjects.streams():
        await bus.ensure(stream)
    return broker, bus


def in_stream(broker: MemoryBroker) -> list[tuple[str, int, int]]:
    """Return (id, sequence, part) of every batch in ``TT_SPANS``, in order."""
    return [
        (batch.id, batch.sequence, batch.part)
        for stored in broker.logs[subjects.SPANS].messages.values()
        for batch in decode_batches(stored.payload)
    ]


def shard_of_call(batch: Batch, project: str, shards: int) -> int:
    """Return the shard of the only span of *batch*; the part of a small batch has the same number."""
    (span,) = batch.spans
    return shard_of_key(span_key(project, span.trace_id, span.span_id), shards)


def request(number: int, **fields: Any) -> Batch:
    return make_batch(**{"sequence": 0, "id": f"request.{number}", **fields})


async def test_a_commit_returns_only_after_its_batch_is_in_the_stream() -> None:
    broker, bus = await make_bus()
    group_commit, committed = GroupCommit(bus, 4), []

    async def commit_many(number: int) -> None:
        for turn in range(10):
            batch = request(number * 100 + turn)
            await group_commit.commit("default", [batch])
            committed.append((batch.id, 0, shard_of_call(batch, "default", 4)))
            assert committed[-1] in in_stream(broker)

    await asyncio.gather(*(commit_many(number) for number in range(20)))
    assert Counter(in_stream(broker)) == Counter(committed)
    assert {id for id, _, _ in committed} == {f"request.{n * 100 + turn}" for n in range(20) for turn in range(10)}


async def test_simultaneous_commits_share_messages() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 1)
    await asyncio.gather(*(group_commit.commit("default", [request(number)]) for number in range(500)))
    assert [id for id, _, _ in in_stream(broker)] == [f"request.{number}" for number in range(500)]
    assert (await bus.state(subjects.SPANS)).messages <= 10


async def test_a_single_commit_does_not_wait_for_others() -> None:
    broker, bus = await make_bus()
    await asyncio.wait_for(GroupCommit(bus, 1).commit("default", [request(1)]), 10)
    assert in_stream(broker) == [("request.1", 0, 0)]


async def test_a_commit_of_nothing_returns() -> None:
    broker, bus = await make_bus()
    await asyncio.wait_for(GroupCommit(bus, 1).commit("default", []), 10)
    assert in_stream(broker) == []


async def test_every_part_goes_to_the_subject_of_its_project_and_shard() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 4)
    parts = [make_batch(sequence=number) for number in range(1, 9)]
    await group_commit.commit("shop.eu", parts)
    for stored in broker.logs[subjects.SPANS].messages.values():
        for batch in decode_batches(stored.payload):
            shard = shard_of_call(batch, "shop.eu", 4)
            assert stored.subject == subjects.spans("shop.eu", shard)
            assert batch.part == shard
    assert sorted(sequence for _, sequence, _ in in_stream(broker)) == list(range(1, 9))


async def test_batches_of_different_projects_never_share_a_message() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 1)
    await asyncio.gather(*(group_commit.commit(f"p{number % 3}", [request(number)]) for number in range(60)))
    for stored in broker.logs[subjects.SPANS].messages.values():
        project = subjects.parse_project(stored.subject)
        assert {f"p{int(batch.id.partition('.')[2]) % 3}" for batch in decode_batches(stored.payload)} == {project}


async def test_every_waiting_commit_fails_if_the_broker_is_away() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 4)
    broker.up = False
    waiting = [group_commit.commit("default", [request(number)]) for number in range(300)]
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    broker.up = True
    assert in_stream(broker) == []
    later = request(1)
    await asyncio.wait_for(group_commit.commit("default", [later]), 10)
    assert in_stream(broker) == [("request.1", 0, shard_of_call(later, "default", 4))]


async def test_a_commit_fails_if_the_broker_is_gone_when_its_parts_are_published() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 2)
    task = asyncio.ensure_future(group_commit.commit("default", [make_batch(sequence=1), make_batch(sequence=2)]))
    await asyncio.sleep(0)
    broker.up = False
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, 10)


async def test_a_confirmed_batch_is_stored_once_even_if_the_broker_comes_and_goes() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 2)
    confirmed: list[str] = []

    async def commit_many(number: int) -> None:
        for turn in range(20):
            batch = request(number * 100 + turn)
            try:
                await group_commit.commit("default", [batch])
            except Unavailable:
                await asyncio.sleep(0)
            else:
                confirmed.append(batch.id)

    dice = random.Random(5)

    async def flap() -> None:
        for _ in range(200):
            broker.up = dice.random() < 0.7
            await asyncio.sleep(0)
        broker.up = True

    await asyncio.wait_for(asyncio.gather(flap(), *(commit_many(number) for number in range(20))), 30)
    stored = Counter(id for id, _, _ in in_stream(broker))
    assert confirmed
    assert set(confirmed) <= set(stored)
    assert max(stored.values()) == 1


async def test_a_cancelled_commit_cancels_no_other_commit() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 1)
    tasks = [asyncio.ensure_future(group_commit.commit("default", [request(number)])) for number in range(20)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 1
    assert outcomes.count(None) == 19
    stored = {id for id, _, _ in in_stream(broker)}
    assert stored >= {f"request.{number}" for number in range(20) if number != 3}


async def test_a_message_with_several_batches_takes_one_mebibyte_at_most() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 1)
    big = [request(number, spans=[make_span(attributes={"x": "v" * 300_000})]) for number in range(12)]
    await asyncio.wait_for(asyncio.gather(*(group_commit.commit("default", [batch]) for batch in big)), 30)
    assert len(in_stream(broker)) == 12
    sizes = [len(stored.payload) for stored in broker.logs[subjects.SPANS].messages.values()]
    assert max(sizes) <= 1024 * 1024 + 64


async def test_a_commit_with_a_batch_larger_than_a_message_is_rejected_and_other_commits_are_stored() -> None:
    broker, bus = await make_bus()
    group_commit = GroupCommit(bus, 1)
    huge = request(0, spans=[make_span(attributes={"x": "v" * MAX_PAYLOAD})])
    outcomes = await asyncio.gather(
        group_commit.commit("default", [request(1)]),
        group_commit.commit("default", [huge]),
        group_commit.commit("default", [request(2), huge]),
        group_commit.commit("default", [request(3)]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), Rejected, Rejected, type(None)]
    assert {id for id, _, _ in in_stream(broker)} == {"request.1", "request.3"}
