"""The pipeline inside of a program: the documented quick start without a server, and what the program's end leaves."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.environment import PATIENCE
from kit.pipeline import free_port, http
from kit.receiver import Receiver
from kit.reporting import until
from tokentrace import BufferTransport, ConfigError, Tracer, Unavailable, cost_spike


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiving:
        yield receiving


def test_the_quick_start_runs_without_a_server(receiver: Receiver) -> None:
    port = free_port()
    rule = cost_spike("hourly-cost-spike", 0.004, "10s", delivery={"type": "http", "url": f"{receiver.url}/alert"})
    lines = BufferTransport()
    tracer = Tracer(lines, source="quick-start", http_server=f":{port}", alerts=[rule])
    url = f"http://127.0.0.1:{port}"

    trace = tracer.start("summarize-document")
    trace.record(
        model="gpt-4o",
        provider="openai",
        prompt_tokens=512,
        completion_tokens=128,
        latency_ms=1240,
        cost_usd=0.00448,
        status="ok",
    )
    trace.record_error(RuntimeError("context too long"), model="gpt-4o", provider="openai")
    assert trace.end_and_flush()

    assert [(span.status, span.error) for span in lines.spans] == [
        ("ok", ""),
        ("error", "RuntimeError: context too long"),
    ]
    until(lambda: http("GET", f"{url}/metrics/cost?window=24h").json()["span_count"] == 2, "counted")
    cost = http("GET", f"{url}/metrics/cost?window=24h").json()
    assert (cost["total_usd"], cost["window"], cost["by_model"]) == (0.00448, "24h", {"gpt-4o": 0.00448})
    assert http("GET", f"{url}/metrics/latency").json()["p95_ms"] == 1240
    health = http("GET", f"{url}/health").json()
    assert health["status"] == "ok"
    assert health["span_count"] == 2

    tracer.score(0.9, trace_id=trace.id, span_id=lines.spans[0].span_id)
    assert tracer.flush()
    until(lambda: http("GET", f"{url}/metrics/quality").json()["score_avg"] == 0.9, "scored")

    until(lambda: bool(receiver.sent), "alerted")
    alert = receiver.sent[0].json()
    assert {key: alert[key] for key in ("alert", "metric", "op", "value", "threshold", "window")} == {
        "alert": "hourly-cost-spike",
        "metric": "total_cost",
        "op": "gt",
        "value": 0.00448,
        "threshold": 0.004,
        "window": "10s",
    }
    assert alert["fired_at"].endswith("Z")
    assert alert["rule_id"].startswith("alert_")

    assert tracer.stats().acked == 4, "two spans on each of two transports"
    tracer.close()
    with pytest.raises(OSError, match="refused"):
        http("GET", f"{url}/health")


def test_rules_and_custom_metrics_work_without_http(receiver: Receiver) -> None:
    before = len(receiver.sent)
    rule = cost_spike("spike", 0.0, "10s", delivery={"type": "http", "url": f"{receiver.url}/alert"})
    with Tracer(alerts=[rule], prices={"our-model": {"prompt_per_1m": 1, "completion_per_1m": 2}}) as tracer:
        with tracer.span("chat", model="our-model", prompt_tokens=1_000_000, completion_tokens=500_000):
            pass
        assert tracer.flush()
        until(lambda: len(receiver.sent) > before, "alerted")
        assert receiver.sent[-1].json()["value"] == 2.0


def test_a_configuration_file_describes_transport_and_pipeline(tmp_path: Path, receiver: Receiver) -> None:
    port = free_port()
    file = tmp_path / "tokentrace.yml"
    file.write_text(
        f"""
transport: {{type: file, file: {{path: {tmp_path}/traces.jsonl}}}}
http_server: {{enabled: true, addr: ":{port}"}}
redaction: {{keys: [customer]}}
custom_metrics: [{{name: legal, type: sum, field: cost, filter_key: document_type, filter_val: legal}}]
"""
    )
    tracer = Tracer.from_file(file, source="files", http_server=":1")
    tracer.start("x").record(
        model="gpt-4o", provider="openai", prompt_tokens=1000, attributes={"document_type": "legal", "customer": "ann"}
    )
    tracer.close()
    written = json.loads((tmp_path / "traces.jsonl").read_text())
    assert written["attributes"]["customer"] == "[REDACTED]"

    with Tracer.from_file(file) as tracer:
        tracer.span("x", model="gpt-4o", provider="openai", attributes={"document_type": "legal"}, cost_usd=0.5).end()
        assert tracer.flush()
        legal = f"http://127.0.0.1:{port}/metrics/legal"
        until(lambda: http("GET", legal).json().get("value") == 0.5, "counted")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("transprt: {}", "configuration: Object contains unknown field `transprt`"),
        ("alerts: [{name: a, metric: total_cost, op: over, threshold: 1, window: 1h}]", r"alerts\[0\]"),
        ("transport: {type: http}", r"transport.http.endpoint: required"),
        ("a: [", "configuration: not YAML: line 1"),
    ],
)
def test_an_invalid_configuration_names_the_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Tracer.from_text(text)


def test_a_port_in_use_is_an_error_at_once_and_leaves_nothing_behind(receiver: Receiver) -> None:
    with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{receiver.port}"):
        Tracer(http_server=f":{receiver.port}")


PROGRAM = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from tokentrace import Tracer
tracer = Tracer(http_server=":0", source="program")
tracer.start("forgotten").record(kind="custom")
if hasattr(os, "fork") and os.fork() == 0:
    tracer.start("in the child").record(kind="custom")
    os._exit(0)
os.wait()
print(sorted(os.listdir(sys.argv[1])) != [])
"""


def test_a_program_ends_at_once_and_leaves_no_files(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        env={key: value for key, value in os.environ.items() if not key.startswith("TOKENTRACE_")},
    )
    lost = "reporter program: spans are dropped from now on, because the pipeline is closed\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", lost), "the child has no pipeline, and says so"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipeline_leaves_no_thread() -> None:
    import threading

    before = threading.active_count()
    tracer = Tracer(alerts=[cost_spike("c", 1, "1m")])
    assert threading.active_count() > before
    tracer.close()
    gc.collect()
    deadline = time.monotonic() + 10 * PATIENCE
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before
