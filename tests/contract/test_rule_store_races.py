"""Tests of the rule store with concurrent changes, invalid entries and several alerters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kit.rule_store import HUGE, StoreAndMachine, make_memory, make_rule, open_bus
from tokentrace.bus import Bus, Entry, KeyValue, subjects
from tokentrace.records import AlertEvent
from tokentrace.units import SECOND, render_instant
from tokentrace_alerter import rule_store as rule_store


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request) as opened:
        yield opened


# --- changes at the same time


async def test_of_two_alerters_that_create_the_same_name_one_succeeds(bus: Bus) -> None:
    async with StoreAndMachine(bus) as first, StoreAndMachine(bus) as second:
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


async def test_concurrent_changes_in_two_alerters_lead_to_the_same_rules(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as first, StoreAndMachine(bus, make_rule()) as second:
        for round_ in range(6):
            calls = []
            for alerter, threshold in ((first, round_ + 1), (second, round_ + 101)):
                calls += [
                    alerter.create("a", threshold=threshold),
                    alerter.silence("a", f"{round_ + 1}h"),
                    alerter.delete("a" if round_ % 2 else "b"),
                    alerter.create("b", threshold=threshold),
                    alerter.silence("configured"),
                ]
            answers = await asyncio.gather(*calls)
            assert {status for status, _ in answers} <= {200, 201, 204, 404, 409}
        await first.create("last")
        for alerter in (first, second):
            await alerter.knows("last")
        fresh = await StoreAndMachine(bus, make_rule()).open()
        for name in ("a", "b", "last", "configured"):
            rules = [alerter.store.rule(name) for alerter in (first, second, fresh)]
            assert rules[0] == rules[1] == rules[2], name
            watches = [alerter.machine.evaluators.get(name) for alerter in (first, second, fresh)]
            assert len({watch and watch.silenced_until_ns for watch in watches}) == 1, name


async def test_a_rule_created_through_one_alerter_can_be_changed_through_another_at_once(bus: Bus) -> None:
    """After the answer 201 every alerter has the rule."""
    first, second = await StoreAndMachine(bus).open(), await StoreAndMachine(bus).open()
    assert (await first.create())[0] == 201
    assert (await second.silence())[0] == 200
    assert (await first.silence())[0] == 200
    assert (await second.delete())[0] == 204
    assert (await first.delete())[0] == 404


async def test_a_silence_does_not_restore_a_rule_that_another_alerter_deleted(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as first:
        second = await StoreAndMachine(bus, make_rule()).open()
        assert (await first.delete("configured"))[0] == 204
        await first.knows_not("configured")
        assert (await second.silence("configured"))[0] in (404, 409)
        await asyncio.sleep(0.1)
        assert first.store.rule("configured") is None


class Between:
    """*bus*, but when the entries of a bucket have been read, *meanwhile* runs before they are returned."""

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
    """Its name is that of a deleted rule of the configuration, which the starting alerter would restore."""
    async with StoreAndMachine(bus, make_rule()) as first:
        await first.delete("configured")
        await first.knows_not("configured")

        async def meanwhile() -> None:
            assert (await first.create("configured", threshold=77))[0] == 201

        between: Any = Between(bus, meanwhile)
        await StoreAndMachine(between, make_rule()).open()
    rule = (await StoreAndMachine(bus, make_rule()).open()).store.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


# --- invalid entries in the bucket


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"rubbish",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"3",
        b'{"name":3}',
        b'{"name":"\xff"}',
        b'{"name":"bad","rule":3}',
        b'{"name":"bad","rule":{}}',
        b'{"name":"bad","rule":{"name":"bad","metric":"gone","op":"gt","threshold":1,"window":"1m"}}',
        b'{"name":"bad","rule":{"name":"bad","metric":"span_count","op":"gt","threshold":' + HUGE + b',"window":"1m"}}',
        b'{"name":"bad","rule":{"name":"bad","metric":"hops","op":"gt","threshold":1,"window":"1m","new_key":1}}',
        b'{"name":"bad","rule":{"a":' + b"[" * 100_000,
        b'{"name":"bad","deleted":"yes"}',
        b'{"name":"bad","silenced_until_ns":"soon"}',
        b'{"name":"bad","deleted":true}',
        b'{"name":"bad","silenced_until_ns":5}',
    ],
    ids=lambda garbage: repr(garbage[:40]) + str(len(garbage)),
)
async def test_an_invalid_entry_hides_no_other_rule_and_stops_no_alerter(garbage: bytes) -> None:
    bus = await make_memory()
    async with StoreAndMachine(bus, make_rule()) as alerter:
        await alerter.create("before")
        await alerter.knows("before")
        await bus.kv(subjects.RULES).put("garbage", garbage)
        await alerter.create("behind")
        await alerter.knows("behind")
        assert await alerter.names() == ["before", "behind", "configured"]
    assert await (await StoreAndMachine(bus, make_rule()).open()).names() == ["before", "behind", "configured"]


async def test_an_invalid_entry_under_the_key_of_a_rule_is_overwritten(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create()
        await alerter.knows()
        (key,) = await bus.kv(subjects.RULES).items()
        await bus.kv(subjects.RULES).put(key, b"rubbish")
        assert (await alerter.delete())[0] == 204
        await alerter.knows_not()
        assert (await alerter.create())[0] == 201


async def test_a_rule_on_an_unknown_custom_metric_is_skipped_until_the_metric_is_configured(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        assert (await alerter.create(metric="hops"))[0] == 201
        await alerter.knows()
    assert await (await StoreAndMachine(bus, customs=False).open()).names() == []
    assert await (await StoreAndMachine(bus).open()).names() == ["mine"]


# --- a change holds in all alerters


async def test_a_change_that_one_alerter_acknowledged_holds_in_the_other(bus: Bus) -> None:
    async with StoreAndMachine(bus) as first, StoreAndMachine(bus) as second:
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


@pytest.mark.parametrize("events_read", ["before", "after"])
async def test_a_rule_that_is_created_again_does_not_inherit_earlier_events(bus: Bus, events_read: str) -> None:
    """This holds whether a restarted alerter reads the events before or after the rules, without a snapshot."""
    old = make_firing("mine", time.time_ns() - SECOND)
    async with StoreAndMachine(bus) as alerter:
        assert (await alerter.create())[0] == 201
        alerter.machine.apply_event(old)
        assert (await alerter.delete())[0] == 204
        assert (await alerter.create())[0] == 201
        assert not alerter.machine.evaluators["mine"].state.firing
    again = StoreAndMachine(bus)
    if events_read == "before":
        again.machine.apply_event(old)
    await again.open()
    again.machine.apply_event(old)
    assert not again.machine.evaluators["mine"].state.firing
    again.machine.apply_event(make_firing("mine", time.time_ns() + SECOND))
    assert again.machine.evaluators["mine"].state.firing


async def test_a_configured_rule_that_comes_back_does_not_inherit_earlier_events(bus: Bus) -> None:
    old = make_firing("configured", time.time_ns() - SECOND)
    async with StoreAndMachine(bus, make_rule()) as alerter:
        alerter.machine.apply_event(old)
        assert (await alerter.delete("configured"))[0] == 204
        again = await StoreAndMachine(bus, make_rule()).open()
        again.machine.apply_event(old)
        assert not again.machine.evaluators["configured"].state.firing
        await alerter.knows("configured")
        alerter.machine.apply_event(old)
        assert not alerter.machine.evaluators["configured"].state.firing
