"""Publishing batches of 256 spans to JetStream from one process, compared with plain nats-py."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.bare.publish import bare_publish
from bench.process import fsync_note, nats
from bench.reference import BATCH
from bench.row import Budget, Measured, Plan, Runner
from bench.spans import make_batches
from tokentrace.bus import jetstream, subjects
from tokentrace.records import encode_batches

_BATCHES = 3000

PUBLISH = Plan("publish, 256-span batches, one process", "spans/s", "bare publish in turn", Budget(">=", 0.6))
PLANS = (PUBLISH,)


def run(runner: Runner) -> None:
    """Measure publishing."""
    runner.row(PUBLISH, _publish_both)


def _publish_both() -> Measured:
    payloads = [encode_batches([batch]) for batch in make_batches(50, BATCH)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        note = fsync_note(directory)
        with nats(directory) as url:
            ours, bare = asyncio.run(_measure(url, payloads))
    return Measured(ours, bare, note)


async def _measure(url: str, payloads: list[bytes]) -> tuple[float, float]:
    async with jetstream.connect(url, name="bench") as bus:
        for stream in subjects.streams():
            await bus.ensure(stream)
        await _publish(bus, payloads, 200)
        ours, bare = [], []
        for _ in range(3):
            ours.append(await _publish(bus, payloads, _BATCHES))
            bare.append(await bare_publish(url, subjects.spans("default", 0), payloads, _BATCHES))
    return max(ours) * BATCH, max(bare) * BATCH


async def _publish(bus: jetstream.JetStream, payloads: list[bytes], count: int) -> float:
    began = time.perf_counter()
    window = asyncio.Semaphore(256)

    async def one(index: int) -> None:
        async with window:
            await bus.publish(subjects.spans("default", 0), payloads[index % len(payloads)], id=f"{began}.{index}")

    await asyncio.gather(*(one(index) for index in range(count)))
    return count / (time.perf_counter() - began)
