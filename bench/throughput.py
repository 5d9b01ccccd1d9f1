"""The whole durable pipeline under load: spans a second, exact totals after, memory while it lasts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.process import free_port, fsync_ms, nats, python, started
from bench.table import Row

SECONDS = float(os.environ.get("BENCH_SECONDS", "60"))
#: The reporters send a little more than has to get through, so that the pipeline sets the pace.
_ASKED = 1.15
#: How much the memory of all processes may grow over the second half.
_FLAT = 0.10


class _Memory(threading.Thread):
    """Resident memory of some processes, and what they burned of the processors, every second."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self.mib: list[dict[str, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            self.mib.append({name: _rss_mib(pid) for name, pid in self._pids.items()})

    def growth(self) -> float:
        """Of the second half: its last quarter against its first."""
        half = [sum(sample.values()) for sample in self.mib[len(self.mib) // 2 :]]
        quarter = max(len(half) // 4, 1)
        return sum(half[-quarter:]) / max(sum(half[:quarter]), 1) - 1

    def peak(self) -> str:
        """The highest of each."""
        return ", ".join(f"{name} {max(s[name] for s in self.mib):.0f}" for name in self._pids) if self.mib else ""


def _rss_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.load(response)


def rows() -> list[Row]:
    """Separate processes, and all in one."""
    return [_apart(50_000), _together(25_000)]


def _apart(budget: int) -> Row:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sync = fsync_ms(directory)
        url = stack.enter_context(nats(directory))
        ports = {service: free_port() for service in ("ingest", "aggregator", "alerter", "api")}
        pids = {}
        for service, port in ports.items():
            words = python(f"tokentrace_{service}", "--nats", url, "--addr", f"127.0.0.1:{port}", "--data-dir", name)
            process = stack.enter_context(started(words, f"http://127.0.0.1:{port}/readyz"))
            pids[service] = process.pid
        return _drive("separate processes", url, f"http://127.0.0.1:{ports['api']}", pids, budget, sync)


def _together(budget: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        port, nats_port = free_port(), free_port()
        flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--data-dir", name, "--nats-port", str(nats_port)]
        base = f"http://127.0.0.1:{port}"
        with started(python("tokentrace_standalone", "serve", *flags), f"{base}/readyz") as process:
            sync = fsync_ms(Path(name))
            return _drive("all in one", f"nats://127.0.0.1:{nats_port}", base, {"serve": process.pid}, budget, sync)


def _drive(what: str, url: str, base: str, pids: dict[str, int], budget: int, sync_ms: float) -> Row:
    memory = _Memory(pids)
    memory.start()
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    sender = subprocess.run(
        python("bench.sender", url, str(budget * _ASKED), str(SECONDS), "1"),
        capture_output=True,
        check=True,
        timeout=SECONDS + 200,
    )
    memory.over.set()
    account = json.loads(sender.stdout)
    deadline = time.perf_counter() + 120
    seen = stored = 0
    while (seen < account["sent"] or stored < account["sent"]) and time.perf_counter() < deadline:
        seen = _get(f"{base}/stats")["total_spans"]
        stored = _get(f"{base}/health")["stored_spans"]
        time.sleep(0.1)
    took = time.perf_counter() - began
    shown = _get(f"{base}/metrics?window=1h")
    exact = (
        account["sent"] == account["acked"] == seen == stored == shown["span_count"]
        and shown["tokens"]["prompt_total"] == account["prompt"]
    )
    burned = {name: (_cpu_s(pid) - before[name]) / account["sent"] * 1e6 for name, pid in pids.items()}
    rate = account["sent"] / took
    growth = memory.growth()
    totals = "exact" if exact else f"NOT EXACT ({account}, seen {seen}, stored {stored})"
    profile = ", ".join(f"{name} {us:.1f}" for name, us in burned.items())
    measured = (
        f"{rate:,.0f} spans/s until all is seen and stored ({took:.0f} s, fsync {sync_ms:.2f} ms), totals {totals}; "
        f"µs of CPU a span: {profile}; MiB at most: {memory.peak()}; second half {growth:+.0%}"
    )
    met = rate >= budget and exact and growth <= _FLAT
    return Row(f"pipeline through a reporter, {SECONDS:.0f} s, {what}", measured, "", f">= {budget:,} spans/s", met)
