"""Calls of Bedrock through a real boto3 client against a local server: one span each, and the same results."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest

from kit.aws_events import chunk, event, exception
from kit.scripted_http import Answer, ScriptedServer, json_answer, scripted_server
from tokentrace.client.tracing import OpenSpan, Tracer, suppress
from tokentrace.client.track import bedrock
from tokentrace.client.track.faults import faults
from tokentrace.client.transports import BufferTransport
from tokentrace.records import Span, check_span

# botocore leaves the socket of a stream that is not read to its end to the garbage collector, watched or not.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
_MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
_USAGE = {"inputTokens": 100, "outputTokens": 20, "totalTokens": 170, "cacheReadInputTokens": 50}
_CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hi"}, {"toolUse": {"name": "a", "input": {}}}]}},
    "stopReason": "tool_use",
    "usage": _USAGE,
    "metrics": {"latencyMs": 12},
}
_TEXT = {"contentBlockIndex": 0, "delta": {"text": "hi"}}
_EVENTS = [
    event("messageStart", {"role": "assistant"}),
    event("contentBlockDelta", _TEXT),
    event("contentBlockStop", {"contentBlockIndex": 0}),
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": _USAGE, "metrics": {"latencyMs": 12}}),
]
_MESSAGES = [{"role": "user", "content": [{"text": "hello"}]}]


@pytest.fixture(autouse=True, scope="module")
def _sockets_are_collected_here() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def kept() -> BufferTransport:
    return BufferTransport()


def _plain(server: ScriptedServer) -> Any:
    return boto3.client(
        "bedrock-runtime",
        region_name="eu-west-1",
        endpoint_url=server.url,
        aws_access_key_id="AKIA",
        aws_secret_access_key="secret",
        config=botocore.config.Config(retries={"total_max_attempts": 2}),
    )


@pytest.fixture
def client(server: ScriptedServer, kept: BufferTransport) -> Iterator[Any]:
    before = faults()
    client = _plain(server)
    assert bedrock.accepts(client)
    bedrock.watch(client, Tracer(kept))
    yield client
    client.close()
    assert faults() == before


def _stream(*frames: bytes, cut: bool = False) -> Answer:
    return Answer(list(frames), content_type="application/vnd.amazon.eventstream", cut=cut)


def _only(kept: BufferTransport) -> Span:
    (span,) = kept.spans
    check_span(span)
    return span


def test_converse_is_one_span_with_cached_tokens_in_the_prompt(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(json_answer(_CONVERSED, x_amzn_RequestId="r-1"))
    client.converse(modelId=f"arn:aws:bedrock:eu-west-1:1:inference-profile/{_MODEL}", messages=_MESSAGES)
    span = _only(kept)
    assert (span.name, span.kind, span.provider, span.model, span.status) == ("converse", "llm", "aws", _MODEL, "ok")
    assert (span.prompt_tokens, span.completion_tokens, span.cache_read_tokens) == (150, 20, 50)
    assert span.attributes["finish_reason"] == "tool_use"
    assert span.attributes["tool_calls"] == 1
    assert span.attributes["request_id"] == "r-1"


def test_a_retried_call_is_one_span(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer({"message": "later"}, 503), json_answer(_CONVERSED))
    client.converse(modelId=_MODEL, messages=_MESSAGES)
    assert len(server.requests) == 2
    assert _only(kept).status == "ok"


def test_a_refused_call_is_an_error_and_the_exception_is_that_of_botocore(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(json_answer({"message": "no"}, 403, x_amzn_ErrorType="AccessDeniedException"))
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client.converse(modelId=_MODEL, messages=_MESSAGES)
    assert type(caught.value).__name__ == "AccessDeniedException"
    span = _only(kept)
    assert span.status == "error"
    assert span.attributes["error_type"] == "AccessDeniedException"
    assert span.attributes["http_status"] == 403


def test_a_stream_that_is_read_has_the_counts_of_its_last_event(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(_stream(*_EVENTS))
    plain = _plain(server).converse_stream(modelId=_MODEL, messages=_MESSAGES)
    watched = client.converse_stream(modelId=_MODEL, messages=_MESSAGES)
    assert type(watched["stream"]).__name__ == type(plain["stream"]).__name__
    assert isinstance(watched["stream"], type(plain["stream"]))
    assert list(watched["stream"]) == list(plain["stream"])
    span = _only(kept)
    assert (span.prompt_tokens, span.completion_tokens, span.usage_state) == (150, 20, "")
    assert 0 < span.ttft_ns <= span.latency_ns
    assert span.attributes["finish_reason"] == "end_turn"


def test_a_stream_may_be_read_in_two_loops(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(_stream(*_EVENTS))
    stream = client.converse_stream(modelId=_MODEL, messages=_MESSAGES)["stream"]
    for _ in stream:
        break
    assert len(kept) == 0
    assert len(list(stream)) == len(_EVENTS) - 1
    assert _only(kept).completion_tokens == 20


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_left_is_one_span_without_usage(
    way: str, server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(_stream(*_EVENTS))
    answer = client.converse_stream(modelId=_MODEL, messages=_MESSAGES)
    for _ in answer["stream"]:
        break
    if way == "close":
        answer["stream"].close()
    del answer
    gc.collect()
    span = _only(kept)
    assert (span.status, span.usage_state, span.attributes["stream_end"]) == ("ok", "missing", "closed")


def test_an_error_in_a_stream_is_an_error_of_the_call(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(_stream(_EVENTS[0], _EVENTS[1], exception("throttlingException", "slow down")))
    with pytest.raises(botocore.exceptions.EventStreamError):
        list(client.converse_stream(modelId=_MODEL, messages=_MESSAGES)["stream"])
    span = _only(kept)
    assert span.status == "error"
    assert span.attributes["error_type"] == "throttlingException"


def test_a_connection_that_is_cut_in_a_stream_is_an_error_of_the_call(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(_stream(_EVENTS[0], _EVENTS[1], cut=True))
    with pytest.raises(Exception, match=r"Incomplete|ended prematurely"):
        list(client.converse_stream(modelId=_MODEL, messages=_MESSAGES)["stream"])
    assert _only(kept).status == "error"


def test_invoke_model_is_counted_by_the_headers_of_its_answer(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    counted = {"X_Amzn_Bedrock_Input_Token_Count": "11", "X_Amzn_Bedrock_Output_Token_Count": "7"}
    server.script(json_answer({"completion": "hi"}, 200, **counted))
    answer = client.invoke_model(modelId="amazon.titan-text-express-v1", body=b"{}")
    assert json.loads(answer["body"].read()) == {"completion": "hi"}
    span = _only(kept)
    assert (span.kind, span.prompt_tokens, span.completion_tokens) == ("llm", 11, 7)


def test_an_embedding_is_of_kind_embedding(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer({"embedding": [0.5]}, X_Amzn_Bedrock_Input_Token_Count="3"))
    client.invoke_model(modelId="amazon.titan-embed-text-v2:0", body=b"{}")
    span = _only(kept)
    assert (span.kind, span.prompt_tokens, span.completion_tokens) == ("embedding", 3, 0)


def test_a_streamed_invoke_model_is_counted_by_its_metrics(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    metrics = {"inputTokenCount": 10, "outputTokenCount": 4, "cacheReadInputTokenCount": 6, "invocationLatency": 9}
    server.script(
        _stream(
            chunk({"type": "message_start", "message": {"usage": {"input_tokens": 10}}}),
            chunk({"type": "content_block_delta", "delta": {"text": "hi"}}),
            chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}),
        )
    )
    answer = client.invoke_model_with_response_stream(modelId=_MODEL, body=b"{}")
    assert len(list(answer["body"])) == 3
    span = _only(kept)
    assert (span.prompt_tokens, span.completion_tokens, span.cache_read_tokens) == (16, 4, 6)
    assert span.ttft_ns > 0


def test_nothing_else_is_tracked(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer({"inputTokens": 5}), json_answer(_CONVERSED))
    client.count_tokens(modelId=_MODEL, input={"converse": {"messages": _MESSAGES}})
    with suppress():
        client.converse(modelId=_MODEL, messages=_MESSAGES)
    bedrock.unwatch(client)
    client.converse(modelId=_MODEL, messages=_MESSAGES)
    assert kept.spans == []
    assert len(server.requests) == 3


@pytest.mark.parametrize("point", ["span", "set", "usage", "first_token", "end", "fail"])
def test_a_fault_of_the_tracking_changes_nothing_for_the_application(
    point: str, server: ScriptedServer, kept: BufferTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted")

    client = _plain(server)
    bedrock.watch(client, Tracer(kept))
    monkeypatch.setattr(Tracer if point == "span" else OpenSpan, point, broken)
    server.script(json_answer(_CONVERSED))
    assert client.converse(modelId=_MODEL, messages=_MESSAGES)["usage"]["inputTokens"] == 100
    server.script(_stream(*_EVENTS))
    assert len(list(client.converse_stream(modelId=_MODEL, messages=_MESSAGES)["stream"])) == len(_EVENTS)
    server.script(json_answer({"message": "no"}, 403, x_amzn_ErrorType="AccessDeniedException"))
    with pytest.raises(botocore.exceptions.ClientError):
        client.converse(modelId=_MODEL, messages=_MESSAGES)
