"""Several alerters that change rules at the same time, on both buses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from kit.rules import RuleHost, make_rule
from tokentrace.bus import Bus, Entry, KeyValue
from tokentrace.records import AlertEvent
from tokentrace.units import SECOND, render_instant


async def test_of_two_simultaneous_creations_of_one_name_one_succeeds(bus: Bus) -> None:
    async with RuleHost(bus) as first, RuleHost(bus) as second:
        for number in range(10):
            name = f"rule {number}"
            answers = await asyncio.gather(first.create(name, threshold=1), second.create(name, threshold=2))
            assert sorted(status for status, _ in answers) == [201, 409]
            await first.knows(name)
            await second.knows(name)
            mine, theirs = first.store.rule(name), second.store.rule(name)
            assert mine is not None
            assert mine == theirs
            assert mine.threshold == (1 if answers[0][0] == 201 else 2)


async def test_two_alerters_that_change_rules_simultaneously_end_with_the_same_rules(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as first, RuleHost(bus, make_rule()) as second:
        for round_ in range(6):
            calls = []
            for host, threshold in ((first, round_ + 1), (second, round_ + 101)):
                calls += [
                    host.create("a", threshold=threshold),
                    host.silence("a", f"{round_ + 1}h"),
                    host.delete("a" if round_ % 2 else "b"),
                    host.create("b", threshold=threshold),
                    host.silence("configured"),
                ]
            answers = await asyncio.gather(*calls)
            assert {status for status, _ in answers} <= {200, 201, 204, 404, 409}
        await first.create("last")
        for host in (first, second):
            await host.knows("last")
        fresh = await RuleHost(bus, make_rule()).open()
        for name in ("a", "b", "last", "configured"):
            rules = [host.store.rule(name) for host in (first, second, fresh)]
            assert rules[0] == rules[1] == rules[2], name
            watches = [host.machine.watches.get(name) for host in (first, second, fresh)]
            assert len({watch and watch.silenced_until_ns for watch in watches}) == 1, name


async def test_a_rule_created_through_one_alerter_can_be_changed_through_another_at_once(bus: Bus) -> None:
    """A rule that was acknowledged with 201 exists for every alerter."""
    first, second = await RuleHost(bus).open(), await RuleHost(bus).open()
    assert (await first.create())[0] == 201
    assert (await second.silence())[0] == 200
    assert (await first.silence())[0] == 200
    assert (await second.delete())[0] == 204
    assert (await first.delete())[0] == 404


async def test_a_silence_does_not_restore_a_rule_that_was_deleted_meanwhile(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as first:
        second = await RuleHost(bus, make_rule()).open()
        assert (await first.delete("configured"))[0] == 204
        await first.knows_not("configured")
        assert (await second.silence("configured"))[0] in (404, 409)
        await asyncio.sleep(0.1)
        assert first.store.rule("configured") is None


class Between:
    """A bus whose buckets call *meanwhile* after all entries were read."""

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
        entries = await self._kv.items()
        await self._meanwhile()
        return entries


async def test_a_rule_created_while_another_alerter_starts_is_not_lost(bus: Bus) -> None:
    """The created rule has the name of a deleted configured rule, which the start brings back."""
    async with RuleHost(bus, make_rule()) as first:
        await first.delete("configured")
        await first.knows_not("configured")

        async def meanwhile() -> None:
            assert (await first.create("configured", threshold=77))[0] == 201

        between: Any = Between(bus, meanwhile)
        await RuleHost(between, make_rule()).open()
    rule = (await RuleHost(bus, make_rule()).open()).store.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


async def test_a_change_acknowledged_by_one_alerter_applies_to_the_other(bus: Bus) -> None:
    async with RuleHost(bus) as first, RuleHost(bus) as second:
        for number in range(20):
            name = f"rule {number}"
            assert (await first.create(name))[0] == 201
            assert name in await second.names()
            assert (await second.silence(name))[0] == 200
            (shown,) = [rule for rule in (await first.ask({"ask": "list"}))[1] if rule["name"] == name]
            assert shown["silenced"] is True
            assert (await second.create(name))[0] == 409
            assert (await second.delete(name))[0] == 204
            assert await first.names() == []
            assert (await first.silence(name))[0] == 404


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


@pytest.mark.parametrize("read_events", ["before", "after"])
async def test_a_rule_created_again_does_not_inherit_the_state_of_the_deleted_one(bus: Bus, read_events: str) -> None:
    """Neither if the events are read before the rules nor if they are read after; there is no snapshot."""
    old = make_firing("mine", time.time_ns() - SECOND)
    async with RuleHost(bus) as host:
        assert (await host.create())[0] == 201
        host.machine.learn(old)
        assert (await host.delete())[0] == 204
        assert (await host.create())[0] == 201
        assert not host.machine.watches["mine"].state.firing
    again = RuleHost(bus)
    if read_events == "before":
        again.machine.learn(old)
    await again.open()
    again.machine.learn(old)
    assert not again.machine.watches["mine"].state.firing
    again.machine.learn(make_firing("mine", time.time_ns() + SECOND))
    assert again.machine.watches["mine"].state.firing


async def test_a_configured_rule_that_comes_back_does_not_inherit_its_old_state(bus: Bus) -> None:
    old = make_firing("configured", time.time_ns() - SECOND)
    async with RuleHost(bus, make_rule()) as host:
        host.machine.learn(old)
        assert (await host.delete("configured"))[0] == 204
        again = await RuleHost(bus, make_rule()).open()
        again.machine.learn(old)
        assert not again.machine.watches["configured"].state.firing
        await host.knows("configured")
        host.machine.learn(old)
        assert not host.machine.watches["configured"].state.firing
