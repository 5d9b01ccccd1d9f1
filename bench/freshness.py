"""
Freshness under load: time from ``report()`` until /metrics counts a span, and until it is stored for /traces.

The spans have attributes, so that the store writes its write-ahead file back several times during the run.
"""

from __future__ import annotations

import contextlib
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
from bench.spans import make_spans, new_call
from bench.table import quantity
from tokentrace import Reporter

#: Spans per second to offer on the machine the budgets were set on.
_RATE = 10_000
_SECONDS = 12.0
_WARM_S = 2.0
#: Seconds to wait until the last span is seen.
_WAIT_S = 60.0
_POLL_S = 0.05
#: Bytes of attributes of each span, and how often the size of the write-ahead file is read, seconds.
_ATTRIBUTES, _SIZE_EVERY_S = 500, 0.01
_WORDS = "the answer to the question is in the second document, under the heading of the third part. "
#: Waits of the design: a reporter holds a batch for up to 0.2 s, and the store commits every 0.1 s.
_HELD_S, _COMMIT_S = 0.2, 0.1

METRICS = Plan("report() -> seen in /metrics, p99", "s", LOOP, at_most(1.0, LOOP, waits_s=_HELD_S + _POLL_S))
TRACES = Plan("report() -> seen in /traces, p99", "s", LOOP, at_most(1.0, LOOP, waits_s=_HELD_S + _COMMIT_S + _POLL_S))
CHECKPOINTS = Plan(
    "report() -> seen in /traces across a checkpoint, p99",
    "s",
    LOOP,
    at_most(1.0, LOOP, waits_s=_HELD_S + _COMMIT_S + _POLL_S),
)
PLANS = (METRICS, TRACES, CHECKPOINTS)


class _Watch(threading.Thread):
    """
    A thread that polls a number in the JSON of a URL.

    Attributes:
        seen: (Time, number) of each response, ``time.perf_counter`` seconds.
        refused: Number of requests that failed.
        over: Set to end the thread.
    """

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
                # The service is behind or not ready, so nothing new is seen.
                self.refused += 1
            else:
                self.seen.append((time.perf_counter(), value))
            time.sleep(_POLL_S)

    def has_seen(self, count: int) -> bool:
        """Return True if the last number seen is at least *count*."""
        return bool(self.seen) and self.seen[-1][1] >= count

    def lags(self, marks: list[tuple[float, int]]) -> list[float]:
        """
        Return the seconds from each (time, count) in *marks* until at least this count was seen.

        Raises:
            Failed: A count was never seen.
        """
        lags = []
        for at, count in marks:
            seen = next((moment for moment, value in self.seen if value >= count), None)
            if seen is None:
                most = max((value for _, value in self.seen), default=0)
                raise Failed(f"{most:,} of {marks[-1][1]:,} spans were seen {_WAIT_S:.0f} s after the last was sent")
            lags.append(seen - at)
        return lags


class _Checkpoints(threading.Thread):
    """
    A thread that notes when the store has written its write-ahead file back, because the file is smaller then.

    Attributes:
        at: When this happened, ``time.perf_counter`` seconds.
        over: Set to end the thread.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self.at: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        last = 0
        while not self.over.is_set():
            size = 0
            for file in self._directory.rglob("*.duckdb.wal"):
                with contextlib.suppress(FileNotFoundError):
                    size += file.stat().st_size
            if size < last:
                self.at.append(time.perf_counter())
            last = size
            time.sleep(_SIZE_EVERY_S)

    def crossed(self, marks: list[tuple[float, int]], lags: list[float]) -> list[float]:
        """
        Return those of *lags* during which a checkpoint ended.

        Raises:
            Failed: There was no checkpoint.
        """
        crossed = [
            lag
            for (at, _), lag in zip(marks, lags, strict=True)
            if any(at <= end <= at + lag + _SIZE_EVERY_S for end in self.at)
        ]
        if not crossed:
            raise Failed(f"no span was waiting at one of the {len(self.at)} checkpoints")
        return crossed


def run(runner: Runner) -> None:
    """Measure freshness in /metrics and in the store."""
    rate = runner.offered(_RATE)
    with tempfile.TemporaryDirectory() as name:
        port, nats_port = free_port(), free_port()
        base = f"http://127.0.0.1:{port}"
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(nats_port)]
        fsync = fsync_note(Path(name))
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz"):
            metrics = _Watch(f"{base}/metrics?window=1h", "span_count")
            traces = _Watch(f"{base}/health", "stored_spans")
            checkpoints = _Checkpoints(Path(name) / "spans")
            checkpoints.start()
            marks = _send(f"nats://127.0.0.1:{nats_port}", [metrics, traces], rate)
            checkpoints.over.set()
            checkpoints.join(15)
    for plan, watch in ((METRICS, metrics), (TRACES, traces), (CHECKPOINTS, traces)):

        def measure(plan: Plan = plan, watch: _Watch = watch) -> Measured:
            lags = watch.lags(marks)
            if plan is CHECKPOINTS:
                lags = checkpoints.crossed(marks, lags)
            lags.sort()
            p50, sent = quantity(lags[len(lags) // 2], "s"), marks[-1][1] / _SECONDS
            note = f"{rate:,} spans/s offered, {sent:,.0f} sent; p50 {p50}, {fsync}"
            if plan is CHECKPOINTS:
                note += f"; {len(checkpoints.at)} checkpoints"
            if watch.refused:
                note += f"; {watch.refused} requests failed"
            return Measured(lags[max(int(len(lags) * 0.99) - 1, 0)], note=note)

        runner.row(plan, measure)


def _send(url: str, watches: list[_Watch], rate: int) -> list[tuple[float, int]]:
    note = (_WORDS * (_ATTRIBUTES // len(_WORDS) + 1))[:_ATTRIBUTES]
    template = [replace(span, attributes={"note": note}) for span in make_spans(1000)]
    marks: list[tuple[float, int]] = []
    sent = 0
    with Reporter("bench", url) as reporter:
        for watch in watches:
            watch.start()
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < _SECONDS:
            due = int(elapsed * rate)
            while sent < due:
                reporter.report(new_call(template[sent % len(template)], sent, time.time_ns()))
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
