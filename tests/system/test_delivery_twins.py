"""Two alerters publish each event once and deliver it, although they are killed and the receiver often fails."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any

import pytest

from kit.builders import make_batch, make_span
from kit.pipeline import http
from kit.receiver import (
    Receiver,
    Reply,
    Sent,
    assert_holds_at_once,
    events,
    make_rule,
    read,
)
from kit.twins import Twins, rendered, undone
from tokentrace.bus import Chunk, PubAck, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Unavailable
from tokentrace.records import encode_batches
from tokentrace.units import SECOND, render_instant
from tokentrace_alerter.rules import parse_rule
from tokentrace_alerter.service import Alerter, Config

pytestmark = pytest.mark.story

TWINS = """
alerts:
  - name: each
    metric: span_count
    op: gte
    threshold: 1
    window: 1s
    eval_interval: 1s
    cooldown: 0s
    group_by: case
    filter: {{caller: each}}
    delivery: {{type: http, url: "{url}/each", timeout: 300ms}}
  - name: flood
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    cooldown: 1h
    group_by: case
    filter: {{caller: flood}}
  - name: paused
    metric: span_count
    op: gte
    threshold: 1
    window: 1s
    eval_interval: 1s
    cooldown: 0s
    group_by: case
    filter: {{caller: paused}}
  - name: restored
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
"""
#: The timeout of a request, and the delay of an answer that is too late, seconds.
TIMEOUT_S, LATE_S = 0.3, 0.9


class Unreliable:
    """The replies of a receiver, drawn from *seed*: a third of them, on average, are a 500 or too late."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.accepted: list[str] = []
        self.in_time: list[str] = []
        self.late = 0

    def __call__(self, sent: Sent) -> Reply:
        lot = self._dice.random()
        if lot < 1 / 6:
            return Reply(500)
        self.accepted.append(sent.key)
        if lot < 1 / 3:
            self.late += 1
            return Reply(after_s=LATE_S)
        self.in_time.append(sent.key)
        return Reply()


@pytest.fixture(scope="module")
def unreliable() -> Iterator[Receiver]:
    seed = random.randrange(2**32)
    print(f"seed of the receiver {seed}")
    with Receiver(Unreliable(seed)) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, unreliable: Receiver) -> Iterator[Twins]:
    directory = tmp_path_factory.mktemp("twins")
    (directory / "tokentrace.yml").write_text(TWINS.format(url=unreliable.url))
    services = Twins(directory)
    try:
        services.start()
        yield services
    finally:
        services.stop()


class Killer(threading.Thread):
    """A thread that kills one of the two alerters at random times and starts it again, at least twice in all."""

    def __init__(self, twins: Twins, dice: random.Random) -> None:
        super().__init__()
        self._twins, self._dice = twins, dice
        self.stopping = threading.Event()
        self.kills = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.wait(self._dice.uniform(0.1, 1.2)) or self.kills < 2:
                victim = self._dice.choice(Twins.TWINS)
                self._twins.kill_one(victim)
                self.kills += 1
                self._twins.start_twin(victim)
                self._twins.wait_twin(victim)
        except (AssertionError, OSError) as exc:
            self.error = exc


def assert_told_once(told: list[Any], expected: set[tuple[str, str]]) -> None:
    """Check that the events are exactly the expected firings."""
    found = Counter((event["group"]["case"], event["fired_at"]) for event in told)
    assert {one: count for one, count in found.items() if count > 1} == {}, "published more than once"
    assert set(found) - expected == set(), "published although not expected"
    assert expected - set(found) == set(), "expected and not published"


def test_200_firings_through_kills_and_a_bad_receiver_are_published_once_and_delivered(
    twins: Twins, unreliable: Receiver
) -> None:
    """Every firing reaches the receiver through kills, timeouts and errors."""
    seed = random.randrange(2**32)
    print(f"seed of the kills {seed}")
    answers: Any = unreliable.answer
    killer = Killer(twins, random.Random(seed))
    killer.start()
    try:
        expected = twins.send_each_second("each", seconds=5, each=40)
    finally:
        killer.stopping.set()
        killer.join()
    assert killer.error is None
    assert killer.kills >= 2
    assert len(expected) == 200

    twins.until(lambda: len(events(twins, "each", "resolved")) >= 200, "resolved", 10)
    published = events(twins, "each")
    assert_told_once(published, expected)
    assert {event["span_count"] for event in published} == {1}
    ended = {(case, rendered(datetime.fromisoformat(at).timestamp() + 1)) for case, at in expected}
    assert_told_once(events(twins, "each", "resolved"), ended)

    # The broker redelivers an event of a killed alerter after 10 s.
    twins.until(lambda: len(set(answers.in_time)) >= 200, "all accepted", 180)
    twins.until(lambda: undone(twins) == 0, "done with every event", 180)
    keys = {sent.key: (sent.json()["group"]["case"], sent.json()["fired_at"]) for sent in unreliable.sent}
    assert len(keys) == len(set(keys.values())) == 200
    assert {keys[key] for key in answers.in_time} == expected
    records = read(twins, subjects.DELIVERIES, "each")
    given_up = sum(record["error"].startswith("no answer within") for record in records)
    repeated = {key: count for key, count in Counter(answers.accepted).items() if count > 1}
    certain = {key: count for key, count in Counter(answers.in_time).items() if count > 1}
    print(
        f"{killer.kills} kills, {answers.late} late answers, {given_up} given up, {len(unreliable.sent)} requests; "
        f"{len(repeated)} keys accepted more than once, {len(certain)} of them in time; "
        f"{unreliable.most_at_once} at once"
    )
    assert len(repeated) <= killer.kills + max(answers.late, given_up)
    assert {record["outcome"] for record in records} == {"retry", "delivered"}
    assert {record["key"] for record in records if record["outcome"] == "delivered"} == set(keys)
    assert {record["status"] for record in records} == {"firing"}
    shown = twins.get("/alerts/each/deliveries?limit=200").json()
    assert {record["outcome"] for record in shown["deliveries"]} <= {"retry", "delivered"}


def test_900_instances_that_fire_at_one_instant_are_published_once_by_two_alerters(twins: Twins) -> None:
    """Two alerters cannot publish that many events within the duplicate window, so they must not rely on it."""
    cases = [f"case {number}" for number in range(900)]
    second = int(time.time()) + 1
    time.sleep(second + 0.1 - time.time())
    twins.send("flood", cases, second + 0.05)
    twins.until(lambda: {event["group"]["case"] for event in events(twins, "flood")} == set(cases), "all published", 20)
    time.sleep(1.5)
    repeated = {case: n for case, n in Counter(e["group"]["case"] for e in events(twins, "flood")).items() if n > 1}
    assert repeated == {}, f"{len(repeated)} of 900 published more than once"


async def test_events_another_alerter_published_during_a_broker_outage_are_not_repeated() -> None:
    """On the memory bus, one of two alerters cannot publish for longer than the duplicate window."""

    class Cut(MemoryBus):
        cut = True

        async def publish(self, subject: str, payload: bytes, **given: Any) -> PubAck:
            if self.cut and subject.startswith("tokentrace.alerts."):
                raise Unavailable("the connection is lost")
            return await super().publish(subject, payload, **given)

    broker = MemoryBroker()
    fine, cut = MemoryBus(broker), Cut(broker)
    for stream in subjects.streams(duplicate_window_ns=SECOND):
        await fine.ensure(stream)
    rule = parse_rule(make_rule(eval_interval="1s", cooldown="1h", group_by="caller"), "rule")
    twins = [Alerter(bus, Config((rule,), "default")) for bus in (fine, cut)]
    stopping = asyncio.Event()
    running = [asyncio.create_task(twin.run(stopping)) for twin in twins]
    while any(twin.health().missing for twin in twins):
        await asyncio.sleep(0.01)
    now = time.time_ns()
    spans = [make_span(caller=caller, ended_ns=now, arrived_ns=now) for caller in ("a", "b", "c")]
    await fine.publish(subjects.spans("default", 0), encode_batches([make_batch(*spans)]))
    published = broker.logs[subjects.ALERTS].messages
    while len(published) < 3:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.5)
    cut.cut = False
    await asyncio.sleep(2.5)
    stopping.set()
    await asyncio.gather(*running)
    counts = Counter(json.loads(message.payload)["group"]["caller"] for message in published.values())
    assert counts == {"a": 1, "b": 1, "c": 1}


async def test_no_instant_is_evaluated_before_its_messages_are_read() -> None:
    """On the memory bus, the reader pauses, as after a lost connection, while the clock goes on."""

    class Slow(MemoryBus):
        def __init__(self, broker: MemoryBroker) -> None:
            super().__init__(broker)
            self.moving = asyncio.Event()
            self.moving.set()

        async def follow(self, stream: str, *given: Any) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().follow(stream, *given):
                if stream == subjects.SPANS:
                    await self.moving.wait()
                yield chunk

    broker = MemoryBroker()
    bus = Slow(broker)
    for stream in subjects.streams():
        await bus.ensure(stream)
    rule = parse_rule(make_rule(window="1s", eval_interval="1s", cooldown="0s"), "rule")
    alerter = Alerter(bus, Config((rule,), "default"))
    stopping = asyncio.Event()
    running = asyncio.create_task(alerter.run(stopping))
    published = broker.logs[subjects.ALERTS].messages

    async def send(number: int) -> int:
        now = time.time_ns()
        span = make_span(ended_ns=now, arrived_ns=now)
        batch = make_batch(span, sequence=number)
        await MemoryBus(broker).publish(subjects.spans("default", 0), encode_batches([batch]))
        return (now // SECOND + 1) * SECOND

    async def until_published(count: int) -> list[Any]:
        async with asyncio.timeout(10):
            while len(published) < count:
                await asyncio.sleep(0.01)
        return [json.loads(message.payload) for message in published.values()]

    while alerter.health().missing:
        await asyncio.sleep(0)
    assert alerter.machine.evaluators["rule"].next_ns, "a ready alerter evaluates its rules"
    first = await send(1)
    assert [event["fired_at"] for event in await until_published(1)] == [render_instant(first)]
    await until_published(2)
    bus.moving.clear()
    second = await send(2)
    await asyncio.sleep(2.5)
    bus.moving.set()
    new_events = (await until_published(4))[2:]
    stopping.set()
    await running
    assert [(event["status"], event["fired_at"]) for event in new_events] == [
        ("firing", render_instant(second)),
        ("resolved", render_instant(second + SECOND)),
    ]


def test_stopped_alerters_publish_the_same_events_when_they_continue(twins: Twins) -> None:
    """Events depend on the log only, so alerters that stop for 3 s publish the events of this time when they go on."""

    def stand_still() -> None:
        for name in Twins.TWINS:
            twins.running[name].send_signal(signal.SIGSTOP)
        time.sleep(3)
        for name in Twins.TWINS:
            twins.running[name].send_signal(signal.SIGCONT)

    standing = threading.Timer(1.3, stand_still)
    standing.start()
    try:
        expected = twins.send_each_second("paused", seconds=4, each=4)
    finally:
        standing.join()
    deadline = time.monotonic() + 5
    while len(events(twins, "paused")) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    assert_told_once(events(twins, "paused"), expected)


def test_two_alerters_list_the_same_rules_after_one_restored_a_deleted_rule(twins: Twins) -> None:
    """When one alerter restarts, a deleted rule of the configuration comes back in both alerters or in neither."""

    def shown() -> set[int]:
        return {twins.get("/alerts/restored/status").status for _ in range(20)}

    twins.until(lambda: shown() == {200}, "there", 10)
    assert http("DELETE", twins.url + "/alerts/restored").status == 204
    twins.until(lambda: shown() == {404}, "gone", 10)
    twins.kill_one("one")
    twins.start_twin("one")
    twins.wait_twin("one")
    time.sleep(1)
    assert len(shown()) == 1, "the alerters give different answers"


def test_a_change_acknowledged_by_one_twin_holds_in_the_other(twins: Twins) -> None:
    assert_holds_at_once(twins)


def test_the_log_of_these_tests_has_no_traceback(twins: Twins) -> None:
    assert "Traceback" not in twins.log.read_text()
