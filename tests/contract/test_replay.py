"""Replays of a rule find what a second implementation and the backtest find, and leave the loop its turns."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from kit.alert_events import START_NS
from kit.builders import make_span
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Unavailable
from tokentrace.records import Batch, Span, encode_batches
from tokentrace.units import DAY, HOUR, SECOND, parse_instant
from tokentrace_alerter.backtest import backtest
from tokentrace_alerter.replay import MAX_POINTS, Replays
from tokentrace_alerter.rules import Rule, parse_rule

WINDOW_S = 10


def make_rule(**overrides: Any) -> Rule:
    written = {
        "name": "many",
        "metric": "span_count",
        "op": "gte",
        "threshold": 5,
        "window": f"{WINDOW_S}s",
        "eval_interval": "1s",
        "cooldown": "0s",
    }
    return parse_rule({**written, **overrides}, "rule")


class Log:
    """A log of spans on the bus in memory, whose clock the test sets."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.bus = MemoryBus(MemoryBroker(lambda: self.now_ns))
        #: (Second after START, caller) of each span.
        self.spans: list[tuple[int, str]] = []

    async def open(self) -> Log:
        for stream in subjects.streams():
            if stream.name == subjects.SPANS:
                await self.bus.ensure(stream)
        return self

    async def fill(self, seconds: int, seed: int = 3) -> Log:
        """Store bursts of spans, each half a second after it ended."""
        dice = random.Random(seed)
        for second in range(seconds):
            count = dice.choice([0, 0, 0, 1, 1, 6]) if second % 60 < 30 else 0
            spans: list[Span] = []
            for _ in range(count):
                caller = dice.choice(["a", "b"])
                self.spans.append((second, caller))
                at_ns = START_NS + second * SECOND
                spans.append(make_span(ended_ns=at_ns, arrived_ns=at_ns, caller=caller))
            self.now_ns = START_NS + second * SECOND + SECOND // 2
            if spans or second == 0:
                await self.bus.publish(
                    subjects.spans("default", 0), encode_batches([Batch(id=f"request-{second}", spans=spans)])
                )
        self.now_ns = START_NS + seconds * SECOND
        return self

    def count(self, instant: int, caller: str | None = None) -> int:
        """Count the spans of the window that ends *instant* seconds after START."""
        return sum(instant - WINDOW_S <= second < instant and caller in (None, own) for second, own in self.spans)


def second_of(at: str) -> int:
    return (parse_instant(at) - START_NS) // SECOND


async def test_the_points_and_events_of_a_replay_equal_a_count_and_the_backtest() -> None:
    log = await (await Log().open()).fill(300)
    rule = make_rule()
    found = await Replays(log.bus).replay(rule, 200 * SECOND, log.now_ns)
    assert (second_of(found["from"]), second_of(found["to"]), found["complete"]) == (100, 300, True)
    assert (found["threshold"], found["op"], found["step_s"]) == (5.0, "gte", 1.0)
    instants = list(range(101, 301))
    assert [second_of(point["at"]) for point in found["points"]] == instants
    assert [point["span_count"] for point in found["points"]] == [log.count(instant) for instant in instants]
    assert [point["breached"] for point in found["points"]] == [int(log.count(instant) >= 5) for instant in instants]
    events = [
        event async for event in backtest(log.bus, [rule], "default", START_NS + 100 * SECOND, log.now_ns, shards=1)
    ]
    shown = [(event["fired_at"], event["status"], event["value"]) for event in found["events"]]
    assert shown == [(event.fired_at, event.status, event.value) for event in events]
    firing = [second_of(at) for at, status, _ in shown if status == "firing"]
    assert firing == [instant for instant in instants if log.count(instant) >= 5]
    assert (found["firings"], found["resolutions"]) == (len(firing), len(events) - len(firing))
    assert found["firings"] > found["resolutions"] > 1


async def test_a_point_of_a_grouped_rule_is_its_furthest_instance() -> None:
    log = await (await Log().open()).fill(120)
    for op, furthest in (("gte", max), ("lt", min)):
        rule = make_rule(op=op, threshold=2, group_by="caller")
        found = await Replays(log.bus).replay(rule, 100 * SECOND, log.now_ns)
        for point in found["points"]:
            counts = [count for caller in "ab" if (count := log.count(second_of(point["at"]), caller))]
            # An instance without spans is evaluated while it fires.
            if len(counts) == point["instances"]:
                assert point["value"] == (furthest(counts) if counts else None)
                assert point["breached"] == sum(count >= 2 if op == "gte" else count < 2 for count in counts)


async def test_a_long_series_keeps_the_furthest_point_of_each_step() -> None:
    log = await (await Log().open()).fill(1800)
    found = await Replays(log.bus).replay(make_rule(), 1750 * SECOND, log.now_ns)
    assert found["step_s"] == 4.0
    assert 1750 / 4 <= len(found["points"]) <= MAX_POINTS + 1
    start = START_NS // SECOND
    for point in found["points"]:
        step = (second_of(point["at"]) + start) // 4
        own = [instant for instant in range(51, 1801) if (instant + start) // 4 == step]
        assert point["value"] == (max(map(log.count, own)) or None)


async def test_a_rule_that_is_silenced_in_the_file_is_replayed_as_if_it_were_not() -> None:
    log = await (await Log().open()).fill(60)
    loud, quiet = [
        await Replays(log.bus).replay(make_rule(silenced=silenced), HOUR, log.now_ns) for silenced in (False, True)
    ]
    assert loud == quiet
    assert loud["firings"] > 0


async def test_an_empty_log_has_no_events_and_no_values() -> None:
    log = await Log().open()
    found = await Replays(log.bus).replay(make_rule(), 60 * SECOND, log.now_ns)
    assert (found["firings"], found["complete"]) == (0, True)
    assert {point["value"] for point in found["points"]} == {None}


async def test_a_replay_ends_at_its_limit_and_says_how_far_it_came() -> None:
    log = await (await Log().open()).fill(60)
    log.now_ns += DAY
    found = await Replays(log.bus, limit_s=0.0).replay(make_rule(), 2 * DAY, log.now_ns)
    assert found["complete"] is False
    assert parse_instant(found["from"]) <= parse_instant(found["until"]) < parse_instant(found["to"])


async def test_other_tasks_go_on_while_a_rule_is_replayed_and_a_second_replay_waits() -> None:
    log = await (await Log().open()).fill(60)
    log.now_ns += HOUR
    replays, turns = Replays(log.bus), 0
    replaying = asyncio.create_task(replays.replay(make_rule(), 2 * HOUR, log.now_ns))
    other = asyncio.create_task(replays.replay(make_rule(op="gt"), HOUR, log.now_ns))
    while not replaying.done():
        await asyncio.sleep(0)
        turns += not other.done()
    assert turns > 10
    assert (await replaying)["complete"]
    assert (await other)["complete"]


async def test_a_replay_that_does_not_get_its_turn_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokentrace_alerter.replay._WAIT_S", 0.01)
    log = await (await Log().open()).fill(60)
    log.now_ns += 30 * DAY
    replays = Replays(log.bus)
    long = asyncio.create_task(replays.replay(make_rule(), 30 * DAY, log.now_ns))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="another rule is being replayed"):
        await replays.replay(make_rule(), HOUR, log.now_ns)
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    assert (await replays.replay(make_rule(), 60 * SECOND, log.now_ns))["complete"]
