"""Programs under examples/ run as a user starts them, against a real pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.example_programs import EXAMPLES, run, start
from kit.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("examples"))
    serving.start()
    yield serving
    serving.stop()


def test_every_example_is_in_the_table_and_has_a_test() -> None:
    table = (EXAMPLES / "README.md").read_text()
    here = "".join(file.read_text() for file in Path(__file__).parent.glob("test_examples*.py"))
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


def test_trace_calls_is_one_trace_with_a_tool_below_its_plan(pipeline: Pipeline) -> None:
    printed = run("trace_calls.py", pipeline.nats_url)
    trace_id = printed.split()[1].rstrip(":")
    assert printed == f"trace {trace_id}: acknowledged 4, dropped 0\n"
    pipeline.until(lambda: pipeline.get(f"/traces/{trace_id}").json().get("span_count") == 4, "stored")
    spans = {span["name"]: span for span in pipeline.get(f"/traces/{trace_id}").json()["spans"]}
    assert spans["search"]["parent_span_id"] == spans["plan"]["span_id"]


def test_decorate_functions_makes_a_span_of_each_call(pipeline: Pipeline) -> None:
    trace, said, counted = run("decorate_functions.py", pipeline.nats_url).splitlines()
    assert (said, counted) == ("about tokens", "acknowledged 3")
    path = f"/traces/{trace.split()[1]}"
    pipeline.until(lambda: pipeline.get(path).json().get("span_count") == 3, "stored")
    kinds = {span["name"]: span["kind"] for span in pipeline.get(path).json()["spans"]}
    assert kinds == {"answer": "workflow", "find_documents": "retrieval", "answer in pieces": "chain"}


def test_write_file_sends_the_lines_of_its_file(pipeline: Pipeline) -> None:
    assert run("write_file.py", pipeline.url) == '2 spans in the file\n{"accepted":2}\n'


def test_test_with_buffer_passes_under_pytest() -> None:
    program = EXAMPLES / "test_with_buffer.py"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLES), str(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout


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


def test_migrate_from_costkatana_does_the_same_with_a_service_and_in_the_process(pipeline: Pipeline) -> None:
    sent, kept = run("migrate_from_costkatana.py", "", env={"TOKENTRACE_API_URL": pipeline.url}).splitlines()
    assert sent.endswith(", 0 failures")
    assert kept == "kept a span of 0.00256 USD"
    details = f"/api/sessions/{sent.split()[2].rstrip(',')}/details"
    pipeline.until(lambda: pipeline.get(details).json()["status"] == "completed", "stored")
    session = pipeline.get(details).json()
    assert session["summary"]["totalCost"] == 0.00256
    assert [message["content"] for message in session["messages"]] == ["What is the answer?"]


def test_share_a_budget_spends_what_its_calls_cost_and_no_more_than_it_allows(pipeline: Pipeline) -> None:
    said = run("share_a_budget.py", pipeline.nats_url).splitlines()[-1]
    calls = int(said.split()[0])
    # With 38 calls of 0.00256 there is no room for the 0.00288 of another one.
    assert 0 < calls <= 38
    assert said == f"{calls} calls spent {calls * 256 / 100_000:.5f} of 0.1 USD"
    counted = "/metrics?caller=worker&window=1h"
    pipeline.until(lambda: pipeline.get(counted).json()["span_count"] == calls, "stored")
    assert pipeline.get(counted).json()["cost"]["total_usd"] == pytest.approx(calls * 0.00256)
