"""How long after ``report()`` a span is seen in /metrics and /traces, under load."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from msgspec.structs import replace

from bench.process import free_port, fsync_note, python, started
from bench.reference import LOOP, at_most
from bench.row import Failed, Measured, Plan, Runner
from bench.spans import make_spans
from bench.table import quantity
from tokentrace import Reporter

#: Spans a second, on the machine the budgets were set on.
_RATE = 10_000
_SECONDS = 12.0
_WARM_S = 2.0
#: How long what was sent last is waited for.
_WAIT_S = 60.0
_POLL_S = 0.05
#: A reporter holds a batch for 0.2 s, the store commits each 0.1 s.
_HELD_S, _COMMIT_S = 0.2, 0.1

METRICS = Plan("report() -> seen in /metrics, p99", "s", LOOP, at_most(1.0, LOOP, waits_s=_HELD_S + _POLL_S))
TRACES = Plan("report() -> seen in /traces, p99", "s", LOOP, at_most(1.0, LOOP, waits_s=_HELD_S + _COMMIT_S + _POLL_S))
PLANS = (METRICS, TRACES)


class _Watch(threading.Thread):
    """Polls one number and notes when it was seen."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key = url, key
        self.seen: list[tuple[float, int]] = []
        self.refused = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                with urllib.request.urlopen(self._url, timeout=10) as response:
                    value = json.load(response)[self._key]
            except OSError:
                # Behind, or not ready: what it does not show is not seen yet.
                self.refused += 1
            else:
                self.seen.append((time.perf_counter(), value))
            time.sleep(_POLL_S)

    def has_seen(self, count: int) -> bool:
        """Whether at least *count* was seen."""
        return bool(self.seen) and self.seen[-1][1] >= count

    def lags(self, marks: list[tuple[float, int]]) -> list[float]:
        """
        For each (time, count) reported: seconds until at least that count was seen, ascending.

        Raises:
            Failed: Some never were.
        """
        found = []
        for at, count in marks:
            seen = next((moment for moment, value in self.seen if value >= count), None)
            if seen is None:
                most = max((value for _, value in self.seen), default=0)
                raise Failed(f"{most:,} of {marks[-1][1]:,} spans were seen {_WAIT_S:.0f} s after the last was sent")
            found.append(seen - at)
        return sorted(found)


def run(runner: Runner) -> None:
    """Freshness."""
    rate = runner.offered(_RATE)
    with tempfile.TemporaryDirectory() as name:
        port, nats_port = free_port(), free_port()
        base = f"http://127.0.0.1:{port}"
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(nats_port)]
        fsync = fsync_note(Path(name))
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz"):
            metrics = _Watch(f"{base}/metrics?window=1h", "span_count")
            traces = _Watch(f"{base}/health", "stored_spans")
            marks = _send(f"nats://127.0.0.1:{nats_port}", [metrics, traces], rate)
    for plan, watch in ((METRICS, metrics), (TRACES, traces)):

        def measure(watch: _Watch = watch) -> Measured:
            lags = watch.lags(marks)
            p50, sent = quantity(lags[len(lags) // 2], "s"), marks[-1][1] / _SECONDS
            note = f"{rate:,} spans/s offered, {sent:,.0f} sent; p50 {p50}, {fsync}"
            if watch.refused:
                note += f"; {watch.refused} answers were errors"
            return Measured(lags[int(len(lags) * 0.99) - 1], note=note)

        runner.row(plan, measure)


def _send(url: str, watches: list[_Watch], rate: int) -> list[tuple[float, int]]:
    template = make_spans(1000)
    marks: list[tuple[float, int]] = []
    sent = 0
    with Reporter("bench", url) as reporter:
        for watch in watches:
            watch.start()
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < _SECONDS:
            due = int(elapsed * rate)
            while sent < due:
                span = template[sent % len(template)]
                reporter.report(replace(span, trace_id=f"{sent:032x}", started_ns=0, ended_ns=time.time_ns()))
                sent += 1
            if elapsed > _WARM_S:
                marks.append((time.perf_counter(), sent))
            time.sleep(0.005)
        reporter.flush(_WAIT_S)
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline and not all(watch.has_seen(sent) for watch in watches):
            time.sleep(_POLL_S)
    for watch in watches:
        watch.over.set()
        watch.join(15)
    return marks
