"""An aggregator that is behind answers with what it has and says how far it is behind, on a bus in memory."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from kit.builders import make_span
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.metrics import Answer, Query
from tokentrace.records import Batch, encode_batches
from tokentrace.units import SECOND
from tokentrace_aggregator.service import Aggregator, Config
from tokentrace_api.aggregator_client import AggregatorClient

STARTED_NS = 1_790_000_000 * SECOND
BEHIND_S = 40
MESSAGES, SPANS = 400, 100
LIFETIME = Query(what="lifetime")


class Log:
    """A broker whose clock stands still until a test moves it, and a log that a test fills."""

    def __init__(self) -> None:
        self.now_ns = STARTED_NS
        self.bus = MemoryBus(MemoryBroker(lambda: self.now_ns))
        self._numbers = count()

    async def begin(self) -> None:
        for stream in subjects.streams():
            await self.bus.ensure(stream)

    async def fill(self, messages: int) -> None:
        for _ in range(messages):
            number = next(self._numbers)
            spans = [make_span(ended_ns=self.now_ns, arrived_ns=self.now_ns) for _ in range(SPANS)]
            await self.bus.publish(subjects.spans("default", 0), encode_batches([Batch(id=f"b{number}", spans=spans)]))


@pytest.mark.long
async def test_answers_come_while_an_aggregator_reads_and_say_how_far_it_is_behind() -> None:
    log = Log()
    await log.begin()
    await log.fill(MESSAGES)
    log.now_ns += BEHIND_S * SECOND
    client, aggregator, stopping = AggregatorClient(log.bus, 1), Aggregator(log.bus, Config(1, (0,))), asyncio.Event()
    running = asyncio.create_task(aggregator.run(stopping))
    answers: list[Answer] = []
    async with asyncio.timeout(60):
        while not aggregator.machines[0].spans:
            await asyncio.sleep(0)
        while not answers or answers[-1].total.sums.spans < MESSAGES * SPANS:
            answers.append(await client.query(LIFETIME))
    counted = [answer.total.sums.spans for answer in answers]
    assert counted == sorted(counted)
    partial = [answer for answer in answers if 0 < answer.total.sums.spans < MESSAGES * SPANS]
    assert partial
    assert {answer.behind_s for answer in partial} == {BEHIND_S}
    last = await client.query(LIFETIME)
    assert (last.behind_s, last.caught_up) == (0, True)
    stopping.set()
    await running


async def test_an_aggregator_has_caught_up_once_it_has_read_what_was_there_at_its_start() -> None:
    log = Log()
    await log.begin()
    await log.fill(30)
    client, aggregator, stopping = AggregatorClient(log.bus, 1), Aggregator(log.bus, Config(1, (0,))), asyncio.Event()
    running = asyncio.create_task(aggregator.run(stopping))
    [runner] = aggregator.runners
    async with asyncio.timeout(60):
        # Something is always pending, as under a load that is faster than the reader.
        while not runner.progress.caught_up:
            await log.fill(20)
            await asyncio.sleep(0)
    assert aggregator.machines[0].spans >= 30 * SPANS
    assert (await client.query(LIFETIME)).caught_up
    stopping.set()
    await running
