"""The upgrade to batches that are placed by call: ingest waits for every reader, and no span is lost or repeated."""

from __future__ import annotations

import time

import pytest

from kit.builders import make_batch, make_span
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace.config.nats import Nats
from tokentrace.records import Batch, Position, decode_batches
from tokentrace.service import call_readers
from tokentrace.service.bootstrap import agreed_capacity, bootstrap
from tokentrace.service.call_readers import LAYOUT, calls_key, encode_calls
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace_aggregator.shard import Shard
from tokentrace_ingest.group_commit import GroupCommit
from tokentrace_ingest.layout import Layout

SHARDS = 4
OLD_READERS = [("aggregator", shard) for shard in range(SHARDS)] + [("alerter", 0)]


class World:
    """A broker whose log holds a message of an earlier version, its old readers, and an ingest of this version."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.commits = GroupCommit(self.bus, SHARDS, None)
        self.layout = Layout(self.bus, self.commits)
        self.sequence = 0

    async def begin(self) -> None:
        for stream in subjects.streams():
            await self.bus.ensure(stream)
        old = make_batch(id="r", sequence=self._next(), arrived_ns=time.time_ns())
        await self.commits.commit("default", [old])
        await bootstrap(self.bus, Settings(nats=Nats(shards=SHARDS)))
        for reader in OLD_READERS:
            await self.tell(*reader)

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    async def tell(self, service: str, shard: int, *, new: bool = False) -> None:
        """Publish the position of a reader; a *new* one also publishes its memory of calls."""
        meta = self.bus.kv(subjects.META)
        await meta.put(reader_key(service, shard), encode_position(Position(1, 1), self.bus.clock.now_ns()))
        if new:
            await meta.put(calls_key(service, shard), encode_calls({shard: []}))

    async def agree(self) -> list[str]:
        """Let ingest look at ``tt_meta``; return whom it waits for."""
        await self.layout.agree(await self.bus.kv(subjects.META).items())
        return self.layout.waiting_for

    async def send(self, arrived_ns: int | None = None) -> Batch:
        """Send a numbered batch of ten spans."""
        batch = make_batch(
            *(make_span(span_id=f"{self.sequence}-{number}") for number in range(10)),
            id="r",
            sequence=self._next(),
            arrived_ns=arrived_ns or time.time_ns(),
        )
        await self.commits.commit("default", [batch])
        return batch

    def layouts(self) -> set[int]:
        return {
            batch.layout
            for stored in self.broker.logs[subjects.SPANS].messages.values()
            for batch in decode_batches(stored.payload)
        }

    def count(self) -> int:
        """Return how many spans the readers of all shards count."""
        shards = {number: Shard(number, SHARDS) for number in range(SHARDS)}
        for message in self.broker.logs[subjects.SPANS].messages.values():
            shards[subjects.parse_shard(message.subject)].fold(message, 1)
        return sum(shard.spans for shard in shards.values())


async def test_ingest_places_batches_as_before_until_the_last_reader_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_readers, "NOTICE_NS", 0)
    world = World()
    await world.begin()
    sent = 1
    for number, reader in enumerate(OLD_READERS):
        assert len(await world.agree()) == len(OLD_READERS) - number
        await world.send()
        sent += 10
        assert world.layouts() == {0}
        await world.tell(*reader, new=True)
    assert await world.agree() == []
    await world.send()
    assert world.layouts() == {0, 1}
    assert world.count() == sent + 10


async def test_a_message_from_before_the_agreed_instant_is_placed_as_before_by_every_ingest() -> None:
    world = World()
    await world.begin()
    for reader in OLD_READERS:
        await world.tell(*reader, new=True)
    await world.agree()
    other = Layout(world.bus, GroupCommit(world.bus, SHARDS, None))
    await other.read()
    agreed_ns = world.commits.by_call_from_ns
    assert agreed_ns is not None
    assert time.time_ns() < agreed_ns <= time.time_ns() + call_readers.NOTICE_NS
    assert other._group_commit.by_call_from_ns == agreed_ns
    await world.send(agreed_ns - 1)
    assert world.layouts() == {0}
    batch = await world.send(agreed_ns)
    await other._group_commit.commit("default", [batch])
    assert world.layouts() == {0, 1}
    assert world.count() == 1 + 10 + 10


async def test_a_log_that_was_never_used_is_placed_by_call_at_once() -> None:
    bus = MemoryBus(MemoryBroker())
    await bootstrap(bus, Settings(nats=Nats(shards=SHARDS)))
    layout = Layout(bus, GroupCommit(bus, SHARDS, None))
    await layout.known()
    assert layout._group_commit.by_call_from_ns == 0


async def test_the_number_of_remembered_calls_is_agreed_on_once() -> None:
    bus = MemoryBus(MemoryBroker())
    await bootstrap(bus, Settings(nats=Nats(shards=SHARDS)))
    assert await agreed_capacity(bus, SHARDS) == 2**18
    await bus.kv(subjects.META).put(call_readers.CAPACITY, b"1024")
    await bootstrap(bus, Settings(nats=Nats(shards=SHARDS)))
    assert await agreed_capacity(bus, SHARDS) == 1024


@pytest.mark.parametrize("value", [b"", b"many", b"1000", b"-8"])
async def test_an_unreadable_agreement_is_set_aside_and_replaced_by_the_usual_one(value: bytes) -> None:
    bus = MemoryBus(MemoryBroker())
    await bootstrap(bus, Settings(nats=Nats(shards=SHARDS)))
    await bus.kv(subjects.META).put(call_readers.CAPACITY, value)
    await bus.kv(subjects.META).put(LAYOUT, value)
    assert await agreed_capacity(bus, SHARDS) == 2**18
    layout = Layout(bus, GroupCommit(bus, SHARDS, None))
    await layout.read()
    assert layout._group_commit.by_call_from_ns is None
    assert sum(bus.set_aside.totals.values()) == 2
