"""An aggregator with 10 million spans over 30 days in 200 series: start, memory, query times and snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from bench.process import WAIT_S, ask, free_port, nats, python, started, wait_for
from bench.reference import LOOP, ROUTE, at_most
from bench.row import Budget, Failed, Measured, Plan, Runner
from bench.table import quantity
from tokentrace.bus import subjects
from tokentrace.bus.jetstream.client import connect
from tokentrace.config import Nats, Settings
from tokentrace.records import Position
from tokentrace.rollup import SeriesTable
from tokentrace.rollup import rows as columns
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.snapshots import Snapshots
from tokentrace.state import Saved
from tokentrace_aggregator.shard import Shard

SPANS = int(os.environ.get("BENCH_HISTORY_SPANS", "10000000"))
_DAYS = 30
_REQUESTS = 1000
#: Spans per second to offer on the machine the budgets were set on.
_RATE = 5000
#: Seconds for which a request is repeated while its response is an error or incomplete.
_ANSWER_S = 30.0
#: The dimensions of each series.
_COMBINATIONS = [
    ("llm", f"model-{n % 10}", f"vendor-{n % 5}", f"caller-{n % 20}", f"task-{n % 40}", "ok" if n % 10 else "error")
    for n in range(200)
]


_SERIES_METRICS = ("total_cost", "latency_p95")
_SERIES_TRIES = 5

STALL = Plan("the longest stall of the loop while a snapshot is saved", "s", LOOP, at_most(0.05, LOOP))
START = Plan(f"start to ready, {SPANS / 1e6:g} million spans", "s", LOOP, at_most(5.0, LOOP))
METRICS = Plan("GET /metrics, window and filter at random, p99", "s", ROUTE, at_most(0.02, ROUTE))
SERIES = tuple(
    Plan(f"GET /metrics/{metric}/series, a day in minutes by model", "s", LOOP, at_most(1.0, LOOP))
    for metric in _SERIES_METRICS
)
MEMORY = Plan("most memory of the aggregator", "MiB", "", Budget("<=", 512.0))
PLANS = (STALL, START, METRICS, *SERIES, MEMORY)


def run(runner: Runner) -> None:
    """Measure the snapshot, the start, the requests and the memory."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        url = stack.enter_context(nats(Path(name)))
        # Not inside a row: if this fails, all other rows must fail too, because they need the saved history.
        stall_s = asyncio.run(_prepare(url))
        runner.row(STALL, lambda: Measured(stall_s))
        port, api = free_port(), free_port()
        words = python("tokentrace_aggregator", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
        began = time.perf_counter()
        process = stack.enter_context(started(words))
        wait_for(f"http://127.0.0.1:{port}/readyz", process)
        ready_s = time.perf_counter() - began
        for service, own in (("ingest", free_port()), ("api", api)):
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{own}", "--data-dir", name)
            stack.enter_context(started(words, f"http://127.0.0.1:{own}/readyz"))
        _wait_for_history(api)
        runner.row(START, lambda: Measured(ready_s, note=f"{_DAYS} days in {len(_COMBINATIONS)} series"))
        runner.row(METRICS, lambda: _ask_all(url, api, runner.offered(_RATE)))
        for plan, metric in zip(SERIES, _SERIES_METRICS, strict=True):
            runner.row(plan, partial(_ask_series, api, metric))
        runner.row(MEMORY, lambda: Measured(peak_mib(process.pid)))


def _wait_for_history(port: int) -> None:
    deadline, counted = time.monotonic() + WAIT_S, -1
    while counted < SPANS:
        if time.monotonic() > deadline:
            raise Failed(f"only {counted:,} of {SPANS:,} spans are counted {WAIT_S:.0f} s after the start")
        counted = ask(f"http://127.0.0.1:{port}/metrics/span_count?window={_DAYS}d")["value"] or 0
        time.sleep(0.1)


def _ask_series(port: int, metric: str) -> Measured:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    path = f"/metrics/{metric}/series?window=24h&step=1m&groupby=model"
    took = [_seconds_of(connection, path) for _ in range(_SERIES_TRIES)]
    late = sum(tries - 1 for _, tries in took)
    return Measured(max(seconds for seconds, _ in took), note=f"the longest of {_SERIES_TRIES}{_again(late)}")


def _again(late: int) -> str:
    return f"; {late} requests repeated, because the response was an error or incomplete" if late else ""


def _seconds_of(connection: http.client.HTTPConnection, path: str) -> tuple[float, int]:
    """
    Request *path* until the response is complete; return (seconds taken, number of requests).

    Raises:
        Failed: There is no complete response after ``_ANSWER_S``.
    """
    began, tries = time.perf_counter(), 0
    while True:
        tries += 1
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - began
        if answer.status == 200 and "incomplete" not in json.loads(body):
            return took, tries
        if took > _ANSWER_S:
            raise Failed(f"{path}: no complete response after {took:.0f} s: {answer.status} {body[:200]!r}")
        time.sleep(0.05)


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def _prepare(url: str) -> float:
    """Fold and save the history as an aggregator does; return the longest stall of the loop during a save, seconds."""
    settings = Settings(nats=Nats(url=url))
    async with connect(url, name="bench") as bus:
        await bootstrap(bus, settings)
        state = await bus.state(subjects.SPANS)
        shard = Shard(0, 1)
        for rows_ in _history(shard._table, int(time.time())):
            shard._rollup.fold(rows_)
            shard.spans += len(rows_)
        shard._position = Position(state.created_ns, state.last_sequence)
        snapshots = Snapshots(bus, "aggregator", 0)
        await snapshots.save(shard.snapshot({}))
        # Measure the next snapshot, for which an aggregator has only a few new spans to save.
        for rows_ in _history(shard._table, int(time.time()), spans=_RATE * 10, days=10 / 86400):
            shard._rollup.fold(rows_)
        worst = 0.0

        async def heartbeat() -> None:
            nonlocal worst
            last = time.perf_counter()
            while True:
                await asyncio.sleep(0)
                now = time.perf_counter()
                worst, last = max(worst, now - last), now

        # As in a service (service.runtime): exclude long-lived objects from garbage collection.
        gc.collect()
        gc.freeze()
        beat = asyncio.create_task(heartbeat())
        await asyncio.sleep(0.1)
        worst = 0.0
        saved: Saved = shard.snapshot(snapshots.revisions)
        await snapshots.save(saved)
        beat.cancel()
        return worst


def _history(table: SeriesTable, now_s: int, *, spans: int = SPANS, days: float = _DAYS) -> Iterator[np.ndarray]:
    """Yield rows like those of ``rollup.rows_of``, in order of event time; making spans first would take minutes."""
    dice = np.random.default_rng(1)
    numbers = np.array([table.number(key) for key in _COMBINATIONS])
    step, first = 250_000, now_s - int(days * 86400)
    for done in range(0, spans, step):
        count = min(step, spans - done)
        rows_ = np.zeros((count, columns.REASON + 1), np.int64)
        which = dice.integers(0, len(numbers), count)
        seconds = first + ((done + np.arange(count)) * (days * 86400) / spans).astype(np.int64)
        prompt, completion = dice.integers(20, 6000, count), dice.integers(5, 800, count)
        latency = (dice.lognormal(0.2, 0.6, count) * 1e9).astype(np.int64)
        rows_[:, columns.SERIES] = numbers[which]
        rows_[:, columns.SECOND_OF] = rows_[:, columns.ARRIVED] = seconds
        rows_[:, columns.COST] = prompt * 2500 + completion * 10000
        rows_[:, columns.PROMPT], rows_[:, columns.COMPLETION] = prompt, completion
        rows_[:, columns.TOTAL] = prompt + completion
        rows_[:, columns.LATENCY] = rows_[:, columns.WALL] = latency
        rows_[:, columns.TTFT] = np.where(dice.random(count) < 0.5, latency // 5, 0)
        scores = dice.integers(0, 101, count) * 10_000_000
        rows_[:, columns.SCORE] = np.where(dice.random(count) < 0.1, scores, columns.NO_VALUE)
        rows_[:, columns.STATUS] = np.array([key[5] == "error" for key in _COMBINATIONS])[which]
        yield rows_


def _ask_all(url: str, port: int, rate: int) -> Measured:
    """Return the 99th percentile of the request times, while *rate* spans per second arrive."""
    sender = subprocess.Popen(
        python("bench.sender", url, str(rate), "3600", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(3)
        dice, took, late = random.Random(1), [], 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(_REQUESTS):
            given = {"window": f"{dice.choice([dice.randrange(1, 3600), dice.randrange(3600, _DAYS * 86400)])}s"}
            for key, values in (("model", 10), ("provider", 5), ("caller", 20), ("name", 40)):
                if dice.random() < 0.25:
                    prefix = {"provider": "vendor", "name": "task"}.get(key, key)
                    given[key] = f"{prefix}-{dice.randrange(values)}"
            if dice.random() < 0.1:
                given["status"] = dice.choice(["ok", "error"])
            seconds, tries = _seconds_of(connection, f"/metrics?{urlencode(given)}")
            took.append(seconds)
            late += tries - 1
            time.sleep(0.01)
    finally:
        sender.terminate()
        sender.wait()
    took.sort()
    note = f"{rate:,} spans/s offered; p50 {quantity(took[len(took) // 2], 's')}{_again(late)}"
    return Measured(took[int(len(took) * 0.99)], note=note)
