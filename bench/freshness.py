"""How long after ``report()`` a span is seen in /metrics and /traces, at 10,000 spans a second."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from msgspec.structs import replace

from bench.process import free_port, python, started
from bench.spans import make_spans
from bench.table import Row
from tokentrace import Reporter

_RATE = 10_000
_SECONDS = 12.0
_WARM_S = 2.0


class _Watch(threading.Thread):
    """Polls one number and notes when it was seen."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key = url, key
        self.seen: list[tuple[float, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            with urllib.request.urlopen(self._url, timeout=10) as response:
                value = json.load(response)[self._key]
            self.seen.append((time.perf_counter(), value))
            time.sleep(0.05)

    def lags(self, marks: list[tuple[float, int]]) -> list[float]:
        """For each (time, count) reported: seconds until at least that count was seen."""
        found = []
        for at, count in marks:
            seen = next((moment for moment, value in self.seen if value >= count), None)
            found.append((seen if seen is not None else float("inf")) - at)
        return sorted(found)


def rows() -> list[Row]:
    """Freshness."""
    with tempfile.TemporaryDirectory() as name:
        port, nats_port = free_port(), free_port()
        base = f"http://127.0.0.1:{port}"
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(nats_port)]
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz"):
            metrics = _Watch(f"{base}/metrics?window=1h", "span_count")
            traces = _Watch(f"{base}/health", "stored_spans")
            marks = _send(f"nats://127.0.0.1:{nats_port}", [metrics, traces])
    found = []
    for what, watch in (("/metrics", metrics), ("/traces", traces)):
        lags = watch.lags(marks)
        p99 = lags[int(len(lags) * 0.99) - 1]
        measured = f"p50 {lags[len(lags) // 2] * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms"
        found.append(Row(f"report() -> seen in {what}, {_RATE:,} spans/s", measured, "", "p99 < 1 s", p99 < 1.0))
    assert Path(name).name
    return found


def _send(url: str, watches: list[_Watch]) -> list[tuple[float, int]]:
    template = make_spans(1000)
    marks: list[tuple[float, int]] = []
    sent = 0
    with Reporter("bench", url) as reporter:
        for watch in watches:
            watch.start()
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < _SECONDS:
            due = int(elapsed * _RATE)
            while sent < due:
                span = template[sent % len(template)]
                reporter.report(replace(span, trace_id=f"{sent:032x}", started_ns=0, ended_ns=time.time_ns()))
                sent += 1
            if elapsed > _WARM_S:
                marks.append((time.perf_counter(), sent))
            time.sleep(0.005)
        reporter.flush(10)
        time.sleep(1.5)
    for watch in watches:
        watch.over.set()
        watch.join(10)
    return marks
