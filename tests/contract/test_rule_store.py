"""Rules that are created, deleted and silenced at run time, on both buses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kit.rules import HUGE, RuleHost, make_memory, make_rule, written
from tokentrace.bus import Bus, subjects
from tokentrace.units import DAY, HOUR, SECOND, parse_instant
from tokentrace_alerter import rule_store


async def test_a_created_rule_is_evaluated_listed_and_stored(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as host:
        status, body = await host.create(filter={"model": "o3"}, delivery={"type": "stdout"}, group_by="user")
        assert (status, body["name"]) == (201, "mine")
        assert body["rule_id"] == make_rule("mine").rule_id
        await host.knows()
        assert await host.names() == ["configured", "mine"]
    again = await RuleHost(bus, make_rule()).open()
    assert await again.names() == ["configured", "mine"]
    rule = again.store.rule("mine")
    assert rule is not None
    assert (rule.filter, rule.group_by, rule.delivery is not None) == ({"model": "o3"}, "user", True)


async def test_a_name_is_used_once(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as host:
        assert (await host.create())[0] == 201
        assert (await host.create(threshold=99))[0] == 409
        await host.knows()
        assert (await host.create(threshold=99))[0] == 409
        status, body = await host.create("configured")
        assert (status, "configured" in body["error"]) == (409, True)
    rule = (await RuleHost(bus).open()).store.rule("mine")
    assert rule is not None
    assert rule.threshold == 5


async def test_names_with_special_characters_are_different_rules(bus: Bus) -> None:
    names = ["a", "A", "a b", "a.b", "a/b", "a*", ">", "ünïcode 🙂", "x" * 128, '"quoted"', "a b c"]
    async with RuleHost(bus) as host:
        for name in names:
            assert (await host.create(name))[0] == 201, name
        await host.until(lambda: len(host.machine.watches) == len(names))
        assert (await host.silence("a b"))[0] == 200
        assert (await host.delete("a.b"))[0] == 204
        await host.knows_not("a.b")
        assert await host.names() == sorted(set(names) - {"a.b"})


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
    bus = await make_memory()
    host = await RuleHost(bus).open()
    status, body = await host.ask({"ask": "create", "rule": {**written(), **rule}})
    assert status == 400
    assert body["error"].startswith(f"rule.{key}")
    assert await bus.kv(subjects.RULES).items() == {}


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
    host = await RuleHost(await make_memory(), make_rule()).open()
    assert (await host.ask(asked))[0] == 400
    assert await host.names() == ["configured"]


@pytest.mark.parametrize("ask", ["delete", "silence", "explode", None])
async def test_an_unknown_rule_is_a_404(ask: str | None) -> None:
    host = await RuleHost(await make_memory(), make_rule()).open()
    assert (await host.ask({"ask": ask, "name": "unknown", "duration": "1h"}))[0] == 404


async def test_an_unknown_request_is_a_400_that_lists_the_known_ones() -> None:
    host = await RuleHost(await make_memory(), make_rule()).open()
    status, body = await host.ask({"ask": "explode", "name": "configured"})
    assert status == 400
    assert "list, create, delete, silence" in body["error"]


async def test_an_empty_request_lists_the_rules(bus: Bus) -> None:
    host = await RuleHost(bus, make_rule()).open()
    status, shown = await host.ask(b"")
    assert (status, [rule["name"] for rule in shown]) == (200, ["configured"])


async def test_a_deleted_rule_is_gone_and_can_be_created_again(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        await host.create(threshold=1)
        await host.knows()
        assert await host.delete() == (204, None)
        await host.knows_not()
        assert (await host.delete())[0] == 404
        assert (await RuleHost(bus).open()).store.rule("mine") is None
        assert (await host.create(threshold=2))[0] == 201
        await host.knows()
        rule = host.store.rule("mine")
        assert rule is not None
        assert rule.threshold == 2
    assert await (await RuleHost(bus).open()).names() == ["mine"]


async def test_a_deleted_configured_rule_comes_back_with_the_next_start(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as host:
        assert await host.delete("configured") == (204, None)
        await host.knows_not("configured")
        assert await host.names() == []
    async with RuleHost(bus, make_rule()) as again:
        assert await again.names() == ["configured"]
        assert (await again.delete("configured"))[0] == 204
        await again.knows_not("configured")
    assert await (await RuleHost(bus, make_rule()).open()).names() == ["configured"]


async def test_a_rule_created_under_the_name_of_a_deleted_configured_rule_stays(bus: Bus) -> None:
    async with RuleHost(bus, make_rule()) as host:
        await host.delete("configured")
        await host.knows_not("configured")
        assert (await host.create("configured", threshold=77))[0] == 201
        await host.knows("configured")
    again = await RuleHost(bus, make_rule()).open()
    rule = again.store.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


async def test_all_alerters_agree_on_the_rules_after_one_restarts(bus: Bus) -> None:
    """A deleted configured rule comes back with a restart of any alerter, for all alerters."""
    async with RuleHost(bus, make_rule()) as first:
        await first.delete("configured")
        await first.knows_not("configured")
        async with RuleHost(bus, make_rule()) as second:
            await asyncio.sleep(0.2)
            assert await first.names() == await second.names()


@pytest.mark.parametrize(("text", "ns"), [("2h", 2 * HOUR), ("90s", 90 * SECOND), ("1ns", 1), ("366d", 366 * DAY)])
async def test_a_silence_is_shown_stored_and_ends_on_time(text: str, ns: int) -> None:
    bus = await make_memory()
    now = time.time_ns() // SECOND * SECOND
    async with RuleHost(bus, make_rule()) as host:
        status, body = await host.ask({"ask": "silence", "name": "configured", "duration": text}, now)
        assert status == 200
        assert 0 <= now + ns - parse_instant(body["silenced_until"]) < SECOND // 1000
        watch = host.machine.watches["configured"]
        await host.until(lambda: watch.silenced_until_ns == now + ns)
    again = await RuleHost(bus, make_rule()).open()
    assert again.machine.watches["configured"].silenced_until_ns == now + ns
    (shown,) = again.machine.render(now + ns - 1)
    assert shown["silenced"] is True
    (shown,) = again.machine.render(now + ns)
    assert (shown["silenced"], shown["silenced_until"]) == (False, None)


@pytest.mark.parametrize("duration", [None, "", "0", "0s", "-1h", "367d", "for ever", 5, [], "9" * 60 + "h"])
async def test_an_invalid_silence_is_a_400(duration: Any) -> None:
    host = await RuleHost(await make_memory(), make_rule()).open()
    status, body = await host.silence("configured", duration)
    assert status == 400
    assert body["error"].startswith("duration")


async def test_a_silence_survives_other_changes_and_reaches_all_alerters(bus: Bus) -> None:
    async with RuleHost(bus) as first, RuleHost(bus) as second:
        await first.create()
        await first.knows()
        await second.knows()
        assert (await second.silence())[0] == 200
        for host in (first, second):
            watches = host.machine.watches
            await host.until(lambda watches=watches: watches["mine"].silenced_until_ns > time.time_ns())
        await first.create("another")
        await first.knows("another")
        assert first.machine.watches["mine"].silenced_until_ns > 0
        assert first.machine.watches["another"].silenced_until_ns == 0
    assert (await RuleHost(bus).open()).machine.watches["mine"].silenced_until_ns > time.time_ns()


async def test_a_rule_that_is_created_again_is_not_silenced(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        await host.create()
        await host.knows()
        await host.silence()
        await host.until(lambda: host.machine.watches["mine"].silenced_until_ns > 0)
        await host.delete()
        await host.knows_not()
        await host.create()
        await host.knows()
        await asyncio.sleep(0.05)
        assert host.machine.watches["mine"].silenced_until_ns == 0
    assert (await RuleHost(bus).open()).machine.watches["mine"].silenced_until_ns == 0


async def test_a_silence_does_not_backfill_the_rule_again(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        await host.create()
        await host.knows()
        watch = host.machine.watches["mine"]
        await host.silence()
        await host.until(lambda: watch.silenced_until_ns > 0)
        assert host.machine.watches["mine"] is watch
        assert [change.rule is None for change in host.changes] == [False, True]


async def test_rules_read_at_the_start_are_not_reported_as_changes(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        await host.create()
        await host.knows()
        await host.silence()
        await host.until(lambda: len(host.changes) == 2)
    async with RuleHost(bus) as again:
        await again.create("later")
        await again.knows("later")
        assert [change.name for change in again.changes] == ["later"]


async def test_the_number_of_rules_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_store, "MAX_RULES", 3)
    async with RuleHost(await make_memory(), make_rule()) as host:
        for name in ("one", "two"):
            assert (await host.create(name))[0] == 201
            await host.knows(name)
        status, body = await host.create("three")
        assert (status, "3 rules" in body["error"]) == (400, True)
        await host.delete("one")
        await host.knows_not("one")
        assert (await host.create("three"))[0] == 201


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
async def test_an_entry_that_is_not_a_rule_does_not_affect_the_others(garbage: bytes) -> None:
    bus = await make_memory()
    async with RuleHost(bus, make_rule()) as host:
        await host.create("before")
        await host.knows("before")
        await bus.kv(subjects.RULES).put("garbage", garbage)
        await host.create("behind")
        await host.knows("behind")
        assert await host.names() == ["before", "behind", "configured"]
    assert await (await RuleHost(bus, make_rule()).open()).names() == ["before", "behind", "configured"]


async def test_a_damaged_entry_of_a_rule_is_overwritten(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        await host.create()
        await host.knows()
        (key,) = await bus.kv(subjects.RULES).items()
        await bus.kv(subjects.RULES).put(key, b"rubbish")
        assert (await host.delete())[0] == 204
        await host.knows_not()
        assert (await host.create())[0] == 201


async def test_a_rule_on_a_removed_metric_is_skipped_until_the_metric_is_configured_again(bus: Bus) -> None:
    async with RuleHost(bus) as host:
        assert (await host.create(metric="hops"))[0] == 201
        await host.knows()
    assert await (await RuleHost(bus, customs=False).open()).names() == []
    assert await (await RuleHost(bus).open()).names() == ["mine"]
