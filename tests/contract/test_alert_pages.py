"""Pages of alert events with the outcomes of their deliveries, on the bus in memory and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kit.alert_events import START_NS, make_event
from kit.environment import PATIENCE
from kit.rule_store import open_bus
from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent, DeliveryRecord, encode_event
from tokentrace.units import SECOND, parse_instant, render_instant
from tokentrace_api.alert_history import AlertHistory, StoredEvent
from tokentrace_api.delivery_outcomes import DeliveryOutcomes

STREAMS = [
    stream
    for stream in subjects.streams()
    if stream.name in (subjects.ALERTS, subjects.DELIVERIES, f"KV_{subjects.META}")
]
RULES = ("cost", "slow", "Kosten: 50 % über/Plan.v2 *>")


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request, STREAMS) as opened:
        yield opened


def event_at(second: int, **overrides: Any) -> AlertEvent:
    at = render_instant(START_NS + second * SECOND)
    return make_event(**{"fired_at": at, "starts_at": at, **overrides})


def record_of(event: AlertEvent, outcome: str = "delivered", attempt: int = 1, error: str = "") -> DeliveryRecord:
    fields = {
        "rule": event.alert,
        "fired_at": event.fired_at,
        "status": event.status,
        "group": event.group,
        "key": "a key",
        "channel": "webhook",
        "destination": "https://hooks.example.com/...",
        "outcome": outcome,
        "attempt": attempt,
        "error": error,
        "at": event.fired_at,
        "took_ms": 1.5,
    }
    return msgspec.convert(fields, DeliveryRecord)


async def publish(bus: Bus, *events: AlertEvent) -> None:
    for event in events:
        await bus.publish(subjects.alerts("default", event.alert), encode_event(event))


async def tell(bus: Bus, *records: DeliveryRecord) -> None:
    for record in records:
        await bus.publish(subjects.deliveries("default", record.rule), msgspec.json.encode(record))


async def take(bus: Bus, count: int) -> None:
    """Acknowledge the next *count* events as an alerter does that has done with them."""
    async with contextlib.aclosing(bus.consume(subjects.ALERTS, subjects.DELIVERY, batch=1, ack_wait_s=30)) as queue:
        async for deliveries in queue:
            for delivery in deliveries:
                await delivery.ack()
                count -= 1
            if not count:
                return


@contextlib.asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[AlertHistory]:
    history = AlertHistory(bus)
    task = asyncio.create_task(history.open_and_follow())
    try:
        async with asyncio.timeout(60 * PATIENCE):
            while not history.caught_up:
                await asyncio.sleep(0.01)
        yield history
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def every(history: AlertHistory, **asked: Any) -> list[StoredEvent]:
    """Return the events of all pages."""
    found, cursor = list[StoredEvent](), ""
    while True:
        page = await history.page(cursor=cursor, **asked)
        assert len(page.items) <= asked["limit"]
        found += page.items
        if not page.next:
            return found
        cursor = page.next


async def test_pages_hold_every_event_once_newest_first_by_rule_and_instant(bus: Bus) -> None:
    chance = random.Random(7)
    events = [
        event_at(second, alert=chance.choice(RULES), group={"attr.user_id": f"user-{second % 3}"})
        for second in range(120)
    ]
    await publish(bus, *events)
    async with following(bus) as history:
        for limit in (1, 7, 200):
            for rule in (None, *RULES, "gone"):
                for second in (None, 0, 60, 1000):
                    since_ns = None if second is None else START_NS + second * SECOND
                    expected = [
                        event
                        for event in reversed(events)
                        if rule in (None, event.alert)
                        and (since_ns is None or parse_instant(event.fired_at) >= since_ns)
                    ]
                    if limit == 1:
                        expected = expected[:1]
                        page = await history.page(limit=1, rule=rule, since_ns=since_ns)
                        found = page.items
                    else:
                        found = await every(history, limit=limit, rule=rule, since_ns=since_ns)
                    assert [stored.event for stored in found] == expected


async def test_each_event_shows_what_became_of_its_delivery(bus: Bus) -> None:
    names = ("delivered", "retried", "dead", "expired", "unwanted", "waiting")
    events = {name: event_at(second, message=name) for second, name in enumerate(names)}
    async with following(bus) as history:
        await publish(bus, *events.values())
        assert {stored.outcome for stored in await every(history, limit=50)} == {"pending"}
        await take(bus, 5)
        await tell(
            bus,
            record_of(events["retried"], "retry", 1, "status 500"),
            record_of(events["dead"], "retry", 1, "status 500"),
            record_of(events["delivered"], "retry", 1, "status 503"),
            record_of(events["delivered"], "delivered", 2),
            record_of(events["retried"], "retry", 2, "status 502"),
            record_of(events["dead"], "dead", 2, "given up"),
            record_of(events["expired"], "expired", 1, "too old"),
        )
        told = {
            stored.event.message: (
                stored.outcome,
                stored.told and (stored.told.attempts, stored.told.last.error),
            )
            for stored in await every(history, limit=50)
        }
    assert told == {
        "delivered": ("delivered", (2, "")),
        "retried": ("retry", (2, "status 502")),
        "dead": ("dead", (2, "given up")),
        "expired": ("expired", (0, "too old")),
        "unwanted": ("none", None),
        "waiting": ("pending", None),
    }


async def test_instances_and_the_end_of_an_episode_have_outcomes_of_their_own(bus: Bus) -> None:
    one, other = event_at(0, group={"attr.user_id": "a"}), event_at(0, group={"attr.user_id": "b"})
    end = msgspec.structs.replace(one, status="resolved", ended_by="recovered")
    async with following(bus) as history:
        await publish(bus, one, other, end)
        await tell(bus, record_of(one, "dead", 3, "status 400"), record_of(end))
        outcomes = [stored.outcome for stored in await every(history, limit=50)]
        assert outcomes == ["delivered", "pending", "dead"]
        history.forget({"a"})
        assert [stored.outcome for stored in await every(history, limit=50)] == ["pending"] * 3


async def test_a_cursor_of_something_else_is_refused(bus: Bus) -> None:
    async with following(bus) as history:
        for cursor in ("x", "1-1", "-", "1"):
            with pytest.raises(Rejected, match="is not a cursor of an earlier answer"):
                await history.page(limit=1, cursor=cursor)


def test_outcomes_of_old_events_are_forgotten_and_that_is_known() -> None:
    outcomes = DeliveryOutcomes(capacity=3)
    events = [event_at(second) for second in range(5)]
    for second, event in enumerate(events):
        outcomes.add(record_of(event), START_NS + second * SECOND)
    assert [outcomes.of(event) is not None for event in events] == [False, False, True, True, True]
    assert outcomes.known_from_ns == START_NS + SECOND


def test_an_outcome_outlasts_a_late_record_of_an_earlier_attempt() -> None:
    outcomes, event = DeliveryOutcomes(), event_at(0)
    for outcome, attempt in (("retry", 1), ("delivered", 3), ("retry", 2)):
        outcomes.add(record_of(event, outcome, attempt), START_NS)
    told = outcomes.of(event)
    assert told is not None
    assert (told.last.outcome, told.attempts) == ("delivered", 3)
