"""Importing the reporter, compared with what it is made of; CPU time of fresh processes."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from bench.row import Budget, Measured, Plan, Runner

_PARTS = "import asyncio, http.client, msgspec"
_REPORTER = "from tokentrace import Reporter, Span"
_TRIES = 15

IMPORT = Plan("import Reporter and Span", "s", "import asyncio, http.client and msgspec", Budget("<=", 1.3))
PLANS = (IMPORT,)


def run(runner: Runner) -> None:
    """Measure the import; both programs run in turn."""
    runner.row(IMPORT, _compare)


def _compare() -> Measured:
    times = [(_cpu_s(_REPORTER), _cpu_s(_PARTS)) for _ in range(_TRIES)]
    ours, parts = zip(*times, strict=True)
    return Measured(statistics.median(ours), statistics.median(parts), note=f"median of {_TRIES} processes")


def _cpu_s(program: str) -> float:
    """Return the CPU time of a process that runs *program*, seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
