"""Every program under examples/ runs as a user starts it, against a real pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.environment import ROOT
from kit.pipeline import Pipeline

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("examples"))
    serving.start()
    yield serving
    serving.stop()


def start(name: str, url: str, *words: str) -> subprocess.Popen[str]:
    program = [sys.executable, str(EXAMPLES / name), *words]
    env = {**os.environ, "TOKENTRACE_URL": url}
    return subprocess.Popen(program, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(name: str, url: str) -> str:
    running = start(name, url)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    return output


def test_every_example_is_in_the_table_and_has_a_test() -> None:
    table, here = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    for program in EXAMPLES.glob("*.py"):
        assert f"[{program.name}]({program.name})" in table
        assert f'"{program.name}"' in here
        assert len(program.read_text().splitlines()) < 60


def test_report_spans_counts_three_spans_of_one_trace(pipeline: Pipeline) -> None:
    assert run("report_spans.py", pipeline.nats_url) == "acknowledged 3, dropped 0, failed 0\n"
    pipeline.until(lambda: pipeline.get("/traces/example-trace").json()["span_count"] == 3, "stored")


def test_post_spans_counts_once_however_often_it_is_run(pipeline: Pipeline) -> None:
    for _ in range(2):
        posted, cost = run("post_spans.py", pipeline.url).splitlines()
        assert posted == '202 {"accepted":1}'
        assert "total_usd" in json.loads(cost)
    counted = "/metrics/span_count?caller=checkout&window=1h"
    pipeline.until(lambda: pipeline.get(counted).json()["span_count"] == 1, "counted once")


def test_follow_alerts_prints_an_event(pipeline: Pipeline) -> None:
    following = start("follow_alerts.py", pipeline.nats_url, "8")
    assert following.stdout is not None
    assert following.stdout.readline() == "following\n"
    rule = {
        "name": "example",
        "metric": "span_count",
        "op": "gte",
        "threshold": 1,
        "window": "1m",
        "eval_interval": "1s",
    }
    assert pipeline.post("/alerts", rule).status == 201
    pipeline.post("/spans", {"name": "call", "model": "gpt-4o", "prompt_tokens": 1})
    output, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert output.startswith("tokentrace.alerts.default.example firing ")
