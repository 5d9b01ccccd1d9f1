"""Alerts: time from a span to the event of its rule, and how far the alerter is behind with 1,000 more rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import nats as client
from msgspec.structs import replace

from bench.process import free_port, fsync_note, nats, python, started
from bench.reference import LOOP, at_most
from bench.row import Failed, Measured, Plan, Runner
from bench.spans import make_spans, new_call
from bench.table import quantity
from tokentrace import Reporter
from tokentrace.records import Span

#: Spans per second to offer on the machine the budgets were set on.
_RATE = 5000
_SECONDS = 60.0
_TRIALS = 100
_TENANTS = 1000
_METRICS = ("total_cost", "latency_p95", "error_rate", "span_count", "total_tokens")
_MARK = """
  - {name: marked, metric: span_count, op: gte, threshold: 1, window: 10s, eval_interval: 1s, cooldown: 1h,
     group_by: trial, filter: {name: mark}}
"""


#: Seconds to wait for events after the last span.
_WAIT_S = 60.0
#: Waits of the design: a reporter holds a batch for up to 0.2 s, and the rule is evaluated once a second.
_HELD_S, _INTERVAL_S = 0.2, 1.0

EVENT = Plan("span -> event at a subscriber, p99", "s", LOOP, at_most(2.0, LOOP, waits_s=_HELD_S + _INTERVAL_S))
BEHIND = Plan(f"alerter behind, {_TENANTS:,} rules more", "s", LOOP, at_most(1.0, LOOP, waits_s=_HELD_S))
PLANS = (EVENT, BEHIND)


def run(runner: Runner) -> None:
    """Measure with one rule, then with 1,000 more."""
    many = "".join(
        f"  - {{name: tenant {n}, metric: {_METRICS[n % len(_METRICS)]}, op: gt, threshold: 1000000000, window: 1m, "
        f"filter: {{tenant: t{n}}}}}\n"
        for n in range(_TENANTS)
    )

    def event() -> Measured:
        waits, _, note = _measure("alerts:" + _MARK, 20.0, rate)
        return Measured(_p99(waits), note=f"{note}; p50 {quantity(waits[len(waits) // 2], 's')}")

    def behind() -> Measured:
        waits, age_s, note = _measure("alerts:" + _MARK + many, _SECONDS, rate)
        return Measured(age_s, note=f"{note}, after {_SECONDS:.0f} s; span -> event p99 {quantity(_p99(waits), 's')}")

    rate = runner.offered(_RATE)
    runner.row(EVENT, event)
    runner.row(BEHIND, behind)


def _p99(ascending: list[float]) -> float:
    return ascending[int(len(ascending) * 0.99) - 1]


def _measure(rules: str, seconds: float, rate: int) -> tuple[list[float], float, str]:
    """
    Run the services under load and report marked spans.

    Returns:
        (Seconds from each marked span to its event, ascending; largest age in seconds of the last message that the
        alerter has folded, in the last tenth of the time; a note).

    Raises:
        Failed: A service does not start, a marked span has no event, or the alerter does not tell the age.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        note = f"{rate:,} spans/s offered, {fsync_note(directory)}"
        url = stack.enter_context(nats(directory))
        (directory / "tokentrace.yml").write_text(rules)
        ports = {service: free_port() for service in ("ingest", "alerter")}
        for service, port in ports.items():
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
            words += ["--config", str(directory / "tokentrace.yml")]
            stack.enter_context(started(words, f"http://127.0.0.1:{port}/readyz"))
        sender = subprocess.Popen(python("bench.alerts", url, str(seconds + _WAIT_S), str(rate)))
        try:
            waits, age_s = asyncio.run(_watch(url, ports["alerter"], seconds))
            return waits, age_s, note
        finally:
            sender.terminate()
            sender.wait()


async def _watch(url: str, port: int, seconds: float) -> tuple[list[float], float]:
    connection = await client.connect(url)
    heard: dict[str, float] = {}

    async def hear(message: Any) -> None:
        event = json.loads(message.data)
        if event["alert"] == "marked" and event["status"] == "firing":
            heard.setdefault(event["group"]["trial"], time.perf_counter())

    await connection.subscribe("tokentrace.alerts.>", cb=hear)
    reporter, dice = Reporter("marks", url), random.Random(1)
    began = time.perf_counter()
    sent: dict[str, float] = {}
    ages = []
    for number in range(_TRIALS):
        due = began + seconds * (number + dice.random()) / _TRIALS
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        trial = f"trial-{number}"
        sent[trial] = time.perf_counter()
        reporter.report(
            Span(name="mark", model="gpt-4o", prompt_tokens=1, completion_tokens=1, attributes={"trial": trial})
        )
        if number >= _TRIALS * 9 // 10:
            ages.append(await asyncio.to_thread(_age_s, port))
    deadline = time.perf_counter() + _WAIT_S
    while len(heard) < len(sent) and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
    reporter.close()
    await connection.close()
    if len(heard) < len(sent):
        raise Failed(f"{len(sent) - len(heard)} of {len(sent)} marked spans had no event after {_WAIT_S:.0f} s")
    return sorted(heard[trial] - at for trial, at in sent.items()), max(ages)


def _age_s(port: int) -> float:
    """
    Return the age of the last message that the alerter has folded, seconds.

    Raises:
        Failed: The alerter does not answer, or its metrics do not contain the age.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/internal/metrics", timeout=_WAIT_S) as response:
            match = re.search(rb"^tokentrace_alerter_last_message_age_seconds (\S+)", response.read(), re.MULTILINE)
    except OSError as exc:
        raise Failed(f"the alerter does not show its metrics: {exc}") from exc
    if not match:
        raise Failed("the alerter's metrics have no tokentrace_alerter_last_message_age_seconds")
    return float(match.group(1))


def _send(url: str, seconds: float, rate: float) -> None:
    """Report spans of 1,000 tenants for *seconds*, *rate* spans per second."""
    template = [
        replace(span, attributes={"tenant": f"t{number % _TENANTS}"}) for number, span in enumerate(make_spans(4000))
    ]
    reporter, sent, began = Reporter("bench", url), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        now = time.time_ns()
        for _ in range(int(elapsed * rate) - sent):
            span = new_call(template[sent % len(template)], sent, now)
            reporter.report(span)
            sent += 1
        time.sleep(0.01)


if __name__ == "__main__":
    _send(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
