"""``tokentrace rules backtest`` gives the live events and agrees with a recount; ``rules check`` checks a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import nats
import numpy as np
import pytest

from kit.pipeline import Pipeline, finish, replay
from tokentrace.records import AlertEvent, decode_batches
from tokentrace.units import SECOND, parse_instant, render_instant

#: How many times faster than real time the trace is replayed.
SPEED = int(os.environ.get("TOKENTRACE_BACKTEST_SPEED", "180"))
#: The window of the rules, which holds an hour of the trace, and the time between two evaluations, seconds.
WINDOW_S = 3600 // SPEED
EVERY_S = WINDOW_S // 10
THRESHOLD_MS = 9000.0
#: Largest relative error of a p95 over more than a hundred values. Values this close to the threshold are not compared.
MARGIN = 0.006
RULES = f"""
alerts:
  - {{name: slow, metric: latency_p95, op: gt, threshold: {THRESHOLD_MS}, window: {WINDOW_S}s, cooldown: 0s}}
  - {{name: once, metric: latency_p95, op: gt, threshold: {THRESHOLD_MS}, window: {WINDOW_S}s, cooldown: 10s}}
"""


class Seen(NamedTuple):
    """A span of the log: when it was stored, when it ended, and its latency."""

    stored_ns: int
    ended_ns: int
    latency_ns: int


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    (tmp_path / "tokentrace.yml").write_text(RULES)
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


async def read(pipeline: Pipeline) -> tuple[list[Seen], list[AlertEvent]]:
    """Return (all spans of the log, all events), read by a separate NATS client."""
    client = await nats.connect(pipeline.nats_url)
    try:
        stream = client.jetstream()
        spans: list[Seen] = []
        events: list[AlertEvent] = []
        for subject, name in (("tokentrace.spans.>", "TT_SPANS"), ("tokentrace.alerts.>", "TT_ALERTS")):
            last = (await stream.stream_info(name)).state.last_seq
            subscription = await stream.subscribe(subject, ordered_consumer=True)
            for _ in range(last):
                message = await subscription.next_msg(10)
                if name == "TT_ALERTS":
                    events.append(msgspec.json.decode(message.data, type=AlertEvent))
                    continue
                stored = int(message.metadata.timestamp.timestamp() * 1_000_000) * 1000
                for batch in decode_batches(message.data):
                    spans += [Seen(stored, span.ended_ns, span.latency_ns) for span in batch.spans]
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        return spans, events
    finally:
        await client.close()


def recount(spans: list[Seen], instant_s: int) -> float | None:
    """Return the p95 latency (ms) of spans in the window that were stored before the instant; None = no such span."""
    inside = [
        span.latency_ns
        for span in spans
        if instant_s - WINDOW_S <= span.ended_ns // SECOND < instant_s
        and span.stored_ns < instant_s * SECOND
        and span.latency_ns
    ]
    return float(np.percentile(inside, 95)) / 1e6 if inside else None


def test_a_backtest_equals_the_live_events_and_a_second_implementation(pipeline: Pipeline, tmp_path: Path) -> None:
    began_s = time.time_ns() // SECOND
    sending = replay(pipeline, "--speed", str(SPEED), "--ending", "sent")
    finish(sending)
    pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] == 19366, "all seen")
    spans, _ = asyncio.run(read(pipeline))
    assert len(spans) == 19366
    last_s = max(span.stored_ns for span in spans) // SECOND
    # Live evaluation continues after the traffic; only events up to the last stored span are compared.
    pipeline.until(
        lambda: all(
            rule["last_evaluated"] is not None and parse_instant(rule["last_evaluated"]) // SECOND >= last_s
            for rule in pipeline.get("/alerts").json()
        ),
        "evaluated to the end",
    )
    _, live = asyncio.run(read(pipeline))
    to = render_instant(last_s * SECOND)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tokentrace_standalone",
            "rules",
            "backtest",
            str(tmp_path / "tokentrace.yml"),
            "--nats",
            pipeline.nats_url,
            "--from",
            render_instant((began_s - 1) * SECOND),
            "--to",
            to,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    backtested = [line.split()[:3] for line in done.stdout.splitlines()[:-1]]
    live_until_last = [event for event in live if parse_instant(event.fired_at) <= last_s * SECOND]
    expected = [[event.fired_at, event.status, event.alert] for event in live_until_last]
    assert sorted(backtested) == sorted(expected)
    assert done.stdout.splitlines()[-1] == f"{len(backtested)} events"
    firing = {parse_instant(at) // SECOND for at, status, alert in backtested if alert == "slow" and status == "firing"}
    instants = range((began_s // EVERY_S + 1) * EVERY_S, last_s, EVERY_S)
    values = {instant: recount(spans, instant) for instant in instants}
    sure = {
        instant: value > THRESHOLD_MS
        for instant, value in values.items()
        if value is not None and abs(value / THRESHOLD_MS - 1) > MARGIN
    }
    assert len(sure) >= 5
    assert any(sure.values())
    assert {instant for instant in sure if sure[instant]} == firing & set(sure)
    # The cooldown of the other rule is ten seconds.
    once = [event for event in live if event.alert == "once" and event.status == "firing"]
    at = [parse_instant(event.fired_at) // SECOND for event in once]
    assert all(later - earlier >= 10 for earlier, later in pairwise(at))


def test_rules_check_checks_a_file_without_a_broker(tmp_path: Path) -> None:
    file = tmp_path / "tokentrace.yml"
    for text, code, message in (
        (RULES, 0, "2 rules are valid"),
        (RULES.replace("latency_p95", "latency_p96", 1), 2, "alerts[0].metric"),
        (RULES.replace("cooldown: 10s", "cooldown: soon"), 2, "alerts[1].cooldown"),
        (RULES.replace("cooldown: 10s", "colour: red"), 2, "colour"),
    ):
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "tokentrace_standalone", "rules", "check", str(file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert message in done.stdout + done.stderr
