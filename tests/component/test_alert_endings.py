"""Ends of episodes reach the receiver of their firing, once, however many alerters run and whatever they go through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kit.alert_events import make_event
from kit.builders import make_batch, make_span
from kit.environment import PATIENCE
from kit.receiver import Receiver, Reply
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.records import encode_batches
from tokentrace.units import HOUR, render_instant
from tokentrace_alerter.rules import parse_rule
from tokentrace_alerter.service import Alerter, Config


def written(url: str = "", **overrides: Any) -> dict[str, Any]:
    """Return a rule that fires on any call of the last hour; its events, ends too, are posted to *url*."""
    rule = {
        "name": "mine",
        "metric": "span_count",
        "op": "gte",
        "threshold": 1,
        "window": "1h",
        "eval_interval": "1s",
        **overrides,
    }
    return rule | ({"delivery": {"type": "http", "url": url, "send_resolved": True}} if url else {})


class Alerters:
    """Alerters that share a broker."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.running: list[tuple[Alerter, asyncio.Event, asyncio.Task[None]]] = []

    async def open(self) -> Alerters:
        for stream in subjects.streams():
            await self.bus.ensure(stream)
        return self

    @property
    def bus(self) -> MemoryBus:
        return MemoryBus(self.broker)

    async def start(self, *rules: dict[str, Any]) -> Alerter:
        """Start an alerter with *rules* in its file, and wait until it is ready."""
        parsed = tuple(parse_rule(rule, f"alerts[{index}]") for index, rule in enumerate(rules))
        alerter, stopping = Alerter(self.bus, Config(parsed, "default")), asyncio.Event()
        self.running.append((alerter, stopping, asyncio.create_task(alerter.run(stopping))))
        await until(lambda: not alerter.health().missing)
        return alerter

    async def stop(self) -> None:
        for _, stopping, _ in self.running:
            stopping.set()
        await asyncio.gather(*(task for _, _, task in self.running))
        self.running.clear()

    async def kill(self) -> None:
        for _, _, task in self.running:
            task.cancel()
        await asyncio.gather(*(task for _, _, task in self.running), return_exceptions=True)
        self.running.clear()

    async def call(self, **span: Any) -> None:
        """Store a call that has just ended."""
        now = time.time_ns()
        batch = make_batch(make_span(ended_ns=now, arrived_ns=now, **span), id=f"request-{now}", sequence=0)
        await self.bus.publish(subjects.spans("default", 0), encode_batches([batch]))

    async def ask(self, ask: str, **fields: Any) -> int:
        asked = msgspec.json.encode({"ask": ask, **fields})
        answer = json.loads(await self.bus.request(subjects.QUERY_ALERTS, asked, timeout_s=5 * PATIENCE))
        return int(answer["status"])

    def told(self) -> list[tuple[str, str | None]]:
        """Return (status, what ended the episode) of each published event."""
        events = [json.loads(message.payload) for message in self.broker.logs[subjects.ALERTS].messages.values()]
        return [(event["status"], event.get("ended_by")) for event in events]


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds * PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def got(receiver: Receiver) -> list[tuple[str, str | None]]:
    """Return (status, what ended the episode) of each event; a kill may have it delivered again under its key."""
    events = {sent.key: sent.json() for sent in receiver.sent}
    return [(event["status"], event.get("ended_by")) for event in events.values()]


@pytest.fixture
async def alerters() -> AsyncIterator[Alerters]:
    opened = await Alerters().open()
    yield opened
    with contextlib.suppress(asyncio.CancelledError):
        await opened.kill()


@pytest.mark.parametrize("number", [1, 3])
async def test_the_receiver_of_a_firing_is_told_that_its_rule_was_deleted(alerters: Alerters, number: int) -> None:
    with Receiver() as receiver:
        for _ in range(number):
            await alerters.start()
        await alerters.call()
        assert await alerters.ask("create", rule=written(receiver.url)) == 201
        await until(lambda: got(receiver) == [("firing", None)])
        assert await alerters.ask("delete", name="mine") == 204
        await until(lambda: len(got(receiver)) == 2)
        await asyncio.sleep(1)
        assert got(receiver) == [("firing", None), ("resolved", "deleted")] == alerters.told()


async def test_the_end_of_a_rule_that_left_the_file_goes_where_its_firing_went(alerters: Alerters) -> None:
    with Receiver() as receiver:
        await alerters.start(written(receiver.url))
        await alerters.call()
        await until(lambda: got(receiver) == [("firing", None)])
        await alerters.stop()
        for _ in range(2):
            await alerters.start()
        await until(lambda: len(got(receiver)) == 2)
        await asyncio.sleep(1)
        assert got(receiver) == [("firing", None), ("resolved", "removed")] == alerters.told()


async def test_the_end_of_a_regrouped_rule_goes_where_its_firing_went(alerters: Alerters) -> None:
    with Receiver() as old, Receiver() as new:
        await alerters.start(written(old.url, group_by="caller"))
        await alerters.call(caller="x", model="gpt-4o")
        await until(lambda: got(old) == [("firing", None)])
        await alerters.kill()
        await alerters.start(written(new.url, group_by="model"))
        await until(lambda: len(got(old)) == 2 and len(got(new)) == 1)
        assert got(old) == [("firing", None), ("resolved", "changed")]
        # An alerter that is killed before it has recorded a delivery makes it again, with the same key.
        groups = {sent.key: sent.json()["group"] for sent in (*old.sent, *new.sent)}
        assert list(groups.values()) == [{"caller": "x"}, {"caller": "x"}, {"model": "gpt-4o"}]


async def test_a_replaced_rule_ends_at_the_old_receiver_and_fires_at_the_new_one(alerters: Alerters) -> None:
    with Receiver() as old, Receiver() as new:
        await alerters.start()
        await alerters.start()
        await alerters.call()
        assert await alerters.ask("put", name="mine", rule=written(old.url)) == 201
        await until(lambda: got(old) == [("firing", None)])
        assert await alerters.ask("put", name="mine", rule=written(new.url, threshold=0.5)) == 200
        await until(lambda: len(got(old)) == 2 and len(got(new)) == 1)
        assert got(old) == [("firing", None), ("resolved", "replaced")]
        assert got(new) == [("firing", None)]
        rule_ids = {sent.json()["rule_id"] for sent in (*old.sent, *new.sent)}
        assert len(rule_ids) == 1


async def test_an_episode_stays_with_its_receiver_when_only_the_delivery_is_replaced(alerters: Alerters) -> None:
    with Receiver() as old, Receiver() as new:
        await alerters.start()
        await alerters.call()
        assert await alerters.ask("put", name="mine", rule=written(old.url)) == 201
        await until(lambda: got(old) == [("firing", None)])
        assert await alerters.ask("put", name="mine", rule=written(new.url)) == 200
        assert await alerters.ask("delete", name="mine") == 204
        await until(lambda: len(got(old)) == 2)
        assert got(old) == [("firing", None), ("resolved", "deleted")]
        assert new.sent == []


async def test_what_waits_for_a_receiver_that_is_down_is_delivered_after_the_rule_is_gone(alerters: Alerters) -> None:
    up = False
    with Receiver(lambda sent: Reply(200 if up else 503)) as receiver:
        await alerters.start(written(receiver.url))
        await alerters.call()
        await until(lambda: len(receiver.sent) > 0)
        await alerters.kill()
        await alerters.start()
        await until(lambda: alerters.told() == [("firing", None), ("resolved", "removed")])
        up, failed = True, len(receiver.sent)
        await until(lambda: {sent.json()["status"] for sent in receiver.sent[failed:]} == {"firing", "resolved"})


async def test_a_kill_between_a_deletion_and_its_event_loses_no_end(alerters: Alerters) -> None:
    with Receiver() as receiver:
        await alerters.start()
        await alerters.call()
        assert await alerters.ask("create", rule=written(receiver.url)) == 201
        await until(lambda: got(receiver) == [("firing", None)])
        await alerters.kill()
        # An alerter that is killed right after it has written the deletion has told no other alerter.
        idle = Alerter(alerters.bus, Config((), "default"))
        idle.rule_store.apply_to(idle.machine, await idle.rule_store.open())
        asked = msgspec.json.encode({"ask": "delete", "name": "mine"})
        answer = json.loads(await idle.rule_store.answer(asked, idle.machine, time.time_ns()))
        assert (answer["status"], alerters.told()) == (204, [("firing", None)])
        for _ in range(2):
            await alerters.start()
        await until(lambda: len(got(receiver)) == 2)
        await asyncio.sleep(1)
        assert got(receiver) == [("firing", None), ("resolved", "deleted")] == alerters.told()


async def test_an_episode_of_another_project_is_left_alone(alerters: Alerters) -> None:
    fired = render_instant(time.time_ns() - HOUR)
    event = make_event(alert="theirs", fired_at=fired, starts_at=fired)
    for project in ("other", "default"):
        await alerters.bus.publish(subjects.alerts(project, event.alert), msgspec.json.encode(event))
    await alerters.start()
    await until(lambda: len(alerters.told()) == 3)
    await asyncio.sleep(1)
    log = alerters.broker.logs[subjects.ALERTS].messages.values()
    assert [subjects.parse_project(message.subject) for message in log] == ["other", "default", "default"]
