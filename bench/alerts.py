"""From a span that breaks a rule to the event at a subscriber, with one rule and with a thousand more."""

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

import nats as client
from msgspec.structs import replace

from bench.process import free_port, nats, python, started
from bench.spans import make_spans
from bench.table import Row
from tokentrace import Reporter, Span

RATE = 5000
_SECONDS = 60.0
_TRIALS = 100
_TENANTS = 1000
_METRICS = ("total_cost", "latency_p95", "error_rate", "span_count", "total_tokens")
_MARK = """
  - {name: marked, metric: span_count, op: gte, threshold: 1, window: 10s, eval_interval: 1s, cooldown: 1h,
     group_by: trial, filter: {name: mark}}
"""


def rows() -> list[Row]:
    """One rule; a thousand and one."""
    many = "".join(
        f"  - {{name: tenant {n}, metric: {_METRICS[n % len(_METRICS)]}, op: gt, threshold: 1000000000, window: 1m, "
        f"filter: {{tenant: t{n}}}}}\n"
        for n in range(_TENANTS)
    )
    waits, _ = _measure("alerts:" + _MARK, 20.0)
    crowded, age_s = _measure("alerts:" + _MARK + many, _SECONDS)
    p99 = waits[int(len(waits) * 0.99) - 1]
    crowded_p99 = crowded[int(len(crowded) * 0.99) - 1]
    return [
        Row(
            f"span -> event at a subscriber, window 10s, {RATE:,} spans/s",
            f"p50 {waits[len(waits) // 2]:.2f} s, p99 {p99:.2f} s",
            "evaluated every 1 s",
            "p99 < 2 s",
            p99 < 2,
        ),
        Row(
            f"alerter with {_TENANTS:,} rules more, {RATE:,} spans/s, after {_SECONDS:.0f} s",
            f"{age_s:.2f} s behind; span -> event p99 {crowded_p99:.2f} s",
            "",
            "< 1 s behind",
            age_s < 1,
        ),
    ]


def _measure(rules: str, seconds: float) -> tuple[list[float], float]:
    """(Ascending seconds from each marked span to its event, how old the last message was that it had taken in)."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        url = stack.enter_context(nats(directory))
        (directory / "tokentrace.yml").write_text(rules)
        ports = {service: free_port() for service in ("ingest", "alerter")}
        for service, port in ports.items():
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
            words += ["--config", str(directory / "tokentrace.yml")]
            stack.enter_context(started(words, f"http://127.0.0.1:{port}/readyz"))
        sender = subprocess.Popen(python("bench.alerts", url, str(seconds + 30)))
        try:
            return asyncio.run(_watch(url, ports["alerter"], seconds))
        finally:
            sender.terminate()
            sender.wait()


async def _watch(url: str, port: int, seconds: float) -> tuple[list[float], float]:
    connection = await client.connect(url)
    heard: dict[str, float] = {}

    async def hear(message: object) -> None:
        event = json.loads(message.data)  # type: ignore[attr-defined]
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
    deadline = time.perf_counter() + 30
    while len(heard) < len(sent) and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
    reporter.close()
    await connection.close()
    return sorted(heard.get(trial, float("inf")) - at for trial, at in sent.items()), max(ages)


def _age_s(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/internal/metrics", timeout=20) as response:
        found = re.search(rb"^tokentrace_alerter_last_message_age_seconds (\S+)", response.read(), re.MULTILINE)
    return float(found.group(1)) if found else float("inf")


def _send(url: str, seconds: float) -> None:
    """Spans of a thousand tenants, at ``RATE``."""
    template = [
        replace(span, attributes={"tenant": f"t{number % _TENANTS}"}) for number, span in enumerate(make_spans(4000))
    ]
    reporter, sent, began = Reporter("bench", url), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        now = time.time_ns()
        for _ in range(int(elapsed * RATE) - sent):
            span = template[sent % len(template)]
            reporter.report(replace(span, started_ns=now - span.latency_ns, ended_ns=now))
            sent += 1
        time.sleep(0.01)


if __name__ == "__main__":
    _send(sys.argv[1], float(sys.argv[2]))
