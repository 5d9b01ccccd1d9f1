"""A flood of different models, providers, callers and reporters: request times, memory, and money by known models."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.history import peak_mib
from bench.process import WAIT_S, ask, free_port, nats, python, started
from bench.reference import LOOP, at_most
from bench.row import Budget, Failed, Measured, Plan, Runner
from bench.table import quantity
from tokentrace.bus import jetstream, subjects
from tokentrace.bus.contract import Bus
from tokentrace.config import Nats, Settings
from tokentrace.dedup import identities_of
from tokentrace.records import Batch, ReporterStats, Span, encode_batches
from tokentrace.service.bootstrap import bootstrap
from tokentrace.units import SECOND

#: Reporters, each of which sends one batch with one span.
REPORTERS = int(os.environ.get("BENCH_CARDINALITY_REPORTERS", "1000000"))
_MODELS, _PROVIDERS, _CALLERS = 20_000, 20_000, 50_000
#: Known models have every tenth span.
_KNOWN, _EVERY = 50, 10
_COST_NUSD = 1_000
_BATCHES_IN_A_MESSAGE = 500
_TRIES = 20

#: Name of the row -> path.
_ASKED = {
    "GET /health": "/health",
    "GET /stats": "/stats",
    "GET /metrics": "/metrics",
    "GET /metrics by model": "/metrics?groupby=model",
    "the scrape": "/metrics/prometheus",
}
TIMES = {name: Plan(f"{name}, the longest", "s", LOOP, at_most(0.3, LOOP)) for name in _ASKED}
MEMORY = Plan("most memory of the aggregator", "MiB", "", Budget("<=", 512.0))
WRONG = Plan("known models with wrong costs", "models", "", Budget("<=", 0.0))
PLANS = (*TIMES.values(), WRONG, MEMORY)


def run(runner: Runner) -> None:
    """Measure the requests, the costs by known models and the memory after the flood."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        url = stack.enter_context(nats(Path(name)))
        asyncio.run(_prepare(url))
        ports = {service: free_port() for service in ("ingest", "aggregator", "alerter", "api")}
        pids = {}
        for service, port in ports.items():
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
            pids[service] = stack.enter_context(started(words, f"http://127.0.0.1:{port}/healthz")).pid
        port = ports["api"]
        _wait_for_all(port)
        note = f"{REPORTERS:,} reporters, {_MODELS:,} models, {_PROVIDERS:,} providers, {_CALLERS:,} callers"
        for what, path in _ASKED.items():
            runner.row(TIMES[what], partial(_ask, port, path, note))
        runner.row(WRONG, partial(_wrong, port))
        runner.row(MEMORY, lambda: Measured(peak_mib(pids["aggregator"]), note=f"api {peak_mib(pids['api']):.0f} MiB"))


async def _prepare(url: str) -> None:
    """Publish the flood to the log, as ingest does."""
    settings = Settings(nats=Nats(url=url))
    async with jetstream.connect(url, name="bench") as bus:
        await bootstrap(bus, settings)
        for first in range(0, REPORTERS, _BATCHES_IN_A_MESSAGE):
            await _publish(bus, range(first, min(first + _BATCHES_IN_A_MESSAGE, REPORTERS)))


async def _publish(bus: Bus, numbers: range) -> None:
    now_ns = time.time_ns()
    batches = []
    for number in numbers:
        span = _span(number, now_ns)
        batches.append(
            Batch(
                id=f"default.web.{number:032x}",
                sequence=1,
                arrived_ns=now_ns,
                source="web",
                spans=[span],
                reporter=ReporterStats(queue_depth=1),
                layout=1,
                identities=identities_of([span], "default"),
            )
        )
    await bus.publish(subjects.spans("default", 0), encode_batches(batches))


def _span(number: int, now_ns: int) -> Span:
    known = number % _EVERY == 0
    return Span(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        kind="llm",
        name=f"task-{number % 40}",
        model=f"known-{number // _EVERY % _KNOWN}" if known else f"model-{number % _MODELS}",
        provider=f"vendor-{number % 5}" if known else f"provider-{number * 7919 % _PROVIDERS}",
        caller=f"team-{number % 20}" if known else f"caller-{number * 104_729 % _CALLERS}",
        status="ok",
        started_ns=now_ns - SECOND,
        ended_ns=now_ns,
        arrived_ns=now_ns,
        latency_ns=SECOND,
        prompt_tokens=100,
        completion_tokens=10,
        total_tokens=110,
        cost_nusd=_COST_NUSD + number % 7,
        cost_source="reported",
    )


def _wait_for_all(port: int) -> None:
    deadline = time.monotonic() + 5 * WAIT_S
    while True:
        counted, stored = ask(f"http://127.0.0.1:{port}/stats")["total_spans"], 0
        if counted == REPORTERS:
            stored = ask(f"http://127.0.0.1:{port}/health")["stored_spans"]
        if stored == REPORTERS:
            return
        if time.monotonic() > deadline:
            raise Failed(f"{counted:,} spans counted and {stored:,} stored of {REPORTERS:,}")
        time.sleep(0.5)


def _ask(port: int, path: str, note: str) -> Measured:
    connection, took, size = http.client.HTTPConnection("127.0.0.1", port, timeout=60), [], 0
    for _ in range(_TRIES):
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 200:
            raise Failed(f"GET {path}: {answer.status} {body[:200]!r}")
        size = len(body)
    middle = quantity(sorted(took)[_TRIES // 2], "s")
    return Measured(max(took), note=f"of {_TRIES}; median {middle}, {size:,} bytes; {note}")


def _wrong(port: int) -> Measured:
    expected: dict[str, int] = {}
    for number in range(0, REPORTERS, _EVERY):
        model = f"known-{number // _EVERY % _KNOWN}"
        expected[model] = expected.get(model, 0) + _COST_NUSD + number % 7
    shown = ask(f"http://127.0.0.1:{port}/metrics?window=24h")["cost"]["by_model"]
    wrong = [model for model, nusd in expected.items() if round(shown.get(model, -1) * SECOND) != nusd]
    return Measured(len(wrong), note=f"{len(expected)} known models, {len(shown)} shown")
