"""The events of an instance are delivered in their order, receivers may ask to wait, and a stop loses nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import msgspec
import pytest

from kit.receiver import DeliveryRun, Receiver, Reply, Sent, make_end, make_event, make_rule
from tokentrace.bus import StreamState, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.bus.memory.client import MemoryDelivery
from tokentrace.records import AlertEvent
from tokentrace.units import HOUR, MINUTE, SECOND
from tokentrace_alerter.delivery import worker


def told(receiver: Receiver, **only: str) -> list[tuple[str, str]]:
    """Return (status, fired_at) of the requests in order; with *only* those about this group."""
    # A request that a kill cut off has no body.
    bodies = [sent.json() for sent in receiver.sent if sent.body]
    return [(body["status"], body["fired_at"]) for body in bodies if not only or body["group"] == only]


def story(case: str = "", episodes: int = 1) -> list[AlertEvent]:
    """Return the events of an instance: a firing, another one after the cooldown, a resolution, and so on."""
    group, now, events = {"case": case} if case else {}, time.time_ns(), []
    for number in range(episodes):
        first = make_event(at_ns=now, number=10 * number, group=group)
        again = make_event(at_ns=now, number=10 * number + 3, group=group, starts_at=first.starts_at)
        events += [first, again, make_end(again, now // SECOND * SECOND + (10 * number + 6) * 1_000_000)]
    return events


def hook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"type": "http", "url": receiver.url, "send_resolved": True, **more}


# --- one alerter


@pytest.mark.parametrize("bad", [Reply(500), Reply(0), Reply(429), Reply(408)], ids=str)
async def test_a_resolution_waits_for_its_firing_through_any_outage(bad: Reply) -> None:
    with Receiver(lambda sent: bad if len(receiver.sent) <= 2 else Reply()) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver))) as run:
            first, again, end = story()
            await run.publish(first, again, end)
            await run.done()
    assert [fired_at for _, fired_at in told(receiver)] == [
        *[first.fired_at] * 3,
        again.fired_at,
        end.fired_at,
    ]
    assert run.outcomes() == ["retry", "retry", "delivered", "delivered", "delivered"]
    assert [record["attempt"] for record in run.records()] == [1, 2, 3, 1, 1]


async def test_an_instance_does_not_wait_for_another_one() -> None:
    with Receiver(lambda sent: Reply(500 if sent.json()["group"] == {"case": "a"} else 200)) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver), group_by="case")) as run:
            await run.publish(*story("a"), *story("b"))
            await run.until(lambda: len(told(receiver, case="b")) == 3, "the other instance is told")
            assert {record["outcome"] for record in run.records() if record["group"] == {"case": "a"}} <= {"retry"}


@pytest.mark.parametrize(("bad", "attempts"), [(Reply(500), 3), (Reply(404), 1)])
async def test_a_resolution_follows_a_firing_that_is_given_up(bad: Reply, attempts: int) -> None:
    """An attempt that failed may have arrived all the same, so the receiver is told that the episode is over."""
    with Receiver(lambda sent: bad if sent.json()["status"] == "firing" else Reply()) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver, max_retries=2))) as run:
            first, _, end = story()
            await run.publish(first, end)
            await run.done()
    assert told(receiver) == [("firing", first.fired_at)] * attempts + [("resolved", end.fired_at)]
    assert run.outcomes()[-2:] == ["dead", "delivered"]


async def test_two_rules_with_one_destination_keep_their_own_orders() -> None:
    dice = random.Random(3)
    with Receiver(lambda sent: Reply(500 if dice.random() < 0.3 else 200)) as receiver:
        rules = [make_rule(name, delivery=hook(receiver)) for name in ("one", "two")]
        async with DeliveryRun(*rules) as run:
            events = [msgspec.structs.replace(event, alert=name) for event in story() for name in ("one", "two")]
            await run.publish(*events)
            await run.done(60)
    for name in ("one", "two"):
        own = [sent.json()["fired_at"] for sent in receiver.sent if sent.json()["alert"] == name]
        assert list(dict.fromkeys(own)) == sorted(own) or own == sorted(own)


# --- two alerters


def assert_in_order(receiver: Receiver, cases: Sequence[str], expected: int) -> None:
    """Check that each instance was told all its events, and none before an earlier one."""
    for case in cases:
        instants = [fired_at for _, fired_at in told(receiver, case=case)]
        assert instants == sorted(instants), case
        assert len(set(instants)) == expected, case


class SharingBus(MemoryBus):
    """A bus that takes one event at a time, so that two alerters share the queue."""

    async def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[MemoryDelivery], None]:
        async for deliveries in super().consume(stream, durable, batch=1, ack_wait_s=ack_wait_s):
            yield deliveries
            await asyncio.sleep(random.uniform(0, 0.005))


async def test_two_alerters_keep_the_order_although_one_of_them_is_killed() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    cases = [f"case {number}" for number in range(20)]
    with Receiver(
        lambda sent: Reply(dice.choice([200, 200, 200, 200, 500, 429]), after_s=dice.uniform(0, 0.05))
    ) as receiver:
        rule = make_rule(delivery=hook(receiver, max_retries=100), group_by="case")
        broker = MemoryBroker()
        mortal = SharingBus(broker)
        async with DeliveryRun(rule, broker=broker, bus=SharingBus(broker)) as one:
            async with DeliveryRun(rule, broker=broker, bus=mortal) as two:
                stories = [story(case, 2) for case in cases]
                await one.publish(*(event for events in zip(*stories, strict=True) for event in events))
                await one.until(lambda: len(receiver.sent) > 60, "under way")
                assert two.delivery_worker.delivered > 0
                # A killed alerter neither acknowledges nor gives back what it holds.
                broker_of_the_dead = MemoryBroker()
                broker_of_the_dead.up = False
                mortal._broker = broker_of_the_dead
                for delivery in [held.delivery for held in two.delivery_worker._held.values()]:
                    delivery._broker = broker_of_the_dead  # type: ignore[attr-defined]
            await one.done(180)
    assert one.delivery_worker.delivered > 0
    assert_in_order(receiver, cases, 6)
    assert {record["outcome"] for record in one.records()} == {"retry", "delivered"}


class SuspendedBus(MemoryBus):
    """The bus of an alerter that stands still after it has taken events, while the broker gives them to another one."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.taken = asyncio.Event()
        self.moving = asyncio.Event()

    async def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[MemoryDelivery], None]:
        async for deliveries in super().consume(stream, durable, batch=batch, ack_wait_s=ack_wait_s):
            for delivery in deliveries:
                # Without a word from the alerter, the broker gives its events to the other one.
                silent: Any = delivery
                silent.in_progress = partial(asyncio.sleep, 0)
            yield deliveries
            self.taken.set()
            await asyncio.Event().wait()

    async def state(self, stream: str) -> StreamState:
        if self.taken.is_set() and stream == subjects.DELIVERIES:
            await self.moving.wait()
        return await super().state(stream)


async def test_an_alerter_that_was_suspended_sends_nothing_that_another_one_has_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_ACK_WAIT_S", 0.5)
    broker = MemoryBroker()
    with Receiver() as receiver:
        rule = make_rule(delivery=hook(receiver))
        suspended = SuspendedBus(broker)
        async with DeliveryRun(rule, broker=broker, bus=suspended) as one:
            first, again, end = story()
            await one.publish(first)
            await asyncio.wait_for(suspended.taken.wait(), 60)
            async with DeliveryRun(rule, broker=broker) as two:
                await two.publish(again, end)
                await two.done()
                assert two.delivery_worker.delivered == 3
                suspended.moving.set()
                await asyncio.sleep(0.3)
                assert one.delivery_worker.delivered == 0
    assert told(receiver) == [
        ("firing", first.fired_at),
        ("firing", again.fired_at),
        ("resolved", end.fired_at),
    ]


async def test_an_event_that_is_recorded_as_delivered_is_not_sent_again() -> None:
    """An alerter that was killed between the record and the acknowledgement leaves such an event."""
    broker = MemoryBroker()
    with Receiver() as receiver:
        rule = make_rule(delivery=hook(receiver))
        async with DeliveryRun(rule, broker=broker) as run:
            first, _, end = story()
            await run.publish(first)
            await run.done()
        log = broker.logs[subjects.ALERTS]
        log.done.clear()
        async with DeliveryRun(rule, broker=broker) as run:
            await run.publish(end)
            await run.done()
    assert told(receiver) == [("firing", first.fired_at), ("resolved", end.fired_at)]


# --- receivers that ask to wait


@pytest.mark.parametrize("status", [408, 425, 429, 503])
async def test_an_event_is_tried_again_after_the_time_that_the_receiver_asks_for(status: int) -> None:
    with Receiver(lambda sent: Reply(status, {"Retry-After": "2"}) if len(receiver.sent) == 1 else Reply()) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver))) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "delivered"]
    assert run.records()[0]["error"] == f"HTTP {status}, Retry-After 2 s"
    assert [record["retry_after_s"] for record in run.records()] == [2.0, None]
    assert receiver.sent[1].at - receiver.sent[0].at >= 2


async def test_the_receiver_may_name_a_date() -> None:
    def answer(sent: Sent) -> Reply:
        later = datetime.now(UTC) + timedelta(seconds=3)
        return Reply(429, {"Retry-After": format_datetime(later, usegmt=True)}) if len(receiver.sent) == 1 else Reply()

    with Receiver(answer) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver))) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "delivered"]
    assert receiver.sent[1].at - receiver.sent[0].at > 1


async def test_nothing_is_sent_to_a_destination_that_asks_to_wait_by_any_alerter_and_others_are_not_delayed() -> None:
    asked = Reply(429, {"Retry-After": "3"})
    broker = MemoryBroker()
    with Receiver(lambda sent: asked if len(receiver.sent) == 1 else Reply()) as receiver, Receiver() as other:
        rules = [make_rule(delivery=hook(receiver), group_by="case"), make_rule("other", delivery=hook(other))]
        async with DeliveryRun(*rules, broker=broker) as one, DeliveryRun(*rules, broker=broker):
            await one.publish(make_event(group={"case": "first"}))
            await one.until(lambda: one.outcomes() == ["retry"], "asked to wait")
            await one.publish(*(make_event(group={"case": str(number)}) for number in range(10)), make_event("other"))
            await one.until(lambda: one.outcomes("other") == ["delivered"], "the other destination")
            assert len(receiver.sent) == 1
            await one.done()
    assert len(receiver.sent) == 12
    assert min(sent.at for sent in receiver.sent[1:]) - receiver.sent[0].at >= 3


async def test_attempts_after_which_the_receiver_asks_to_wait_do_not_count() -> None:
    with Receiver(lambda sent: Reply(429, {"Retry-After": "0"}) if len(receiver.sent) <= 4 else Reply()) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver, max_retries=1))) as run:
            await run.publish(make_event())
            await run.done(30)
    assert run.outcomes() == ["retry"] * 4 + ["delivered"]


async def test_without_retries_a_receiver_that_asks_to_wait_gets_no_second_attempt() -> None:
    with Receiver(lambda sent: Reply(429, {"Retry-After": "1"})) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver, max_retries=0))) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["dead"]


async def test_too_many_requests_without_retry_after_are_limited_by_max_retries() -> None:
    with Receiver(lambda sent: Reply(429)) as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver, max_retries=1))) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "dead"]
    assert run.records()[-1]["error"] == "HTTP 429; given up after 2 attempts"


# --- old events


async def test_an_old_resolution_is_told_if_its_firing_was() -> None:
    """The receiver was away for over an hour, and still waits for the end of the episode."""
    now = time.time_ns()
    first = make_event(at_ns=now - 3 * HOUR)
    end = make_end(first, now - 2 * HOUR)
    broker = MemoryBroker()
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver)), broker=broker) as run:
            run.open_episodes = [first]
            await run.publish(first)
            await run.done()
            run.open_episodes = []
            await run.publish(end)
            await run.done()
    assert told(receiver) == [("firing", first.fired_at), ("resolved", end.fired_at)]


async def test_a_firing_that_is_too_old_and_its_resolution_are_both_recorded_as_expired() -> None:
    now = time.time_ns()
    first = make_event(at_ns=now - 90 * MINUTE)
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery=hook(receiver))) as run:
            new = make_event(at_ns=now)
            run.open_episodes = [new]
            await run.publish(first, make_end(first, now - 5 * MINUTE), new)
            await run.done()
    assert told(receiver) == [("firing", new.fired_at)]
    assert run.outcomes() == ["expired", "expired", "delivered"]


# --- stopping


async def test_a_stop_waits_for_the_delivery_under_way_and_gives_the_others_back() -> None:
    broker = MemoryBroker()
    with Receiver(lambda sent: Reply(after_s=1.0)) as receiver:
        rule = make_rule(delivery=hook(receiver))
        async with DeliveryRun(rule, broker=broker) as run:
            first, again, end = story()
            await run.publish(first, again, end)
            await run.until(lambda: len(receiver.sent) == 1, "under way")
            await run.ended()
        assert run.outcomes() == ["delivered"]
        assert len(receiver.sent) == 1
        now_s = broker.now_ns() / SECOND
        waiting = broker.logs[subjects.ALERTS].pending.values()
        assert [due <= now_s for due, _ in waiting] == [True, True], "another alerter may take them at once"
        async with DeliveryRun(rule, broker=broker) as run:
            await run.done()
    assert told(receiver) == [
        ("firing", first.fired_at),
        ("firing", again.fired_at),
        ("resolved", end.fired_at),
    ]


async def test_a_stop_does_not_wait_for_pauses_nor_for_receivers_that_ask_to_wait() -> None:
    broker = MemoryBroker()
    with Receiver(lambda sent: Reply(429, {"Retry-After": "3600"})) as receiver:
        rule = make_rule(delivery=hook(receiver), group_by="case")
        async with DeliveryRun(rule, broker=broker) as run:
            await run.publish(*story("a"), *story("b"))
            await run.until(lambda: run.outcomes() != [], "asked to wait")
            await run.ended()
            sent = len(receiver.sent)
        async with DeliveryRun(rule, broker=broker) as run:
            await asyncio.sleep(0.5)
            assert len(receiver.sent) == sent, "the next alerter knows of the wait"


async def test_a_delivery_that_outlasts_the_time_for_stopping_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "DRAIN_S", 0.2)
    broker = MemoryBroker()
    with Receiver(lambda sent: Reply(after_s=4 if len(receiver.sent) == 1 else 0)) as receiver:
        rule = make_rule(delivery=hook(receiver))
        async with DeliveryRun(rule, broker=broker) as run:
            await run.publish(make_event())
            await run.until(lambda: len(receiver.sent) == 1, "under way")
            await run.ended()
        assert run.outcomes() == []
        async with DeliveryRun(rule, broker=broker) as run:
            await run.done()
    assert len({sent.key for sent in receiver.sent}) == 1
