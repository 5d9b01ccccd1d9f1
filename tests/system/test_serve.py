"""``serve``: its health, its errors, its token, and that a stop or a kill loses no acknowledged span."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.cases import check_all, numbered
from kit.commands import run_command
from kit.http_errors import refused
from kit.http_spans import assert_accepted, counted_calls, mist_message, mist_span, settle
from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline, http

#: (Method, path, status).
ERRORS = (
    ("POST", "/", 405),
    ("GET", "/nowhere", 404),
    ("POST", "/nowhere", 404),
    ("GET", "/spans", 405),
    ("DELETE", "/spans", 405),
    ("POST", "/metrics", 405),
    ("POST", "/metrics/cost", 405),
    ("PUT", "/traces", 405),
    ("POST", "/traces/recent", 405),
    ("DELETE", "/traces/x", 404),
    ("POST", "/stats", 405),
    ("POST", "/health", 405),
    ("POST", "/healthz", 405),
    ("GET", "/metrics?window=x", 400),
    ("GET", "/metrics/nothing", 404),
    ("GET", "/traces?limit=x", 400),
    ("GET", "/stats?limit=x", 400),
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline that some tests restart."""
    serving = Pipeline(tmp_path_factory.mktemp("serve"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def test_health_has_the_six_documented_keys(pipeline: Pipeline) -> None:
    assert pipeline.post("/mist", mist_message(mist_span())).status == 202
    pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] >= 1, "counted")
    answer = pipeline.get("/health")
    shown = answer.json()
    assert answer.status == 200
    assert set(shown) >= {"status", "version", "uptime_s", "span_count", "transport", "queue_depth"}
    assert shown["status"] == "ok"
    assert type(shown["uptime_s"]) is int
    assert shown["span_count"] > 0
    assert type(shown["queue_depth"]) is int


def test_healthz_and_readyz_say_ok(pipeline: Pipeline) -> None:
    for path in ("/healthz", "/readyz"):
        answer = pipeline.get(path)
        assert (answer.status, answer.json()["status"]) == (200, "ok")


def test_the_internal_metrics_are_in_the_format_of_prometheus(pipeline: Pipeline) -> None:
    assert_accepted(pipeline.post("/spans", json_call()))
    refused(pipeline.post("/spans", b"no"))
    answer = pipeline.get("/internal/metrics")
    assert answer.status == 200
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    for family in ("tokentrace_ingest_spans", "tokentrace_ingest_rejected"):
        assert all(sample.labels["way"] == sample.labels["source"] for sample in families[family].samples)
        assert "way is deprecated" in families[family].documentation
    accepted = {sample.labels["source"]: sample.value for sample in families["tokentrace_ingest_spans"].samples}
    refusals = {sample.labels["source"]: sample.value for sample in families["tokentrace_ingest_rejected"].samples}
    assert accepted["spans"] >= 1
    assert refusals["spans"] >= 1
    assert all(family.documentation for family in families.values())
    assert {"tokentrace_aggregator_spans", "tokentrace_api_queue_depth"} <= set(families)


def test_every_error_has_the_documented_form(pipeline: Pipeline) -> None:
    def check(case: tuple[str, str, int]) -> None:
        method, path, status = case
        answer = http(method, pipeline.url + path, b"{}" if method in ("POST", "PUT") else None)
        refused(answer, status)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers["content-type"].startswith("application/json")

    check_all(numbered(ERRORS), check)


def test_all_routes_except_health_checks_and_mist_need_the_token(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path, env={"TOKENTRACE_AUTH_TOKEN": "s3cret-token"})
    serving.start()
    try:
        right = {"Authorization": "Bearer s3cret-token"}
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret-token"},
            {"Authorization": "Basic s3cret-token"},
            {"Authorization": "Bearer s3cret-token2"},
            {"Authorization": "Bearer "},
        ):
            for path in ("/metrics", "/metrics/cost", "/traces", "/traces/x", "/stats", "/health", "/nowhere"):
                error = refused(http("GET", serving.url + path, headers=wrong), 401)
                assert "s3cret-token" not in error
            refused(serving.post("/spans", json_call(), wrong), 401)
        for path in ("/metrics", "/metrics/cost", "/traces", "/stats", "/health"):
            assert http("GET", serving.url + path, headers=right).status == 200
        assert_accepted(serving.post("/spans", json_call(), right))
        assert serving.get("/healthz").status == 200
        assert serving.get("/readyz").status == 200
        assert serving.post("/mist", mist_message(mist_span())).status == 202

        def stored() -> bool:
            return bool(http("GET", serving.url + "/stats", headers=right).json()["total_spans"] == 2)

        serving.until(stored, "only the two accepted spans counted")
    finally:
        serving.stop()


def test_version_prints_the_version_of_health(tmp_path: Path, pipeline: Pipeline) -> None:
    ended = run_command(tmp_path, "version")
    assert ended.code == 0
    assert ended.stdout == f"tokentrace {pipeline.get('/health').json()['version']}\n"


def test_a_second_serve_on_the_same_data_is_an_error_that_says_so(tmp_path: Path, pipeline: Pipeline) -> None:
    words = ["serve", "--addr", "127.0.0.1:0", "--also", "none", "--data-dir", str(pipeline.data)]
    ended = run_command(tmp_path, *words)
    assert ended.code == 1
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sigterm_ends_serve_with_exit_code_0_and_keeps_the_acknowledged_spans(pipeline: Pipeline) -> None:
    caller, before = fresh("steady"), pipeline.get("/stats").json()["total_spans"]
    ids = [f"{caller}-{number}" for number in range(50)]
    for trace_id in ids:
        assert_accepted(pipeline.post("/spans", json_call(caller=caller, trace_id=trace_id, span_id="1")))
    assert pipeline.stop() == 0
    pipeline.start()
    settle(pipeline, caller)
    assert counted_calls(pipeline, caller) == 50
    page = pipeline.get(f"/traces?caller={caller}&kind=llm&limit=200").json()
    assert sorted(page["trace_ids"]) == sorted(ids)
    assert pipeline.get("/stats").json()["total_spans"] == before + 51


def test_after_a_kill_a_ready_pipeline_shows_all_acknowledged_spans(pipeline: Pipeline) -> None:
    caller, before = fresh("killed"), pipeline.get("/stats").json()["total_spans"]
    for number in range(20):
        call = json_call(caller=caller, trace_id=f"{caller}-{number}", span_id="1")
        assert_accepted(pipeline.post("/spans", call))
    pipeline.kill()
    pipeline.start()
    assert pipeline.get(f"/traces?caller={caller}").json()["total"] == 20
    assert pipeline.get("/stats").json()["total_spans"] == before + 20
    assert counted_calls(pipeline, caller) == 20


def test_sigterm_during_requests_loses_no_acknowledged_span(pipeline: Pipeline) -> None:
    assert pipeline.process is not None
    caller = fresh("busy")
    acknowledged: list[str] = []

    def send(worker: int) -> None:
        for number in range(400):
            trace_id = f"{caller}-{worker}-{number}"
            try:
                answer = pipeline.post("/spans", json_call(caller=caller, trace_id=trace_id, span_id="1"))
            except OSError:
                return
            if answer.status == 202:
                acknowledged.append(trace_id)

    with ThreadPoolExecutor(4) as pool:
        for worker in range(4):
            pool.submit(send, worker)
        while len(acknowledged) < 50:
            time.sleep(0.005)
        os.kill(pipeline.process.pid, signal.SIGTERM)
    assert pipeline.process.wait(40) == 0
    pipeline.start()
    settle(pipeline, caller)
    stored: set[str] = set()
    for offset in range(0, 1600, 200):
        page = pipeline.get(f"/traces?caller={caller}&kind=llm&limit=200&offset={offset}").json()
        stored.update(page["trace_ids"])
    assert set(acknowledged) - stored == set()
    assert counted_calls(pipeline, caller) == len(stored)
