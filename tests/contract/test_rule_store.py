"""Tests of the rule store: rules are created, silenced and deleted, on the memory bus and on JetStream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from kit.rule_store import HUGE, StoreAndMachine, make_memory, make_rule, open_bus, written
from tokentrace.bus import Bus
from tokentrace.units import DAY, HOUR, SECOND, parse_instant
from tokentrace_alerter import rule_store as rule_store


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request) as opened:
        yield opened


# --- creating, deleting, silencing


async def test_a_created_rule_is_evaluated_listed_and_survives_a_restart(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        status, body = await alerter.create(filter={"model": "o3"}, delivery={"type": "stdout"}, group_by="user")
        assert (status, body["name"]) == (201, "mine")
        assert body["rule_id"] == make_rule("mine").rule_id
        await alerter.knows()
        assert await alerter.names() == ["configured", "mine"]
    again = await StoreAndMachine(bus, make_rule()).open()
    assert await again.names() == ["configured", "mine"]
    rule = again.store.rule("mine")
    assert rule is not None
    assert (rule.filter, rule.group_by, rule.delivery is not None) == ({"model": "o3"}, "user", True)


async def test_a_second_rule_of_a_name_is_a_conflict(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        assert (await alerter.create())[0] == 201
        assert (await alerter.create(threshold=99))[0] == 409
        await alerter.knows()
        assert (await alerter.create(threshold=99))[0] == 409
        status, body = await alerter.create("configured")
        assert (status, "configured" in body["error"]) == (409, True)
    rule = (await StoreAndMachine(bus).open()).store.rule("mine")
    assert rule is not None
    assert rule.threshold == 5


async def test_names_that_differ_in_any_character_are_different_rules(bus: Bus) -> None:
    names = ["a", "A", "a b", "a.b", "a/b", "a*", ">", "ünïcode 🙂", "x" * 128, '"quoted"', "a b c"]
    async with StoreAndMachine(bus) as alerter:
        for name in names:
            assert (await alerter.create(name))[0] == 201, name
        await alerter.until(lambda: len(alerter.machine.evaluators) == len(names))
        assert (await alerter.silence("a b"))[0] == 200
        assert (await alerter.delete("a.b"))[0] == 204
        await alerter.knows_not("a.b")
        assert await alerter.names() == sorted(set(names) - {"a.b"})


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ({"metric": "latency_p42"}, "metric"),
        ({"metric": None}, "metric"),
        ({"op": "!="}, "op"),
        ({"threshold": "ten"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"window": "soon"}, "window"),
        ({"window": 5}, "window"),
        ({"window": "32d"}, "window"),
        ({"for": "-1s"}, "for"),
        ({"colour": "red"}, "colour"),
        ({"no_data": "panic"}, "no_data"),
        ({"change": "relative"}, "change"),
        ({"change": "percent", "window": "16d"}, "window"),
        ({"recovery_threshold": 6}, "recovery_threshold"),
        ({"recovery_threshold": "5"}, "recovery_threshold"),
        ({"group_by": 3}, "group_by"),
        ({"silenced": "no"}, "silenced"),
        ({"filter": ["a"]}, "filter"),
        ({"filter": {"a": 1}}, "filter"),
        ({"min_spans": 1.5}, "min_spans"),
        ({"delivery": {"type": "slack"}}, "delivery.type"),
        ({"delivery": {"type": "http"}}, "delivery.url"),
        ({"delivery": {"type": "http", "url": "http://a", "colour": 1}}, "delivery.colour"),
        ({"delivery": {"type": "custom", "target": "a:b"}}, "delivery.type"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"name": "n" * 129}, "name"),
    ],
)
async def test_an_invalid_rule_is_a_400_that_names_the_key(rule: dict[str, Any], key: str) -> None:
    alerter = await StoreAndMachine(await make_memory()).open()
    status, body = await alerter.ask({"ask": "create", "rule": {**written(), **rule}})
    assert status == 400
    assert body["error"].startswith(f"rule.{key}")
    assert await alerter.store._kv.items() == {}


@pytest.mark.parametrize(
    "asked",
    [
        b"rubbish",
        b"[]",
        b"3",
        b"null",
        b'"list"',
        b"\xff\xfe",
        b'{"ask":"create","rule":{"name":"\xff"}}',
        b"[" * 100_000,
        b'{"ask":"create","rule":' * 5_000,
        b'{"ask":"create"}',
        b'{"ask":"create","rule":[]}',
        b'{"ask":"create","rule":{"name":"a","metric":"span_count","op":"gt","window":"1m","threshold":' + HUGE + b"}}",
        b'{"ask":"create","rule":{"name":"a","metric":"span_count","op":"lt","window":"1m","threshold":1,'
        b'"recovery_threshold":' + HUGE + b"}}",
        b'{"ask":"create","rule":{"name":"a","metric":"span_count","op":"gt","window":"1m","threshold":1e999}}',
    ],
    ids=lambda asked: repr(asked[:24]) + str(len(asked)),
)
async def test_an_invalid_request_is_a_400(asked: bytes) -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule()).open()
    assert (await alerter.ask(asked))[0] == 400
    assert await alerter.names() == ["configured"]


@pytest.mark.parametrize("ask", ["delete", "silence"])
async def test_a_request_about_an_unknown_rule_is_a_404(ask: str) -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule()).open()
    assert (await alerter.ask({"ask": ask, "name": "unknown", "duration": "1h"}))[0] == 404


@pytest.mark.parametrize("ask", ["explode", "", None, 3])
@pytest.mark.parametrize("name", ["configured", "unknown"])
async def test_an_unknown_request_is_a_400_that_lists_the_known_ones(ask: Any, name: str) -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule()).open()
    status, body = await alerter.ask({"ask": ask, "name": name, "duration": "1h"})
    assert status == 400
    assert "one of list, create, put, delete, silence, lift_silence" in body["error"]


async def test_an_empty_request_lists_the_rules(bus: Bus) -> None:
    alerter = await StoreAndMachine(bus, make_rule()).open()
    status, shown = await alerter.ask(b"")
    assert (status, [rule["name"] for rule in shown]) == (200, ["configured"])


async def test_a_deleted_rule_is_gone_and_may_be_created_again(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create(threshold=1)
        await alerter.knows()
        assert await alerter.delete() == (204, None)
        await alerter.knows_not()
        assert (await alerter.delete())[0] == 404
        assert (await StoreAndMachine(bus).open()).store.rule("mine") is None
        assert (await alerter.create(threshold=2))[0] == 201
        await alerter.knows()
        rule = alerter.store.rule("mine")
        assert rule is not None
        assert rule.threshold == 2
    assert await (await StoreAndMachine(bus).open()).names() == ["mine"]


async def test_a_deleted_rule_of_the_configuration_comes_back_with_a_restart(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        assert await alerter.delete("configured") == (204, None)
        await alerter.knows_not("configured")
        assert await alerter.names() == []
    async with StoreAndMachine(bus, make_rule()) as again:
        assert await again.names() == ["configured"]
        assert (await again.delete("configured"))[0] == 204
        await again.knows_not("configured")
    assert await (await StoreAndMachine(bus, make_rule()).open()).names() == ["configured"]


async def test_a_created_rule_with_the_name_of_a_deleted_configured_one_survives_a_restart(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        await alerter.delete("configured")
        await alerter.knows_not("configured")
        assert (await alerter.create("configured", threshold=77))[0] == 201
        await alerter.knows("configured")
    again = await StoreAndMachine(bus, make_rule()).open()
    rule = again.store.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


async def test_after_a_restart_of_one_alerter_all_have_the_same_rules(bus: Bus) -> None:
    """After a restart, a deleted rule of the configuration is back in all alerters or in none."""
    async with StoreAndMachine(bus, make_rule()) as first:
        await first.delete("configured")
        await first.knows_not("configured")
        async with StoreAndMachine(bus, make_rule()) as second:
            await asyncio.sleep(0.2)
            assert await first.names() == await second.names()


@pytest.mark.parametrize(("text", "ns"), [("2h", 2 * HOUR), ("90s", 90 * SECOND), ("1ns", 1), ("366d", 366 * DAY)])
async def test_a_silence_is_shown_survives_a_restart_and_ends_in_time(text: str, ns: int) -> None:
    bus = await make_memory()
    now = time.time_ns() // SECOND * SECOND
    async with StoreAndMachine(bus, make_rule()) as alerter:
        status, body = await alerter.ask({"ask": "silence", "name": "configured", "duration": text}, now)
        assert status == 200
        assert 0 <= now + ns - parse_instant(body["silenced_until"]) < SECOND // 1000
        watch = alerter.machine.evaluators["configured"]
        await alerter.until(lambda: watch.silenced_until_ns == now + ns)
    again = await StoreAndMachine(bus, make_rule()).open()
    assert again.machine.evaluators["configured"].silenced_until_ns == now + ns
    (shown,) = again.machine.render(now + ns - 1)
    assert shown["silenced"] is True
    (shown,) = again.machine.render(now + ns)
    assert (shown["silenced"], shown["silenced_until"]) == (False, None)


@pytest.mark.parametrize("duration", [None, "", "0", "0s", "-1h", "367d", "for ever", 5, [], "9" * 60 + "h"])
async def test_an_invalid_duration_of_a_silence_is_a_400(duration: Any) -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule()).open()
    status, body = await alerter.silence("configured", duration)
    assert status == 400
    assert body["error"].startswith("duration")


async def test_a_silence_says_who_made_it_and_why_until_it_ends(bus: Bus) -> None:
    nothing = {"silenced_at": None, "silenced_by": None, "silence_comment": None}
    before_ns = time.time_ns()

    async def shown(alerter: StoreAndMachine) -> dict[str, Any]:
        [rule] = (await alerter.ask({"ask": "list"}, time.time_ns()))[1]
        return {key: rule[key] for key in nothing}

    async with StoreAndMachine(bus) as first, StoreAndMachine(bus) as second:
        await first.create()
        assert await shown(first) == nothing
        request = {"ask": "silence", "name": "mine", "duration": "2h", "by": "ann", "comment": "load test"}
        assert (await first.ask(request, time.time_ns()))[0] == 200
        for alerter in (first, second):
            said = await shown(alerter)
            assert (said["silenced_by"], said["silence_comment"]) == ("ann", "load test")
            assert before_ns - SECOND < parse_instant(said["silenced_at"]) <= time.time_ns() + SECOND
        again = await StoreAndMachine(bus).open()
        assert (await shown(again))["silenced_by"] == "ann"
        assert (await second.silence())[0] == 200
        assert {key: value is None for key, value in (await shown(first)).items()} == {
            "silenced_at": False,
            "silenced_by": True,
            "silence_comment": True,
        }
        assert (await first.ask(request, time.time_ns()))[0] == 200
        assert (await first.ask({"ask": "lift_silence", "name": "mine"}, time.time_ns()))[0] == 204
        assert await shown(second) == nothing
    for key, value, error in (("by", "x" * 201, "by: has 201"), ("comment", "x" * 2001, "comment: has 2001")):
        status, body = await again.ask({**request, key: value}, time.time_ns())
        assert (status, body["error"].partition(" char")[0]) == (400, error)


async def test_a_silence_survives_new_rules_and_holds_in_all_alerters(bus: Bus) -> None:
    async with StoreAndMachine(bus) as first, StoreAndMachine(bus) as second:
        await first.create()
        await first.knows()
        await second.knows()
        assert (await second.silence())[0] == 200
        for alerter in (first, second):
            watches = alerter.machine.evaluators
            await alerter.until(partial(lambda watches: watches["mine"].silenced_until_ns > time.time_ns(), watches))
        await first.create("another")
        await first.knows("another")
        assert first.machine.evaluators["mine"].silenced_until_ns > 0
        assert first.machine.evaluators["another"].silenced_until_ns == 0
    assert (await StoreAndMachine(bus).open()).machine.evaluators["mine"].silenced_until_ns > time.time_ns()


async def test_a_rule_that_is_created_again_is_not_silenced(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create()
        await alerter.knows()
        await alerter.silence()
        await alerter.until(lambda: alerter.machine.evaluators["mine"].silenced_until_ns > 0)
        await alerter.delete()
        await alerter.knows_not()
        await alerter.create()
        await alerter.knows()
        await asyncio.sleep(0.05)
        assert alerter.machine.evaluators["mine"].silenced_until_ns == 0
    assert (await StoreAndMachine(bus).open()).machine.evaluators["mine"].silenced_until_ns == 0


async def test_a_silence_causes_no_backfill(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create()
        await alerter.knows()
        watch = alerter.machine.evaluators["mine"]
        await alerter.silence()
        await alerter.until(lambda: watch.silenced_until_ns > 0)
        assert alerter.machine.evaluators["mine"] is watch
        assert [change.rule is None for change in alerter.changes] == [False, True]


async def test_entries_read_at_the_start_are_not_reported_as_changes(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create()
        await alerter.knows()
        await alerter.silence()
        await alerter.until(lambda: len(alerter.changes) == 2)
    async with StoreAndMachine(bus) as again:
        await again.create("later")
        await again.knows("later")
        assert [change.name for change in again.changes] == ["later"]


async def test_the_number_of_rules_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_store, "MAX_RULES", 3)
    async with StoreAndMachine(await make_memory(), make_rule()) as alerter:
        for name in ("one", "two"):
            assert (await alerter.create(name))[0] == 201
            await alerter.knows(name)
        status, body = await alerter.create("three")
        assert (status, "3 rules" in body["error"]) == (400, True)
        await alerter.delete("one")
        await alerter.knows_not("one")
        assert (await alerter.create("three"))[0] == 201
