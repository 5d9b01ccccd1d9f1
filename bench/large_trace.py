"""A trace of 20,000 spans over HTTP: a page, its timeline, one span, a receipt; and other answers meanwhile."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from typing import Any

from bench.process import ask, free_port, python, started
from bench.reference import LOOP, at_most
from bench.row import Failed, Measured, Plan, Runner
from bench.table import quantity
from tokentrace.units import render_instant

_SPANS = 20_000
_AT_ONCE = 1000
_TRIES = 11
_TRACE = "large"
#: Bytes of attributes of each span.
_ATTRIBUTES = 1000
_PAUSE_S = 0.005

#: What is asked -> (path below the trace, seconds allowed).
_ASKED = {
    "a page of 1,000 spans": ("", 0.5),
    "a page of 1,000 spans without attributes": ("?attributes=false", 0.4),
    "a page of the timeline": ("/timeline", 0.3),
    "one span": ("/spans/s15000", 0.05),
    "the receipt of a span": ("/spans/s15000/receipt", 0.05),
    "the graph of its session, 5,000 nodes": ("graph", 1.5),
}


def _plan(what: str) -> Plan:
    return Plan(f"a trace of {_SPANS:,} spans: {what}", "s", LOOP, at_most(_ASKED[what][1], LOOP))


MEANWHILE = Plan(f"a trace of {_SPANS:,} spans: /healthz while it is read, p99", "s", LOOP, at_most(0.1, LOOP))
PLANS = (*(_plan(what) for what in _ASKED), MEANWHILE)


def run(runner: Runner) -> None:
    """Send the trace to ``tokentrace serve``, then measure each request several times; the value is the longest."""
    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(free_port())]
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz"):
            _send(base)
            watch = _Watch(f"{base}/healthz")
            watch.start()
            for what, (path, _) in _ASKED.items():
                url = f"{base}/api/sessions/{_TRACE}/graph" if path == "graph" else f"{base}/traces/{_TRACE}{path}"

                def measure(url: str = url) -> Measured:
                    took, size = zip(*(_timed(url) for _ in range(_TRIES)), strict=True)
                    median = quantity(sorted(took)[_TRIES // 2], "s")
                    return Measured(max(took), note=f"the worst of {_TRIES}; median {median}; {size[-1]:,} bytes")

                runner.row(_plan(what), measure)
            runner.row(MEANWHILE, watch.result)


class _Watch(threading.Thread):
    """A thread that asks a URL again and again until ``result`` is called."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._over = url, threading.Event()
        self._took: list[float] = []

    def run(self) -> None:
        while not self._over.is_set():
            self._took.append(_timed(self._url)[0])
            time.sleep(_PAUSE_S)

    def result(self) -> Measured:
        """
        End the thread and return the time that 99 of 100 answers took at most.

        Raises:
            Failed: There was no answer.
        """
        self._over.set()
        self.join(30)
        took = sorted(self._took)
        if not took:
            raise Failed("no request was answered")
        note = f"of {len(took):,}; the longest {quantity(took[-1], 's')}"
        return Measured(took[int(len(took) * 0.99) - 1], note=note)


def _timed(url: str) -> tuple[float, int]:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as response:
        size = len(response.read())
    return time.perf_counter() - began, size


def _send(base: str) -> None:
    """Send the trace and wait until it is stored."""
    began_ns = time.time_ns() - 3600 * 10**9
    for first in range(0, _SPANS, _AT_ONCE):
        body = json.dumps([_span(number, began_ns) for number in range(first, first + _AT_ONCE)]).encode()
        request = urllib.request.Request(f"{base}/spans", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60):
            pass
    deadline = time.monotonic() + 60
    while ask(f"{base}/health")["stored_spans"] < _SPANS:
        if time.monotonic() > deadline:
            raise Failed("the trace was not stored within 60 s")
        time.sleep(0.1)


def _span(number: int, began_ns: int) -> dict[str, Any]:
    """Return a span of a tree in which every span has up to ten children."""
    return {
        "trace_id": _TRACE,
        "span_id": f"s{number}",
        "parent_span_id": f"s{(number - 1) // 10}" if number else None,
        "session_id": _TRACE,
        "name": f"step {number % 40}",
        "model": "gpt-4o",
        "provider": "openai",
        "prompt_tokens": 500 + number % 1000,
        "comp_tokens": number % 300,
        "started_at": render_instant(began_ns + number * 10**6),
        "ended_at": render_instant(began_ns + (number + 800) * 10**6),
        "attributes": {"note": "x" * _ATTRIBUTES, "number": number},
    }
