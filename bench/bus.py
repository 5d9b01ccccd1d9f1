"""Publishing to JetStream: 256-span batches from one process, against the bare connection."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.bare.publish import bare_publish
from bench.process import fsync_ms, nats
from bench.spans import make_batches
from bench.table import Row
from tokentrace.bus import jetstream, subjects
from tokentrace.records import encode_batches

_BATCHES = 3000
_SIZE = 256


def rows() -> list[Row]:
    """Publish."""
    payloads = [encode_batches([batch]) for batch in make_batches(50, _SIZE)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sync = fsync_ms(directory)
        with nats(directory) as url:
            ours, bare = asyncio.run(_measure(url, payloads))
    return [
        Row(
            "publish, 256-span batches, one process",
            f"{ours:,.0f} spans/s (fsync {sync:.2f} ms)",
            f"bare: {ours / bare:.0%}",
            ">= 60 % of bare",
            ours >= 0.6 * bare,
        )
    ]


async def _measure(url: str, payloads: list[bytes]) -> tuple[float, float]:
    async with jetstream.connect(url, name="bench") as bus:
        for stream in subjects.streams():
            await bus.ensure(stream)
        await _publish(bus, payloads, 200)
        ours = [await _publish(bus, payloads, _BATCHES) for _ in range(3)]
        bare = [await bare_publish(url, subjects.spans("default", 0), payloads, _BATCHES) for _ in range(3)]
    return max(ours) * _SIZE, max(bare) * _SIZE


async def _publish(bus: jetstream.JetStream, payloads: list[bytes], count: int) -> float:
    began = time.perf_counter()
    window = asyncio.Semaphore(256)

    async def one(index: int) -> None:
        async with window:
            await bus.publish(subjects.spans("default", 0), payloads[index % len(payloads)], id=f"{began}.{index}")

    await asyncio.gather(*(one(index) for index in range(count)))
    return count / (time.perf_counter() - began)
