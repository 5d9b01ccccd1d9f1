"""The rule store and backfill, on the memory bus and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from kit.broker import Broker
from kit.builders import make_span
from tokentrace.bus import Bus, Entry, KeyValue, Stream, jetstream, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.metrics import parse_custom_metrics
from tokentrace.records import AlertEvent, Batch, Position, Span, encode_batches
from tokentrace.units import DAY, HOUR, MINUTE, SECOND, parse_instant, render_instant
from tokentrace_alerter import rule_store as rule_store
from tokentrace_alerter.backfill import MAX_PASSES, Backfiller, backfill
from tokentrace_alerter.delivery import AllowedHosts
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rule_store import RuleChange, RuleStore
from tokentrace_alerter.rules import Rule, parse_rule

MIB = 1024 * 1024
STREAMS = [
    subjects.bucket(subjects.RULES, max_bytes=MIB),
    Stream(name=subjects.SPANS, subjects=(subjects.ALL_SPANS,), max_bytes=64 * MIB),
    Stream(name="LOG", subjects=("log.>",), max_bytes=MIB),
]
CUSTOMS = parse_custom_metrics([{"name": "hops", "type": "sum", "field": "attr.hops"}])


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            made: Bus = MemoryBus(MemoryBroker())
        else:
            server: Broker = request.getfixturevalue("broker")
            made = await stack.enter_async_context(jetstream.connect(server.url, name="rules"))
        for stream in STREAMS:
            await made.ensure(stream)
        yield made


def written(name: str = "mine", **overrides: Any) -> dict[str, Any]:
    given = {"name": name, "metric": "span_count", "op": "gt", "threshold": 5, "window": "10s"}
    return {**given, **overrides}


def make_rule(name: str = "configured", **overrides: Any) -> Rule:
    return parse_rule(written(name, **overrides), "alerts[0]")


class Desk:
    """A rule store and a machine, wired as in the alerter: changes are followed and applied."""

    def __init__(self, bus: Bus, *configured: Rule, customs: bool = True) -> None:
        self.book = RuleStore(bus, configured, CUSTOMS if customs else {}, None, AllowedHosts())
        self.machine = AlerterMachine(configured, "default")
        self.changes: list[RuleChange] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> Desk:
        self.book.apply_to(self.machine, await self.book.open())
        return self

    async def __aenter__(self) -> Desk:
        await self.open()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        async for change in self.book.changes():
            self.changes.append(change)
            change.apply_to(self.machine)

    async def ask(self, asked: Any, now_ns: int | None = None) -> tuple[int, Any]:
        payload = asked if isinstance(asked, bytes) else msgspec.json.encode(asked)
        answer = msgspec.json.decode(await self.book.answer(payload, self.machine, now_ns or time.time_ns()))
        return answer["status"], answer["body"]

    async def create(self, name: str = "mine", **overrides: Any) -> tuple[int, Any]:
        return await self.ask({"ask": "create", "rule": written(name, **overrides)})

    async def delete(self, name: str = "mine") -> tuple[int, Any]:
        return await self.ask({"ask": "delete", "name": name})

    async def silence(self, name: str = "mine", duration: Any = "2h") -> tuple[int, Any]:
        return await self.ask({"ask": "silence", "name": name, "duration": duration})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(4):
            while not holds():
                await asyncio.sleep(0.005)

    async def knows(self, name: str = "mine") -> None:
        await self.until(lambda: name in self.machine.evaluators)

    async def knows_not(self, name: str = "mine") -> None:
        await self.until(lambda: name not in self.machine.evaluators and self.book.rule(name) is None)

    async def names(self) -> list[str]:
        status, shown = await self.ask({"ask": "list"})
        assert status == 200
        return sorted(one["name"] for one in shown)


# --- creating, deleting, silencing


async def test_a_created_rule_is_evaluated_listed_and_survives_a_restart(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as desk:
        status, body = await desk.create(filter={"model": "o3"}, delivery={"type": "stdout"}, group_by="user")
        assert (status, body["name"]) == (201, "mine")
        assert body["rule_id"] == make_rule("mine").rule_id
        await desk.knows()
        assert await desk.names() == ["configured", "mine"]
    again = await Desk(bus, make_rule()).open()
    assert await again.names() == ["configured", "mine"]
    rule = again.book.rule("mine")
    assert rule is not None
    assert (rule.filter, rule.group_by, rule.delivery is not None) == ({"model": "o3"}, "user", True)


async def test_a_second_rule_of_a_name_is_a_conflict(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as desk:
        assert (await desk.create())[0] == 201
        assert (await desk.create(threshold=99))[0] == 409
        await desk.knows()
        assert (await desk.create(threshold=99))[0] == 409
        status, body = await desk.create("configured")
        assert (status, "configured" in body["error"]) == (409, True)
    rule = (await Desk(bus).open()).book.rule("mine")
    assert rule is not None
    assert rule.threshold == 5


async def test_names_that_differ_in_any_character_are_different_rules(bus: Bus) -> None:
    names = ["a", "A", "a b", "a.b", "a/b", "a*", ">", "ünïcode 🙂", "x" * 128, '"quoted"', "a b c"]
    async with Desk(bus) as desk:
        for name in names:
            assert (await desk.create(name))[0] == 201, name
        await desk.until(lambda: len(desk.machine.evaluators) == len(names))
        assert (await desk.silence("a b"))[0] == 200
        assert (await desk.delete("a.b"))[0] == 204
        await desk.knows_not("a.b")
        assert await desk.names() == sorted(set(names) - {"a.b"})


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
    desk = await Desk(await make_memory()).open()
    status, body = await desk.ask({"ask": "create", "rule": {**written(), **rule}})
    assert status == 400
    assert body["error"].startswith(f"rule.{key}")
    assert await desk.book._kv.items() == {}


async def make_memory() -> MemoryBus:
    bus = MemoryBus(MemoryBroker())
    for stream in STREAMS:
        await bus.ensure(stream)
    return bus


HUGE = b"1" + b"0" * 400


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
    desk = await Desk(await make_memory(), make_rule()).open()
    assert (await desk.ask(asked))[0] == 400
    assert await desk.names() == ["configured"]


@pytest.mark.parametrize("ask", ["delete", "silence", "explode", None])
async def test_a_request_about_an_unknown_rule_is_a_404(ask: str | None) -> None:
    desk = await Desk(await make_memory(), make_rule()).open()
    assert (await desk.ask({"ask": ask, "name": "nobody", "duration": "1h"}))[0] == 404


async def test_an_unknown_request_is_a_400_that_lists_the_known_ones() -> None:
    desk = await Desk(await make_memory(), make_rule()).open()
    status, body = await desk.ask({"ask": "explode", "name": "configured"})
    assert status == 400
    assert "list, create, delete, silence" in body["error"]


async def test_an_empty_request_lists_the_rules(bus: Bus) -> None:
    desk = await Desk(bus, make_rule()).open()
    status, shown = await desk.ask(b"")
    assert (status, [one["name"] for one in shown]) == (200, ["configured"])


async def test_a_deleted_rule_is_gone_and_may_be_created_again(bus: Bus) -> None:
    async with Desk(bus) as desk:
        await desk.create(threshold=1)
        await desk.knows()
        assert await desk.delete() == (204, None)
        await desk.knows_not()
        assert (await desk.delete())[0] == 404
        assert (await Desk(bus).open()).book.rule("mine") is None
        assert (await desk.create(threshold=2))[0] == 201
        await desk.knows()
        rule = desk.book.rule("mine")
        assert rule is not None
        assert rule.threshold == 2
    assert await (await Desk(bus).open()).names() == ["mine"]


async def test_a_deleted_rule_of_the_configuration_comes_back_with_a_restart(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as desk:
        assert await desk.delete("configured") == (204, None)
        await desk.knows_not("configured")
        assert await desk.names() == []
    async with Desk(bus, make_rule()) as again:
        assert await again.names() == ["configured"]
        assert (await again.delete("configured"))[0] == 204
        await again.knows_not("configured")
    assert await (await Desk(bus, make_rule()).open()).names() == ["configured"]


async def test_a_created_rule_with_the_name_of_a_deleted_configured_one_survives_a_restart(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as desk:
        await desk.delete("configured")
        await desk.knows_not("configured")
        assert (await desk.create("configured", threshold=77))[0] == 201
        await desk.knows("configured")
    again = await Desk(bus, make_rule()).open()
    rule = again.book.rule("configured")
    assert rule is not None
    assert rule.threshold == 77


async def test_after_a_restart_of_one_alerter_all_have_the_same_rules(bus: Bus) -> None:
    """A deleted rule of the configuration comes back with a restart in all alerters or in none."""
    async with Desk(bus, make_rule()) as one:
        await one.delete("configured")
        await one.knows_not("configured")
        async with Desk(bus, make_rule()) as other:
            await asyncio.sleep(0.2)
            assert await one.names() == await other.names()


@pytest.mark.parametrize(("text", "ns"), [("2h", 2 * HOUR), ("90s", 90 * SECOND), ("1ns", 1), ("366d", 366 * DAY)])
async def test_a_silence_is_shown_survives_a_restart_and_ends_in_time(text: str, ns: int) -> None:
    bus = await make_memory()
    now = time.time_ns() // SECOND * SECOND
    async with Desk(bus, make_rule()) as desk:
        status, body = await desk.ask({"ask": "silence", "name": "configured", "duration": text}, now)
        assert status == 200
        assert 0 <= now + ns - parse_instant(body["silenced_until"]) < SECOND // 1000
        watch = desk.machine.evaluators["configured"]
        await desk.until(lambda: watch.silenced_until_ns == now + ns)
    again = await Desk(bus, make_rule()).open()
    assert again.machine.evaluators["configured"].silenced_until_ns == now + ns
    (shown,) = again.machine.render(now + ns - 1)
    assert shown["silenced"] is True
    (shown,) = again.machine.render(now + ns)
    assert (shown["silenced"], shown["silenced_until"]) == (False, None)


@pytest.mark.parametrize("duration", [None, "", "0", "0s", "-1h", "367d", "for ever", 5, [], "9" * 60 + "h"])
async def test_an_invalid_duration_of_a_silence_is_a_400(duration: Any) -> None:
    desk = await Desk(await make_memory(), make_rule()).open()
    status, body = await desk.silence("configured", duration)
    assert status == 400
    assert body["error"].startswith("duration")


async def test_a_silence_survives_new_rules_and_holds_in_all_alerters(bus: Bus) -> None:
    async with Desk(bus) as one, Desk(bus) as other:
        await one.create()
        await one.knows()
        await other.knows()
        assert (await other.silence())[0] == 200
        for desk in (one, other):
            watches = desk.machine.evaluators
            await desk.until(lambda watches=watches: watches["mine"].silenced_until_ns > time.time_ns())
        await one.create("another")
        await one.knows("another")
        assert one.machine.evaluators["mine"].silenced_until_ns > 0
        assert one.machine.evaluators["another"].silenced_until_ns == 0
    assert (await Desk(bus).open()).machine.evaluators["mine"].silenced_until_ns > time.time_ns()


async def test_a_rule_that_is_created_again_is_not_silenced(bus: Bus) -> None:
    async with Desk(bus) as desk:
        await desk.create()
        await desk.knows()
        await desk.silence()
        await desk.until(lambda: desk.machine.evaluators["mine"].silenced_until_ns > 0)
        await desk.delete()
        await desk.knows_not()
        await desk.create()
        await desk.knows()
        await asyncio.sleep(0.05)
        assert desk.machine.evaluators["mine"].silenced_until_ns == 0
    assert (await Desk(bus).open()).machine.evaluators["mine"].silenced_until_ns == 0


async def test_a_silence_causes_no_backfill(bus: Bus) -> None:
    async with Desk(bus) as desk:
        await desk.create()
        await desk.knows()
        watch = desk.machine.evaluators["mine"]
        await desk.silence()
        await desk.until(lambda: watch.silenced_until_ns > 0)
        assert desk.machine.evaluators["mine"] is watch
        assert [change.rule is None for change in desk.changes] == [False, True]


async def test_entries_read_at_the_start_are_not_reported_as_changes(bus: Bus) -> None:
    async with Desk(bus) as desk:
        await desk.create()
        await desk.knows()
        await desk.silence()
        await desk.until(lambda: len(desk.changes) == 2)
    async with Desk(bus) as again:
        await again.create("later")
        await again.knows("later")
        assert [change.name for change in again.changes] == ["later"]


async def test_the_number_of_rules_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_store, "MAX_RULES", 3)
    async with Desk(await make_memory(), make_rule()) as desk:
        for name in ("one", "two"):
            assert (await desk.create(name))[0] == 201
            await desk.knows(name)
        status, body = await desk.create("three")
        assert (status, "3 rules" in body["error"]) == (400, True)
        await desk.delete("one")
        await desk.knows_not("one")
        assert (await desk.create("three"))[0] == 201


# --- two at once


async def test_of_two_alerters_that_create_the_same_name_one_succeeds(bus: Bus) -> None:
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


async def test_concurrent_changes_in_two_alerters_lead_to_the_same_rules(bus: Bus) -> None:
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
            watches = [desk.machine.evaluators.get(name) for desk in (one, other, fresh)]
            assert len({watch and watch.silenced_until_ns for watch in watches}) == 1, name


async def test_a_rule_created_through_one_alerter_can_be_changed_through_another_at_once(bus: Bus) -> None:
    """After a 201 every alerter knows the rule."""
    one, other = await Desk(bus).open(), await Desk(bus).open()
    assert (await one.create())[0] == 201
    assert (await other.silence())[0] == 200
    assert (await one.silence())[0] == 200
    assert (await other.delete())[0] == 204
    assert (await one.delete())[0] == 404


async def test_a_silence_does_not_restore_a_rule_that_another_alerter_deleted(bus: Bus) -> None:
    async with Desk(bus, make_rule()) as one:
        other = await Desk(bus, make_rule()).open()
        assert (await one.delete("configured"))[0] == 204
        await one.knows_not("configured")
        assert (await other.silence("configured"))[0] in (404, 409)
        await asyncio.sleep(0.1)
        assert one.book.rule("configured") is None


class Between:
    """A bus whose bucket runs a function after all its entries are read."""

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
    """The name belongs to a deleted rule of the configuration, which the start restores."""
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
    async with Desk(bus, make_rule()) as desk:
        await desk.create("before")
        await desk.knows("before")
        await bus.kv(subjects.RULES).put("garbage", garbage)
        await desk.create("behind")
        await desk.knows("behind")
        assert await desk.names() == ["before", "behind", "configured"]
    assert await (await Desk(bus, make_rule()).open()).names() == ["before", "behind", "configured"]


async def test_an_invalid_entry_under_the_key_of_a_rule_is_overwritten(bus: Bus) -> None:
    async with Desk(bus) as desk:
        await desk.create()
        await desk.knows()
        (key,) = await bus.kv(subjects.RULES).items()
        await bus.kv(subjects.RULES).put(key, b"rubbish")
        assert (await desk.delete())[0] == 204
        await desk.knows_not()
        assert (await desk.create())[0] == 201


async def test_a_rule_on_an_unknown_custom_metric_is_skipped_until_the_metric_is_configured(bus: Bus) -> None:
    async with Desk(bus) as desk:
        assert (await desk.create(metric="hops"))[0] == 201
        await desk.knows()
    assert await (await Desk(bus, customs=False).open()).names() == []
    assert await (await Desk(bus).open()).names() == ["mine"]


# --- the position that belongs to a time


async def test_in_an_empty_stream_the_position_of_any_time_is_the_beginning(bus: Bus) -> None:
    created = (await bus.state("LOG")).created_ns
    for at in (0, time.time_ns(), time.time_ns() + HOUR):
        assert await bus.position_at("LOG", at) == Position(created, 0)


async def fill(bus: Bus, count: int) -> list[int]:
    """Publish *count* messages a few milliseconds apart and return their stream times."""
    for number in range(count):
        await bus.publish("log.a", str(number).encode())
        await asyncio.sleep(0.005)
    times: list[int] = []
    async with asyncio.timeout(10), contextlib.aclosing(bus.follow("LOG", ["log.>"], None)) as feed:
        async for chunk in feed:
            times += [message.time_ns for message in chunk.messages]
            if len(times) >= count:
                break
    return times


async def test_the_position_of_a_time_misses_nothing_and_is_at_most_a_millisecond_early(bus: Bus) -> None:
    times = await fill(bus, 12)
    created = (await bus.state("LOG")).created_ns
    for asked in (0, *times, *(at + 1 for at in times), *(at - 1 for at in times), times[-1] + HOUR):
        position = await bus.position_at("LOG", asked)
        assert position.created_ns == created
        assert position.sequence <= sum(at < asked for at in times)
        assert position.sequence >= sum(at < asked - SECOND // 1000 for at in times)


async def test_a_reader_continues_from_the_position_of_a_time(bus: Bus) -> None:
    times = await fill(bus, 8)
    position = await bus.position_at("LOG", times[5])
    async with asyncio.timeout(10), contextlib.aclosing(bus.follow("LOG", ["log.>"], position)) as feed:
        async for chunk in feed:
            if chunk.messages:
                assert not chunk.rewound
                assert chunk.messages[0].sequence in (5, 6)
                assert chunk.messages[-1].sequence == 8
                break


async def test_a_time_before_the_first_message_gives_the_position_of_the_beginning(bus: Bus) -> None:
    await bus.ensure(Stream(name="LOG", subjects=("log.>",), max_bytes=4096))
    for _ in range(40):
        await bus.publish("log.a", bytes(300))
    state = await bus.state("LOG")
    assert state.first_sequence > 1
    for at in (0, state.first_time_ns - HOUR, state.first_time_ns):
        position = await bus.position_at("LOG", at)
        assert position.sequence <= state.first_sequence - 1
    assert (await bus.position_at("LOG", time.time_ns() + HOUR)).sequence == 40


# --- a change holds in all alerters


async def test_a_change_that_one_alerter_acknowledged_holds_in_the_other(bus: Bus) -> None:
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
async def test_a_rule_that_is_created_again_does_not_inherit_earlier_events(bus: Bus, heard: str) -> None:
    """This holds whether the events are read before or after the rules, and without a snapshot."""
    old = make_firing("mine", time.time_ns() - SECOND)
    async with Desk(bus) as desk:
        assert (await desk.create())[0] == 201
        desk.machine.apply_event(old)
        assert (await desk.delete())[0] == 204
        assert (await desk.create())[0] == 201
        assert not desk.machine.evaluators["mine"].state.firing
    again = Desk(bus)
    if heard == "before":
        again.machine.apply_event(old)
    await again.open()
    again.machine.apply_event(old)
    assert not again.machine.evaluators["mine"].state.firing
    again.machine.apply_event(make_firing("mine", time.time_ns() + SECOND))
    assert again.machine.evaluators["mine"].state.firing


async def test_a_configured_rule_that_comes_back_does_not_inherit_earlier_events(bus: Bus) -> None:
    old = make_firing("configured", time.time_ns() - SECOND)
    async with Desk(bus, make_rule()) as desk:
        desk.machine.apply_event(old)
        assert (await desk.delete("configured"))[0] == 204
        again = await Desk(bus, make_rule()).open()
        again.machine.apply_event(old)
        assert not again.machine.evaluators["configured"].state.firing
        await desk.knows("configured")
        desk.machine.apply_event(old)
        assert not desk.machine.evaluators["configured"].state.firing


# --- backfill


def spans_at(*ended_ns: int, **fields: Any) -> list[Span]:
    return [make_span(ended_ns=at, arrived_ns=at, started_ns=at, **fields) for at in ended_ns]


class Reader:
    """A machine that reads the spans of a bus up to a given message."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.machine = bus, AlerterMachine([], "default")

    async def publish(self, *spans: Span, id: str = "") -> int:
        payload = encode_batches([Batch(id=id or f"request-{time.time_ns()}", spans=list(spans))])
        return (await self.bus.publish(subjects.spans("default", 0), payload)).sequence

    async def read(self, upto: int) -> None:
        position = self.machine.position
        if position is not None and position.sequence >= upto:
            return
        async with (
            asyncio.timeout(10),
            contextlib.aclosing(self.bus.follow(subjects.SPANS, [subjects.ALL_SPANS], position)) as feed,
        ):
            async for chunk in feed:
                for message in chunk.messages:
                    if message.sequence <= upto:
                        self.machine.fold(message, chunk.created_ns)
                if chunk.messages and chunk.messages[-1].sequence >= upto:
                    return

    def look(self, seconds: float = 3) -> AlertEvent:
        """Return the first event when the clock is *seconds* ahead."""
        self.machine.caught_up = True
        effects = self.machine.tick(time.time_ns() + round(seconds * SECOND))
        return msgspec.json.decode(effects[0].payload, type=AlertEvent)


def counting(**overrides: Any) -> Rule:
    """A rule that fires at once with the number of spans."""
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
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    assert not reader.machine.evaluators["new"].backfilling
    event = reader.look()
    assert event.span_count == 5
    assert parse_instant(event.fired_at) > now


async def test_rules_that_wait_at_the_same_time_share_a_pass(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, now = Reader(bus), time.time_ns()
    for number in range(5):
        last = await reader.publish(*spans_at(now - number * SECOND, now - 209 * SECOND))
    await reader.read(last)
    follow, readings = bus.follow, []

    def counted(stream: str, *given: Any) -> Any:
        readings.append(stream)
        return follow(stream, *given)

    monkeypatch.setattr(bus, "follow", counted)
    backfiller = Backfiller(bus, reader.machine)
    running = asyncio.create_task(backfiller.run())
    windows = {f"rule {number}": f"{60 + 20 * number}s" for number in range(40)}
    for number, (name, window) in enumerate(windows.items()):
        rule = counting(window=window)
        rule = msgspec.structs.replace(rule, name=name)
        reader.machine.add_rule(rule)
        backfiller.ask(rule)
        if number < MAX_PASSES:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while any(watch.backfilling for watch in reader.machine.evaluators.values()):
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(readings) <= MAX_PASSES + 1
    reader.machine.caught_up = True
    effects = reader.machine.tick(time.time_ns() + 3 * SECOND)
    events = [msgspec.json.decode(effect.payload, type=AlertEvent) for effect in effects]
    first = {event.alert: event.span_count for event in reversed(events)}
    assert first == {name: 5 if int(window[:-1]) < 209 else 10 for name, window in windows.items()}


async def test_in_a_shared_pass_each_rule_is_backfilled_as_far_back_as_it_looks(bus: Bus) -> None:
    """Spans before the look-back of a rule do not count as late, and each message counts once."""
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    second = await reader.publish(*spans_at(now, now))
    short, long = counting(), msgspec.structs.replace(counting(window="1h"), name="long")
    await reader.read(first)
    reader.machine.add_rule(short)
    await reader.read(second)
    reader.machine.add_rule(long)
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, short, long)
    assert {name: (watch.spans, watch.late) for name, watch in reader.machine.evaluators.items()} == {
        "new": (3, 0),
        "long": (3, 0),
    }


async def test_messages_that_the_pump_has_not_read_are_not_backfilled_but_folded_later(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    await reader.read(first)
    second = await reader.publish(*spans_at(now, now))
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    await reader.read(second)
    assert reader.look().span_count == 3


async def test_messages_folded_before_the_backfill_begins_count_once(bus: Bus) -> None:
    """The backfill task may start after the pump has folded further messages."""
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now))
    second = await reader.publish(*spans_at(now, now))
    await reader.read(first)
    reader.machine.add_rule(counting())
    await reader.read(second)
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    assert reader.look().span_count == 3


async def test_a_repeated_batch_counts_once_with_backfill(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    first = await reader.publish(*spans_at(now), id="same")
    await reader.read(first)
    again = await reader.publish(*spans_at(now), id="same")
    await reader.read(again)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    later = await reader.publish(*spans_at(now), id="same")
    await reader.read(later)
    assert reader.look().span_count == 1


async def test_a_rule_created_before_there_are_spans_is_evaluated_at_once(bus: Bus) -> None:
    reader = Reader(bus)
    reader.machine.add_rule(counting())
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    now = time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    assert reader.look().span_count == 1


async def test_a_rule_is_warming_until_the_log_covers_its_window(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    rule = counting(op="lt", threshold=10, window="1h")
    reader.machine.add_rule(rule)
    async with asyncio.timeout(10):
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
    async with asyncio.timeout(10):
        await backfill(bus, reader.machine, counting())
    assert reader.look().span_count == 2


async def test_backfilling_a_removed_rule_has_no_effect(bus: Bus) -> None:
    reader, now = Reader(bus), time.time_ns()
    await reader.read(await reader.publish(*spans_at(now)))
    reader.machine.add_rule(counting())
    task = asyncio.create_task(backfill(bus, reader.machine, counting()))
    reader.machine.remove_rule("new")
    async with asyncio.timeout(10):
        await task
    assert reader.machine.evaluators == {}
