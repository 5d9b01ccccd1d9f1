"""``POST /spans`` compared with a bare route; each runs on one core, and the load generator on another."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.load import post, request_rate
from bench.process import fsync_note
from bench.row import Budget, Measured, Plan, Runner

MANY = Plan("POST /spans, 100 a request, 202 after PubAck", "spans/s", "bare route in turn", Budget(">=", 0.40))
ONE = Plan("POST /spans, one a request, 202 after PubAck", "requests/s", "bare route in turn", Budget(">=", 0.60))
PLANS = (MANY, ONE)


def run(runner: Runner) -> None:
    """Measure requests with 100 spans, then with one."""
    runner.row(MANY, lambda: _measure(100, 8))
    runner.row(ONE, lambda: _measure(1, 64))


def _measure(spans: int, connections: int) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        note = fsync_note(directory)
        request = post(directory, spans)
        ours, bare = [], []
        for turn in range(2):
            bare.append(request_rate(directory / f"bare{turn}", request, connections, bare=True))
            ours.append(request_rate(directory / f"ours{turn}", request, connections, bare=False))
    return Measured(max(ours) * spans, max(bare) * spans, f"{connections} connections, {note}")
