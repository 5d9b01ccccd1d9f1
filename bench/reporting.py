"""What an application notices of a reporter: how long ``report`` takes, and how late its threads wake beside it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.process import nats
from bench.reference import LOOP, at_most
from bench.row import Budget, Measured, Plan, Runner
from bench.spans import make_spans
from tokentrace import Reporter, Span
from tokentrace.bus import jetstream
from tokentrace.bus.subjects import streams

_THREADS = 64
_SECONDS = 6.0
_PAUSE_S = 0.05
#: Every so many spans have a text of 30 kB.
_LONG_EVERY = 20
_TEXT = ("Asked at 10:45: what is the token budget, (see the invoice of order 4411) and the password policy? " * 320)[
    :30_000
]
_LIMIT = "encode and append"
_WAKE_LIMIT = "no sender"

P50 = Plan("report(), p50 of 64 threads", "s", _LIMIT, Budget("<=", 10.0))
P999 = Plan("report(), p99.9 of 64 threads", "s", LOOP, at_most(1e-3, LOOP))
LONG_P50 = Plan("report() with texts of 30 kB, p50", "s", _LIMIT, Budget("<=", 10.0))
LONG_P999 = Plan("report() with texts of 30 kB, p99.9", "s", LOOP, at_most(1e-3, LOOP))
#: Without windows the ratio is about 75, because a thread waits until a whole text is redacted.
WAKE = Plan("wake of a thread beside texts of 30 kB, p50", "s", _WAKE_LIMIT, Budget("<=", 15.0))
PLANS = (P50, P999, LONG_P50, LONG_P999, WAKE)


class _Times(NamedTuple):
    """Sorted durations of calls and of what a sleep took longer than it should, seconds."""

    calls: list[float]
    late: list[float]

    def call(self, share: float) -> float:
        return self.calls[int(len(self.calls) * share)]


def _measure(report: Callable[[Span], None], *, long: bool) -> _Times:
    """Call *report* from 64 threads, each every 50 ms."""
    calls: list[float] = []
    late: list[float] = []
    stop = time.monotonic() + _SECONDS
    template = make_spans(_THREADS)

    def work(number: int) -> None:
        count = number
        while time.monotonic() < stop:
            count += 1
            text = _TEXT if long and count % _LONG_EVERY == 0 else "short"
            span = msgspec.structs.replace(template[number], attributes={"note": text})
            began = time.perf_counter()
            report(span)
            ended = time.perf_counter()
            time.sleep(_PAUSE_S)
            late.append(max(time.perf_counter() - ended - _PAUSE_S, 0.0))
            calls.append(ended - began)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _Times(sorted(calls), sorted(late))


def _appending() -> Callable[[Span], None]:
    """Return the least that a reporter can do: encode the span and append it under a lock."""
    encoder, lock = msgspec.msgpack.Encoder(), threading.RLock()
    kept: deque[bytes] = deque(maxlen=1000)

    def append(span: Span) -> None:
        data = encoder.encode(span)
        with lock:
            kept.append(data)

    return append


@contextlib.contextmanager
def _reporter() -> Iterator[Reporter]:
    async def prepare(url: str) -> None:
        async with jetstream.connect(url, name="bench") as bus:
            for stream in streams():
                await bus.ensure(stream)

    with tempfile.TemporaryDirectory() as directory, nats(Path(directory)) as url:
        asyncio.run(prepare(url))
        with Reporter("bench", url) as reporter:
            # The sender imports its libraries with the first span of a process, which is no part of a usual call.
            reporter.report(make_spans(1)[0])
            reporter.flush(60)
            yield reporter
            reporter.flush(60)


def run(runner: Runner) -> None:
    """Measure short spans and then spans of which each twentieth has a text of 30 kB."""
    for long, median, tail in ((False, P50, P999), (True, LONG_P50, LONG_P999)):
        plans = [median, tail, *([WAKE] if long else [])]

        def work(long: bool = long, median: Plan = median, tail: Plan = tail) -> None:
            least = _measure(_appending(), long=long)
            with _reporter() as reporter:
                times = _measure(reporter.report, long=long)
            note = f"{len(times.calls)} calls"
            runner.row(median, lambda: Measured(times.call(0.5), least.call(0.5), note))
            runner.row(tail, lambda: Measured(times.call(0.999), note=note))
            if long:
                middle = len(times.late) // 2
                late, least_late = times.late[middle], least.late[len(least.late) // 2]
                runner.row(
                    WAKE, lambda: Measured(late, least_late, f"p99 {times.late[middle * 99 // 50] * 1e3:.1f} ms")
                )

        runner.share(plans, work)
