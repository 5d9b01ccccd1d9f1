"""The Compose stack in real containers; runs only if TOKENTRACE_COMPOSE is set, because it needs a container engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.pipeline import ROOT, TRACE, http

pytestmark = pytest.mark.skipif(
    not os.environ.get("TOKENTRACE_COMPOSE"), reason="TOKENTRACE_COMPOSE is not set: see .ci/run"
)

API = "http://127.0.0.1:9090"
BUILT = ("ingest", "aggregator", "alerter", "api")
SERVICES = (*BUILT, "nats")


class Stack:
    """A runner of ``docker compose`` with the project's files; images are built with the host's network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        on_host = {name: {"build": {"network": "host"}} for name in BUILT}
        self.files = ["compose.yaml", self.override("network", on_host)]

    def override(self, name: str, services: dict[str, Any]) -> str:
        file = self.directory / f"{name}.yaml"
        file.write_text(json.dumps({"services": services}))
        return str(file)

    def __call__(self, *words: str, files: tuple[str, ...] = (), check: bool = True) -> str:
        flags = [flag for file in (*self.files, *files) for flag in ("-f", file)]
        done = subprocess.run(
            ["docker", "compose", "--project-directory", str(ROOT), *flags, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-3000:]}"
        return done.stdout

    def up(self, *words: str, files: tuple[str, ...] = ()) -> None:
        self("up", "-d", "--wait", "--wait-timeout", "180", "--no-build", *words, files=files)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("compose"))
    stack("down", "-v", "--remove-orphans", check=False)
    stack("build")
    yield stack
    stack("down", "-v", "--remove-orphans", check=False)


@pytest.fixture
def stack(built: Stack) -> Iterator[Stack]:
    """Remove all containers and volumes before the test and after it."""
    built("down", "-v", "--remove-orphans", check=False)
    yield built
    built("down", "-v", "--remove-orphans")


def until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"not {what} within {seconds} s")


def replay(*flags: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "tokentrace_standalone", "replay", str(TRACE), "--model", "gpt-4o"]
    program += ["--provider", "openai", "--caller", "chat", "--ms-per-prompt-token", "0.25", "--ms-per-token", "20"]
    return subprocess.Popen([*program, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(sending: subprocess.Popen[bytes]) -> None:
    output, _ = sending.communicate(timeout=180)
    assert sending.returncode == 0, output.decode()


def metrics() -> Any:
    return http("GET", f"{API}/metrics?window=30d").json()


def assert_exact() -> dict[str, Any]:
    until(lambda: metrics()["span_count"] >= 19366 and "incomplete" not in metrics(), "all in /metrics")
    until(lambda: http("GET", f"{API}/traces?limit=1").json()["total"] >= 19366, "all in /traces")
    shown = metrics()
    assert shown["span_count"] == 19366
    assert shown["tokens"]["prompt_total"] == 22361870
    assert shown["tokens"]["completion_total"] == 4088665
    assert shown["cost"]["total_usd"] == 96.791325
    stats = http("GET", f"{API}/stats").json()
    assert (stats["total_spans"], stats["total_cost_usd"]) == (19366, 96.791325)
    assert http("GET", f"{API}/traces?limit=1").json()["total"] == 19366
    # "from" and "to" change with the time of the request, and a rule may fire between two requests.
    return {key: value for key, value in shown.items() if key not in ("from", "to", "alerts")}


def spans_of(stack: Stack, service: str, files: tuple[str, ...]) -> float:
    """Return how many spans the aggregator *service* has folded, according to its own metrics."""
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8701/internal/metrics').read().decode())"
    text = stack("exec", "-T", service, "python", "-c", program, files=files)
    lines = [line for line in text.splitlines() if line.startswith("tokentrace_aggregator_spans_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_the_compose_files_are_valid(built: Stack) -> None:
    assert built("config", "-q") == ""
    assert built("config", "-q", files=("compose.aggregators.yaml",)) == ""
    assert built("--profile", "monitoring", "config", "-q") == ""
    running = built("config", "--services").split()
    assert set(built("--profile", "monitoring", "config", "--services").split()) - set(running) == {
        "prometheus",
        "grafana",
    }


def test_any_service_may_be_killed_during_the_replay(stack: Stack) -> None:
    stack.up()
    sending = replay("--speed", "200")
    for service in SERVICES:
        time.sleep(1)
        stack("kill", service)
        time.sleep(0.5)
        stack.up()
    finish(sending)
    assert_exact()
    sent = http("POST", f"{API}/spans", b'{"model":"gpt-4o","prompt_tokens":1}')
    assert (sent.status, sent.json()) == (202, {"accepted": 1})
    message = b'{"type":"trace.span","payload":{"operation":"infer"}}'
    assert http("POST", f"{API}/mist", message).status == 202
    assert http("POST", f"{API}/spans", b"not json").status == 400
    assert http("POST", "http://127.0.0.1:8700/spans", b'{"model":"gpt-4o","prompt_tokens":1}').status == 202


def test_containers_are_not_root_and_cannot_write_their_image(stack: Stack) -> None:
    stack.up()
    for service in BUILT:
        assert stack("exec", "-T", service, "id", "-u").strip() == "10001"
        assert stack("exec", "-T", service, "sh", "-c", "touch /opt/x 2>/dev/null || echo refused").strip() == "refused"


def test_three_ingests_and_two_aggregators_answer_as_one_does(stack: Stack) -> None:
    stack.up("--scale", "ingest=3")
    finish(replay("--speed", "max", "--reporters", "8"))
    with_one = assert_exact()
    stack("stop", "aggregator")
    two = ("compose.aggregators.yaml",)
    stack.up("--scale", "ingest=3", files=two)
    assert assert_exact() == with_one
    assert spans_of(stack, "aggregator", two) > 0
    assert spans_of(stack, "aggregator-2", two) > 0

    stack("kill", "aggregator-2", files=two)
    until(lambda: metrics().get("incomplete") is True, "marked incomplete")
    assert metrics()["missing_shards"] == [2, 3]
    assert metrics()["span_count"] < 19366
    stack.up("--scale", "ingest=3", files=two)
    assert assert_exact() == with_one

    everything = {name: {"environment": {"TOKENTRACE_OWN_SHARDS": "0-3"}} for name in ("aggregator", "aggregator-2")}
    both = (*two, stack.override("both", everything))
    stack.up("--scale", "ingest=3", files=both)
    assert assert_exact() == with_one
    stack("kill", "aggregator", files=both)
    assert assert_exact() == with_one


def test_down_leaves_no_container_and_no_volume(built: Stack) -> None:
    built.up()
    built("down", "-v", "--remove-orphans")
    assert built("ps", "-aq") == ""
    volumes = subprocess.run(["docker", "volume", "ls", "-q"], capture_output=True, text=True, check=True).stdout
    assert "tokentrace" not in volumes
