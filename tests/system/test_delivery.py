"""From a decision to whoever is to be woken: alerters that are killed, and what a webhook is sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import nats
import pytest

from kit.builders import make_batch, make_span
from kit.pipeline import Pipeline, SeparateServices, free_port, http
from kit.receiver import (
    CALL,
    HOOKS,
    SECRETS,
    Desk,
    Receiver,
    Reply,
    Sent,
    assert_holds_at_once,
    complain,
    events,
    kept,
    make_end,
    make_event,
    make_rule,
    read,
)
from tokentrace.bus import Chunk, PubAck, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import ConfigError, Unavailable
from tokentrace.records import encode_batches
from tokentrace.units import HOUR, MINUTE, SECOND, render_instant
from tokentrace_alerter.delivery import Callbacks, backoff_ns, load_target
from tokentrace_alerter.delivery import worker as deliver
from tokentrace_alerter.rules import parse_rule
from tokentrace_alerter.service import Alerter, Config

JSON = {"Content-Type": "application/json"}


def rendered(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- two alerters, of which one is killed again and again

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
#: How long a request may wait for its answer, and how late one comes that the alerter has given up.
TIMEOUT_S, LATE_S = 0.3, 0.9


class Twins(SeparateServices):
    """With two alerters."""

    SERVICES = ("ingest", "aggregator", "api")
    TWINS = ("one", "two")

    def start(self, *, wait: bool = True) -> None:
        self.ports |= {name: free_port() for name in self.TWINS}
        super().start(wait=wait)
        for name in self.TWINS:
            self.start_twin(name)
        for name in self.TWINS:
            self.wait_twin(name)

    def start_twin(self, name: str) -> None:
        flags = ["--nats", self.nats_url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "tokentrace_alerter", *flags],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.env,
                start_new_session=True,
            )

    def wait_twin(self, name: str) -> None:
        self.until(lambda: http("GET", f"http://127.0.0.1:{self.ports[name]}/readyz").status == 200, f"{name} ready")

    def send(self, caller: str, cases: list[str], ended: float) -> None:
        """Calls that ended then, one for each case."""
        spans = [
            {
                "model": "gpt-4o",
                "provider": "openai",
                "prompt_tokens": 512,
                "comp_tokens": 128,
                "caller": caller,
                "ended_at": rendered(ended),
                "attributes": {"case": case},
            }
            for case in cases
        ]
        body = json.dumps(spans).encode()
        assert http("POST", f"http://127.0.0.1:{self.ports['ingest']}/spans", body, JSON).status == 202

    def send_each_second(self, caller: str, seconds: int, each: int) -> set[tuple[str, str]]:
        """
        *each* calls with a case of their own early in each of so many seconds.

        Returns:
            (case, when a window of 1 s that ends on a full second holds it), both as an event says them.
        """
        expected = set()
        for number in range(seconds):
            second = int(time.time()) + 1
            time.sleep(second + 0.1 - time.time())
            cases = [f"{caller} {number * each + one} ü*>" for one in range(each)]
            self.send(caller, cases, second + 0.05)
            assert time.time() < second + 0.9, "this machine is too slow for what is expected to be certain"
            expected |= {(case, rendered(second + 1)) for case in cases}
        return expected


class Unreliable:
    """Answers 500 or too late a third of the time, from a seed."""

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
    """Kills one twin or the other at random moments and starts it again."""

    def __init__(self, twins: Twins, dice: random.Random) -> None:
        super().__init__()
        self._twins, self._dice = twins, dice
        self.stopping = threading.Event()
        self.kills = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.wait(self._dice.uniform(0.1, 1.2)):
                victim = self._dice.choice(Twins.TWINS)
                self._twins.kill_one(victim)
                self.kills += 1
                self._twins.start_twin(victim)
                self._twins.wait_twin(victim)
        except (AssertionError, OSError) as exc:
            self.error = exc


def assert_told_once(told: list[Any], expected: set[tuple[str, str]]) -> None:
    """Each expected firing is an event, once, and nothing else is."""
    found = Counter((event["group"]["case"], event["fired_at"]) for event in told)
    assert {one: count for one, count in found.items() if count > 1} == {}, "said twice"
    assert set(found) - expected == set(), "never to be said"
    assert expected - set(found) == set(), "never said"


def test_two_hundred_firings_through_kills_and_a_bad_receiver_are_said_once_and_all_arrive(
    twins: Twins, unreliable: Receiver
) -> None:
    """Show 3 of issue 5."""
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
    told = events(twins, "each")
    assert_told_once(told, expected)
    assert {event["span_count"] for event in told} == {1}
    ended = {(case, rendered(datetime.fromisoformat(at).timestamp() + 1)) for case, at in expected}
    assert_told_once(events(twins, "each", "resolved"), ended)

    # A delivery whose alerter was killed comes again after 10 s.
    twins.until(lambda: len(set(answers.in_time)) >= 200, "all accepted", 60)
    twins.until(lambda: undone(twins) == 0, "done with every event", 60)
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


def undone(pipeline: Pipeline) -> int:
    """Events that are still to be delivered, or are being delivered."""

    async def ask() -> int:
        client = await nats.connect(pipeline.nats_url, error_cb=complain)
        try:
            info = await client.jetstream().consumer_info(subjects.ALERTS, deliver.DURABLE)
            return int(info.num_pending or 0) + int(info.num_ack_pending or 0)
        finally:
            await client.close()

    return asyncio.run(ask())


def test_nine_hundred_instances_that_fire_at_one_instant_are_said_once_by_two_alerters(twins: Twins) -> None:
    """More than the twins can say within the broker's duplicate window, which no reader may trust."""
    cases = [f"case {number}" for number in range(900)]
    second = int(time.time()) + 1
    time.sleep(second + 0.1 - time.time())
    twins.send("flood", cases, second + 0.05)
    twins.until(lambda: {event["group"]["case"] for event in events(twins, "flood")} == set(cases), "all said", 20)
    time.sleep(1.5)
    repeated = {case: n for case, n in Counter(e["group"]["case"] for e in events(twins, "flood")).items() if n > 1}
    assert repeated == {}, f"{len(repeated)} of 900 said more than once"


async def test_what_another_alerter_said_while_the_broker_was_away_is_not_said_again() -> None:
    """On the twin of the broker: one alerter cannot publish for longer than the broker remembers what it has."""

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
    said = broker.logs[subjects.ALERTS].messages
    while len(said) < 3:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.5)
    cut.cut = False
    await asyncio.sleep(2.5)
    stopping.set()
    await asyncio.gather(*running)
    told = Counter(json.loads(message.payload)["group"]["caller"] for message in said.values())
    assert told == {"a": 1, "b": 1, "c": 1}


async def test_nothing_is_decided_about_what_was_not_read_yet() -> None:
    """On the twin of the broker: the reader stands still, as after a lost connection, and the clock does not."""

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
    said = broker.logs[subjects.ALERTS].messages

    async def send(number: int) -> int:
        now = time.time_ns()
        span = make_span(ended_ns=now, arrived_ns=now)
        batch = make_batch(span, sequence=number)
        await MemoryBus(broker).publish(subjects.spans("default", 0), encode_batches([batch]))
        return (now // SECOND + 1) * SECOND

    async def until_said(count: int) -> list[Any]:
        async with asyncio.timeout(10):
            while len(said) < count:
                await asyncio.sleep(0.01)
        return [json.loads(message.payload) for message in said.values()]

    while alerter.health().missing:
        await asyncio.sleep(0)
    assert alerter.machine.watches["rule"].next_ns, "who is ready looks at its rules"
    first = await send(1)
    assert [event["fired_at"] for event in await until_said(1)] == [render_instant(first)]
    await until_said(2)
    bus.moving.clear()
    second = await send(2)
    await asyncio.sleep(2.5)
    bus.moving.set()
    told = (await until_said(4))[2:]
    stopping.set()
    await running
    assert [(event["status"], event["fired_at"]) for event in told] == [
        ("firing", render_instant(second)),
        ("resolved", render_instant(second + SECOND)),
    ]


def test_alerters_that_stood_still_for_a_while_say_what_they_would_have_said(twins: Twins) -> None:
    """DESIGN 7b: live, backtest and replay after a restart are the same function of the stream."""

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


def test_two_alerters_answer_alike_when_one_of_them_brought_back_a_deleted_rule(twins: Twins) -> None:
    """A rule of the configuration comes back on restart: everywhere or nowhere."""

    def shown() -> set[int]:
        return {twins.get("/alerts/restored/status").status for _ in range(20)}

    twins.until(lambda: shown() == {200}, "there", 10)
    assert http("DELETE", twins.url + "/alerts/restored").status == 204
    twins.until(lambda: shown() == {404}, "gone", 10)
    twins.kill_one("one")
    twins.start_twin("one")
    twins.wait_twin("one")
    time.sleep(1)
    assert len(shown()) == 1, "it depends on who is asked"


def test_what_one_alerter_answered_holds_for_the_other(twins: Twins) -> None:
    assert_holds_at_once(twins)


def test_neither_of_them_crashed_on_the_way(twins: Twins) -> None:
    assert "Traceback" not in twins.log.read_text()


# --- what a webhook is sent


async def test_a_webhook_is_sent_the_event_with_its_key_its_signature_and_the_headers_it_asked_for() -> None:
    with Receiver() as receiver:
        headers = {"Authorization": "Bearer t", "X-Team": "on call"}
        given = {"type": "http", "url": receiver.url + "/hook/1?team=a%20b", "headers": headers, "secret": "geheim"}
        async with Desk(make_rule(delivery=given)) as desk:
            event = make_event()
            await desk.say(event)
            await desk.done()
    (sent,) = receiver.sent
    assert sent.path == "/hook/1?team=a%20b"
    assert sent.json() == msgspec.to_builtins(event)
    assert sent.header("Content-Type") == "application/json"
    assert (sent.header("Authorization"), sent.header("X-Team")) == ("Bearer t", "on call")
    assert sent.key == f"{event.rule_id}@{event.fired_at}"
    expected = "sha256=" + hmac.new(b"geheim", sent.body, hashlib.sha256).hexdigest()
    assert sent.header("X-Tokentrace-Signature") == expected
    (record,) = desk.told()
    assert (record["rule"], record["fired_at"], record["status"]) == ("rule", event.fired_at, "firing")
    assert (record["key"], record["channel"], record["outcome"]) == (sent.key, "http", "delivered")
    assert (record["attempt"], record["error"]) == (1, "")
    assert record["took_ms"] > 0
    assert desk.delivery_worker.delivered == 1


async def test_without_a_secret_nothing_is_signed() -> None:
    with Receiver() as receiver:
        async with Desk(make_rule(delivery={"type": "webhook", "url": receiver.url})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert receiver.sent[0].header("X-Tokentrace-Signature") is None


@pytest.mark.parametrize("name", ["content-type", "USER-AGENT", "idempotency-key", "x-tokentrace-signature"])
async def test_a_header_is_sent_once_however_the_rule_writes_its_name(name: str) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "headers": {name: "mine"}, "secret": "s"}
        async with Desk(make_rule(delivery=given)) as desk:
            await desk.say(make_event())
            await desk.done()
    assert len(receiver.sent[0].every(name)) == 1


async def test_each_instance_and_each_end_has_a_key_of_its_own() -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "send_resolved": True}
        async with Desk(make_rule(delivery=given, group_by="case")) as desk:
            now = time.time_ns()
            begun = [make_event(at_ns=now, group={"case": case}) for case in ("a", "b", "", "ü", "a@b")]
            await desk.say(*begun, *(make_end(event, now) for event in begun))
            await desk.done()
    assert len({sent.key for sent in receiver.sent}) == 10
    assert all(re.fullmatch(r"[!-~]+", sent.key) for sent in receiver.sent)


def test_five_seconds_is_how_long_an_answer_may_take_unless_the_rule_says_otherwise() -> None:
    given = {"type": "http", "url": "http://h"}
    channel = parse_rule(make_rule(delivery=given), "rule").delivery
    assert channel is not None
    assert channel.timeout_ns == 5 * SECOND
    channel = parse_rule(make_rule(delivery={**given, "timeout": "250ms"}), "rule").delivery
    assert channel is not None
    assert channel.timeout_ns == SECOND // 4


async def test_an_answer_that_takes_too_long_is_one_more_attempt_under_the_same_key() -> None:
    with Receiver(lambda sent: Reply(after_s=2) if len(receiver.sent) == 1 else Reply()) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url, "timeout": "200ms"})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert desk.outcomes() == ["retry", "delivered"]
    late, fine = desk.told()
    assert "0.2 s" in late["error"]
    assert 150 < late["took_ms"] < 1000
    assert (late["attempt"], fine["attempt"]) == (1, 2)
    assert receiver.sent[0].key == receiver.sent[1].key
    assert receiver.sent[0].body == receiver.sent[1].body


async def test_whoever_has_answered_may_take_its_time_to_say_more() -> None:
    with Receiver(lambda sent: Reply(dribble_s=2, body=b"late")) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url, "timeout": "200ms"})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert desk.outcomes() == ["delivered"]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 429, 499])
async def test_a_receiver_that_refuses_is_asked_once(status: int) -> None:
    with Receiver(lambda sent: Reply(status)) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert len(receiver.sent) == 1
    (record,) = desk.told()
    assert (record["outcome"], record["error"]) == ("dead", f"HTTP {status}")
    assert desk.delivery_worker.failed == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    with Receiver(lambda sent: Reply(status, {"Location": receiver.url + "/elsewhere"})) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url + "/hook"})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert [sent.path for sent in receiver.sent] == ["/hook"]
    assert desk.outcomes() == ["dead"]


async def test_a_failing_receiver_is_tried_again_after_pauses_that_grow() -> None:
    replies = [Reply(500), Reply(0), Reply(503), Reply()]
    with Receiver(lambda sent: replies[len(receiver.sent) - 1]) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            await desk.say(make_event())
            await desk.done()
    assert desk.outcomes() == ["retry", "retry", "retry", "delivered"]
    times = [sent.at for sent in receiver.sent]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [round(pause * 2) / 2 for pause in pauses] == [0.5, 1.0, 2.0]
    assert len({sent.key for sent in receiver.sent}) == 1
    assert "HTTP 500" in desk.told()[0]["error"]
    assert desk.told()[1]["error"] not in ("", "HTTP 500")


def test_a_pause_is_a_minute_at_most() -> None:
    pauses = [backoff_ns(attempt) for attempt in range(1, 101)]
    assert pauses == sorted(pauses)
    assert (pauses[0], max(pauses)) == (SECOND // 2, MINUTE)


@pytest.mark.parametrize("retries", [0, 2])
async def test_after_its_retries_an_event_is_dead_and_the_next_one_is_not(retries: int) -> None:
    port = free_port()
    given = {"type": "http", "url": f"http://127.0.0.1:{port}", "max_retries": retries}
    with Receiver() as receiver:
        fine = {"type": "http", "url": receiver.url}
        async with Desk(make_rule(delivery=given), make_rule("fine", delivery=fine)) as desk:
            await desk.say(make_event(), make_event("fine"))
            await desk.done()
    assert desk.outcomes("rule") == ["retry"] * retries + ["dead"]
    assert desk.outcomes("fine") == ["delivered"]
    assert f"{retries + 1} attempts" in desk.told("rule")[-1]["error"]


@pytest.mark.parametrize("resolved", [False, True])
async def test_an_end_is_delivered_to_who_asked_for_it(resolved: bool) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "send_resolved": resolved}
        async with Desk(make_rule(delivery=given)) as desk:
            event = make_event()
            await desk.say(event, make_end(event))
            await desk.done()
    statuses = sorted(sent.json()["status"] for sent in receiver.sent)
    assert statuses == (["firing", "resolved"] if resolved else ["firing"])


async def test_a_destination_gets_eight_at_once_at_most() -> None:
    with Receiver(lambda sent: Reply(after_s=0.1)) as receiver:
        given = {"type": "http", "url": receiver.url + "/a"}
        async with Desk(make_rule(delivery=given), make_rule("same", delivery=given)) as desk:
            await desk.say(*(make_event(number=number) for number in range(30)))
            await desk.say(*(make_event("same", number=number) for number in range(30)))
            await desk.done()
    assert receiver.most_at_once == 8
    assert len(receiver.sent) == 60


async def test_destinations_that_do_not_answer_hold_up_no_other() -> None:
    """15 dead destinations with 8 in flight each: more than 100 connections."""
    with Receiver(lambda sent: Reply(after_s=30)) as dead, Receiver() as alive:
        rules = [make_rule(f"dead {n}", {"type": "http", "url": f"{dead.url}/{n}"}) for n in range(15)]
        async with Desk(*rules, make_rule("alive", {"type": "http", "url": alive.url, "timeout": "2s"})) as desk:
            await desk.say(*(make_event(f"dead {n}", number=number) for n in range(15) for number in range(8)))
            await desk.until(lambda: dead.at_once >= 100, "a hundred at once")
            await desk.say(make_event("alive"))
            await desk.until(lambda: desk.outcomes("alive") != [], "tried", 5)
    assert desk.outcomes("alive") == ["delivered"]


async def test_a_queue_behind_one_destination_holds_up_no_other() -> None:
    """1,200 events wait for a receiver that hangs; another's is delivered meanwhile."""
    with Receiver(lambda sent: Reply(after_s=30)) as dead, Receiver() as alive:
        rules = [
            make_rule("dead", {"type": "http", "url": dead.url}),
            make_rule("alive", {"type": "http", "url": alive.url}),
        ]
        async with Desk(*rules) as desk:
            now = time.time_ns()
            await desk.say(*(make_event("dead", now, group={"case": str(number)}) for number in range(1200)))
            await desk.say(make_event("alive"))
            await desk.until(lambda: desk.outcomes("alive") == ["delivered"], "delivered", 4)


@pytest.mark.parametrize(
    ("host", "reply"),
    [
        ("", Reply()),
        ("", Reply(500)),
        ("", Reply(400)),
        ("", Reply(0)),
        ("", Reply(302)),
        ("127.0.0.1:9", Reply()),
        ("ü..example", Reply()),
    ],
)
async def test_no_secret_is_told_of_a_delivery(host: str, reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with Receiver(lambda sent: reply) as receiver:
        given = {
            "type": "http",
            "url": f"http://geheim-user:geheim-word@{host or f'127.0.0.1:{receiver.port}'}/hook?token=geheim-query",
            "headers": {"X-Token": "geheim-header"},
            "secret": "geheim-key",
            "max_retries": 0,
        }
        async with Desk(make_rule(delivery=given)) as desk:
            await desk.say(make_event())
            await desk.done()
    assert len(desk.told()) == 1
    told = json.dumps(desk.told(), ensure_ascii=False) + caplog.text
    assert [secret for secret in SECRETS if secret in told] == []


@pytest.mark.parametrize("value", ["Bearer ", " x", "a\tb"])
def test_a_header_that_cannot_be_sent_is_refused_with_the_rule(value: str) -> None:
    with pytest.raises(ConfigError, match=r"delivery\.headers"):
        parse_rule(make_rule(delivery={"type": "http", "url": "http://h", "headers": {"Authorization": value}}), "rule")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(headers={"Content-Encoding": "gzip"}, body=b"not gzip at all"),
        Reply(headers={"Content-Encoding": "deflate"}, body=b"neither"),
        Reply(headers={"Content-Type": "text/plain; charset=nonsense"}, body=b"\xff\xfe"),
        Reply(headers={"Content-Length": "1000000"}, body=b"cut"),
        Reply(204),
        Reply(500, headers={"Content-Encoding": "gzip"}, body=b"x"),
    ],
)
async def test_an_odd_answer_ends_no_courier(reply: Reply) -> None:
    with Receiver(lambda sent: reply) as odd, Receiver() as fine:
        given = {"type": "http", "url": odd.url, "max_retries": 0, "timeout": "1s"}
        async with Desk(make_rule("odd", given), make_rule("fine", {"type": "http", "url": fine.url})) as desk:
            await desk.say(make_event("odd"))
            await desk.until(lambda: desk.outcomes("odd") != [], "told")
            await desk.say(make_event("fine"))
            await desk.done()
    assert desk.outcomes("fine") == ["delivered"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "1"},
        {"Content-Length": "9999"},
        {"content-length": "x"},
        {"Transfer-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        {"Expect": "100-continue"},
        {"Host": "a b"},
        {"A": ""},
    ],
    ids=str,
)
async def test_an_odd_header_is_refused_or_ends_no_courier(headers: dict[str, str]) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "max_retries": 0, "timeout": "1s", "headers": headers}
        with contextlib.suppress(ConfigError):
            async with Desk(make_rule(delivery=given)) as desk:
                await desk.say(make_event())
                await desk.done()


async def test_what_a_receiver_wants_remembered_is_forgotten() -> None:
    with Receiver(lambda sent: Reply(headers={"Set-Cookie": "session=a; Path=/"})) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            await desk.say(make_event())
            await desk.done()
            await desk.say(make_event(number=1))
            await desk.done()
    assert receiver.sent[1].header("Cookie") is None


async def test_what_is_no_event_and_what_has_no_rule_any_more_is_passed_over() -> None:
    with Receiver() as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url}), make_rule("silent")) as desk:
            await desk.bus.publish(subjects.alerts("default", "rule"), b"{")
            await desk.say(make_event("gone"), make_event("silent"), make_event())
            await desk.done()
    assert len(receiver.sent) == 1
    assert desk.outcomes() == ["delivered"]


async def test_stdout_gets_one_line_for_each_firing(capsys: pytest.CaptureFixture[str]) -> None:
    rules = make_rule("plain", {"type": "stdout"}), make_rule("both", {"type": "stdout", "send_resolved": True})
    async with Desk(*rules) as desk:
        plain, both = make_event("plain", filter={"a": "line\nbreak ü"}), make_event("both")
        await desk.say(plain, make_end(plain), both, make_end(both))
        await desk.done()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted((line["alert"], line["status"]) for line in lines) == [
        ("both", "firing"),
        ("both", "resolved"),
        ("plain", "firing"),
    ]
    assert msgspec.to_builtins(plain) in lines


# --- an event that is old

Clock = Callable[[int], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the courier's clock."""

    def set_to(now_ns: int) -> None:
        fake = SimpleNamespace(time_ns=lambda: now_ns, monotonic=time.monotonic)
        monkeypatch.setattr(deliver, "time", fake)

    return set_to


@pytest.mark.parametrize(
    ("age_ns", "lasts", "expected"),
    [
        (HOUR - SECOND, False, "delivered"),
        (HOUR + SECOND, False, "expired"),
        (HOUR + SECOND, True, "delivered"),
        (30 * HOUR, False, "expired"),
        (30 * HOUR, True, "delivered"),
    ],
)
async def test_a_firing_that_is_an_hour_old_is_delivered_only_while_its_episode_lasts(
    clock: Clock, age_ns: int, lasts: bool, expected: str
) -> None:
    now = time.time_ns()
    event = make_event(at_ns=now - age_ns)
    clock(event_ns(event) + age_ns)
    with Receiver() as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            desk.lasting = [event] if lasts else []
            await desk.say(event)
            await desk.done()
    assert desk.outcomes() == [expected]
    assert len(receiver.sent) == (expected == "delivered")
    assert desk.delivery_worker.expired == (expected == "expired")


def event_ns(event: Any) -> int:
    return int(datetime.fromisoformat(event.fired_at).timestamp() * 1000) * 1_000_000


async def test_another_episode_that_lasts_now_makes_no_old_firing_news() -> None:
    """DESIGN 7b: a firing older than an hour whose episode has ended is recorded as expired, not sent."""
    now = time.time_ns()
    old, new = make_event(at_ns=now - 5 * HOUR), make_event(at_ns=now)
    with Receiver() as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            desk.lasting = [new]
            await desk.say(old, make_end(old, now - 4 * HOUR), new)
            await desk.done()
    assert [sent.json()["fired_at"] for sent in receiver.sent] == [new.fired_at]
    assert desk.outcomes() == ["expired", "delivered"]


async def test_an_instance_that_lasts_keeps_no_other_instance_from_expiring() -> None:
    now = time.time_ns()
    old = make_event(at_ns=now - 2 * HOUR, group={"case": "a"})
    async with Desk(make_rule(delivery={"type": "stdout"}, group_by="case")) as desk:
        desk.lasting = [make_event(at_ns=now, group={"case": "b"})]
        await desk.say(old)
        await desk.done()
    assert desk.outcomes() == ["expired"]


async def test_an_event_that_failed_until_it_was_an_hour_old_expires(clock: Clock) -> None:
    event = make_event()
    with Receiver(lambda sent: Reply(500)) as receiver:
        async with Desk(make_rule(delivery={"type": "http", "url": receiver.url})) as desk:
            await desk.say(event)
            await desk.until(lambda: desk.outcomes() == ["retry"], "tried")
            clock(event_ns(event) + HOUR + SECOND)
            await desk.done()
    assert desk.outcomes() == ["retry", "expired"]
    assert desk.told()[-1]["attempt"] == 2


# --- functions of one's own


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of functions, new for each test; in the current directory, where they write."""
    name = f"hooks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("plain", "plain"),
        ("waits", "waits"),
        ("one", "object"),
        ("one.deliver", "object"),
        ("wrapped", "waits"),
        ("called", "called"),
    ],
)
async def test_a_function_of_ones_own_is_given_the_event(hooks: str, tmp_path: Path, target: str, where: str) -> None:
    async with Desk(make_rule(delivery={"type": "custom", "target": f"{hooks}:{target}"})) as desk:
        event = make_event()
        await desk.say(event)
        await desk.done()
    assert desk.outcomes() == ["delivered"]
    assert kept(tmp_path, where) == [msgspec.to_builtins(event)]


async def test_a_function_that_raises_is_tried_again(hooks: str, tmp_path: Path) -> None:
    async with Desk(make_rule(delivery={"type": "custom", "target": f"{hooks}:raises"})) as desk:
        await desk.say(make_event())
        await desk.done()
    assert desk.outcomes() == ["retry", "retry", "delivered"]
    assert "RuntimeError: not today 1" in desk.told()[0]["error"]
    assert len(kept(tmp_path, "raises")) == 1


@pytest.mark.parametrize("target", ["nothing:here", "hooks:missing", "hooks:plain.missing"])
def test_a_target_that_is_not_there_ends_the_program_with_2(tmp_path: Path, target: str) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    rule = make_rule(delivery={"type": "custom", "target": target})
    (tmp_path / "tokentrace.yml").write_text(json.dumps({"alerts": [rule]}))
    command = [sys.executable, "-m", "tokentrace_alerter", "--nats", f"nats://127.0.0.1:{free_port()}"]
    flags = ["--addr", f"127.0.0.1:{free_port()}", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr[-1000:]
    assert "target" in done.stderr
    assert target in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["not_callable", "_Object", "_Called"])
def test_a_target_that_cannot_be_called_with_an_event_is_refused(hooks: str, name: str) -> None:
    with pytest.raises(ConfigError, match="target"):
        load_target(f"{hooks}:{name}")


async def test_a_function_that_never_returns_is_called_eight_times_at_most(hooks: str) -> None:
    """Nobody can end a thread: those that hang are not to become ever more."""
    calls = Callbacks(8)
    for _ in range(8):
        with pytest.raises(TimeoutError):
            await calls.call(f"{hooks}:hangs", {}, SECOND // 100)
    before = threading.active_count()
    with pytest.raises(TimeoutError, match="8 calls"):
        await calls.call(f"{hooks}:hangs", {}, SECOND // 100)
    assert threading.active_count() == before


def test_a_function_that_hangs_keeps_nobody_from_stopping(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    rule = make_rule(delivery={"type": "custom", "target": "hooks:hangs"}, window="10s", eval_interval="1s")
    (tmp_path / "tokentrace.yml").write_text(json.dumps({"alerts": [rule]}))
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        assert serving.post("/spans", [CALL]).status == 202
        serving.until(lambda: len(events(serving, "rule")) == 1, "fired", 15)
        time.sleep(0.5)
        assert serving.process is not None
        serving.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            serving.process.wait(12)
        assert serving.process.returncode == 0, "it still waits for a function of somebody else's"
    finally:
        if serving.process is not None and serving.process.poll() is None:
            serving.kill()
