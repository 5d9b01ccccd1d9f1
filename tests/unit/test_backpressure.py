"""Backpressure: no message that a reader lacks leaves the log, however small the log and however fast it fills."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_batch, make_span
from kit.examples import examples
from tokentrace.bus import Entry, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Unavailable
from tokentrace.records import Position
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace_ingest.backpressure import Backpressure
from tokentrace_ingest.group_commit import GroupCommit

LOG_BYTES = 200_000


class World:
    """A broker with a small log, a reader that goes on only when it is told to, and some ingest processes."""

    def __init__(self, processes: int) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.ingests = [Backpressure(self.bus) for _ in range(processes)]
        self.commits = [GroupCommit(self.bus, 1, 0, ingest.take) for ingest in self.ingests]
        self.read = self.sent = self.refused = 0

    async def begin(self) -> None:
        for stream in subjects.streams(spans_bytes=LOG_BYTES):
            await self.bus.ensure(stream)
        await self.go_on(0)
        for ingest in self.ingests:
            await ingest.measure(await self.entries())

    async def entries(self) -> Mapping[str, Entry]:
        return await self.bus.kv(subjects.META).items()

    async def go_on(self, messages: int) -> None:
        """Let the reader read so many messages, and say how far it is."""
        state = await self.bus.state(subjects.SPANS)
        self.read = min(self.read + messages, state.last_sequence)
        position = encode_position(Position(state.created_ns, self.read), self.bus.clock.now_ns())
        await self.bus.kv(subjects.META).put(reader_key("aggregator", 0), position)

    async def send(self, process: int, size: int) -> bool:
        """Send a span with a text of *size* bytes; return True if it is stored."""
        self.sent += 1
        batch = make_batch(id=f"b{self.sent}", spans=[make_span(name="x" * size, span_id=f"{self.sent:016x}")])
        try:
            await self.commits[process].commit("default", [batch])
        except Unavailable:
            self.refused += 1
            return False
        return True

    async def measure(self, process: int) -> None:
        await self.ingests[process].measure(await self.entries())

    async def assert_whole(self) -> None:
        state = await self.bus.state(subjects.SPANS)
        assert state.first_sequence <= self.read + 1, (state, self.read)


@settings(max_examples=examples(300))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.sampled_from([1, 200, 5_000, 40_000, 90_000])),
            st.tuples(st.just("burst"), st.integers(1, 60)),
            st.tuples(st.just("read"), st.integers(1, 50)),
            st.tuples(st.just("measure"), st.just(0)),
        ),
        max_size=120,
    )
)
def test_one_process_pushes_no_unread_message_out_however_rarely_it_measures(steps: list[tuple[str, int]]) -> None:
    async def story() -> None:
        world = World(1)
        await world.begin()
        for what, number in steps:
            if what == "send":
                await world.send(0, number)
            elif what == "burst":
                await asyncio.gather(*(world.send(0, 3_000) for _ in range(number)))
            elif what == "read":
                await world.go_on(number)
            else:
                await world.measure(0)
            await world.assert_whole()
        # With everything read, input goes on.
        await world.go_on(1_000_000)
        await world.measure(0)
        assert await world.send(0, 1)

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(5))
async def test_several_processes_allow_for_one_another(seed: int) -> None:
    """Each measures after a hundredth of the log of its own; the reader stands still from the middle on."""
    dice = random.Random(seed)
    world = World(4)
    await world.begin()
    for turn in range(400):
        for process in dice.sample(range(4), 4):
            await world.send(process, dice.randrange(100, 500))
        if turn < 200:
            await world.go_on(1_000)
        if turn % 2 == 0:
            await world.measure(turn // 2 % 4)
        await world.assert_whole()
    assert world.refused > 0


async def test_without_a_reader_or_a_limit_nothing_is_refused() -> None:
    bus = MemoryBus(MemoryBroker())
    for stream in subjects.streams(spans_bytes=LOG_BYTES):
        await bus.ensure(stream)
    backpressure = Backpressure(bus)
    backpressure.take(10 * LOG_BYTES)
    await backpressure.measure({})
    backpressure.take(10 * LOG_BYTES)
    backpressure.check()
    assert backpressure.blocked == ""


async def test_the_refusal_names_the_reader_and_ends_when_it_has_read() -> None:
    world = World(1)
    await world.begin()
    for _ in range(LOG_BYTES // 3_000):
        await world.send(0, 3_000)
    assert world.refused > 0
    with pytest.raises(Unavailable, match=r"reader\.aggregator\.0 is behind by 9\d%"):
        world.ingests[0].check()
    await world.go_on(1_000)
    await world.measure(0)
    world.ingests[0].check()


async def test_a_log_that_was_made_anew_begins_at_nothing() -> None:
    world = World(1)
    await world.begin()
    for _ in range(30):
        await world.send(0, 3_000)
    await world.measure(0)
    world.broker.logs.pop(subjects.SPANS)
    for stream in subjects.streams(spans_bytes=LOG_BYTES):
        await world.bus.ensure(stream)
    world.read = 0
    await world.go_on(0)
    await world.measure(0)
    assert set(world.ingests[0].behind.values()) <= {0.0}
