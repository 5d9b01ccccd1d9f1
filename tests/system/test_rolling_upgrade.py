"""
The services of the version before, restarted one by one as this version while spans arrive.

The code of that version is taken from the repository's history. A shallow clone has no history; the test is skipped.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.fleet import Fleet
from tokentrace import Reporter, Span
from tokentrace.units import SECOND

#: The last commit of the version before: batches were placed and recognised by their ids.
BEFORE = "290bb10"
ROOT = Path(__file__).parents[2]
READERS = ("aggregator", "alerter", "api")
RULES = """
alerts:
  - {name: spent, metric: total_cost, op: gt, threshold: 1000000, window: 1h, delivery: {type: stdout}}
"""


class Upgraded(Fleet):
    """Four services of which each runs the code in *old* until it is upgraded."""

    def __init__(self, directory: Path, old: Path) -> None:
        config = directory / "tokentrace.yml"
        directory.mkdir(parents=True, exist_ok=True)
        config.write_text(RULES)
        env = {"TOKENTRACE_SHARD_COUNT": "4", "TOKENTRACE_CONFIG": str(config)}
        super().__init__(directory, ["ingest", *READERS], env)
        self.old = old
        self.upgraded: set[str] = set()

    def start_one(self, name: str) -> None:
        if name in self.upgraded:
            super().start_one(name)
            return
        sources = [self.old / "shared", *(self.old / "services").iterdir()]
        ingest = f"http://127.0.0.1:{self.ports['ingest']}"
        env = {**self.env, "PYTHONPATH": os.pathsep.join(map(str, sources)), "TOKENTRACE_INGEST_URL": ingest}
        command = [sys.executable, "-m", f"tokentrace_{name}", "--config", self.env["TOKENTRACE_CONFIG"]]
        command += ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}"]
        command += ["--data-dir", str(self.data_of(name))]
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(command, cwd=self.directory, env=env, stdout=log, stderr=log)

    def upgrade(self, name: str) -> None:
        """Restart one service as this version."""
        assert self.terminate(name) == 0
        self.upgraded.add(name)
        self.start_one(name)
        self.until(lambda: self.is_ready(name), f"{name} ready", 60)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Upgraded]:
    made = subprocess.run(["git", "archive", BEFORE, "shared", "services"], cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"the repository does not have the commit {BEFORE} of the version before")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    fleet = Upgraded(tmp_path / "fleet", tmp_path / "old")
    fleet.start()
    yield fleet
    fleet.stop()


def span(number: int) -> Span:
    ended = time.time_ns()
    return Span(
        trace_id=f"trace-{number // 3}",
        span_id=f"span-{number}",
        model="gpt-4o",
        provider="openai",
        prompt_tokens=10,
        completion_tokens=1,
        cost_nusd=1_000 + number,
        started_ns=ended - SECOND,
        ended_ns=ended,
    )


class Traffic(threading.Thread):
    """Reports a span every 10 ms until it is told to end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.reporter = Reporter("upgrade", url)
        self.ending = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self.ending.wait(0.01):
            self.reporter.report(span(self.sent))
            self.sent += 1

    def finish(self) -> int:
        """Stop, wait until everything was accepted, and return the number of spans."""
        self.ending.set()
        self.join()
        assert self.reporter.flush(30)
        self.reporter.close(5)
        return self.sent


@pytest.mark.story
def test_services_restarted_one_by_one_lose_and_repeat_no_span(fleet: Upgraded) -> None:
    traffic = Traffic(fleet.broker.url)
    traffic.start()
    try:
        for name in (*READERS, "ingest"):
            time.sleep(2)
            fleet.upgrade(name)
        assert "layout_waits_for" not in fleet.get("ingest", "/readyz").json()
        # Half a minute after the last reader was upgraded, ingest places batches by call.
        time.sleep(35)
    finally:
        sent = traffic.finish()
    fleet.until(lambda: fleet.get("api", "/stats").json()["total_spans"] == sent, f"{sent} spans counted", 30)
    stats = fleet.get("api", "/stats").json()
    assert round(stats["total_cost_usd"] * 1e9) == sum(1_000 + number for number in range(sent))
    assert stats["total_tokens_in"] == 10 * sent
    fleet.until(lambda: fleet.get("api", "/health").json()["stored_spans"] == sent, f"{sent} spans stored", 10)
    considered = partial(fleet.get, "api", "/alerts/spent/status")
    fleet.until(lambda: considered().json()["spans_considered"] == sent, f"{sent} spans seen by the alerter", 10)
    before = fleet.get("api", "/health").json()["calls"]["repeated_spans"]
    again = [{"trace_id": "trace-0", "span_id": "span-0", "model": "gpt-4o", "prompt_tokens": 10, "cost_usd": 1e-6}]
    late = [{**again[0], "span_id": f"span-{sent - 1}", "trace_id": f"trace-{(sent - 1) // 3}"}]
    assert fleet.send("api", "POST", "/spans", late).status == 202
    fleet.until(
        lambda: fleet.get("api", "/health").json()["calls"]["repeated_spans"] == before + 1, "recognised as a repeat"
    )
    assert fleet.get("api", "/stats").json()["total_spans"] == sent
