"""Rules are replaced and silences are lifted, on the memory bus and on JetStream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from kit.alert_events import make_event
from kit.rule_store import StoreAndMachine, make_memory, make_rule, open_bus, written
from tokentrace.bus import Bus
from tokentrace.records import decode_event
from tokentrace.units import HOUR, MS, parse_instant, render_instant


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request) as opened:
        yield opened


async def put(alerter: StoreAndMachine, name: str = "mine", **overrides: Any) -> tuple[int, Any]:
    return await alerter.ask({"ask": "put", "name": name, "rule": written(name, **overrides)})


def hook(path: str) -> dict[str, Any]:
    return {"delivery": {"type": "http", "url": f"http://127.0.0.1:9/{path}", "send_resolved": True}}


async def test_put_creates_a_rule_and_replaces_it_under_the_same_id(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        status, created = await put(alerter, threshold=1)
        assert (status, created["name"]) == (201, "mine")
        await alerter.knows()
        assert await put(alerter, threshold=2) == (200, created)
        await alerter.until(lambda: alerter.machine.evaluators["mine"].rule.threshold == 2)
    again = await StoreAndMachine(bus).open()
    rule = again.store.rule("mine")
    assert rule is not None
    assert (rule.threshold, rule.rule_id) == (2, created["rule_id"])


async def test_the_name_may_be_left_out_of_the_rule_but_not_differ(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        rule = {key: value for key, value in written().items() if key != "name"}
        assert (await alerter.ask({"ask": "put", "name": "mine", "rule": rule}))[0] == 201
        status, body = await alerter.ask({"ask": "put", "name": "mine", "rule": written("other")})
        assert (status, body["error"]) == (400, "rule.name: 'other' is not 'mine', the name in the path")
        rubbishes: list[Any] = [[], None, 3, "rule"]
        for rubbish in rubbishes:
            assert (await alerter.ask({"ask": "put", "name": "mine", "rule": rubbish}))[0] == 400


async def test_a_rule_of_the_file_is_replaced_only_after_it_was_deleted(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        status, body = await put(alerter, "configured", threshold=77)
        assert (status, "configuration" in body["error"]) == (409, True)
        await alerter.delete("configured")
        await alerter.knows_not("configured")
        assert (await put(alerter, "configured", threshold=77))[0] == 201
        await alerter.knows("configured")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"cooldown": "7s"}, True),
        ({"eval_interval": "2s"}, True),
        ({"silenced": True}, True),
        (hook("b"), True),
        ({"window": "10000ms"}, True),
        ({"threshold": 6}, False),
        ({"op": "gte"}, False),
        ({"window": "20s"}, False),
        ({"group_by": "caller"}, False),
        ({"filter": {"model": "o3"}}, False),
        ({"level": "critical"}, False),
        ({"for": "1s"}, False),
        ({"no_data": "keep"}, False),
        ({"min_spans": 2}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
async def test_a_rule_keeps_its_state_if_its_condition_stays_the_same(change: dict[str, Any], kept: bool) -> None:
    async with StoreAndMachine(await make_memory()) as alerter:
        await put(alerter, **hook("a"))
        await alerter.knows()
        fired = render_instant(time.time_ns() + 10 * MS)
        event = make_event(alert="mine", metric="span_count", level="warning", fired_at=fired, starts_at=fired)
        alerter.machine.apply_event(event)
        assert len(alerter.machine.open_episodes()) == 1
        await put(alerter, **{**hook("a"), **change})
        assert [episode.fired_at for episode in alerter.machine.open_episodes()] == ([fired] if kept else [])


async def test_a_replaced_rule_stays_silenced(bus: Bus) -> None:
    async with StoreAndMachine(bus) as alerter:
        await put(alerter)
        await alerter.silence()
        await put(alerter, threshold=9)
        assert alerter.machine.evaluators["mine"].silenced_until_ns > time.time_ns()


async def test_a_change_is_later_than_every_event_even_if_the_clock_is_behind() -> None:
    async with StoreAndMachine(await make_memory()) as alerter:
        await put(alerter)
        await alerter.knows()
        now_ns = time.time_ns()
        ahead = render_instant(now_ns + HOUR)
        alerter.machine.apply_event(
            make_event(alert="mine", metric="span_count", level="warning", fired_at=ahead, starts_at=ahead)
        )
        assert (await alerter.delete())[0] == 204
        assert alerter.machine.events.ignored_upto["mine"] > parse_instant(ahead)


# --- silences


async def test_a_silence_is_lifted_in_all_alerters_and_stays_so_after_a_restart(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as first, StoreAndMachine(bus, make_rule()) as second:
        assert (await first.silence("configured"))[0] == 200
        await second.until(lambda: second.machine.evaluators["configured"].silenced_until_ns > 0)
        assert await first.ask({"ask": "lift_silence", "name": "configured"}) == (204, None)
        for alerter in (first, second):
            evaluator = alerter.machine.evaluators["configured"]
            await alerter.until(partial(lambda held: held.silenced_until_ns == 0, evaluator))
        # Without a silence nothing changes.
        assert await first.ask({"ask": "lift_silence", "name": "configured"}) == (204, None)
    [shown] = (await StoreAndMachine(bus, make_rule()).open()).machine.render(time.time_ns())
    assert (shown["silenced"], shown["silenced_until"]) == (False, None)


async def test_a_silence_of_an_unknown_rule_cannot_be_lifted() -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule()).open()
    assert (await alerter.ask({"ask": "lift_silence", "name": "unknown"}))[0] == 404


async def test_what_the_rule_itself_says_is_no_silence_to_lift() -> None:
    alerter = await StoreAndMachine(await make_memory(), make_rule(silenced=True)).open()
    status, body = await alerter.ask({"ask": "lift_silence", "name": "configured"})
    assert (status, "its key silenced" in body["error"]) == (409, True)


# --- rules of the same name


async def test_a_rule_of_the_file_that_a_created_one_hides_is_named(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async with StoreAndMachine(bus) as alerter:
        await alerter.create("configured", threshold=77)
    again = await StoreAndMachine(bus, make_rule(), make_rule("other")).open()
    assert "rule configured: the one in the file is not evaluated" in caplog.text
    assert again.store.hidden == ["configured"]
    _, shown = await again.ask({"ask": "list"})
    assert {rule["name"]: (rule["source"], rule["hides_rule_of_file"]) for rule in shown} == {
        "configured": ("created", True),
        "other": ("file", False),
    }


async def test_the_names_of_all_rules_are_told(bus: Bus) -> None:
    async with StoreAndMachine(bus, make_rule()) as alerter:
        await alerter.create()
        await alerter.knows()
        status, names = await alerter.ask({"ask": "names"})
        assert (status, sorted(names)) == (200, ["configured", "mine"])


# --- where the events of a rule that is gone are delivered


def fired(name: str = "mine") -> Any:
    instant = render_instant(time.time_ns())
    return make_event(alert=name, metric="span_count", level="warning", fired_at=instant, starts_at=instant)


async def test_the_channel_of_a_firing_outlives_its_rule_and_a_restart(bus: Bus) -> None:
    event = fired("configured")
    async with StoreAndMachine(bus, make_rule(**hook("secret"))) as alerter:
        await alerter.store.keep_channel(event)
    again = await StoreAndMachine(bus).open()
    channel = again.store.channel(event)
    assert channel is not None
    assert (channel.url, channel.send_resolved) == ("http://127.0.0.1:9/secret", True)


async def test_a_channel_is_kept_until_no_delivery_can_follow(bus: Bus) -> None:
    event = fired()
    async with StoreAndMachine(bus) as alerter:
        await alerter.create(**hook("a"))
        await alerter.knows()
        await alerter.store.keep_channel(event)
        alerter.machine.apply_event(event)
        await alerter.delete()
        await alerter.knows_not()
        # The episode is open until its end is published, however long that takes.
        await alerter.store.forget_channels(alerter.machine.events, time.time_ns() + 300 * HOUR)
        assert alerter.store.channel(event) is not None
        alerter.machine.caught_up = True
        [effect] = alerter.machine.tick(time.time_ns())
        alerter.machine.apply_event(decode_event(effect.payload))
        for hours, kept in ((47, True), (49, False)):
            await alerter.store.forget_channels(alerter.machine.events, time.time_ns() + hours * HOUR)
            assert (alerter.store.channel(event) is not None) == kept


async def test_a_callable_that_the_file_does_not_name_is_never_called(caplog: pytest.LogCaptureFixture) -> None:
    """Who can write to the bucket must not choose what an alerter calls."""
    bus, event = await make_memory(), fired("configured")
    async with StoreAndMachine(bus, make_rule(delivery={"type": "custom", "target": "os:getpid"})) as alerter:
        await alerter.store.keep_channel(event)
        assert alerter.store.channel(event) is not None
    again = await StoreAndMachine(bus).open()
    assert again.store.channel(event) is None
    assert "the file names os:getpid no more" in caplog.text


async def test_all_who_ask_for_changes_at_once_see_what_was_confirmed_before(bus: Bus) -> None:
    async with StoreAndMachine(bus) as writer, StoreAndMachine(bus) as reader:
        for number in range(10):
            assert (await writer.create(f"rule {number}"))[0] == 201
            assert await asyncio.gather(*(reader.store.read_changes() for _ in range(50))) == [True] * 50
            assert reader.store.rule(f"rule {number}") is not None
