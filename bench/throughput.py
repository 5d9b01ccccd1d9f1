"""The whole pipeline under load: spans per second, correctness of the totals, and growth of memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bench.process import WAIT_S, ask, free_port, fsync_note, nats, python, resident_mib, started
from bench.reference import PUBLISH, at_least
from bench.row import Budget, Failed, Measured, Plan, Runner

SECONDS = float(os.environ.get("BENCH_SECONDS", "60"))
#: The rate offered is this many times the expected rate, so that the pipeline limits the rate.
_OFFER_FACTOR = 1.15
#: Fraction by which the memory of all processes may grow over the second half of the time.
_FLAT = 0.10
#: Seconds that the reporter may take to send the spans in its queue.
_FLUSH_S = 120.0


class _Account(NamedTuple):
    """
    Numbers of spans and tokens, as sent or as shown by the api.

    Attributes:
        spans: Number of spans sent, or counted in ``/stats``.
        stored: Number of spans acknowledged, or stored.
        prompt: Number of prompt tokens sent; 0 = not known.
    """

    spans: int
    stored: int
    prompt: int


class _Layout(NamedTuple):
    """One arrangement of the processes, and its rows."""

    rate: Plan
    wrong: Plan
    growth: Plan


def _layout(what: str, figure: float) -> _Layout:
    return _Layout(
        Plan(f"{what}: reported until seen and stored", "spans/s", PUBLISH, at_least(figure, PUBLISH)),
        Plan(f"{what}: the greatest error of a total", "spans", "", Budget("<=", 0.0)),
        Plan(f"{what}: memory at the end", "MiB", "memory after half the time", Budget("<=", 1 + _FLAT)),
    )


APART = _layout("separate processes", 50_000)
TOGETHER = _layout("all in one", 25_000)
PLANS = (*APART, *TOGETHER)


class _Memory(threading.Thread):
    """A thread that notes the resident memory of some processes every second, MiB by name of the process."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self.mib: list[dict[str, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            self.mib.append({name: resident_mib(pid) for name, pid in self._pids.items()})

    def growth(self) -> Measured:
        """
        Return the mean memory of the last quarter of the second half, with that of its first quarter as limit.

        Raises:
            Failed: There are too few samples.
        """
        half = [sum(sample.values()) for sample in self.mib[len(self.mib) // 2 :]]
        quarter = len(half) // 4
        if not quarter:
            raise Failed(f"{len(self.mib)} samples of memory in {SECONDS:.0f} s are too few")
        return Measured(sum(half[-quarter:]) / quarter, sum(half[:quarter]) / quarter, f"at most {self.peak()} MiB")

    def peak(self) -> str:
        """Return the highest memory of each process as a text."""
        return ", ".join(f"{name} {max(s[name] for s in self.mib):.0f}" for name in self._pids) if self.mib else ""


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(runner: Runner) -> None:
    """Measure with each service in a separate process, and with all services in one process."""
    runner.share(APART, lambda: _apart(runner))
    runner.share(TOGETHER, lambda: _together(runner))


def _apart(runner: Runner) -> None:
    # This may measure references, which the services would slow down.
    offered = _offered(runner, APART)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        fsync = fsync_note(directory)
        url = stack.enter_context(nats(directory))
        ports = {service: free_port() for service in ("ingest", "aggregator", "alerter", "api")}
        pids = {}
        for service, port in ports.items():
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
            process = stack.enter_context(started(words, f"http://127.0.0.1:{port}/readyz"))
            pids[service] = process.pid
        _drive(runner, APART, url, f"http://127.0.0.1:{ports['api']}", pids, offered, fsync)


def _together(runner: Runner) -> None:
    offered = _offered(runner, TOGETHER)
    with tempfile.TemporaryDirectory() as name:
        port, nats_port = free_port(), free_port()
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(nats_port)]
        base = f"http://127.0.0.1:{port}"
        fsync = fsync_note(Path(name))
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz") as process:
            _drive(runner, TOGETHER, f"nats://127.0.0.1:{nats_port}", base, {"serve": process.pid}, offered, fsync)


def _offered(runner: Runner, layout: _Layout) -> int:
    """Return the rate to offer, spans per second: above the rate of the budget, scaled by the loop and by PUBLISH."""
    budget = layout.rate.budget
    assert budget is not None
    least = budget.ratio * runner.limit(PUBLISH).value
    return int(_OFFER_FACTOR * max(runner.offered(budget.ratio * PUBLISH.set_on), least))


def _drive(
    runner: Runner, layout: _Layout, url: str, base: str, pids: dict[str, int], offered: int, fsync: str
) -> None:
    memory, account, seen = _Memory(pids), _Account(0, 0, 0), _Account(0, 0, 0)

    def rate() -> Measured:
        nonlocal account, seen
        memory.start()
        before = {name: _cpu_s(pid) for name, pid in pids.items()}
        began = time.perf_counter()
        try:
            account = _send(url, offered)
        finally:
            memory.over.set()
        seen = _wait_for_all(base, account)
        took = time.perf_counter() - began
        burned = (f"{name} {(_cpu_s(pid) - before[name]) / account.spans * 1e6:.1f}" for name, pid in pids.items())
        note = f"{offered:,} spans/s offered, {account.spans:,} in {took:.0f} s, {fsync}; µs of CPU a span: "
        return Measured(account.spans / took, note=note + ", ".join(burned))

    def wrong() -> Measured:
        if not account.spans:
            raise Failed("nothing was sent")
        shown = ask(f"{base}/metrics?window=1h")
        counts = {
            "/stats": seen.spans,
            "stored": seen.stored,
            "/metrics": shown["span_count"],
        }
        errors = [abs(value - account.spans) for value in counts.values()]
        prompt = abs(shown["tokens"]["prompt_total"] - account.prompt)
        listed = ", ".join(f"{name} {value:,}" for name, value in counts.items())
        note = f"{account.spans:,} sent: {listed}; prompt tokens differ by {prompt:,}"
        # If only the tokens differ, at least one span is wrong.
        return Measured(max(*errors, min(prompt, 1)), note=note)

    runner.row(layout.rate, rate)
    runner.row(layout.wrong, wrong)
    runner.row(layout.growth, memory.growth)


def _send(url: str, offered: int) -> _Account:
    """
    Run a reporter in a separate process; return what it has sent.

    Raises:
        Failed: The process ended with an error or not in time, or some spans were not acknowledged.
    """
    words = python("bench.sender", url, str(offered), str(SECONDS), "1")
    limit_s = SECONDS + _FLUSH_S + 80
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"the sender has not ended after {limit_s:.0f} s") from None
    if done.returncode:
        raise Failed(f"the sender ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    account = json.loads(done.stdout)
    if account["acked"] != account["sent"]:
        raise Failed(
            f"{account['acked']:,} of {account['sent']:,} spans were acknowledged after {account['took_s']:.0f} s"
        )
    return _Account(account["sent"], account["acked"], account["prompt"])


def _wait_for_all(base: str, account: _Account) -> _Account:
    """
    Wait until the api shows all spans that were sent; return the numbers that it shows.

    Raises:
        Failed: The api does not show all spans after ``WAIT_S``.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        seen, stored = ask(f"{base}/stats")["total_spans"], ask(f"{base}/health")["stored_spans"]
        if seen >= account.spans and stored >= account.spans:
            return _Account(seen, stored, 0)
        if time.monotonic() > deadline:
            raise Failed(f"behind after {WAIT_S:.0f} s: {seen:,} seen and {stored:,} stored of {account.spans:,} spans")
        time.sleep(0.1)
