"""Alert events that real processes publish, also through kills and with two alerters."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nats
import pytest

from kit.builders import make_batch, make_span
from kit.pipeline import Pipeline, SeparateServices, finish, free_port, http, replay
from kit.services import start_service
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.records import encode_batches
from tokentrace_alerter.rules import parse_rule
from tokentrace_alerter.service import Alerter, Config

pytestmark = pytest.mark.story

WEIRD = "Kosten: 50 % über/Plan.v2 *> 日本"
TEN_KEYS = {"alert", "fired_at", "metric", "op", "value", "threshold", "window", "span_count", "filter", "rule_id"}
RULES = f"""
alerts:
  - name: hourly-cost-spike
    metric: total_cost
    op: gt
    threshold: 1.00
    window: 1h
    eval_interval: 1s
    filter: {{caller: chat}}
    level: critical
    delivery: {{type: stdout}}
  - name: burst
    metric: span_count
    op: gte
    threshold: 1
    window: 3s
    cooldown: 1s
    filter: {{caller: burst}}
    delivery: {{type: stdout}}
  - name: not today
    metric: quality_score
    op: lt
    threshold: 0.75
    window: 1h
    eval_interval: 30d
    min_spans: 20
  - name: quiet
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    silenced: true
    filter: {{caller: quiet}}
  - name: "{WEIRD}"
    metric: span_count
    op: ">"
    threshold: 0
    window: 1h
    eval_interval: 1s
    filter: {{caller: weird, step.name: synthesize}}
"""
BREACH = """
alerts:
  - name: breach
    metric: span_count
    op: gte
    threshold: 1
    window: 60s
    eval_interval: 1s
    cooldown: 5s
  - name: on and off
    metric: span_count
    op: gte
    threshold: 1
    window: 1s
    eval_interval: 1s
    cooldown: 5s
"""
COOLDOWN_S = 5.0


async def _complain(error: Exception) -> None:
    """Print the error in one line; without this callback nats-py prints a traceback."""
    print(f"nats: {error!r}")


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def read_events(url: str) -> list[dict[str, Any]]:
    """Return all events on TT_ALERTS, in order."""
    client = await nats.connect(url, error_cb=_complain)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info("TT_ALERTS")).state
        first, last = max(state.first_seq, 1), state.last_seq
        stored = [await stream.get_msg("TT_ALERTS", sequence) for sequence in range(first, last + 1)]
        return [json.loads(message.data or b"") for message in stored]
    finally:
        await client.close()


def events(pipeline: Pipeline) -> list[dict[str, Any]]:
    return asyncio.run(read_events(pipeline.nats_url))


def statuses(pipeline: Pipeline, name: str) -> list[str]:
    return [event["status"] for event in events(pipeline) if event["alert"] == name]


def post(pipeline: Pipeline, caller: str, **fields: Any) -> None:
    """Post one call that ends now."""
    span = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, "caller": caller}
    assert pipeline.post("/spans", [{**span, **fields}]).status == 202


def rule_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    (found,) = [rule for rule in pipeline.get("/alerts").json() if rule["name"] == name]
    return dict(found)


def printed(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return the events that the pipeline printed as lines of JSON."""
    shown = []
    for line in pipeline.log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict) and "alert" in document:
                shown.append(document)
    return shown


def write_rules(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokentrace.yml").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(write_rules(tmp_path_factory.mktemp("alerts"), RULES))
    serving.start()
    yield serving
    serving.stop()


# --- what a subscriber, standard output and the API show


async def test_a_plain_nats_subscriber_receives_the_events_of_a_cost_rule(pipeline: Pipeline) -> None:
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def record(message: Any) -> None:
        await received.put({"subject": message.subject, **json.loads(message.data)})

    client = await nats.connect(pipeline.nats_url, error_cb=_complain)
    await client.subscribe("tokentrace.alerts.>", cb=record)
    await client.flush()
    sending = replay(pipeline, "--speed", "1200")
    try:
        event = await asyncio.wait_for(received.get(), 60)
    finally:
        await asyncio.to_thread(finish, sending)
        await client.close()
    assert event.pop("subject") == "tokentrace.alerts.default.hourly-cost-spike"
    assert set(event) >= TEN_KEYS | {"level", "message", "status"}
    assert event["alert"] == "hourly-cost-spike"
    assert (event["metric"], event["op"], event["threshold"], event["window"]) == ("total_cost", "gt", 1.0, "1h")
    assert (event["filter"], event["level"], event["status"]) == ({"caller": "chat"}, "critical", "firing")
    assert event["value"] > 1
    assert event["span_count"] > 1
    assert event["message"] == f"total_cost > {event['value']:.4g} (threshold: 1)"
    assert re.fullmatch(r"alert_[0-9a-f]{8}", event["rule_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", event["fired_at"])
    assert [one for one in await read_events(pipeline.nats_url) if one["alert"] == event["alert"]] == [event]
    pipeline.until(lambda: event in printed(pipeline), "printed")
    assert [one for one in printed(pipeline) if one["alert"] == event["alert"]] == [event]


def test_the_rules_are_listed_with_their_state(pipeline: Pipeline) -> None:
    pipeline.until(lambda: rule_of(pipeline, "burst")["last_evaluated"] is not None, "evaluated")
    listed = pipeline.get("/alerts").json()
    names = ["hourly-cost-spike", "burst", "not today", "quiet", WEIRD]
    assert [rule["name"] for rule in listed] == names
    (rule,) = [one for one in listed if one["name"] == "not today"]
    documented = {
        "name": "not today",
        "metric": "quality_score",
        "op": "lt",
        "threshold": 0.75,
        "window": "1h",
        "last_evaluated": None,
        "last_fired": None,
        "current_value": None,
        "firing": False,
        "silenced": False,
        "silenced_until": None,
    }
    assert {key: rule[key] for key in documented} == documented
    for one in listed:
        assert set(one) >= set(documented)


@pytest.mark.parametrize("name", ["hourly-cost-spike", "burst", "not today", "quiet", WEIRD])
def test_the_status_of_one_rule_equals_its_entry_in_the_list(pipeline: Pipeline, name: str) -> None:
    def same() -> bool:
        return bool(pipeline.get(f"/alerts/{quote(name, safe='')}/status").json() == rule_of(pipeline, name))

    pipeline.until(same, f"the same for {name!r}", 10)


@pytest.mark.parametrize("name", ["unknown", "BURST", "burst%20", "%F0%9F%92%A9", "a.b", "not%20today%2F"])
def test_the_status_of_an_unknown_rule_is_404(pipeline: Pipeline, name: str) -> None:
    answer = pipeline.get(f"/alerts/{name}/status")
    assert answer.status == 404
    assert set(answer.json()) == {"error"}


def test_an_episode_is_resolved_when_the_window_is_empty(pipeline: Pipeline) -> None:
    before = len(statuses(pipeline, "burst"))
    post(pipeline, "burst")
    pipeline.until(lambda: "resolved" in statuses(pipeline, "burst")[before:], "resolved")
    published = [event for event in events(pipeline) if event["alert"] == "burst"][before:]
    assert [event["status"] for event in published] == ["firing"] * (len(published) - 1) + ["resolved"]
    assert len(published) >= 2
    first, last = published[0], published[-1]
    assert last["starts_at"] == first["fired_at"] == first["starts_at"]
    assert last["ends_at"] == last["fired_at"]
    assert (last["value"], last["span_count"]) == (None, 0)
    assert (first["value"], first["span_count"], first["ends_at"]) == (1, 1, None)
    pipeline.until(lambda: rule_of(pipeline, "burst")["state"] == "resolved", "resolved")
    assert rule_of(pipeline, "burst")["last_fired"] == published[-2]["fired_at"]


def test_standard_output_has_a_line_for_each_firing_and_none_for_a_resolution(pipeline: Pipeline) -> None:
    """A resolution is delivered only with send_resolved."""
    before = len(statuses(pipeline, "burst"))
    post(pipeline, "burst")
    pipeline.until(lambda: "resolved" in statuses(pipeline, "burst")[before:], "resolved")
    delivered = [event for event in events(pipeline) if event["alert"] in ("burst", "hourly-cost-spike")]
    firing = [event for event in delivered if event["status"] == "firing"]
    pipeline.until(lambda: len(printed(pipeline)) >= len(firing), "printed")
    assert printed(pipeline) == firing


def test_a_silenced_rule_breaches_and_publishes_nothing(pipeline: Pipeline) -> None:
    post(pipeline, "quiet")
    pipeline.until(lambda: rule_of(pipeline, "quiet")["firing"] is True, "breached")
    shown = rule_of(pipeline, "quiet")
    assert (shown["silenced"], shown["current_value"], shown["last_fired"]) == (True, 1, None)
    assert statuses(pipeline, "quiet") == []


async def test_a_rule_name_with_special_characters_becomes_one_subject_token(pipeline: Pipeline) -> None:
    received: asyncio.Queue[Any] = asyncio.Queue()
    client = await nats.connect(pipeline.nats_url, error_cb=_complain)

    async def record(message: Any) -> None:
        if json.loads(message.data)["alert"] == WEIRD:
            await received.put(message)

    await client.subscribe("tokentrace.alerts.default.*", cb=record)
    await client.flush()
    await asyncio.to_thread(post, pipeline, "weird", attributes={"step.name": "plan"})
    await asyncio.to_thread(post, pipeline, "weird", attributes={"step.name": "synthesize"})
    try:
        message = await asyncio.wait_for(received.get(), 60)
    finally:
        await client.close()
    event = json.loads(message.data)
    assert (event["alert"], event["span_count"]) == (WEIRD, 1)
    assert re.fullmatch(r"tokentrace\.alerts\.default\.[A-Za-z0-9_=-]+", message.subject)


# --- kills and two alerters


def assert_cooldown(told: list[dict[str, Any]]) -> None:
    """
    Check that no event of the rules in ``BREACH`` occurs twice and that the events of a rule are in order of time.

    Also check that the firings of a rule are at least a cooldown apart and that each resolution follows a firing.
    """
    keys = [(event["rule_id"], event["fired_at"], event["status"]) for event in told]
    assert len(set(keys)) == len(keys)
    for name in {event["alert"] for event in told}:
        mine = [event for event in told if event["alert"] == name]
        assert mine == sorted(mine, key=lambda event: instant(event["fired_at"])), name
        fired = [instant(event["fired_at"]) for event in mine if event["status"] == "firing"]
        gaps = [later - earlier for earlier, later in itertools.pairwise(fired)]
        assert all(gap >= COOLDOWN_S for gap in gaps), (name, gaps)
        ends = [event["status"] for event in mine]
        assert ("resolved", "resolved") not in itertools.pairwise(ends), name
        assert ends[:1] != ["resolved"], name


def firings(pipeline: Pipeline) -> int:
    return statuses(pipeline, "breach").count("firing")


def send_until(pipeline: Pipeline, condition: Callable[[], bool], what: str) -> None:
    """Post calls until *condition* holds."""

    def step() -> bool:
        with contextlib.suppress(OSError, AssertionError):
            post(pipeline, "chat")
        return condition()

    pipeline.until(step, what)


def test_kills_of_all_services_cause_no_firing_within_the_cooldown(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    pipeline = Pipeline(write_rules(tmp_path, BREACH))
    pipeline.start()
    try:
        send_until(pipeline, lambda: firings(pipeline) >= 1, "fired")
        for _ in range(5):
            with contextlib.suppress(OSError, AssertionError):
                post(pipeline, "chat")
            time.sleep(dice.uniform(0.0, 1.2))
            pipeline.kill()
            pipeline.start(wait=dice.random() < 0.7)
        pipeline.wait_ready()
        count = firings(pipeline)
        send_until(pipeline, lambda: firings(pipeline) >= count + 1, "fired again")
        assert_cooldown(events(pipeline))
    finally:
        pipeline.stop()


class Watched(SeparateServices):
    """Services as separate processes, with one alerter and, after ``start_twin``, a second one."""

    SERVICES = ("ingest", "aggregator", "api", "alerter")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ports["twin"] = free_port()

    def start_twin(self) -> None:
        flags = ["--nats", self.nats_url, "--addr", f"127.0.0.1:{self.ports['twin']}", "--data-dir", str(self.data)]
        self.running["twin"] = start_service(
            "tokentrace_alerter", flags, directory=self.directory, env=self.env, log=self.log
        )

    def wait_alerter(self, name: str = "alerter") -> None:
        self.until(lambda: http("GET", f"http://127.0.0.1:{self.ports[name]}/readyz").status == 200, f"{name} ready")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    services = Watched(write_rules(tmp_path, BREACH))
    services.start()
    services.wait_alerter()
    yield services
    services.stop()


def feed(services: Watched, condition: Callable[[], bool], what: str) -> None:
    """Post calls until *condition* holds."""
    ingest = f"http://127.0.0.1:{services.ports['ingest']}/spans"
    body = b'[{"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128}]'

    def step() -> bool:
        assert http("POST", ingest, body, {"Content-Type": "application/json"}).status == 202
        return condition()

    services.until(step, what)


def test_kills_of_the_alerter_cause_no_firing_within_the_cooldown(watched: Watched) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    feed(watched, lambda: firings(watched) >= 1, "fired")
    for _ in range(6):
        until = time.monotonic() + dice.uniform(0.0, 1.2)
        feed(watched, partial(lambda until: time.monotonic() > until, until), "a moment later")
        watched.kill_one("alerter")
        watched.start_one("alerter")
        if dice.random() < 0.7:
            watched.wait_alerter()
    watched.wait_alerter()
    count = firings(watched)
    feed(watched, lambda: firings(watched) >= count + 1, "fired again")
    assert_cooldown(events(watched))


def test_two_alerters_publish_each_event_once_even_when_one_is_killed(watched: Watched) -> None:
    watched.start_twin()
    watched.wait_alerter("twin")
    feed(watched, lambda: firings(watched) >= 1, "fired")
    watched.kill_one("alerter")
    count = firings(watched)
    feed(watched, lambda: firings(watched) >= count + 1, "the other fires on")
    watched.start_one("alerter")
    watched.wait_alerter()
    pause = time.monotonic() + 3
    watched.until(lambda: time.monotonic() > pause, "an empty second for the short window")
    watched.until(lambda: statuses(watched, "on and off")[-1:] == ["resolved"], "resolved")
    count = firings(watched)
    feed(watched, lambda: firings(watched) >= count + 1, "fired again")
    published = events(watched)
    assert_cooldown(published)
    assert {event["status"] for event in published} == {"firing", "resolved"}


async def test_an_event_never_overtakes_one_that_is_being_published() -> None:
    """The test uses the memory bus, on which the order of reads and retries is certain."""
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    for stream in subjects.streams():
        await bus.ensure(stream)
    given = {"name": "short", "metric": "span_count", "op": "gte", "threshold": 1, "window": "2s", "cooldown": "1h"}
    service = Alerter(bus, Config((parse_rule(given, "alerts[0]"),), "default"))
    stopping = asyncio.Event()
    running = asyncio.create_task(service.run(stopping))

    async def send(number: int, caller: str, kind: str) -> None:
        now = time.time_ns()
        span = make_span(caller=caller, kind=kind, ended_ns=now, arrived_ns=now)
        await bus.publish(subjects.spans("default", 0), encode_batches([make_batch(span, sequence=number)]))

    while service.health().missing:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1 - time.time() % 1)
    await send(1, "chat", "llm")
    while not service.machine.spans:
        await asyncio.sleep(0.01)
    broker.up = False
    await asyncio.sleep(5.5)
    broker.up = True
    await send(2, "elsewhere", "tool")
    while len(broker.logs[subjects.ALERTS].messages) < 2:
        await asyncio.sleep(0.01)
    stopping.set()
    await running
    published = [json.loads(message.payload) for message in broker.logs[subjects.ALERTS].messages.values()]
    assert [event["status"] for event in published] == ["firing", "resolved"]
