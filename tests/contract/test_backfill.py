"""Backfill of rules that are created at run time, on the memory bus and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kit.builders import make_span
from kit.environment import PATIENCE
from kit.rule_store import make_rule, open_bus
from kit.whole_snapshots import CAPACITY
from tokentrace.bus import Bus, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.records import AlertEvent, Batch, Span, encode_batches
from tokentrace.units import MINUTE, SECOND, parse_instant
from tokentrace_alerter import rule_store as rule_store
from tokentrace_alerter.backfill import MAX_PASSES, Backfiller, backfill
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import Rule


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request) as opened:
        yield opened


def spans_at(*ended_ns: int, **fields: Any) -> list[Span]:
    return [make_span(ended_ns=at, arrived_ns=at, started_ns=at, **fields) for at in ended_ns]


class Reader:
    """A machine without rules that reads the log of a bus up to a chosen message."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.machine = bus, AlerterMachine([], "default", capacity=CAPACITY)

    async def publish(self, *spans: Span, id: str = "") -> int:
        payload = encode_batches([Batch(id=id or f"request-{time.time_ns()}", spans=list(spans))])
        return (await self.bus.publish(subjects.spans("default", 0), payload)).sequence

    async def read(self, upto: int) -> None:
        position = self.machine.position
        if position is not None and position.sequence >= upto:
            return
        async with (
            asyncio.timeout(10 * PATIENCE),
            contextlib.aclosing(self.bus.follow(subjects.SPANS, [subjects.ALL_SPANS], position)) as feed,
        ):
            async for chunk in feed:
                for message in chunk.messages:
                    if message.sequence <= upto:
                        self.machine.fold(message, chunk.created_ns)
                if chunk.messages and chunk.messages[-1].sequence >= upto:
                    return

    def events(self) -> list[AlertEvent]:
        """Return all events that are due when the clock is 3 s ahead of now, oldest first."""
        self.machine.caught_up = True
        effects = self.machine.tick(time.time_ns() + 3 * SECOND)
        return [msgspec.json.decode(effect.payload, type=AlertEvent) for effect in effects]

    def count(self) -> int:
        """
        Return how many spans the rule "new" counts at the last instant before the clock is 3 s ahead of now.

        The number in its event may be smaller: the rule fires at the first instant after its backfill, and messages
        that are read after that instant are not in it.
        """
        self.events()
        return self.machine.evaluators["new"].state.span_count


def counting(**overrides: Any) -> Rule:
    """Return a rule that fires at its first instant; the event has the number of spans."""
    return make_rule(
        "new", **{"op": "gte", "threshold": 0, "window": "60s", "eval_interval": "1s", "cooldown": "1h", **overrides}
    )


async def test_a_rule_created_at_run_time_counts_earlier_spans(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    for number in range(5):
        last = await reader.publish(*spans_at(now - number * SECOND, now - 205 * SECOND))
    await reader.read(last)
    reader.machine.add_rule(counting())
    assert reader.machine.evaluators["new"].backfilling
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    assert not reader.machine.evaluators["new"].backfilling
    [event] = reader.events()
    assert event.span_count == reader.count() == 5
    assert parse_instant(event.fired_at) > now


async def test_rules_that_wait_at_the_same_time_share_a_pass(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, now = Reader(bus), time.time_ns()
    for number in range(5):
        last = await reader.publish(*spans_at(now - number * SECOND, now - 209 * SECOND))
    await reader.read(last)
    follow, readings = bus.follow, []

    def counted(stream: str, *arguments: Any) -> Any:
        readings.append(stream)
        return follow(stream, *arguments)

    monkeypatch.setattr(bus, "follow", counted)
    backfiller = Backfiller(bus, reader.machine)
    running = asyncio.create_task(backfiller.run())
    windows = {f"rule {number}": f"{number + (60 if number < 20 else 600)}s" for number in range(40)}
    for number, (name, window) in enumerate(windows.items()):
        rule = counting(window=window)
        rule = msgspec.structs.replace(rule, name=name)
        reader.machine.add_rule(rule)
        backfiller.ask(rule)
        if number < MAX_PASSES:
            await asyncio.sleep(0)
    async with asyncio.timeout(10 * PATIENCE):
        while any(watch.backfilling for watch in reader.machine.evaluators.values()):
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(readings) <= MAX_PASSES + 1
    first = {event.alert: event.span_count for event in reversed(reader.events())}
    assert first == {name: 5 if int(window[:-1]) < 209 else 10 for name, window in windows.items()}


async def test_rules_with_different_windows_count_each_message_once_in_a_shared_pass(bus: Bus) -> None:
    """Each message counts once for each rule, and no span counts as late."""
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    second = await reader.publish(*spans_at(now, now))
    short, long = counting(), msgspec.structs.replace(counting(window="1h"), name="long")
    await reader.read(first)
    reader.machine.add_rule(short)
    await reader.read(second)
    reader.machine.add_rule(long)
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, short, long)
    assert {name: (watch.spans, watch.late) for name, watch in reader.machine.evaluators.items()} == {
        "new": (3, 0),
        "long": (3, 0),
    }


async def test_messages_that_the_reader_has_not_read_are_folded_later_and_count_once(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    await reader.read(first)
    second = await reader.publish(*spans_at(now, now))
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    await reader.read(second)
    assert reader.count() == 3


async def test_messages_folded_before_the_backfill_begins_count_once(bus: Bus) -> None:
    """The reader may fold further messages between the creation of the rule and the start of its backfill."""
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    second = await reader.publish(*spans_at(now, now))
    await reader.read(first)
    reader.machine.add_rule(counting())
    await reader.read(second)
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    assert reader.count() == 3


@pytest.mark.parametrize("ids", [["same"] * 3, ["one", "two", "three"]], ids=["in one batch", "in other batches"])
async def test_a_repeated_span_counts_once_with_backfill(bus: Bus, ids: list[str]) -> None:
    reader, span = Reader(bus), spans_at(time.time_ns())
    first = await reader.publish(*span, id=ids[0])
    await reader.read(first)
    again = await reader.publish(*span, id=ids[1])
    await reader.read(again)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    later = await reader.publish(*span, id=ids[2])
    await reader.read(later)
    assert reader.count() == 1


async def test_a_call_told_up_to_ten_minutes_before_the_look_back_is_not_counted_when_it_comes_again() -> None:
    #   now - 16 min     - 9 min               - 60 s (look-back)      now
    #   |                | s1  s2              | s1 again   new        |
    now = time.time_ns()
    clock = [now - 16 * MINUTE]
    bus = MemoryBus(MemoryBroker(lambda: clock[0]))
    for stream in subjects.streams():
        await bus.ensure(stream)
    reader = Reader(bus)
    first, second, new = spans_at(now, now, now)
    await reader.publish(*spans_at(now), id="too early to be read")
    clock[0] = now - 9 * MINUTE
    await reader.publish(first, second)
    clock[0] = now - 10 * SECOND
    await reader.publish(first, new, id="again")
    last = await reader.publish(*spans_at(now, now), id="new")
    await reader.read(last)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    # The earlier messages are learned, but they are not folded.
    assert reader.machine.evaluators["new"].spans == 3
    assert reader.count() == 3


async def test_backfill_and_reading_recognise_a_call_in_each_others_messages(bus: Bus) -> None:
    """What the reader folded before the rule existed is read again by the backfill, and later messages repeat it."""
    reader, spans = Reader(bus), spans_at(*[time.time_ns()] * 4)
    await reader.read(await reader.publish(*spans[:2]))
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    await reader.read(await reader.publish(*spans[1:3], id="later"))
    await reader.read(await reader.publish(*spans, id="all"))
    assert reader.count() == 4


async def test_a_rule_created_before_there_are_spans_is_evaluated_at_once(bus: Bus) -> None:
    reader = Reader(bus)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    now = time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    assert reader.count() == 1


async def test_a_rule_is_warming_until_the_log_covers_its_window(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    rule = counting(op="lt", threshold=10, window="1h")
    reader.machine.add_rule(rule)
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, rule)
    watch = reader.machine.evaluators["new"]
    assert watch.warming(time.time_ns() + 50 * MINUTE)
    assert not watch.warming(time.time_ns() + 61 * MINUTE)


async def test_backfill_skips_unreadable_messages(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    await reader.publish(*spans_at(now))
    await bus.publish(subjects.spans("default", 0), b"\xc1rubbish")
    last = await reader.publish(*spans_at(now))
    with contextlib.suppress(Exception):
        await reader.read(last)
    with contextlib.suppress(Exception):
        await reader.read(last)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10 * PATIENCE):
        await backfill(bus, reader.machine, counting())
    assert reader.count() == 2


async def test_backfilling_a_removed_rule_has_no_effect(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    reader.machine.add_rule(counting())
    task = asyncio.create_task(backfill(bus, reader.machine, counting()))
    reader.machine.remove_rule("new")
    async with asyncio.timeout(10 * PATIENCE):
        await task
    assert reader.machine.evaluators == {}
