"""
Pipelines as processes: ``Pipeline`` is one ``tokentrace serve``, ``SeparateServices`` has a process for each service.

The module also has plain HTTP requests, the replay of an hour of real traffic, and a check of the totals of that hour.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kit.broker import Broker
from kit.environment import PATIENCE
from kit.memory import nats_pid
from kit.services import Service, start_service

ROOT = Path(__file__).parent.parent.parent
TRACE = ROOT / "tests" / "data" / "AzureLLMInferenceTrace_conv.csv"


#: The ports for tests: so many for each worker, of which there are at most 16.
_FIRST_PORT, _PORTS_OF_WORKER = 10_000, 1_200
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw15").removeprefix("gw")) % 16
#: Two runs on one machine begin at different places.
_ports = itertools.count(os.getpid() * 7)


def free_port() -> int:
    """
    Return a TCP port of 127.0.0.1 on which nothing listens, and which no other test of this run gets.

    Each worker of pytest-xdist has ports of its own. They lie below those that the system gives to connections.
    """
    for _ in range(_PORTS_OF_WORKER):
        port = _FIRST_PORT + _worker * _PORTS_OF_WORKER + next(_ports) % _PORTS_OF_WORKER
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


class Answer:
    """An HTTP response."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        """Return the body, decoded from JSON."""
        return json.loads(self.body)


def http(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Send one HTTP request and return the response, whatever its status."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return Answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, dict(exc.headers), exc.read())


class Pipeline:
    """
    One ``tokentrace serve`` process with its own broker and its own process group, on free ports.

    Snapshots are saved every second and the duplicate window is 1 s, so that tests of restarts are short.

    Args:
        directory: The working directory; data is kept in ``directory/data``, the log in ``directory/serve.log``.
        flags: More flags for ``serve``.
        env: Environment variables besides those of the test process.
    """

    def __init__(self, directory: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port, self.nats_port = free_port(), free_port()
        self.flags = flags
        self.env = {
            **os.environ,
            "TOKENTRACE_DUPLICATE_WINDOW": "1s",
            "TOKENTRACE_SNAPSHOT_INTERVAL": "1s",
            **(env or {}),
        }
        self.process: Service | subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "serve.log"

    @property
    def url(self) -> str:
        """The base URL of the HTTP API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def nats_url(self) -> str:
        """The URL of the broker."""
        return f"nats://127.0.0.1:{self.nats_port}"

    def start(self, *, wait: bool = True) -> None:
        """Start the process and, if *wait*, return once it is ready."""
        flags = ["--addr", f"127.0.0.1:{self.port}", "--also", "none", "--data-dir", str(self.data)]
        own_broker = [] if "--nats" in self.flags else ["--nats-port", str(self.nats_port)]
        flags += [*own_broker, *self.flags]
        self.process = start_service(
            "tokentrace_standalone", ["serve", *flags], directory=self.directory, env=self.env, log=self.log
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until ``/readyz`` answers 200."""
        self.until(lambda: self.get("/readyz").status == 200, "ready")

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """
        Wait until *condition* holds; fail after *seconds* times ``PATIENCE``, or at once if ``serve`` has ended.

        An OSError, AssertionError or KeyError counts as false.
        """
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError, AssertionError, KeyError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not {what} within {seconds} s:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> Answer:
        """Send a GET request."""
        return http("GET", self.url + path)

    def post(self, path: str, body: bytes | Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a POST request with *body*, which is encoded as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http("POST", self.url + path, data, {"Content-Type": "application/json", **(headers or {})})

    def metrics(self, window: str = "30d") -> Any:
        """Return the decoded body of ``GET /metrics``."""
        return self.get(f"/metrics?window={window}").json()

    def kill(self) -> None:
        """Send SIGKILL to the process group, which includes nats-server, and wait for the process."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def nats_pid(self) -> int:
        """Return the process id of nats-server."""
        return nats_pid(self.process.pid if self.process else 0)

    def stop(self) -> int:
        """Send SIGTERM, after 40 s SIGKILL, and return the exit code; return 0 if the process was never started."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()


class SeparateServices(Pipeline):
    """
    Ingest, aggregator and api as separate processes on their own broker. Requests go to the api.

    Attributes:
        ports: Service name -> its HTTP port.
        running: Service name -> its process.
    """

    SERVICES: tuple[str, ...] = ("ingest", "aggregator", "api")

    def __init__(self, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, env=env)
        self.broker = Broker(directory / "nats")
        self.ports = {name: free_port() for name in self.SERVICES}
        self.port = self.ports["api"]
        self.running: dict[str, Service | subprocess.Popen[bytes]] = {}

    @property
    def nats_url(self) -> str:
        """The URL of the broker."""
        return self.broker.url

    def start(self, *, wait: bool = True) -> None:
        """Start the broker and all services and, if *wait*, return once the api is ready."""
        self.broker.start()
        for name in self.SERVICES:
            self.start_one(name)
        if wait:
            self.wait_ready()

    def start_one(self, name: str) -> None:
        """Start one service and return at once."""
        flags = ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            f"tokentrace_{name}", flags, directory=self.directory, env=self.env, log=self.log
        )

    def kill_one(self, name: str) -> None:
        """Send SIGKILL to one service."""
        self.running[name].kill()
        self.running[name].wait()

    def stop(self) -> int:
        """Send SIGTERM to all services, stop the broker, and return the exit code that is furthest from 0."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        codes = [process.wait(40) for process in self.running.values()]
        self.broker.stop()
        return max(codes, key=abs)


def replay(pipeline: Pipeline, *flags: str) -> subprocess.Popen[bytes]:
    """Start ``tokentrace replay`` with ``TRACE``, an hour of real traffic with 19,366 spans."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tokentrace_standalone",
            "replay",
            str(TRACE),
            "--url",
            pipeline.nats_url,
            "--model",
            "gpt-4o",
            "--provider",
            "openai",
            "--caller",
            "chat",
            "--ms-per-prompt-token",
            "0.25",
            "--ms-per-token",
            "20",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(sending: subprocess.Popen[bytes], seconds: float = 120) -> str:
    """Wait for a replay, check that it ended with exit code 0, and return its output."""
    try:
        output, _ = sending.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        sending.kill()
        output, _ = sending.communicate()
    assert sending.returncode == 0, output.decode()
    return output.decode()


def assert_exact(pipeline: Pipeline) -> None:
    """Check that ``/metrics``, ``/stats``, ``/traces`` and ``/export`` show the totals of ``TRACE``."""
    pipeline.until(lambda: pipeline.get("/readyz").status == 200, "ready")
    pipeline.until(lambda: pipeline.metrics()["span_count"] >= 19366, "all in /metrics")
    pipeline.until(lambda: pipeline.get("/traces?limit=1").json()["total"] >= 19366, "all in /traces")
    metrics, stats = pipeline.metrics(), pipeline.get("/stats").json()
    assert metrics["span_count"] == 19366
    assert metrics["tokens"]["prompt_total"] == 22361870
    assert metrics["tokens"]["completion_total"] == 4088665
    assert metrics["cost"]["total_usd"] == 96.791325
    assert metrics["cost"]["by_model"] == {"gpt-4o": 96.791325}
    assert stats["total_spans"] == 19366
    assert stats["total_tokens_in"] == 22361870
    assert stats["total_tokens_out"] == 4088665
    assert stats["total_cost_usd"] == 96.791325
    assert pipeline.get("/traces?limit=1").json()["total"] == 19366
    assert sum_of_export(pipeline) == (19366, 96791325000)


def sum_of_export(pipeline: Pipeline) -> tuple[int, int]:
    """Return the number of spans and their cost in nano-dollars, added up over all lines of ``GET /export``."""
    costs = [json.loads(line)["cost_usd"] for line in pipeline.get("/export?format=jsonl").body.splitlines()]
    return len(costs), sum(round(cost * 1e9) for cost in costs)


def sum_of_pages(pipeline: Pipeline) -> tuple[int, int]:
    """Return the number of spans and their cost in nano-dollars, added up over all pages of ``GET /traces``."""
    count, cost, offset = 0, 0, 0
    while True:
        page = pipeline.get(f"/traces?limit=200&offset={offset}").json()
        if not page["traces"]:
            return count, cost
        count += sum(trace["span_count"] for trace in page["traces"])
        cost += sum(round(trace["total_cost_usd"] * 1e9) for trace in page["traces"])
        offset += 200
