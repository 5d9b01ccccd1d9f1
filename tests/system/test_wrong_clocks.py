"""
A service whose host has a wrong clock: the rules fire as they would with right clocks.

One process runs under libfaketime, which moves its time of day and leaves its monotonic clock alone, as a wrongly set
clock does. A backtest in this process, whose clock is right, says what should have been published.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from kit.debian import preloadable
from kit.environment import PATIENCE
from kit.examples import matrix
from kit.fleet import Fleet
from kit.receiver import Receiver
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.config import load
from tokentrace.records import AlertEvent, decode_event
from tokentrace.units import MINUTE, SECOND, parse_instant
from tokentrace_alerter.backtest import backtest
from tokentrace_alerter.service import Config

T = TypeVar("T")

SERVICES = ("ingest", "aggregator", "alerter", "api")
#: Service -> offset of its clock. Over an hour, an alerter with a wrong clock would find every notification too old.
CASES = matrix(
    [
        ("alerter", "+10m"),
        ("ingest", "+10m"),
        ("api", "-10m"),
        ("alerter", "-10m"),
        ("aggregator", "+10m"),
        ("aggregator", "-10m"),
        ("ingest", "-10m"),
        ("api", "+10m"),
        ("alerter", "+2h"),
    ],
    1,
)
RULE = "metric: span_count, op: gte, threshold: 1, window: 2s, eval_interval: 1s, cooldown: 2s"
PROBE = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1, "caller": "probe"}


class Stored(NamedTuple):
    """An event of the alert stream, and when the broker stored it, Unix nanoseconds."""

    event: AlertEvent
    time_ns: int


class Story:
    """A fleet in which one service has a wrong clock, and the receiver of its alerts."""

    def __init__(self, directory: Path, wrong: str, offset: str, library: Path, receiver: Receiver) -> None:
        self.directory, self.wrong = directory, wrong
        self.fleet = Fleet(directory, SERVICES)
        faked = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        self.fleet.own_env[wrong] = faked
        delivery = f"delivery: {{type: webhook, url: '{receiver.url}', send_resolved: true}}"
        self.file = directory / "tokentrace.yml"
        self.file.write_text(
            "alerts:\n"
            f"  - {{name: probes, {RULE}, filter: {{caller: probe}}, {delivery}}}\n"
            f"  - {{name: models, {RULE}, filter: {{caller: probe}}, group_by: model}}\n"
        )
        self.receiver = receiver

    def with_bus(self, ask: Callable[[Bus], Awaitable[T]]) -> T:
        async def run() -> T:
            async with jetstream.connect(self.fleet.broker.url, name="test") as bus:
                return await ask(bus)

        return asyncio.run(run())

    def events(self, rule: str) -> list[Stored]:
        return self.with_bus(partial(_read_events, rule=rule))

    def post(self, caller: str = "probe", model: str = "gpt-4o") -> None:
        answer = self.fleet.send("api", "POST", "/spans", {**PROBE, "caller": caller, "model": model})
        assert answer.status == 202, answer.body

    def episode(self, rule: str = "probes", model: str = "gpt-4o") -> None:
        """Post a span, and wait until *rule* has fired for it and is resolved."""
        before = len(self.events(rule))
        self.post(model=model)

        def statuses() -> list[str]:
            return [stored.event.status for stored in self.events(rule)[before:]]

        self.fleet.until(lambda: "firing" in statuses(), f"{rule} fired", 30)
        self.fleet.until(lambda: statuses()[-1] == "resolved", f"{rule} resolved", 30)

    def restart(self, *, kill: bool) -> None:
        """Restart the service whose clock is wrong."""
        if kill:
            self.fleet.kill(self.wrong)
        else:
            assert self.fleet.terminate(self.wrong) == 0
        self.fleet.start_one(self.wrong)
        self.fleet.until(lambda: self.fleet.is_ready(self.wrong), f"{self.wrong} ready", 60)

    @contextlib.contextmanager
    def traffic(self) -> Iterator[None]:
        """Post spans of another caller meanwhile; those that are refused while a service restarts do not matter."""
        stopping = threading.Event()

        def post() -> None:
            while not stopping.wait(0.05):
                with contextlib.suppress(OSError):
                    self.fleet.send("api", "POST", "/spans", {**PROBE, "caller": "noise"})

        sending = threading.Thread(target=post)
        sending.start()
        try:
            yield
        finally:
            stopping.set()
            sending.join()

    def expected(self, to_ns: int) -> list[AlertEvent]:
        """Return the events of a backtest up to *to_ns*, for which only the broker's time counts."""
        return self.with_bus(partial(_backtest, config=Config.of(load(str(self.file))), to_ns=to_ns))


async def _read_events(bus: Bus, rule: str) -> list[Stored]:
    found: list[Stored] = []
    if (await bus.state(subjects.ALERTS)).last_sequence == 0:
        return found
    async with contextlib.aclosing(bus.follow(subjects.ALERTS, [subjects.alerts("default", rule)], None)) as feed:
        async for chunk in feed:
            found += [Stored(decode_event(message.payload), message.time_ns) for message in chunk.messages]
            if not chunk.pending:
                break
    return found


async def _backtest(bus: Bus, config: Config, to_ns: int) -> list[AlertEvent]:
    return [event async for event in backtest(bus, config.rules, "default", None, to_ns, shards=config.shards)]


def delivered(receiver: Receiver) -> set[tuple[str, str]]:
    return {(event["fired_at"], event["status"]) for event in (sent.json() for sent in receiver.sent)}


def told(event: AlertEvent) -> tuple[str, str, str, int, str]:
    """Return what must be equal in a run with right clocks."""
    return event.fired_at, event.status, event.starts_at, event.span_count, "".join(event.group.values())


@pytest.mark.parametrize(("wrong", "offset"), CASES, ids=lambda part: str(part))
def test_a_wrong_clock_of_one_service_changes_no_firing(tmp_path: Path, wrong: str, offset: str) -> None:
    library = preloadable("libfaketime", "faketime/libfaketime.so.1")
    with Receiver() as receiver:
        story = Story(tmp_path, wrong, offset, library, receiver)
        fleet = story.fleet
        try:
            fleet.start()
            story.episode()
            story.restart(kill=False)
            story.episode(model="o3")
            with story.traffic():
                story.restart(kill=True)
                story.episode()
            assert_rules_made_at_run_time_follow_the_broker(story)
            assert_the_last_minute_is_shown(story)
            for rule in ("probes", "models"):
                stored = story.events(rule)
                assert all(parse_instant(event.fired_at) <= time_ns for event, time_ns in stored)
                last_ns = parse_instant(stored[-1].event.fired_at)
                expected = [event for event in story.expected(last_ns + SECOND // 2) if event.alert == rule]
                assert [told(event) for event, _ in stored] == [told(event) for event in expected]
                assert sum(event.status == "resolved" for event, _ in stored) >= 3
            # A killed alerter may deliver an event twice, under the same key.
            wanted = {(event.fired_at, event.status) for event, _ in story.events("probes")}
            fleet.until(lambda: delivered(receiver) == wanted, f"{len(wanted)} delivered", 30)
            assert "Traceback" not in fleet.log.read_text()
        finally:
            codes = fleet.stop()
        assert set(codes.values()) == {0}


def assert_rules_made_at_run_time_follow_the_broker(story: Story) -> None:
    """A rule that is created, deleted and created again fires; a silence ends when it should."""
    fleet = story.fleet
    rule = {"name": "made", "metric": "span_count", "op": "gte", "threshold": 1, "window": "2s", "eval_interval": "1s"}
    rule |= {"cooldown": "2s", "filter": {"caller": "probe"}}
    assert fleet.send("api", "POST", "/alerts", rule).status == 201
    story.episode("made")
    assert fleet.send("api", "DELETE", "/alerts/made").status == 204
    assert fleet.send("api", "POST", "/alerts", rule).status == 201
    before_ns = time.time_ns()
    answer = fleet.send("api", "POST", "/alerts/made/silence", {"duration": "3s"})
    assert answer.status == 200, answer.body
    until_ns = parse_instant(answer.json()["silenced_until"])
    # The clocks of the broker and of this process are the same.
    assert before_ns - MINUTE < until_ns - 3 * SECOND < time.time_ns() + MINUTE
    fleet.until(lambda: not fleet.get("api", "/alerts/made/status").json().get("silenced_until"), "not silenced", 30)
    story.episode("made")


def assert_the_last_minute_is_shown(story: Story) -> None:
    """What has just arrived is in the window that ends now, in every view, and nothing is dated ahead."""
    story.post("fresh")
    deadline = time.monotonic() + 20 * PATIENCE
    while True:
        counted = story.fleet.get("api", "/metrics?window=1m&caller=fresh").json()["span_count"]
        traces = story.fleet.get("api", "/traces?caller=fresh&limit=1").json()["traces"]
        if counted == 1 and traces:
            break
        assert time.monotonic() < deadline, (counted, traces)
        time.sleep(0.1)
    assert abs(parse_instant(traces[0]["started_at"]) - time.time_ns()) < 5 * MINUTE
