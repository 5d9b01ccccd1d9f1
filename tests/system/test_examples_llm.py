"""The examples with SDKs of providers and with web frameworks, against a real pipeline and a server on loopback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kit.environment import PATIENCE
from kit.example_programs import EXAMPLES, run, start
from kit.pipeline import Answer, Pipeline, free_port, http
from kit.scripted_http import ScriptedServer, json_answer, scripted_server, sse_answer

USAGE = {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300}
#: Cost of USAGE for gpt-4o: 2.5 US dollars for a million prompt tokens and 10 for a million completion tokens.
CALL_USD = 0.0015


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("examples"))
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def provider() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def keys(provider: ScriptedServer) -> dict[str, str]:
    """Return the variables that lead the SDKs to *provider*."""
    return {
        "OPENAI_API_KEY": "test",
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "ANTHROPIC_API_KEY": "test",
        "ANTHROPIC_BASE_URL": provider.url,
    }


def chunk(delta: Mapping[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
    """Return a chunk of a streamed chat completion; one without a delta has the usage."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_767_000_000,
        "model": "gpt-4o-2024-08-06",
        "choices": [] if delta is None else [choice],
        "usage": USAGE if delta is None else None,
    }


def completion(content: str) -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_767_000_000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def message(stop_reason: str, *content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer of Anthropic's messages API."""
    return {
        "id": f"msg_{stop_reason}",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 200, "output_tokens": 100},
    }


def spans_of(pipeline: Pipeline, trace_id: str, count: int) -> dict[str, dict[str, Any]]:
    """Wait until a trace has *count* spans, and return them by name, or by model where they have one."""
    path = f"/traces/{trace_id}"
    pipeline.until(lambda: pipeline.get(path).json()["span_count"] == count, f"{count} spans")
    return {span["model"] or span["name"]: span for span in pipeline.get(path).json()["spans"]}


@contextlib.contextmanager
def serving(name: str, pipeline: Pipeline, provider: ScriptedServer) -> Iterator[str]:
    """Run an example that is a web server; return its URL."""
    port = free_port()
    env = {**keys(provider), "PORT": str(port)}
    server = start(name, pipeline.nats_url, env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        pipeline.until(lambda: bool(http("GET", f"{url}/health").status), "listening")
        yield url
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.communicate(timeout=60)
        server.kill()
        server.wait()


def trace_id_of(answer: Answer) -> str:
    """Return the id of the trace of a request."""
    return {name.lower(): value for name, value in answer.headers.items()}["x-trace-id"]


def test_stream_openai_is_one_span_with_tokens_cost_and_first_token(
    pipeline: Pipeline, provider: ScriptedServer
) -> None:
    parts = [chunk({"role": "assistant", "content": ""}), chunk({"content": "forty"}), chunk({"content": "-two"})]
    provider.script(sse_answer([*parts, chunk({}, "stop"), chunk(None)], done=b"[DONE]"))
    said, traced = run("stream_openai.py", pipeline.nats_url, env=keys(provider)).splitlines()
    assert said == "forty-two"
    assert traced.endswith(": acknowledged 1")
    assert provider.requests[0].json()["stream_options"] == {"include_usage": True}
    (call,) = spans_of(pipeline, traced.split()[1].rstrip(":"), 1).values()
    assert (call["user_id"], call["kind"], call["status"]) == ("alice", "llm", "ok")
    assert (call["prompt_tokens"], call["comp_tokens"], call["cost_usd"]) == (200, 100, CALL_USD)
    assert 0 < call["ttft_ms"] <= call["latency_ms"]


def test_agent_anthropic_has_its_calls_and_its_tool_below_the_agent(
    pipeline: Pipeline, provider: ScriptedServer
) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    provider.script(
        json_answer(message("tool_use", use)),
        json_answer(message("end_turn", {"type": "text", "text": "It is sunny."})),
    )
    said, traced = run("agent_anthropic.py", pipeline.nats_url, env=keys(provider)).splitlines()
    assert said == "It is sunny."
    assert traced.endswith(": acknowledged 4")
    assert provider.requests[1].json()["messages"][2]["content"][0]["content"] == "sunny in Oslo"
    path = f"/traces/{traced.split()[1].rstrip(':')}"
    pipeline.until(lambda: pipeline.get(path).json()["span_count"] == 4, "stored")
    spans = pipeline.get(path).json()["spans"]
    (agent,) = [span for span in spans if span["kind"] == "agent"]
    below = [(span["kind"], span["parent_span_id"]) for span in spans if span is not agent]
    assert sorted(below) == [("llm", agent["span_id"])] * 2 + [("tool", agent["span_id"])]


def test_agent_with_budget_stops_before_the_call_that_may_exceed_it(
    pipeline: Pipeline, provider: ScriptedServer
) -> None:
    provider.script(json_answer(completion("Count, count, count.")))
    refused, figures = run("agent_with_budget.py", pipeline.nats_url, env=keys(provider)).splitlines()
    assert "0.01 USD" in refused
    # A call costs 0.0015 and reserves 0.005 and more, so there is room for three.
    assert figures == "4 calls, 0.006000 USD spent, 0.004000 USD left"
    assert len(provider.requests) == 4
    spent = "/metrics/cost?caller=agent&window=1h"
    pipeline.until(lambda: pipeline.get(spent).json()["total_usd"] == 0.006, "stored")


def test_serve_fastapi_makes_a_trace_of_a_request_and_its_call(pipeline: Pipeline, provider: ScriptedServer) -> None:
    provider.script(json_answer(completion("Buy it.")))
    with serving("serve_fastapi.py", pipeline, provider) as url:
        answer = http("GET", f"{url}/products/chair/description", headers={"x-session-id": "s-fastapi"})
        assert answer.json() == {"description": "Buy it."}
        spans = spans_of(pipeline, trace_id_of(answer), 3)
    root = spans["GET /products/{product}/description"]
    assert (root["kind"], root["session_id"], root["caller"]) == ("http", "s-fastapi", "fastapi-shop")
    assert {spans[name]["parent_span_id"] for name in ("find", "gpt-4o-2024-08-06")} == {root["span_id"]}
    assert spans["gpt-4o-2024-08-06"]["cost_usd"] == CALL_USD


def test_serve_flask_makes_a_trace_of_a_request_and_its_call(pipeline: Pipeline, provider: ScriptedServer) -> None:
    provider.script(json_answer(message("end_turn", {"type": "text", "text": "They like it."})))
    with serving("serve_flask.py", pipeline, provider) as url:
        answer = http("GET", f"{url}/reviews/chair")
        assert answer.body == b"They like it."
        spans = spans_of(pipeline, trace_id_of(answer), 2)
        missing = http("GET", f"{url}/reviews/4711")
        assert missing.status == 404
        failed = spans_of(pipeline, trace_id_of(missing), 1)
    root = spans["GET /reviews/<product>"]
    assert spans["claude-sonnet-5"]["parent_span_id"] == root["span_id"]
    assert failed["GET /reviews/<product>"]["status"] == "error"


CELERY_CONFIG = """
broker_url = "filesystem://"
broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
task_ignore_result = True
broker_connection_retry_on_startup = True
"""


def test_trace_celery_continues_the_trace_of_the_sender_in_the_worker(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broker_in_files.py").write_text(CELERY_CONFIG)
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "broker_in_files")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(EXAMPLES), os.environ["PYTHONPATH"]]))
    flags = ["--app", "trace_celery", "worker", "--concurrency", "1", "--without-gossip", "--without-mingle"]
    command = [sys.executable, "-m", "celery", *flags]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command, env={**os.environ, "TOKENTRACE_URL": pipeline.nats_url}, stdout=log, stderr=log
        )
    try:
        trace_id = run("trace_celery.py", pipeline.nats_url).split()[1]
        path = f"/traces/{trace_id}"
        pipeline.until(lambda: pipeline.get(path).json()["span_count"] == 6, "stored", 120)
    finally:
        worker.terminate()
        worker.wait(60 * PATIENCE)
    spans = pipeline.get(path).json()["spans"]
    tasks = {span["span_id"] for span in spans if span["kind"] == "workflow"}
    assert len(tasks) == 2
    assert {span["parent_span_id"] for span in spans if span["kind"] in ("retrieval", "llm")} == tasks
    assert {span["session_id"] for span in spans} == {"night-1"}
