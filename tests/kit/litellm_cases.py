"""
Tests of the tracking of litellm, which run in an environment with litellm and without the rest of what tests need.

``tests/system/client/test_track_environments.py`` makes the environment and runs this file with pytest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would be fetched otherwise

import litellm

from kit.environment import PATIENCE
from kit.scripted_http import ScriptedServer, json_answer, scripted_server, sse_answer
from tokentrace import BufferTransport, Span, Tracer, instrument, suppress, uninstrument
from tokentrace.client.track.faults import faults
from tokentrace.client.track.litellm import is_calling
from tokentrace.records import check_span

_ID = "chatcmpl-9aZbYc12345678"
_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 10,
    "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_WHOLE = {
    "id": _ID,
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": _USAGE,
}


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": _ID, "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06"}
    return {**head, "choices": choices, **more}


_CHUNKS: list[object] = [
    _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": f"word{number} "}) for number in range(5)),
    _chunk({}, "stop"),
]
_STREAM = sse_answer(_CHUNKS, done=b"[DONE]")
_COUNTED = sse_answer([*_CHUNKS, {**_chunk({}), "choices": [], "usage": _USAGE}], done=b"[DONE]")
_COUNTS = (120, 10, 100, 3)
_ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi there"}], "api_key": "k", "max_retries": 0}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture(params=[False, True], ids=["alone", "with openai"])
def kept(request: pytest.FixtureRequest) -> Iterator[BufferTransport]:
    """litellm is tracked, alone and together with the SDK through which it calls OpenAI."""
    before, kept = faults(), BufferTransport()
    tracer = Tracer(kept)
    instrument("litellm", tracer=tracer)
    if request.param:
        instrument("openai", tracer=tracer)
    yield kept
    uninstrument("litellm")
    uninstrument("openai")
    litellm.cache = None
    assert faults() == before
    assert not is_calling()


def _arguments(server: ScriptedServer, model: str = "openai/gpt-4o", **more: Any) -> dict[str, Any]:
    return {**_ASKED, "model": model, "api_base": f"{server.url}/v1", **more}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        gc.collect()  # litellm's streams are in circles
        time.sleep(0.02)


def _spans(kept: BufferTransport, count: int = 1) -> list[Span]:
    """Return *count* spans; litellm tells of calls in threads and tasks of its own."""
    _until(lambda: len(kept) >= count)
    # Whatever tells of a call twice does so at once.
    time.sleep(0.3)
    spans = kept.spans
    assert len(spans) == count, spans
    for span in spans:
        check_span(span)
    return spans


def _counts(span: Span) -> tuple[int, ...]:
    return span.prompt_tokens, span.completion_tokens, span.cache_read_tokens, span.reasoning_tokens


def test_an_answer_is_one_span(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE))
    litellm.completion(**_arguments(server))
    (span,) = _spans(kept)
    assert (span.name, span.kind, span.provider, span.model) == (
        "chat.completions",
        "llm",
        "openai",
        "gpt-4o-2024-08-06",
    )
    assert (span.status, span.response_id, span.attributes["request_model"]) == ("ok", _ID, "gpt-4o")
    assert _counts(span) == _COUNTS
    assert span.usage_state == ""
    assert span.latency_ns > 0
    assert abs(span.started_ns - time.time_ns()) < 600e9


def test_a_call_is_below_what_was_current_when_it_was_made(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE))
    with Tracer(kept).trace("request") as trace:
        with trace.span("step") as step:
            litellm.completion(**_arguments(server))

        async def call() -> None:
            with trace.span("other") as other:
                await litellm.acompletion(**_arguments(server))
            parents.add(other.span_id)
            # From now on the trace hands over each span at once.
            trace.end()
            await asyncio.to_thread(_until, lambda: len(kept) == 4)

        parents = {step.span_id}
        asyncio.run(call())
    spans = _spans(kept, 4)
    assert {span.parent_span_id for span in spans if span.kind == "llm"} == parents
    assert {span.trace_id for span in spans} == {trace.id}


def test_a_stream_with_usage_is_exact_and_one_without_is_estimated(
    server: ScriptedServer, kept: BufferTransport
) -> None:
    server.script(_COUNTED, _STREAM)
    chunks = list(litellm.completion(**_arguments(server, stream=True, stream_options={"include_usage": True})))
    assert chunks[-1].usage.prompt_tokens == 120
    assert len(list(litellm.completion(**_arguments(server, stream=True)))) > 5
    exact, guessed = _spans(kept, 2)
    assert (_counts(exact)[:3], exact.usage_state) == (_COUNTS[:3], "")
    assert guessed.usage_state == "estimated"
    assert guessed.prompt_tokens > 0
    assert all(0 < span.ttft_ns <= span.latency_ns for span in (exact, guessed))


def test_asynchronous_calls_and_streams_are_the_same(server: ScriptedServer, kept: BufferTransport) -> None:
    async def calls() -> None:
        await litellm.acompletion(**_arguments(server))
        async for _ in await litellm.acompletion(**_arguments(server, stream=True)):
            pass
        await asyncio.to_thread(_until, lambda: len(kept) == 2)

    server.script(json_answer(_WHOLE), _STREAM)
    asyncio.run(calls())
    whole, guessed = _spans(kept, 2)
    assert (_counts(whole), whole.usage_state) == (_COUNTS, "")
    assert guessed.usage_state == "estimated"


@pytest.mark.parametrize("way", ["drop", "close", "finish"])
def test_a_stream_that_is_left_is_one_span_without_usage(
    way: str, server: ScriptedServer, kept: BufferTransport
) -> None:
    server.script(_STREAM)
    stream = litellm.completion(**_arguments(server, stream=True))
    next(stream)
    if way == "finish":
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    if way == "close":
        stream.close()
    del stream
    (span,) = _spans(kept)
    assert (span.status, span.usage_state, span.attributes["stream_end"]) == ("ok", "missing", "closed")


def test_a_stream_that_is_left_after_its_usage_is_exact(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(_COUNTED)
    stream = litellm.completion(**_arguments(server, stream=True, stream_options={"include_usage": True}))
    for chunk in stream:
        if getattr(chunk, "usage", None) is not None:
            break
    del stream
    (span,) = _spans(kept)
    assert (_counts(span)[:3], span.usage_state) == (_COUNTS[:3], "")


@pytest.mark.parametrize("way", ["drop", "close", "cancel"])
def test_an_asynchronous_stream_that_is_left_is_one_span_without_usage(
    way: str, server: ScriptedServer, kept: BufferTransport
) -> None:
    async def leave() -> None:
        stream = await litellm.acompletion(**_arguments(server, stream=True))
        await anext(stream)
        if way == "close":
            await stream.aclose()
        elif way == "cancel":
            read = asyncio.Event()

            async def consume(stream: Any) -> None:
                async for _ in stream:
                    read.set()
                    await asyncio.sleep(0)

            task = asyncio.create_task(consume(stream))
            await read.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del task
        del stream
        await asyncio.to_thread(_until, lambda: len(kept) == 1)

    server.script(_STREAM)
    asyncio.run(leave())
    (span,) = _spans(kept)
    assert (span.status, span.usage_state) == ("ok", "missing")
    assert span.attributes["stream_end"] in ("closed", "cancelled")


def test_a_refused_call_is_an_error(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer({"error": {"message": "boom", "type": "server_error"}}, 500))
    with pytest.raises(litellm.InternalServerError):
        litellm.completion(**_arguments(server))
    (span,) = _spans(kept)
    assert (span.status, span.attributes["http_status"]) == ("error", 500)
    assert "boom" in span.error


def test_a_stream_that_is_cut_is_an_error(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(sse_answer(_CHUNKS[:3], cut=True))
    with pytest.raises(Exception, match=r"peer closed|Connection|litellm"):
        list(litellm.completion(**_arguments(server, stream=True)))
    (span,) = _spans(kept)
    assert span.status == "error"


def test_a_router_and_its_fallback_are_one_span_for_each_call(server: ScriptedServer, kept: BufferTransport) -> None:
    def model(name: str, model: str) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": _arguments(server, model) | {"messages": None}}

    first, second = model("a", "openai/first"), model("b", "openai/second")
    for one in (first, second):
        del one["litellm_params"]["messages"]
    router = litellm.Router(model_list=[first, second], fallbacks=[{"a": ["b"]}], num_retries=0)

    async def calls() -> None:
        await router.acompletion(model="a", messages=_ASKED["messages"])
        await asyncio.to_thread(_until, lambda: len(kept) == 2)

    refused = json_answer({"error": {"message": "boom", "type": "server_error"}}, 500)
    server.script(refused, json_answer(_WHOLE))
    asyncio.run(calls())
    spans = _spans(kept, 2)
    assert [(span.status, span.attributes["request_model"]) for span in spans] == [("error", "first"), ("ok", "second")]


def test_an_embedding_is_of_kind_embedding(server: ScriptedServer, kept: BufferTransport) -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    answer = {"object": "list", "model": "text-embedding-3-small", "data": [vector], "usage": usage}
    server.script(json_answer(answer))
    litellm.embedding(model="openai/text-embedding-3-small", input=["hi"], api_base=f"{server.url}/v1", api_key="k")
    (span,) = _spans(kept)
    assert (span.name, span.kind, span.prompt_tokens, span.completion_tokens) == ("embeddings", "embedding", 3, 0)


def test_a_call_of_another_provider_has_that_provider_and_its_cached_tokens(
    server: ScriptedServer, kept: BufferTransport
) -> None:
    message = {
        "id": "msg_01ABCDEFGHIJKLMNOP",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 60,
            "output_tokens": 20,
        },
    }
    server.script(json_answer(message))
    arguments = {**_arguments(server, "anthropic/claude-sonnet-4-5-20250929"), "api_base": server.url}
    litellm.completion(**arguments)
    (span,) = _spans(kept)
    assert (span.provider, span.model) == ("anthropic", "claude-sonnet-4-5-20250929")
    assert (span.prompt_tokens, span.completion_tokens) == (100, 20)
    assert (span.cache_read_tokens, span.cache_write_tokens) == (30, 60)


def test_an_answer_of_the_cache_costs_nothing(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE))
    litellm.cache = litellm.Cache(type="local")
    for count in (1, 2):
        litellm.completion(**_arguments(server, caching=True))
        _spans(kept, count)
    assert len(server.requests) == 1
    hit = kept.spans[-1]
    assert (hit.usage_state, hit.prompt_tokens, hit.attributes["cache_hit"]) == ("none", 0, True)


def test_a_suppressed_call_is_not_tracked(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer(_WHOLE))
    with suppress():
        litellm.completion(**_arguments(server))
    litellm.completion(**_arguments(server))
    _spans(kept)


def test_a_client_of_openai_beside_litellm_is_tracked_by_itself(server: ScriptedServer) -> None:
    import openai

    kept = BufferTransport()
    tracer = Tracer(kept)
    instrument("litellm", tracer=tracer)
    client = instrument(openai.OpenAI(api_key="k", base_url=f"{server.url}/v1"), tracer=tracer)
    server.script(json_answer(_WHOLE))
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    uninstrument("litellm")
    (span,) = _spans(kept)
    assert span.scope == "tokentrace.openai"


def test_after_uninstrument_nothing_is_tracked(server: ScriptedServer) -> None:
    kept = BufferTransport()
    before = list(litellm.callbacks)
    instrument("litellm", tracer=Tracer(kept))
    uninstrument("litellm")
    assert list(litellm.callbacks) == before
    server.script(json_answer(_WHOLE), _STREAM)
    litellm.completion(**_arguments(server))
    stream = litellm.completion(**_arguments(server, stream=True))
    next(stream)
    del stream
    gc.collect()
    time.sleep(0.5)
    assert kept.spans == []


_PROGRAM = """
import asyncio, sys
import litellm
from tokentrace import FileTransport, Tracer, instrument, set_default_tracer
set_default_tracer(Tracer(FileTransport(sys.argv[1])))
instrument("litellm")
arguments = dict(model="openai/gpt-4o", messages=[{"role": "user", "content": "hi"}], api_key="k", api_base=sys.argv[2])
asyncio.run(litellm.acompletion(**arguments))
litellm.completion(**arguments)
stream = litellm.completion(**arguments, stream=True)
next(stream)
"""


def test_a_program_that_ends_at_once_loses_no_call(server: ScriptedServer, tmp_path: Path) -> None:
    server.answer = lambda request: _STREAM if request.json().get("stream") else json_answer(_WHOLE)
    file = tmp_path / "spans.jsonl"
    arguments = [sys.executable, "-c", _PROGRAM, str(file), f"{server.url}/v1"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert len(file.read_text().splitlines()) == 3, done.stderr
