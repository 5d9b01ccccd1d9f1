"""Calls of Gemini through the real google-genai against a local server: one span for each request, the same results."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from kit.reporting import until
from kit.scripted_http import Answer, ScriptedServer, json_answer, scripted_server, sse_answer
from tokentrace.client.tracing import OpenSpan, Tracer, suppress
from tokentrace.client.track import google
from tokentrace.client.track.faults import faults
from tokentrace.client.transports import BufferTransport
from tokentrace.records import Span, check_span

# google-genai leaves its connections to the garbage collector, watched or not.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
_MODEL = "gemini-2.5-flash"
_USAGE = {
    "promptTokenCount": 100,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 5,
    "cachedContentTokenCount": 40,
    "toolUsePromptTokenCount": 8,
    "totalTokenCount": 133,
}
_AT_FIRST = {"promptTokenCount": 100, "totalTokenCount": 100}
_BUSY = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}}


def _answer(*parts: object, usage: object = None, finish: str = "", **more: object) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    answer: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-2.5-flash-001", "responseId": "r1"}
    return {**answer, **({"usageMetadata": usage} if usage else {}), **more}


_WHOLE = _answer({"text": "hello"}, usage=_USAGE, finish="STOP")
_CHUNKS: list[object] = [
    _answer({"text": "hel"}, usage=_AT_FIRST),
    _answer({"text": "lo"}, usage=_AT_FIRST),
    _answer({"text": ""}, usage=_USAGE, finish="STOP"),
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def kept() -> BufferTransport:
    return BufferTransport()


@pytest.fixture(autouse=True)
def _tracking_has_no_fault(request: pytest.FixtureRequest) -> Iterator[None]:
    before = faults()
    yield
    if "fault" not in request.node.name:
        assert faults() == before


@pytest.fixture(autouse=True, scope="module")
def _connections_are_collected_here() -> Iterator[None]:
    yield
    gc.collect()


def _plain(server: ScriptedServer, **more: Any) -> Any:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.url, **more))


@pytest.fixture
def client(server: ScriptedServer, kept: BufferTransport) -> Any:
    client = _plain(server)
    google.watch(client, Tracer(kept))
    return client


def _only(kept: BufferTransport) -> Span:
    (span,) = kept.spans
    check_span(span)
    return span


def _counts(span: Span) -> tuple[int, ...]:
    return span.prompt_tokens, span.completion_tokens, span.cache_read_tokens, span.reasoning_tokens


_ALL_COUNTS = (108, 25, 40, 5)


def _sent(server: ScriptedServer) -> list[tuple[str, bytes, dict[str, str]]]:
    left_out = ("host",)
    return [
        (request.path, request.body, {name: value for name, value in request.headers.items() if name not in left_out})
        for request in server.requests
    ]


def test_an_answer_is_one_span_with_tool_tokens_and_thoughts(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(json_answer(_WHOLE))
    client.models.generate_content(model=_MODEL, contents="hi")
    span = _only(kept)
    assert (span.name, span.kind, span.provider, span.status) == ("generate_content", "llm", "google", "ok")
    assert (span.model, span.attributes["request_model"]) == ("gemini-2.5-flash-001", _MODEL)
    assert _counts(span) == _ALL_COUNTS
    assert (span.response_id, span.attributes["finish_reason"]) == ("r1", "STOP")


async def test_an_asynchronous_answer_is_the_same(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE))
    await client.aio.models.generate_content(model=_MODEL, contents="hi")
    assert _counts(_only(kept)) == _ALL_COUNTS


def test_requests_and_results_are_those_of_a_plain_client(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    results = []
    for one in (_plain(server), client):
        server.script(json_answer(_WHOLE), sse_answer(_CHUNKS), json_answer(_BUSY, 429))
        before = len(server.requests)
        answer = one.models.generate_content(model=_MODEL, contents="hi")
        chunks = list(one.models.generate_content_stream(model=_MODEL, contents="hi"))
        with pytest.raises(errors.ClientError) as caught:
            one.models.generate_content(model=_MODEL, contents="hi")
        results.append(
            (
                [answer.model_dump_json(), *(chunk.model_dump_json() for chunk in chunks)],
                (type(answer), type(caught.value), caught.value.code, str(caught.value)),
                [(path, body, {**headers}) for path, body, headers in _sent(server)[before:]],
            )
        )
    assert results[0] == results[1]
    assert isinstance(client, genai.Client)
    assert type(client).__name__ == "Client"
    assert [span.status for span in kept.spans] == ["ok", "ok", "error"]


def test_function_calls_are_one_span_for_each_request(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    def weather(city: str) -> str:
        """Return the weather in a city."""
        return f"sunny in {city}"

    call = {"functionCall": {"name": "weather", "args": {"city": "Bern"}}}
    server.script(json_answer(_answer(call, usage=_USAGE, finish="STOP")), json_answer(_WHOLE))
    config = types.GenerateContentConfig(tools=[weather])
    answer = client.models.generate_content(model=_MODEL, contents="hi", config=config)
    assert answer.text == "hello"
    assert [_counts(span) for span in kept.spans] == [_ALL_COUNTS, _ALL_COUNTS]
    assert kept.spans[0].attributes["tool_calls"] == 1


def test_a_chat_and_its_stream_are_tracked(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE), sse_answer(_CHUNKS))
    chat = client.chats.create(model=_MODEL)
    chat.send_message("hi")
    list(chat.send_message_stream("go on"))
    assert [_counts(span) for span in kept.spans] == [_ALL_COUNTS, _ALL_COUNTS]


def test_the_first_token_is_the_first_chunk_with_parts(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    seen = threading.Event()
    server.script(sse_answer([{"usageMetadata": _AT_FIRST}, *_CHUNKS[:2], seen, _CHUNKS[2]]))
    for _ in client.models.generate_content_stream(model=_MODEL, contents="hi"):
        seen.set()
    span = _only(kept)
    assert 0 < span.ttft_ns < span.latency_ns
    assert (_counts(span), span.usage_state) == (_ALL_COUNTS, "")


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_left_is_one_span_with_what_was_counted_until_then(
    way: str, server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(sse_answer(_CHUNKS))
    stream: Any = client.models.generate_content_stream(model=_MODEL, contents="hi")
    next(stream)
    if way == "close":
        stream.close()
    del stream
    gc.collect()
    span = _only(kept)
    assert (span.status, span.usage_state, span.attributes["stream_end"]) == ("ok", "partial", "closed")
    assert (span.prompt_tokens, span.completion_tokens) == (100, 0)


def test_a_stream_that_is_left_after_its_last_chunk_has_all_counts(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(sse_answer(_CHUNKS))
    stream: Any = client.models.generate_content_stream(model=_MODEL, contents="hi")
    for _ in _CHUNKS:
        next(stream)
    stream.close()
    span = _only(kept)
    assert (_counts(span), span.usage_state) == (_ALL_COUNTS, "")


async def test_an_asynchronous_stream_that_is_closed_is_one_span(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(sse_answer(_CHUNKS))
    stream: Any = await client.aio.models.generate_content_stream(model=_MODEL, contents="hi")
    await anext(stream)
    await stream.aclose()
    del stream
    # The SDK's own generator drops that of the request, which the event loop closes.
    await asyncio.to_thread(until, lambda: len(kept) == 1, "the span")
    assert _only(kept).attributes["stream_end"] == "closed"


async def test_a_cancelled_stream_is_ok_because_the_provider_did_not_fail(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    never, read = threading.Event(), asyncio.Event()
    server.script(sse_answer([_CHUNKS[0], never, *_CHUNKS[1:]]))

    async def consume() -> None:
        async for _ in await client.aio.models.generate_content_stream(model=_MODEL, contents="hi"):
            read.set()

    task = asyncio.create_task(consume())
    await read.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    never.set()
    span = _only(kept)
    assert (span.status, span.attributes["stream_end"], span.usage_state) == ("ok", "cancelled", "partial")


@pytest.mark.parametrize("how", ["event", "cut"])
def test_a_stream_that_fails_is_an_error_with_what_was_counted_until_then(
    how: str, server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(sse_answer([_CHUNKS[0], _BUSY]) if how == "event" else sse_answer(_CHUNKS[:2], cut=True))
    with pytest.raises(Exception, match=r"slow down|peer closed"):
        list(client.models.generate_content_stream(model=_MODEL, contents="hi"))
    span = _only(kept)
    assert (span.status, span.usage_state, span.prompt_tokens) == ("error", "partial", 100)
    assert span.attributes.get("http_status") == (429 if how == "event" else None)


def test_a_request_that_takes_too_long_is_a_timeout(server: ScriptedServer, kept: BufferTransport) -> None:
    client = _plain(server, timeout=200)
    google.watch(client, Tracer(kept))
    never = threading.Event()
    server.script(Answer([never, b"{}"]))
    with pytest.raises(Exception, match="timed out"):
        client.models.generate_content(model=_MODEL, contents="hi")
    never.set()
    assert _only(kept).status == "timeout"


def test_an_embedding_is_of_kind_embedding_and_its_usage_is_missing_where_none_is_sent(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(json_answer({"embeddings": [{"values": [0.5]}]}))
    client.models.embed_content(model="gemini-embedding-001", contents="hi")
    span = _only(kept)
    assert (span.name, span.kind, span.usage_state) == ("embed_content", "embedding", "missing")


def test_an_embedding_of_vertex_has_the_tokens_of_all_its_texts(server: ScriptedServer, kept: BufferTransport) -> None:
    client = genai.Client(vertexai=True, api_key="k", http_options=types.HttpOptions(base_url=server.url))
    google.watch(client, Tracer(kept))
    vector = {"embeddings": {"values": [0.5], "statistics": {"token_count": 3, "truncated": False}}}
    server.script(json_answer({"predictions": [vector, vector]}))
    client.models.embed_content(model="text-embedding-005", contents=["hi", "you"])
    span = _only(kept)
    assert (span.kind, span.model, span.prompt_tokens) == ("embedding", "text-embedding-005", 6)


def test_what_counts_no_tokens_is_not_tracked(server: ScriptedServer, client: Any, kept: BufferTransport) -> None:
    server.script(json_answer({"totalTokens": 3}), json_answer({"name": "models/x"}), json_answer(_WHOLE))
    client.models.count_tokens(model=_MODEL, contents="hi")
    client.models.get(model=_MODEL)
    with suppress():
        client.models.generate_content(model=_MODEL, contents="hi")
    assert kept.spans == []


def test_a_call_is_below_what_is_current_when_it_starts(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    server.script(json_answer(_WHOLE), sse_answer(_CHUNKS))
    tracer = Tracer(kept)
    with tracer.trace("request") as trace, trace.span("step") as step:
        client.models.generate_content(model=_MODEL, contents="hi")
        list(client.models.generate_content_stream(model=_MODEL, contents="hi"))
    below = [span for span in kept.spans if span.kind == "llm"]
    assert [span.parent_span_id for span in below] == [step.span_id, step.span_id]
    assert {span.trace_id for span in kept.spans} == {trace.id}


def test_all_clients_are_tracked_once_and_no_longer_after_the_end(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    before, everywhere = _plain(server), BufferTransport()
    server.script(json_answer(_WHOLE))
    google.watch("google", Tracer(everywhere))
    try:
        for one in (before, _plain(server), client):
            one.models.generate_content(model=_MODEL, contents="hi")
    finally:
        google.unwatch("google")
    google.unwatch(client)
    for one in (before, client):
        one.models.generate_content(model=_MODEL, contents="hi")
    assert (len(everywhere), len(kept)) == (2, 1)
    assert type(client) is genai.Client


# -- interactions

_INTERACTION = {
    "id": "v1_abcdefghijk12345",
    "object": "interaction",
    "model": "gemini-2.5-flash",
    "status": "completed",
    "created": "2026-01-01T00:00:00Z",
    "updated": "2026-01-01T00:00:00Z",
    "steps": [{"type": "model_output", "content": [{"type": "text", "text": "hello"}]}],
    "usage": {
        "total_input_tokens": 100,
        "total_tool_use_tokens": 8,
        "total_output_tokens": 20,
        "total_thought_tokens": 5,
        "total_cached_tokens": 40,
        "total_tokens": 133,
    },
}
_STARTED = {"id": "v1_abcdefghijk12345", "status": "in_progress", "model": "gemini-2.5-flash"}
_EVENTS: list[object] = [
    {"event_type": "interaction.created", "interaction": _STARTED},
    {"event_type": "step.start", "index": 0, "step": {"type": "model_output", "content": []}},
    {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "hello"}},
    {"event_type": "step.stop", "index": 0},
    {"event_type": "interaction.completed", "interaction": _INTERACTION},
]


@pytest.mark.parametrize("everywhere", [False, True])
async def test_interactions_are_one_span_for_each_request(
    everywhere: bool, server: ScriptedServer, kept: BufferTransport
) -> None:
    plain, client = _plain(server), _plain(server)
    google.watch("google" if everywhere else client, Tracer(kept))
    try:
        server.script(json_answer(_INTERACTION))
        answer = client.interactions.create(model=_MODEL, input="hi")
        await client.aio.interactions.create(model=_MODEL, input="hi")
        server.script(sse_answer(_EVENTS, done=b"[DONE]"))
        chunks = list(client.interactions.create(model=_MODEL, input="hi", stream=True))
        async for _ in await client.aio.interactions.create(model=_MODEL, input="hi", stream=True):
            pass
        assert [_counts(span) for span in kept.spans] == [_ALL_COUNTS] * 4
        assert [span.ttft_ns > 0 for span in kept.spans] == [False, False, True, True]
        assert {(span.name, span.model, span.response_id) for span in kept.spans} == {
            ("interactions", "gemini-2.5-flash", "v1_abcdefghijk12345")
        }
    finally:
        google.unwatch("google")
    server.script(json_answer(_INTERACTION), sse_answer(_EVENTS, done=b"[DONE]"))
    assert plain.interactions.create(model=_MODEL, input="hi").model_dump() == answer.model_dump()
    assert [one.model_dump() for one in plain.interactions.create(model=_MODEL, input="hi", stream=True)] == [
        chunk.model_dump() for chunk in chunks
    ]
    assert len(kept) == 4


def test_an_interaction_that_is_continued_is_one_span_for_each_request(
    server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    cut = {**_INTERACTION, "status": "requires_continuation", "continuation_token": "t1"}
    server.script(json_answer(cut), json_answer(_INTERACTION))
    answer = client.interactions.create(model=_MODEL, input="hi")
    assert answer.usage is not None
    assert answer.usage.total_output_tokens == 40
    assert [_counts(span) for span in kept.spans] == [_ALL_COUNTS, _ALL_COUNTS]


@pytest.mark.parametrize("end", ["close", "error", "cut", "refused"])
def test_every_end_of_an_interaction_is_one_span(
    end: str, server: ScriptedServer, client: Any, kept: BufferTransport
) -> None:
    failed = {"event_type": "error", "error": {"code": "internal", "message": "gone"}}
    server.script(
        {
            "close": sse_answer(_EVENTS, done=b"[DONE]"),
            "error": sse_answer([*_EVENTS[:3], failed]),
            "cut": sse_answer(_EVENTS[:3], cut=True),
            "refused": json_answer(_BUSY, 400),
        }[end]
    )
    if end == "close":
        stream = client.interactions.create(model=_MODEL, input="hi", stream=True)
        next(iter(stream))
        stream.close()
    elif end == "error":
        list(client.interactions.create(model=_MODEL, input="hi", stream=True))
    else:
        with pytest.raises(Exception, match=r"peer closed|400|interrupted|Connection"):
            list(client.interactions.create(model=_MODEL, input="hi", stream=True))
    span = _only(kept)
    assert span.status == ("ok" if end == "close" else "error")
    if end == "error":
        assert "gone" in span.error


@pytest.mark.parametrize("point", ["span", "set", "usage", "first_token", "end", "fail"])
async def test_a_planted_fault_changes_nothing_for_the_application(
    point: str, server: ScriptedServer, kept: BufferTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted")

    client = _plain(server)
    google.watch(client, Tracer(kept))
    monkeypatch.setattr(Tracer if point == "span" else OpenSpan, point, broken)
    server.script(json_answer(_WHOLE))
    assert client.models.generate_content(model=_MODEL, contents="hi").text == "hello"
    assert (await client.aio.models.generate_content(model=_MODEL, contents="hi")).text == "hello"
    server.script(sse_answer(_CHUNKS))
    assert len(list(client.models.generate_content_stream(model=_MODEL, contents="hi"))) == len(_CHUNKS)
    streamed = await client.aio.models.generate_content_stream(model=_MODEL, contents="hi")
    assert len([chunk async for chunk in streamed]) == len(_CHUNKS)
    server.script(json_answer(_BUSY, 400))
    with pytest.raises(errors.ClientError):
        client.models.generate_content(model=_MODEL, contents="hi")


@pytest.mark.parametrize("point", ["span", "set", "usage", "first_token", "end", "fail"])
def test_a_planted_fault_changes_no_interaction(
    point: str, server: ScriptedServer, kept: BufferTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted")

    client = _plain(server)
    google.watch(client, Tracer(kept))
    monkeypatch.setattr(Tracer if point == "span" else OpenSpan, point, broken)
    server.script(json_answer(_INTERACTION))
    assert client.interactions.create(model=_MODEL, input="hi").usage.total_tokens == 133
    server.script(sse_answer(_EVENTS, done=b"[DONE]"))
    assert len(list(client.interactions.create(model=_MODEL, input="hi", stream=True))) == len(_EVENTS)
    server.script(json_answer(_BUSY, 400))
    with pytest.raises(Exception, match="400"):
        client.interactions.create(model=_MODEL, input="hi")


@pytest.mark.parametrize("odd", [b"[]", b"not json", b'{"candidates": 7}', json.dumps(_answer(7)).encode()])
def test_an_odd_answer_is_what_a_plain_client_makes_of_it_and_at_most_a_fault(
    odd: bytes, server: ScriptedServer
) -> None:
    plain, client, kept = _plain(server), _plain(server), BufferTransport()
    google.watch(client, Tracer(kept))
    server.script(Answer([odd]))
    results = []
    for one in (plain, client):
        try:
            results.append(repr(one.models.generate_content(model=_MODEL, contents="hi")))
        except Exception as exc:  # noqa: BLE001 - whatever the SDK raises
            results.append(f"{type(exc)}: {exc}")
    assert results[0] == results[1]
    assert len(kept) == 1
