"""What a client without an SDK and tracked SDKs tell arrives in a pipeline, with tokens and money."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from google import genai
from google.genai import types

from kit.pipeline import Pipeline, http
from kit.scripted_http import ScriptedServer, json_answer, scripted_server
from tokentrace import Rejected, TraceClient, TraceContext, Tracer, TrackedOpenAI, instrument

_COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("tracked-providers"))
    pipeline.start()
    yield pipeline
    pipeline.stop()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


def test_a_chat_without_an_sdk_is_a_priced_call_of_its_session(pipeline: Pipeline, server: ScriptedServer) -> None:
    server.script(json_answer(_COMPLETION))
    with TraceClient("any", "shop", pipeline.url) as service:
        root = service.start_span("GET /", "http")
        context = TraceContext(root.session_id, root.trace_id)
        client = TrackedOpenAI("key", server.url, context, service.start_span, service.end_span, service.record_message)
        client.chat_completion(model="gpt-4o", messages=[{"role": "user", "content": "Hi."}])
        service.end_span(root.trace_id)

        def call() -> dict[str, Any]:
            with contextlib.suppress(Rejected):
                nodes = service.session_graph(root.session_id)["nodes"]
                found = [node for node in nodes if node["label"] == "OpenAI gpt-4o" and node["status"] != "pending"]
                return found[0] if found else {}
            return {}

        pipeline.until(lambda: bool(call()), "shown")
        node = call()
        assert (node["type"], node["status"], node["aiModel"]) == ("llm", "ok", "gpt-4o")
        assert node["tokens"] == {"input": 1000, "output": 100}
        # 1,000 tokens at 2.50 and 100 at 10.00 US dollars per million
        assert node["costUSD"] == pytest.approx(0.0035, abs=1e-12)
        messages = service.session_details(root.session_id)["messages"]
        assert [message["contentPreview"] for message in messages] == ["Hi.", "Hello!"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_calls_of_tracked_sdks_arrive_priced(pipeline: Pipeline, server: ScriptedServer) -> None:
    tracer = Tracer(pipeline.url, source="shop")
    gemini = instrument(genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.url)), tracer=tracer)
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    bedrock = instrument(
        boto3.client("bedrock-runtime", region_name="eu-west-1", endpoint_url=server.url, **keys), tracer=tracer
    )
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
    content = {"role": "model", "parts": [{"text": "hello"}]}
    answer = {"candidates": [{"content": content, "finishReason": "STOP"}], "usageMetadata": usage}
    server.script(json_answer({**answer, "modelVersion": "gemini-2.5-flash"}))
    with tracer.trace("request") as trace:
        gemini.models.generate_content(model="gemini-2.5-flash", contents="hi")
        counts = {"inputTokens": 1000, "outputTokens": 100, "totalTokens": 1100}
        message = {"role": "assistant", "content": [{"text": "hello"}]}
        server.script(json_answer({"output": {"message": message}, "stopReason": "end_turn", "usage": counts}))
        bedrock.converse(
            modelId="anthropic.claude-3-haiku-20240307-v1:0",
            messages=[{"role": "user", "content": [{"text": "hi"}]}],
        )
    bedrock.close()
    tracer.close()

    def spans() -> list[dict[str, Any]]:
        answer = http("GET", f"{pipeline.url}/traces/{trace.id}")
        return answer.json()["spans"] if answer.status == 200 else []

    pipeline.until(lambda: len(spans()) == 2, "shown")
    costs = {span["provider"]: (span["prompt_tokens"], span["comp_tokens"], span["cost_usd"]) for span in spans()}
    # Gemini 2.5 Flash: 0.30 and 2.50, Claude 3 Haiku: 0.25 and 1.25 US dollars per million tokens
    assert costs == {
        "google": (1000, 100, pytest.approx(0.00055, abs=1e-12)),
        "aws": (1000, 100, pytest.approx(0.000375, abs=1e-12)),
    }
