"""
A receiver that is away, then asks to wait, then accepts: every instance is told its firing before its end.

And a receiver that is slow while the pipeline is stopped: it is told once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.examples import WHOLE
from kit.pipeline import Pipeline, free_port
from kit.receiver import CALL, Receiver, Reply, Sent, events, make_rule, read
from kit.twins import Twins, undone
from tokentrace.bus import subjects

pytestmark = pytest.mark.story

#: How long nothing listens on the receiver's port, seconds.
AWAY_S = 60.0 if WHOLE else 5.0
#: How long the receiver then answers 429 or 503, seconds after the first request.
BUSY_S = 5.0 if WHOLE else 2.0
RULES = """
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
    delivery: {{type: http, url: "http://127.0.0.1:{port}/each", timeout: 2s, send_resolved: true}}
"""


class BusyAtFirst:
    """The answers of a receiver that asks to wait for a while, and notes which requests it accepted."""

    def __init__(self) -> None:
        self._until = 0.0
        self.accepted: list[Sent] = []
        self.refused = 0

    def __call__(self, sent: Sent) -> Reply:
        self._until = self._until or time.monotonic() + BUSY_S
        if time.monotonic() < self._until:
            self.refused += 1
            return Reply(429 if self.refused % 2 else 503, {"Retry-After": "1"})
        self.accepted.append(sent)
        return Reply()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def twins(tmp_path: Path, port: int) -> Iterator[Twins]:
    (tmp_path / "tokentrace.yml").write_text(RULES.format(port=port))
    services = Twins(tmp_path)
    try:
        services.start()
        yield services
    finally:
        services.stop()


@pytest.mark.parametrize("killed", [False, True], ids=["both live", "one is killed"])
def test_every_instance_is_told_its_firing_before_its_end_and_nothing_is_lost(
    twins: Twins, port: int, killed: bool
) -> None:
    began = time.monotonic()
    expected = twins.send_each_second("each", seconds=3, each=15)
    twins.until(lambda: len(events(twins, "each", "resolved")) >= len(expected), "resolved", 20)
    if killed:
        victim = random.choice(Twins.TWINS)
        twins.kill_one(victim)
        twins.start_twin(victim)
        twins.wait_twin(victim)
    time.sleep(max(began + AWAY_S - time.monotonic(), 0))
    answers = BusyAtFirst()
    with Receiver(answers, port=port) as receiver:
        twins.until(lambda: undone(twins) == 0, "done with every event", 180)

    cases = {case for case, _ in expected}
    told: dict[str, list[str]] = {case: [] for case in cases}
    for sent in answers.accepted:
        body = sent.json()
        told[body["group"]["case"]].append(body["status"])
    assert {case for case, statuses in told.items() if statuses != sorted(statuses)} == set(), "the end came first"
    assert {case for case, statuses in told.items() if set(statuses) != {"firing", "resolved"}} == set(), "lost"
    # A killed alerter cannot record the outcome of its attempt, so only then is an attempt repeated.
    if not killed:
        assert len(answers.accepted) == 2 * len(expected)
    tried = [(sent.json()["group"]["case"], sent.json()["status"]) for sent in receiver.sent]
    for case in cases:
        statuses = [status for other, status in tried if other == case]
        assert statuses == sorted(statuses), f"{case}: an attempt at the end came before one at the firing"
    records = read(twins, subjects.DELIVERIES, "each")
    assert {record["outcome"] for record in records} == {"retry", "delivered"}
    assert answers.refused > 0
    assert {record["retry_after_s"] for record in records if record["error"].startswith("HTTP")} == {1.0}


def test_sigterm_waits_for_the_delivery_under_way_so_the_event_is_not_sent_again(tmp_path: Path) -> None:
    with Receiver(lambda sent: Reply(after_s=3.0)) as receiver:
        serving = Pipeline(tmp_path)
        try:
            serving.start()
            delivery = {"type": "http", "url": receiver.url, "timeout": "30s"}
            assert serving.post("/alerts", make_rule("slow", delivery, eval_interval="1s")).status == 201
            assert serving.post("/spans", [CALL]).status == 202
            serving.until(lambda: receiver.at_once == 1, "under way")
            assert serving.stop() == 0
            assert receiver.at_once == 0, "the answer has arrived"
            serving.start()
            # The event that is sent after the restart would come before this one.
            assert serving.post("/alerts", make_rule("later", delivery, eval_interval="1s")).status == 201
            serving.until(lambda: read(serving, subjects.DELIVERIES, "later") != [], "delivered")
            (record,) = read(serving, subjects.DELIVERIES, "slow")
        finally:
            serving.stop()
    assert record["outcome"] == "delivered"
    assert [sent.json()["alert"] for sent in receiver.sent] == ["slow", "later"]
    assert "Traceback" not in serving.log.read_text()
