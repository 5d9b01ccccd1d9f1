"""
References: work that is measured in the same run, so that budgets of speed can be ratios to it.

A budget was stated as an absolute figure for one machine: two cores on which decoding a span took 0.65 µs,
one process published 1,000,000 spans per second and an fsync took 0.15 ms.
``at_most`` and ``at_least`` divide the figure by the value of the reference on that machine (``Reference.set_on``), so
that the budget is equal to the figure there. A ``set_on`` that is marked as estimated was measured on another machine
and multiplied by the ratio of the decoding times of the two machines.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from bench.bare.duck import bare_append, bare_scan
from bench.bare.publish import bare_publish
from bench.load import get, request_rate
from bench.process import fsync_s, nats
from bench.row import Budget, Measured, Plan, Reference, Runner
from bench.spans import make_batches
from bench.table import number, quantity, seconds_per_call
from tokentrace.bus import jetstream, subjects
from tokentrace.records import decode_batches, encode_batches

BATCH = 256
_LOOPS = 5_000


def _loop() -> float:
    def work() -> None:
        counts: dict[int, int] = {}
        for n in range(_LOOPS):
            key = n * 31 & 1023
            counts[key] = counts.get(key, 0) + n

    # The median, not the best, because other work on the machine slows down the rows too.
    took = sorted(seconds_per_call(work, at_least_s=0.0, tries=1) for _ in range(500))
    return took[len(took) // 2]


def _decode() -> float:
    payloads = [encode_batches([batch]) for batch in make_batches(40, BATCH)]

    def work() -> None:
        for payload in payloads:
            decode_batches(payload)

    return seconds_per_call(work, at_least_s=1.0, tries=50) / (BATCH * len(payloads))


def _publish() -> float:
    payloads = [encode_batches([batch]) for batch in make_batches(50, BATCH)]

    async def measure(url: str) -> float:
        async with jetstream.connect(url, name="bench") as bus:
            for stream in subjects.streams():
                await bus.ensure(stream)
        subject = subjects.spans("default", 0)
        return max([await bare_publish(url, subject, payloads, 2000) for _ in range(3)]) * BATCH

    with tempfile.TemporaryDirectory() as name, nats(Path(name)) as url:
        return asyncio.run(measure(url))


def _route() -> float:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        return 1 / max(request_rate(directory / f"{n}", get(directory), 8, bare=True) for n in range(2))


def _append() -> float:
    with tempfile.TemporaryDirectory() as name:
        return bare_append(Path(name), 64 * BATCH, 12)


def _scan() -> float:
    with tempfile.TemporaryDirectory() as name:
        return bare_scan(Path(name), 10_000_000, 15)


def _fsync() -> float:
    with tempfile.TemporaryDirectory() as name:
        return fsync_s(Path(name))


#: The speed of the machine for Python code, without code of tokentrace. Offered rates scale with it. ``set_on`` is
#: estimated.
LOOP = Reference("loop of pure Python", "s", 385e-6, _loop, again=True)
DECODE = Reference("decode of a span", "s", 0.65e-6, _decode, again=True)
FSYNC = Reference("fsync of 512 bytes", "s", 0.15e-3, _fsync, again=True)
PUBLISH = Reference("bare publish", "spans/s", 1_000_000, _publish)
#: ``set_on`` is estimated.
ROUTE = Reference("bare GET", "s", 34e-6, _route)
#: ``set_on`` is estimated.
APPEND = Reference("bare append", "rows/s", 405_000, _append)
#: A scan of ten million rows. ``set_on`` is estimated.
SCAN = Reference("bare scan", "s", 15e-3, _scan)

_ALL = (LOOP, DECODE, FSYNC, PUBLISH, ROUTE, APPEND, SCAN)
PLANS = tuple(Plan(reference.name, reference.unit) for reference in _ALL)


def at_most(figure: float, reference: Reference, *, waits_s: float = 0.0) -> Budget:
    """Return a budget of *figure* seconds on the machine the budgets were set on; *waits_s* of them are fixed waits."""
    return Budget("<=", (figure - waits_s) / reference.set_on, waits_s)


def at_least(figure: float, reference: Reference) -> Budget:
    """Return a budget of a rate of at least *figure* on the machine the budgets were set on."""
    return Budget(">=", figure / reference.set_on)


def run(runner: Runner) -> None:
    """Measure all references; their notes compare this machine with the one the budgets were set on."""
    for plan, reference in zip(PLANS, _ALL, strict=True):

        def measure(reference: Reference = reference) -> Measured:
            value = runner.limit(reference).value
            there = f"{quantity(reference.set_on, reference.unit)} on the machine the budgets were set on"
            return Measured(value, note=f"{there}: {number(value / reference.set_on)} ×")

        runner.row(plan, measure)
