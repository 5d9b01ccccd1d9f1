"""
The Quick Start of Cost Katana's tracing, translated: in process with ``LocalTraceService``, and against ``serve``.

The steps are those of its README: a service and the middleware; a chat route with a tracked client; the graph, the
details and the list; a custom span; the other providers; and the removal of personal data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import Body, FastAPI, Request

from kit.pipeline import Answer, Pipeline, http
from kit.reporting import until
from kit.scripted_http import Request as Asked
from kit.scripted_http import ScriptedServer, json_answer, scripted_server
from kit.sessions import DETAILS, GRAPH, LISTED, SUMMARY, check
from kit.web_apps import asgi_server
from tokentrace import (
    LocalTraceService,
    OpenSpan,
    Rejected,
    TraceClient,
    TraceContext,
    TraceMiddleware,
    Tracer,
    TraceService,
    TrackedAnthropic,
    TrackedOpenAI,
    current,
    tracked,
)

OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}
ANTHROPIC = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 700, "output_tokens": 100},
}


class Setup(NamedTuple):
    """A service and the running application that uses it."""

    service: TraceService
    url: str
    provider: ScriptedServer


def answer(asked: Asked) -> Any:
    """Answer as both providers do."""
    return json_answer(ANTHROPIC if asked.path.endswith("/messages") else OPENAI)


def chat_app(service: TraceService, tracer: Tracer, provider: ScriptedServer) -> FastAPI:
    """Return the application of the Quick Start."""
    # 1. Basic setup: app.use(createTraceMiddleware({startSpan, endSpan}))
    app = FastAPI()
    app.add_middleware(TraceMiddleware, tracer=tracer)

    # 2. Trace LLM calls: new TrackedOpenAI({apiKey, traceContext: req.traceContext, startSpan, endSpan})
    @app.post("/chat")
    def chat(request: Request, message: str = Body(embed=True)) -> dict[str, Any]:
        ai = TrackedOpenAI(
            api_key="sk-test",
            endpoint=f"{provider.url}/v1",
            trace_context=trace_context(),
            start_span=service.start_span,
            end_span=service.end_span,
            record_message=service.record_message,
        )
        return ai.make_request({"model": "gpt-4", "messages": [{"role": "user", "content": message}], "maxTokens": 150})

    # Custom spans: traceService.startSpan({sessionId, parentId, name, type, metadata}) … endSpan(traceId, {…})
    @app.get("/rows")
    def rows() -> dict[str, int]:
        context = trace_context()
        span = service.start_span(
            "database-query",
            "tool",
            session_id=context.session_id,
            parent_id=context.trace_id,
            metadata={"query": "SELECT * FROM users"},
        )
        found = [1, 2, 3]
        service.end_span(span.trace_id, "ok", metadata={"rowCount": len(found)})
        return {"rows": len(found)}

    # Supported providers: TrackedAnthropic; createTrackedProvider(originalProvider, 'makeRequest', context, service)
    @app.get("/others")
    def others() -> dict[str, Any]:
        class Original:
            def make_request(self, request: dict[str, Any]) -> dict[str, str]:
                return {"answer": request["model"]}

        claude = TrackedAnthropic(
            api_key="sk-test",
            endpoint=provider.url,
            trace_context=trace_context(),
            start_span=service.start_span,
            end_span=service.end_span,
        )
        asked = {"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "Hi"}], "maxTokens": 150}
        generic = tracked(Original(), "make_request", trace_context(), service)
        return {"claude": claude.make_request(asked), "generic": generic.make_request({"model": "own"})}

    @app.get("/fails")
    def fails() -> None:
        raise KeyError("gone")

    return app


def trace_context() -> TraceContext:
    """Return ``req.traceContext``: the session of the request and its root span."""
    root = current()
    assert isinstance(root, OpenSpan)
    return TraceContext(root.session_id or "", root.span_id)


@contextlib.contextmanager
def running(service: TraceService, tracer: Tracer) -> Iterator[Setup]:
    with scripted_server() as provider:
        provider.answer = answer
        with asgi_server(chat_app(service, tracer, provider)) as url:
            yield Setup(service, url, provider)


@pytest.fixture(scope="module", params=["memory", "file", "serve"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    directory = tmp_path_factory.mktemp("quick-start")
    if request.param == "serve":
        pipeline = Pipeline(directory)
        pipeline.start()
        with TraceClient("key", "shop", pipeline.url) as client, Tracer(pipeline.nats_url, source="chat") as tracer:
            with running(client, tracer) as setup:
                yield setup
            assert client.failures == 0
        pipeline.stop()
        return
    with LocalTraceService(request.param, directory) as service, running(service, Tracer(service)) as setup:
        yield setup


def ask(setup: Setup, method: str, path: str, session: str, body: object = None) -> Answer:
    """Send a request of one session (best practice 1: pass the header x-session-id)."""
    headers = {"Content-Type": "application/json", "X-Session-Id": session}
    data = None if body is None else json.dumps(body).encode()
    return http(method, setup.url + path, data, headers)


def graph_of(setup: Setup, session: str, spans: int) -> dict[str, Any]:
    """Wait until the graph of a session has *spans* finished spans, and return it."""

    def is_shown() -> bool:
        with contextlib.suppress(Rejected):
            nodes = setup.service.session_graph(session)["nodes"]
            return len(nodes) == spans and all(node["status"] != "pending" for node in nodes)
        return False

    until(is_shown, f"{spans} spans of {session}")
    graph: dict[str, Any] = setup.service.session_graph(session)
    check(GRAPH, graph)
    return graph


def test_a_chat_is_traced_and_shown(setup: Setup) -> None:
    replied = ask(setup, "POST", "/chat", "s-chat", {"message": "mail me: a@b.io"})
    assert json.loads(replied.body) == OPENAI
    assert replied.headers["x-session-id"] == "s-chat"
    # 3. View traces: getSessionGraph, getSessionDetails, listSessions, getSessionsSummary
    graph = graph_of(setup, "s-chat", 2)
    nodes = {node["type"]: node for node in graph["nodes"]}
    root, call = nodes["http"], nodes["llm"]
    assert (root["name"], root["status"], root["depth"]) == ("POST /chat", "ok", 0)
    assert root["metadata"] == {"method": "POST", "path": "/chat", "statusCode": 200}
    assert (call["name"], call["model"], call["depth"]) == ("OpenAI gpt-4", "gpt-4", 1)
    assert call["tokens"] == {"input": 1000, "output": 100}
    assert call["costUSD"] == 0.036
    assert (call["metadata"]["maxTokens"], call["metadata"]["finishReason"]) == (150, "stop")
    assert graph["edges"] == [{"from": root["id"], "to": call["id"]}]
    until(lambda: len(setup.service.session_details("s-chat")["messages"]) == 2, "messages")
    details = setup.service.session_details("s-chat")
    check(DETAILS, details)
    assert (details["totalSpans"], details["totalCostUSD"], details["status"]) == (2, 0.036, "active")
    assert (details["totalInputTokens"], details["totalOutputTokens"]) == (1000, 100)
    # PII redaction
    assert [(one["role"], one["content"], one["isRedacted"], one["traceId"]) for one in details["messages"]] == [
        ("user", "mail me: [EMAIL_REDACTED]", True, call["id"]),
        ("assistant", "Hello!", False, call["id"]),
    ]
    now = datetime.now(UTC)
    listed = setup.service.list_sessions(
        since=datetime(2024, 1, 1, tzinfo=UTC), until=now + timedelta(1), page=1, limit=20
    )
    check(LISTED, listed)
    assert "s-chat" in {one["sessionId"] for one in listed["sessions"]}
    setup.service.end_session("s-chat")
    assert setup.service.session_details("s-chat")["status"] == "completed"
    summary = setup.service.sessions_summary()
    check(SUMMARY, summary)
    assert summary["completedSessions"] >= 1


def test_a_custom_span_is_below_the_request(setup: Setup) -> None:
    assert json.loads(ask(setup, "GET", "/rows", "s-rows").body) == {"rows": 3}
    graph = graph_of(setup, "s-rows", 2)
    nodes = {node["name"]: node for node in graph["nodes"]}
    query = nodes["database-query"]
    assert (query["type"], query["status"], query["depth"]) == ("tool", "ok", 1)
    assert query["parentId"] == nodes["GET /rows"]["id"]
    assert query["metadata"] == {"query": "SELECT * FROM users", "rowCount": 3}


def test_the_other_providers_are_traced(setup: Setup) -> None:
    replied = json.loads(ask(setup, "GET", "/others", "s-others").body)
    assert replied == {"claude": ANTHROPIC, "generic": {"answer": "own"}}
    nodes = {node["name"]: node for node in graph_of(setup, "s-others", 3)["nodes"]}
    assert nodes.keys() == {"GET /others", "Claude claude-sonnet-4-5", "LLM own"}
    assert nodes["Claude claude-sonnet-4-5"]["tokens"] == {"input": 700, "output": 100}
    assert nodes["LLM own"]["metadata"]["resultPreview"] == '{"answer":"own"}'


def test_a_request_that_fails_makes_the_session_an_error(setup: Setup) -> None:
    assert ask(setup, "GET", "/fails", "s-fails").status == 500
    (root,) = graph_of(setup, "s-fails", 1)["nodes"]
    assert (root["status"], root["error"]["message"]) == ("error", "KeyError: 'gone'")
    assert "fails" in root["error"]["stack"]
    setup.service.end_session("s-fails")
    assert setup.service.session_details("s-fails")["status"] == "error"


def test_file_storage_keeps_the_spans_of_the_tracer_for_the_next_start(tmp_path: Path) -> None:
    service = LocalTraceService("file", tmp_path, redact_keys=["api-key", "password"])
    with service, running(service, Tracer(service)) as setup:
        ask(setup, "POST", "/chat", "s-1", {"message": "api-key: k-1"})
        before = graph_of(setup, "s-1", 2)
    again = LocalTraceService("file", tmp_path, redact_keys=["api-key", "password"])
    assert again.session_graph("s-1") == before
    assert [one["content"] for one in again.session_details("s-1")["messages"]] == ["api-key: [REDACTED]", "Hello!"]
