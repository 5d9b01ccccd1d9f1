"""The programs of docs/how-to/frameworks.md under real servers: each makes the spans that the page promises."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.environment import ROOT, plain_environment
from kit.pipeline import free_port, http
from kit.reporting import until

PAGE = (ROOT / "docs" / "how-to" / "frameworks.md").read_text()
WORKER = """

if __name__ == "__main__":
    from celery.contrib.testing.worker import start_worker

    tracer = Tracer(source="web")
    with start_worker(app, perform_ping_check=False, pool="solo"), tracer.trace("order") as trace:
        summarize.delay("a text").get(timeout=30)
    tracer.close()
    print(trace.id)
"""


def block_with(text: str) -> str:
    """Return the Python program of the page that contains *text*."""
    (block,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if text in block
    ]
    return str(block)


@contextlib.contextmanager
def serving(directory: Path, program: str, server: list[str]) -> Iterator[Path]:
    """Run *program* as the module ``shop`` under a server, and yield the file of its spans."""
    spans = directory / "spans.jsonl"
    (directory / "shop.py").write_text(program)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *server],
            cwd=directory,
            env={**plain_environment(), "TOKENTRACE_URL": f"file://{spans}"},
            stdout=log,
            stderr=log,
        )
    try:
        yield spans
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def read(spans: Path) -> list[dict[str, Any]]:
    """Return the spans of a file."""
    return [json.loads(line) for line in spans.read_text().splitlines()] if spans.exists() else []


@pytest.mark.parametrize(
    ("framework", "server", "name"),
    [
        ("import FastAPI", "uvicorn shop:app --host 127.0.0.1 --port PORT", "GET /items/{item}"),
        ("import Flask", "gunicorn shop:app --bind 127.0.0.1:PORT --no-control-socket", "GET /items/<item>"),
    ],
)
def test_a_web_application_of_the_page_makes_the_spans_of_a_request(
    framework: str, server: str, name: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(tmp_path, block_with(framework), server.replace("PORT", str(port)).split()) as spans:

        def is_up() -> bool:
            with contextlib.suppress(OSError):
                return http("GET", f"{url}/health").status == 404
            return False

        until(is_up, "serving")
        answer = http("GET", f"{url}/items/7", None, {"x-session-id": "s-1"})
        assert json.loads(answer.body) == {"item": "7"}
        until(lambda: len(read(spans)) == 2, f"two spans: {(tmp_path / 'log').read_text()}")
    found = {span["name"]: span for span in read(spans)}
    assert found.keys() == {name, "look up"}
    assert found["look up"]["parent_span_id"] == found[name]["span_id"]
    assert {span["trace_id"] for span in found.values()} == {answer.headers["x-trace-id"]}


def test_the_worker_of_the_page_makes_the_spans_of_a_task(tmp_path: Path) -> None:
    program = block_with("import Celery").replace(
        'broker="redis://127.0.0.1:6379/0"', 'broker="memory://", backend="cache+memory://"'
    )
    assert "memory://" in program
    spans = tmp_path / "spans.jsonl"
    (tmp_path / "shop.py").write_text(program + WORKER)
    done = subprocess.run(
        [sys.executable, "shop.py"],
        cwd=tmp_path,
        env={**plain_environment(), "TOKENTRACE_URL": f"file://{spans}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = {span["name"]: span for span in read(spans)}
    assert found.keys() == {"shop.summarize", "look up"}
    assert found["look up"]["parent_span_id"] == found["shop.summarize"]["span_id"]
    assert {span["trace_id"] for span in found.values()} == {done.stdout.strip()}
