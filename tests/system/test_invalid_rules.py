"""Processes with an invalid rule or cooldown end with exit code 2 and name the key."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.pipeline import Pipeline, free_port


def write_rules(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokentrace.yml").write_text(text, encoding="utf-8")
    return directory


def refusal(pipeline: Pipeline) -> str:
    """Start *pipeline*, check that it ends with exit code 2 instead of becoming ready, and return its log."""
    pipeline.start(wait=False)
    assert pipeline.process is not None
    deadline = time.monotonic() + 60
    while pipeline.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if pipeline.get("/readyz").status == 200:
                break
        time.sleep(0.05)
    code = pipeline.process.poll()
    pipeline.stop()
    assert code == 2, "it runs" if code is None else pipeline.log.read_text()[-1000:]
    return pipeline.log.read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [("metric", "latency_p42"), ("window", "an hour"), ("op", "'!='"), ("cooldown", "never"), ("threshold", ".nan")],
)
def test_an_invalid_rule_ends_serve_with_exit_code_2_naming_index_and_key(tmp_path: Path, key: str, value: str) -> None:
    given = {"name": "bad", "metric": "total_cost", "op": "gt", "threshold": "1", "window": "1h", key: value}
    rule = ", ".join(f"{name}: {text}" for name, text in given.items())
    pipeline = Pipeline(write_rules(tmp_path, f"alerts: [{{{rule}}}]\n"))
    log = refusal(pipeline)
    assert f"alerts[0].{key}" in log
    assert "Traceback" not in log


def test_an_invalid_rule_ends_the_alerter_with_exit_code_2(tmp_path: Path, broker: Broker) -> None:
    config = write_rules(tmp_path, "alerts: [{name: bad, metric: nothing, op: gt, threshold: 1, window: 1h}]\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tokentrace_alerter",
            "--nats",
            broker.url,
            "--addr",
            f"127.0.0.1:{free_port()}",
            "--data-dir",
            str(tmp_path / "data"),
            "--config",
            str(config / "tokentrace.yml"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "alerts[0].metric" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_invalid_common_cooldown_ends_serve_with_exit_code_2_naming_the_key(tmp_path: Path) -> None:
    rule = "{name: fine, metric: total_cost, op: gt, threshold: 1, window: 1h}"
    pipeline = Pipeline(write_rules(tmp_path, f"alert_cooldown: five minutes\nalerts: [{rule}]\n"))
    assert "alert_cooldown" in refusal(pipeline)
