"""An aggregator with 10 million spans over 30 days in 200 cells: its start, its memory, its answers, its snapshots."""

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
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from bench.process import free_port, nats, python, started, wait_for
from bench.table import Row
from tokentrace.bus import Position, subjects
from tokentrace.bus.jetstream import connect
from tokentrace.cell import Table
from tokentrace.machine import Saved
from tokentrace.provision import provision
from tokentrace.settings import Nats, Settings
from tokentrace.snapshots import Snapshots
from tokentrace_aggregator.machine import Shard

SPANS = int(os.environ.get("BENCH_HISTORY_SPANS", "10000000"))
_DAYS = 30
_REQUESTS = 1000
_RATE = 5000
_CELLS = [
    ("llm", f"model-{n % 10}", f"vendor-{n % 5}", f"caller-{n % 20}", f"task-{n % 40}", "ok" if n % 10 else "error")
    for n in range(200)
]


def rows() -> list[Row]:
    """Start, memory, questions, snapshots."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        url = stack.enter_context(nats(directory))
        stall = asyncio.run(_prepare(url))
        port, api = free_port(), free_port()
        words = python("tokentrace_aggregator", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
        began = time.perf_counter()
        process = stack.enter_context(started(words))
        wait_for(f"http://127.0.0.1:{port}/readyz")
        ready_s = time.perf_counter() - began
        for service, own in (("ingest", free_port()), ("api", api)):
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{own}", "--data-dir", name)
            stack.enter_context(started(words, f"http://127.0.0.1:{own}/readyz"))
        connection = http.client.HTTPConnection("127.0.0.1", api, timeout=30)
        connection.request("GET", f"/metrics/span_count?window={_DAYS}d")
        found = json.load(connection.getresponse())["value"]
        if found < SPANS:
            raise RuntimeError(f"only {found} of {SPANS} spans are there after the start")
        seconds = sorted(_ask_all(url, api))
        series = {metric: _ask_series(api, metric) for metric in ("total_cost", "latency_p95")}
        p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
        peak = _peak_mib(process.pid)
    what = f"{SPANS / 1e6:.0f} million spans over {_DAYS} days in {len(_CELLS)} cells"
    return [
        Row(f"aggregator: start to ready, {what}", f"{ready_s:.2f} s", "", "<= 5 s", ready_s <= 5),
        Row(
            f"GET /metrics, window and filter at random, {_RATE:,} spans/s",
            _ms(p50, p99),
            "",
            "p99 < 20 ms",
            p99 < 0.02,
        ),
        *(
            Row(f"GET /metrics/{metric}/series, a day in minutes by model", f"{took:.2f} s", "", "<= 1 s", took <= 1)
            for metric, took in series.items()
        ),
        Row("aggregator: most memory", f"{peak:.0f} MiB", "", "<= 512 MiB", peak <= 512),
        Row("a snapshot's stall of the loop", f"{stall * 1e3:.0f} ms", "", "<= 50 ms", stall <= 0.05),
    ]


def _ask_series(port: int, metric: str) -> float:
    """How long the longest of five takes, seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    path = f"/metrics/{metric}/series?window=24h&step=1m&groupby=model"
    return max(_seconds_of(connection, path) for _ in range(5))


def _seconds_of(connection: http.client.HTTPConnection, path: str) -> float:
    """How long a whole answer takes."""
    began = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    took = time.perf_counter() - began
    if answer.status != 200 or "incomplete" in json.loads(body):
        raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
    return took


def _ms(p50: float, p99: float) -> str:
    return f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def _prepare(url: str) -> float:
    """Fold the history, save it as an aggregator would; returns how long the loop was held while it was saved."""
    settings = Settings(nats=Nats(url=url))
    async with connect(url, name="bench") as bus:
        await provision(bus, settings)
        state = await bus.state(subjects.SPANS)
        shard = Shard(0, 1)
        for rows_ in _history(shard._table, int(time.time())):
            shard._rollup.fold(rows_)
            shard.spans += len(rows_)
        shard._position = Position(state.created_ns, state.last_sequence)
        snapshots = Snapshots(bus, "aggregator", 0)
        await snapshots.save(shard.snapshot({}))
        # What an aggregator does every minute: a few seconds of new spans, then the next snapshot.
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

        # As process.run does: what lives long is no work for the collector.
        gc.collect()
        gc.freeze()
        beat = asyncio.create_task(heartbeat())
        await asyncio.sleep(0.1)
        worst = 0.0
        saved: Saved = shard.snapshot(snapshots.revisions)
        await snapshots.save(saved)
        beat.cancel()
        return worst


def _history(table: Table, now_s: int, *, spans: int = SPANS, days: float = _DAYS) -> Iterator[np.ndarray]:
    """Rows as ``cell.rows_of`` makes them, in order of event time; of Python spans it would take minutes."""
    dice = np.random.default_rng(1)
    numbers = np.array([table.number(cell) for cell in _CELLS])
    step, first = 250_000, now_s - int(days * 86400)
    for done in range(0, spans, step):
        count = min(step, spans - done)
        rows_ = np.zeros((count, 17), np.int64)
        which = dice.integers(0, len(numbers), count)
        seconds = first + ((done + np.arange(count)) * (days * 86400) / spans).astype(np.int64)
        prompt, completion = dice.integers(20, 6000, count), dice.integers(5, 800, count)
        latency = (dice.lognormal(0.2, 0.6, count) * 1e9).astype(np.int64)
        rows_[:, 0], rows_[:, 1], rows_[:, 2] = numbers[which], seconds, seconds
        rows_[:, 3] = prompt * 2500 + completion * 10000
        rows_[:, 5], rows_[:, 6], rows_[:, 7] = prompt, completion, prompt + completion
        rows_[:, 12] = latency
        rows_[:, 13] = np.where(dice.random(count) < 0.5, latency // 5, 0)
        rows_[:, 14] = np.where(dice.random(count) < 0.1, dice.integers(0, 101, count) * 10_000_000, -1)
        rows_[:, 15] = latency
        rows_[:, 16] = np.array([cell[5] == "error" for cell in _CELLS])[which]
        yield rows_


def _ask_all(url: str, port: int) -> list[float]:
    """What each question took, while spans keep coming."""
    sender = subprocess.Popen(
        python("bench.sender", url, str(_RATE), "3600", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(3)
        dice, took = random.Random(1), []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(_REQUESTS):
            given = {"window": f"{dice.choice([dice.randrange(1, 3600), dice.randrange(3600, _DAYS * 86400)])}s"}
            for key, values in (("model", 10), ("provider", 5), ("caller", 20), ("name", 40)):
                if dice.random() < 0.25:
                    prefix = {"provider": "vendor", "name": "task"}.get(key, key)
                    given[key] = f"{prefix}-{dice.randrange(values)}"
            if dice.random() < 0.1:
                given["status"] = dice.choice(["ok", "error"])
            took.append(_seconds_of(connection, f"/metrics?{urlencode(given)}"))
            time.sleep(0.01)
        return took
    finally:
        sender.terminate()
        sender.wait()
