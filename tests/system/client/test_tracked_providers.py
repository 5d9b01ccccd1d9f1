"""``TrackedOpenAI``, ``TrackedAnthropic`` and ``tracked`` tell a service of sessions, or a tracer, of each call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kit.scripted_http import Answer, ScriptedServer, json_answer, scripted_server
from tokentrace import (
    BufferTransport,
    ConfigError,
    LocalTraceService,
    Rejected,
    TraceContext,
    Tracer,
    TrackedAnthropic,
    TrackedOpenAI,
    Unavailable,
    tracked,
)

_COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 700, "cache_read_input_tokens": 300, "output_tokens": 100},
}
_ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def service() -> LocalTraceService:
    return LocalTraceService()


@pytest.fixture
def context(service: LocalTraceService) -> TraceContext:
    """The span of a request, in which the calls are made."""
    root = service.start_span("GET /", "http")
    return TraceContext(root.session_id, root.trace_id)


def _methods(service: LocalTraceService) -> dict[str, Any]:
    return {name: getattr(service, name) for name in ("start_span", "end_span", "record_message")}


def _call(service: LocalTraceService, context: TraceContext) -> dict[str, Any]:
    """Return the only span below that of the request."""
    nodes = service.session_graph(context.session_id)["nodes"]
    (node,) = [node for node in nodes if node["id"] != context.trace_id]
    assert node["parentId"] == context.trace_id
    found: dict[str, Any] = node
    return found


def _messages(service: LocalTraceService, context: TraceContext) -> list[tuple[str, str]]:
    messages = service.session_details(context.session_id)["messages"]
    return [(message["role"], message["content"]) for message in messages]


def test_a_chat_is_a_span_below_that_of_the_request_with_its_last_message_and_answer(
    server: ScriptedServer, service: LocalTraceService, context: TraceContext
) -> None:
    server.script(json_answer(_COMPLETION))
    client = TrackedOpenAI("key", f"{server.url}/v1", context, **_methods(service))
    answer = client.chat_completion(model="gpt-4o", messages=_ASKED, max_tokens=50, temperature=0.5, top_p=0.9)
    assert answer == _COMPLETION
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer key"
    assert request.json() == {
        "model": "gpt-4o",
        "messages": _ASKED,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    span = _call(service, context)
    assert (span["name"], span["type"], span["status"], span["model"]) == (
        "OpenAI gpt-4o",
        "llm",
        "ok",
        "gpt-4o-2024-08-06",
    )
    assert span["tokens"] == {"input": 1000, "output": 100}
    # 1,000 tokens at 2.50 and 100 at 10.00 US dollars per million
    assert span["costUSD"] == pytest.approx(0.0035, abs=1e-12)
    latency = span["metadata"].pop("latency")
    assert latency >= 0
    assert span["metadata"] == {"model": "gpt-4o", "temperature": 0.5, "maxTokens": 50, "finishReason": "stop"}
    assert _messages(service, context) == [("user", "Hi."), ("assistant", "Hello!")]


def test_a_message_of_claude_counts_its_cached_tokens_and_sends_the_system_prompt_as_a_parameter(
    server: ScriptedServer, service: LocalTraceService, context: TraceContext
) -> None:
    server.script(json_answer(_MESSAGE))
    client = TrackedAnthropic("key", f"{server.url}/v1", context, **_methods(service))
    client.messages(model="claude-sonnet-4-5", messages=_ASKED[1:], system="Be brief.", max_tokens=50)
    (request,) = server.requests
    assert request.path == "/v1/messages"
    assert (request.headers["x-api-key"], request.headers["anthropic-version"]) == ("key", "2023-06-01")
    assert request.json() == {
        "model": "claude-sonnet-4-5",
        "messages": _ASKED[1:],
        "system": "Be brief.",
        "max_tokens": 50,
    }
    span = _call(service, context)
    assert (span["name"], span["tokens"]) == ("Claude claude-sonnet-4-5", {"input": 1000, "output": 100})
    assert span["metadata"]["finishReason"] == "end_turn"
    assert _messages(service, context) == [("user", "Hi."), ("assistant", "Hello!")]


def test_a_request_with_a_prompt_and_names_in_camel_case_is_understood(
    server: ScriptedServer, service: LocalTraceService, context: TraceContext
) -> None:
    server.script(json_answer(_COMPLETION))
    client = TrackedOpenAI("key", server.url, context, **_methods(service))
    client.make_request({"model": "gpt-4o", "prompt": "Hi.", "maxTokens": 50, "topP": 0.9})
    expected = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 50, "top_p": 0.9}
    assert server.requests[0].json() == expected
    assert _call(service, context)["metadata"]["maxTokens"] == 50
    assert _messages(service, context)[0] == ("user", "Hi.")


def test_a_cost_of_the_application_wins_and_one_that_fails_does_not(
    server: ScriptedServer, service: LocalTraceService, context: TraceContext
) -> None:
    server.script(json_answer(_COMPLETION))
    given: list[tuple[str, int, int]] = []

    def cost(model: str, input_tokens: int, output_tokens: int) -> float:
        given.append((model, input_tokens, output_tokens))
        return 0.25

    TrackedOpenAI("key", server.url, context, **_methods(service), calculate_cost=cost).make_request(
        {"model": "gpt-4o", "messages": _ASKED}
    )
    assert given == [("gpt-4o-2024-08-06", 1000, 100)]
    assert _call(service, context)["costUSD"] == 0.25


@pytest.mark.parametrize(
    ("status", "error"), [(400, Rejected), (401, Rejected), (429, Unavailable), (500, Unavailable)]
)
def test_a_refused_call_is_an_error_and_is_raised(
    status: int, error: type[Exception], server: ScriptedServer, service: LocalTraceService, context: TraceContext
) -> None:
    server.script(json_answer({"error": {"message": "not now"}}, status))
    client = TrackedOpenAI("key", server.url, context, **_methods(service))
    with pytest.raises(error, match=f"openai: HTTP {status}: not now"):
        client.chat_completion(model="gpt-4o", messages=_ASKED)
    span = _call(service, context)
    assert span["status"] == "error"
    assert "not now" in span["error"]["message"]
    assert len(server.requests) == 1


def test_a_server_that_is_away_or_silent_is_unavailable(server: ScriptedServer) -> None:
    never = threading.Event()
    server.script(Answer([never, b"{}"]))
    with pytest.raises(TimeoutError, match=r"openai: no answer within 0\.2 s"):
        TrackedOpenAI("key", server.url, timeout_s=0.2).chat_completion(model="gpt-4o", messages=_ASKED)
    never.set()
    server.close()
    with pytest.raises(Unavailable, match="openai: ConnectionRefusedError"):
        TrackedOpenAI("key", server.url).chat_completion(model="gpt-4o", messages=_ASKED)


def test_an_answer_that_is_no_json_object_is_unavailable(server: ScriptedServer) -> None:
    server.script(Answer([b"<html>"]))
    with pytest.raises(Unavailable, match="openai: the answer is not a JSON object"):
        TrackedOpenAI("key", server.url).chat_completion(model="gpt-4o", messages=_ASKED)


def test_without_a_context_a_call_is_made_without_a_span(server: ScriptedServer, service: LocalTraceService) -> None:
    server.script(json_answer(_COMPLETION))
    client = TrackedOpenAI("key", server.url, **_methods(service))
    assert client.chat_completion(model="gpt-4o", messages=_ASKED) == _COMPLETION
    assert client.get_provider().make_request({"model": "gpt-4o", "messages": _ASKED}) == _COMPLETION
    assert service.list_sessions()["total"] == 0


def test_a_failure_of_the_service_does_not_reach_the_call(server: ScriptedServer) -> None:
    def broken(*args: object, **kwargs: object) -> Any:
        raise RuntimeError("planted")

    server.script(json_answer(_COMPLETION))
    started = LocalTraceService().start_span
    context = TraceContext("s-1", "t-1")
    for start in (broken, started):
        client = TrackedOpenAI("key", server.url, context, start, broken, broken, calculate_cost=broken)
        assert client.chat_completion(model="gpt-4o", messages=_ASKED) == _COMPLETION


def test_a_trace_or_an_open_span_is_a_context(server: ScriptedServer) -> None:
    server.script(json_answer(_COMPLETION))
    kept = BufferTransport()
    with Tracer(kept) as tracer, tracer.trace("request") as trace:
        with trace.span("step") as step:
            TrackedOpenAI("key", server.url, step).chat_completion(model="gpt-4o", messages=_ASKED)
            TrackedOpenAI("key", server.url, tracer=tracer).chat_completion(model="gpt-4o", messages=_ASKED)
        TrackedOpenAI("key", server.url, trace).chat_completion(model="gpt-4o", messages=_ASKED)
    calls = [span for span in kept.spans if span.kind == "llm"]
    assert [span.parent_span_id for span in calls] == [step.span_id, step.span_id, None]
    for span in calls:
        assert (span.name, span.model, span.provider) == ("OpenAI gpt-4o", "gpt-4o-2024-08-06", "openai")
        assert (span.prompt_tokens, span.completion_tokens, span.status) == (1000, 100, "ok")


def test_a_failed_call_is_an_error_of_the_trace(server: ScriptedServer) -> None:
    server.script(json_answer({"error": {"message": "no"}}, 400))
    kept = BufferTransport()
    with Tracer(kept) as tracer, pytest.raises(Rejected):
        TrackedAnthropic("key", server.url, tracer=tracer).messages(model="claude-sonnet-4-5", messages=_ASKED)
    (span,) = kept.spans
    assert (span.status, span.provider) == ("error", "anthropic")


def test_a_key_is_needed_and_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    for variable, make in (("OPENAI_API_KEY", TrackedOpenAI), ("ANTHROPIC_API_KEY", TrackedAnthropic)):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ConfigError, match=variable):
            make()
        monkeypatch.setenv(variable, "from-env")
        client: Any = make(endpoint=server.url)
        server.script(json_answer(_COMPLETION))
        client.make_request({"model": "m", "messages": []})
        headers = server.requests[-1].headers
        assert headers.get("authorization", headers.get("x-api-key", "")).endswith("from-env")


@pytest.mark.parametrize("endpoint", ["ftp://host", "api.openai.com", "http://[::1", "http://host:x"])
def test_an_endpoint_that_is_no_http_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        TrackedOpenAI("key", endpoint)


def test_a_stream_is_refused_before_anything_is_sent(server: ScriptedServer) -> None:
    with pytest.raises(Rejected, match="stream"):
        TrackedOpenAI("key", server.url).make_request({"model": "m", "messages": [], "stream": True})
    assert server.requests == []


# -- tracked


class _Vendor:
    """A client of a provider that is not known."""

    region = "eu"

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("fail"):
            raise ValueError("refused")
        return {"text": "x" * 500}

    async def agenerate(self, *, model: str, max_tokens: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"text": model}

    def later(self, request: dict[str, Any]) -> Any:
        return self.agenerate(model=request["model"], max_tokens=1)


def test_a_tracked_method_is_a_span_with_the_beginning_of_its_result(
    service: LocalTraceService, context: TraceContext
) -> None:
    vendor = tracked(_Vendor(), "generate", context, service)
    assert vendor.generate({"model": "m-1", "maxTokens": 7, "temperature": 0}) == {"text": "x" * 500}
    assert vendor.region == "eu"
    span = _call(service, context)
    assert (span["name"], span["type"], span["status"]) == ("LLM m-1", "llm", "ok")
    metadata = span["metadata"]
    assert metadata.pop("latency") >= 0
    preview = '{"text":"' + "x" * 191
    assert metadata == {
        "method": "generate",
        "model": "m-1",
        "temperature": 0,
        "maxTokens": 7,
        "resultPreview": preview,
    }


async def test_a_tracked_coroutine_function_stays_one(service: LocalTraceService, context: TraceContext) -> None:
    vendor = tracked(_Vendor(), "agenerate", context, service)
    assert asyncio.iscoroutinefunction(vendor.agenerate)
    assert await vendor.agenerate(model="m-2", max_tokens=9) == {"text": "m-2"}
    span = _call(service, context)
    assert (span["name"], span["metadata"]["maxTokens"]) == ("LLM m-2", 9)


async def test_a_function_that_returns_an_awaitable_ends_its_span_when_it_is_awaited(
    service: LocalTraceService, context: TraceContext
) -> None:
    waiting = tracked(_Vendor(), "later", context, service).later({"model": "m-3"})
    assert _call(service, context)["status"] == "pending"
    assert await waiting == {"text": "m-3"}
    assert _call(service, context)["status"] == "ok"


def test_what_a_tracked_method_raises_is_an_error_and_is_raised(
    service: LocalTraceService, context: TraceContext
) -> None:
    with pytest.raises(ValueError, match="refused"):
        tracked(_Vendor(), "generate", context, service).generate({"fail": True})
    span = _call(service, context)
    assert (span["name"], span["status"]) == ("LLM unknown", "error")


def test_a_tracked_method_without_a_context_is_passed_on_and_with_a_trace_is_below_it() -> None:
    kept = BufferTransport()
    assert tracked(_Vendor(), "generate").generate({}) == {"text": "x" * 500}
    with Tracer(kept).trace("request") as trace:
        tracked(_Vendor(), "generate", trace).generate({"model": "m-4"})
    (span,) = kept.spans
    assert (span.name, span.trace_id, span.usage_state) == ("LLM m-4", trace.id, "missing")


def test_what_is_no_method_is_refused() -> None:
    for name in ("region", "absent"):
        with pytest.raises(TypeError, match=f"{name}: _Vendor has no method of this name"):
            tracked(_Vendor(), name)
