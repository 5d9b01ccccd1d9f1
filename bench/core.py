"""Work that needs no broker: folding spans, ``Reporter.report()`` and importing tokentrace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from bench.reference import BATCH, DECODE, at_most
from bench.row import Budget, Measured, Plan, Runner
from bench.spans import make_batches, make_spans
from bench.table import seconds_per_call
from tokentrace import Reporter
from tokentrace.bus import Message
from tokentrace.dedup import IDENTITY, TOTAL_CALLS, CallMemory
from tokentrace.records import decode_batches, encode_batches
from tokentrace_aggregator.shard import Shard

_BATCHES = 400
_IMPORTS = 7
_OURS, _BARE = "from tokentrace import Reporter", "import msgspec, nats"
_IMPORT = """
import time; began = time.perf_counter()
{statement}
took = time.perf_counter() - began
import json, os, pathlib, sys
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
print(json.dumps([took, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(sys.modules)]))
"""

FOLD = Plan("fold a span of a batch, decode included", "s", "decode in turn", Budget("<=", 5.5))
CALLS = Plan("remember a call, in batches of 256", "s", DECODE, Budget("<=", 2.0))
CALLS_SIZE = Plan("memory of 1,048,576 calls", "MiB", budget=Budget("<=", 48.0))
REPORT = Plan("report() on the caller's thread", "s", DECODE, at_most(5e-6, DECODE))
IMPORT = Plan("from tokentrace import Reporter", "s", "import msgspec, nats", Budget("<=", 2.0))
SIZE = Plan("memory after from tokentrace import Reporter", "MiB", "after import msgspec, nats", Budget("<=", 1.25))
PLANS = (FOLD, CALLS, CALLS_SIZE, REPORT, IMPORT, SIZE)


def run(runner: Runner) -> None:
    """Measure folding, ``report()`` and the import."""
    runner.row(FOLD, _fold)
    runner.row(CALLS, _calls)
    runner.row(CALLS_SIZE, _calls_size)
    runner.row(REPORT, _report)
    samples: dict[str, list[list[float]]] = {}
    runner.row(IMPORT, lambda: _import_time(samples))
    runner.row(SIZE, lambda: _import_size(samples))


def _fold() -> Measured:
    batches = make_batches(_BATCHES, BATCH)
    messages = [
        Message("tokentrace.spans.default.0", encode_batches([batch]), index + 1, batch.arrived_ns, {})
        for index, batch in enumerate(batches)
    ]

    def decode() -> None:
        for message in messages:
            decode_batches(message.payload)

    def fold() -> None:
        shard = Shard(0, 1)
        for message in messages:
            shard.fold(message, 1)
        shard.tick(messages[-1].time_ns)

    spans = BATCH * _BATCHES
    # Measure both in turn, so that a change in the speed of the machine affects both.
    pairs = [(seconds_per_call(decode, tries=1), seconds_per_call(fold, tries=1)) for _ in range(5)]
    return Measured(min(pair[1] for pair in pairs) / spans, min(pair[0] for pair in pairs) / spans)


def _calls() -> Measured:
    """Time the memory of calls while it overwrites its oldest calls; 5 % of the spans repeat an earlier call."""
    identities, memory = _identities(TOTAL_CALLS), CallMemory()
    for at in range(0, len(identities), BATCH):
        memory.take(identities[at : at + BATCH])
    repeated = _identities(TOTAL_CALLS // 4, seed=2)
    repeated[::20] = identities[-len(repeated) :][::20]
    began = time.perf_counter()
    for at in range(0, len(repeated), BATCH):
        memory.take(repeated[at : at + BATCH])
    return Measured((time.perf_counter() - began) / len(repeated))


def _calls_size() -> Measured:
    return Measured(CallMemory().nbytes / 2**20)


def _identities(count: int, *, seed: int = 1) -> Any:
    identities = np.zeros(count, IDENTITY)
    identities["key"] = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    identities["span_key"] = identities["key"] & 0xFFFFFFFF
    identities["usage"] = 1
    return identities


def _report() -> Measured:
    """Time ``report()`` on the caller's thread; there is no server at the address."""
    reporter = Reporter("bench", "nats://127.0.0.1:9", max_queue_spans=2_000_000, max_queue_bytes=2**31)
    spans = make_spans(1000)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for span in spans:
            reporter.report(span)
        best = min(best, (time.perf_counter() - began) / len(spans))
    reporter.close(0)
    return Measured(best)


def _import_time(samples: dict[str, list[list[float]]]) -> Measured:
    """Time imports in new processes, in turn; add [seconds, MiB, number of modules] of each process to *samples*."""
    for _ in range(_IMPORTS + 1):
        for statement in (_OURS, _BARE):
            words = [sys.executable, "-c", _IMPORT.format(statement=statement)]
            done = subprocess.run(words, capture_output=True, check=True, timeout=120)
            samples.setdefault(statement, []).append(json.loads(done.stdout))
    ours, bare = ([sample[0] for sample in samples[statement][1:]] for statement in (_OURS, _BARE))
    return Measured(_median(ours), _median(bare), f"median of {_IMPORTS} processes")


def _import_size(samples: dict[str, list[list[float]]]) -> Measured:
    ours, bare = samples[_OURS], samples[_BARE]
    modules = f"{ours[0][2]:.0f} modules, {bare[0][2]:.0f} without tokentrace"
    return Measured(_median([sample[1] for sample in ours]), _median([sample[1] for sample in bare]), modules)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
