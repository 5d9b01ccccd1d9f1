"""Several alerters that change rules at the same time, on both buses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from kit.rules import Desk, make_rule
from tokentrace.bus import Bus, Entry, KeyValue
from tokentrace.records import AlertEvent
from tokentrace.units import SECOND, render_instant


async def test_of_two_simultaneous_creations_of_one_name_one_succeeds(bus: Bus) -> None:
    async with Desk(bus) as one, Desk(bus) as other:
        for number in range(10):
            name = f"rule {number}"
            answers = await asyncio.gather(one.create(name, threshold=1), other.create(name, threshold=2))
            assert sorted(status for status, _ in answers) == [201, 409]
            await one.knows(name)
            await other.knows(name)
            mine, theirs = one.book.rule(name), other.book.rule(name)
            assert mine is not None
            assert mine == theirs
            assert mine.threshold == (1 if answers[0][0] == 201 else 2)


async def test_two_alerters_that_change_rules_simultaneously_end_with_the_same_rules(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as one, Desk(bus, make_rule()) as other:
        for round_ in range(6):
            calls = []
            for desk, threshold in ((one, round_ + 1), (other, round_ + 101)):
                calls += [
                    desk.create("a", threshold=threshold),
                    desk.silence("a", f"{round_ + 1}h"),
                    desk.delete("a" if round_ % 2 else "b"),
                    desk.create("b", threshold=threshold),
                    desk.silence("configured"),
                ]
            answers = await asyncio.gather(*calls)
            assert {status for status, _ in answers} <= {200, 201, 204, 404, 409}
        await one.create("last")
        for desk in (one, other):
            await desk.knows("last")
        fresh = await Desk(bus, make_rule()).open()
        for name in ("a", "b", "last", "configured"):
            rules = [desk.book.rule(name) for desk in (one, other, fresh)]
            assert rules[0] == rules[1] == rules[2], name
            watches = [desk.machine.watches.get(name) for desk in (one, other, fresh)]
            assert len({watch and watch.silenced_until_ns for watch in watches}) == 1, name


async def test_a_rule_created_through_one_alerter_can_be_changed_through_another_at_once(bus: Bus) -> None:
    """What was acknowledged with 201 is there, whichever alerter is asked next."""
    one, other = await Desk(bus).open(), await Desk(bus).open()
    assert (await one.create())[0] == 201
    assert (await other.silence())[0] == 200
    assert (await one.silence())[0] == 200
    assert (await other.delete())[0] == 204
    assert (await one.delete())[0] == 404


async def test_a_silence_does_not_restore_a_rule_that_was_deleted_meanwhile(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as one:
        other = await Desk(bus, make_rule()).open()
        assert (await one.delete("configured"))[0] == 204
        await one.knows_not("configured")
        assert (await other.silence("configured"))[0] in (404, 409)
        await asyncio.sleep(0.1)
        assert one.book.rule("configured") is None


class Between:
    """A bus whose bucket lets somebody else in between reading everything and what follows."""

    def __init__(self, bus: Bus, meanwhile: Callable[[], Any]) -> None:
        self._bus, self._meanwhile = bus, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def kv(self, bucket: str) -> Any:
        return _Between(self._bus.kv(bucket), self._meanwhile)


class _Between:
    def __init__(self, kv: KeyValue, meanwhile: Callable[[], Any]) -> None:
        self._kv, self._meanwhile = kv, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def items(self) -> dict[str, Entry]:
        found = await self._kv.items()
        await self._meanwhile()
        return found


async def test_a_rule_created_while_another_alerter_starts_is_not_lost(bus: Bus) -> None:
    """The name is that of a rule of the configuration that was deleted, which the start brings back."""
    async with Desk(bus, make_rule()) as one:
        await one.delete("configured")
        await one.knows_not("configured")

        async def meanwhile() -> None:
            assert (await one.create("configured", threshold=77))[0] == 201

        between: Any = Between(bus, meanwhile)
        await Desk(between, make_rule()).open()
    rule = (await Desk(bus, make_rule()).open()).book.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


async def test_a_change_acknowledged_by_one_alerter_applies_to_the_other(bus: Bus) -> None:
    async with Desk(bus) as one, Desk(bus) as other:
        for number in range(20):
            name = f"rule {number}"
            assert (await one.create(name))[0] == 201
            assert name in await other.names()
            assert (await other.silence(name))[0] == 200
            (shown,) = [rule for rule in (await one.ask({"ask": "list"}))[1] if rule["name"] == name]
            assert shown["silenced"] is True
            assert (await other.create(name))[0] == 409
            assert (await other.delete(name))[0] == 204
            assert await one.names() == []
            assert (await one.silence(name))[0] == 404


def make_firing(name: str, at_ns: int) -> AlertEvent:
    instant = render_instant(at_ns)
    return AlertEvent(
        alert=name,
        fired_at=instant,
        metric="span_count",
        op="gt",
        value=9.0,
        threshold=5.0,
        window="10s",
        span_count=9,
        filter={},
        rule_id=make_rule(name).rule_id,
        message="",
        starts_at=instant,
    )


@pytest.mark.parametrize("heard", ["before", "after"])
async def test_a_rule_created_again_does_not_inherit_the_state_of_the_deleted_one(bus: Bus, heard: str) -> None:
    """Whether the events are read before the rules or after, and without any snapshot."""
    old = make_firing("mine", time.time_ns() - SECOND)
    async with Desk(bus) as desk:
        assert (await desk.create())[0] == 201
        desk.machine.learn(old)
        assert (await desk.delete())[0] == 204
        assert (await desk.create())[0] == 201
        assert not desk.machine.watches["mine"].state.firing
    again = Desk(bus)
    if heard == "before":
        again.machine.learn(old)
    await again.open()
    again.machine.learn(old)
    assert not again.machine.watches["mine"].state.firing
    again.machine.learn(make_firing("mine", time.time_ns() + SECOND))
    assert again.machine.watches["mine"].state.firing


async def test_a_configured_rule_that_comes_back_does_not_inherit_its_old_state(bus: Bus) -> None:
    old = make_firing("configured", time.time_ns() - SECOND)
    async with Desk(bus, make_rule()) as desk:
        desk.machine.learn(old)
        assert (await desk.delete("configured"))[0] == 204
        again = await Desk(bus, make_rule()).open()
        again.machine.learn(old)
        assert not again.machine.watches["configured"].state.firing
        await desk.knows("configured")
        desk.machine.learn(old)
        assert not desk.machine.watches["configured"].state.firing
