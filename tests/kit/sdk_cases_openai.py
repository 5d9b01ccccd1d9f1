"""Uses of the SDK of OpenAI, for ``sdk_matrix``."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from kit.llm_answers import REQUEST_ID
from kit.llm_server import LlmServer, Script
from kit.sdk_matrix import Case
from kit.sdk_truth_openai import (
    ASK,
    CANCELLED,
    CHAT,
    CLOSED,
    COUNTED,
    COUNTS,
    FAILED,
    FORM,
    NONE,
    QUERY,
    RESPONSE,
    TOOLS,
    TWO,
    UNCOUNTED,
)


def create(client: Any, server: LlmServer, **more: Any) -> Any:
    return client.chat.completions.create(**ASK, **more)


def raw(client: Any, server: LlmServer) -> Any:
    answer = client.chat.completions.with_raw_response.create(**ASK)
    return [type(answer).__name__, answer.status_code, answer.request_id, answer.text, answer.parse()]


def streaming(client: Any, server: LlmServer) -> Any:
    with client.chat.completions.with_streaming_response.create(**ASK) as answer:
        return [type(answer).__name__, answer.parse(), answer.json()]


def streaming_unread(client: Any, server: LlmServer) -> Any:
    with client.chat.completions.with_streaming_response.create(**ASK) as answer:
        return answer.status_code


def streamed(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    return [type(stream).__name__, list(stream), stream.response.is_closed, stream.response.elapsed.total_seconds() > 0]


def streamed_raw(client: Any, server: LlmServer) -> Any:
    answer = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    return [type(answer).__name__, list(answer.parse())]


def streamed_lines(client: Any, server: LlmServer) -> Any:
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as answer:
        # The option adds an empty usage to each chunk, of which nothing may be seen.
        return [line for line in answer.iter_lines() if line]


def left(client: Any, server: LlmServer) -> Any:
    for chunk in create(client, server, stream=True):
        return chunk
    return None


def closed(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    first = next(stream)
    stream.close()
    stream.close()
    return first


def left_block(client: Any, server: LlmServer) -> Any:
    with create(client, server, stream=True) as stream:
        return next(stream)


def dropped(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    kind = type(stream).__name__
    del stream
    gc.collect()
    return kind


def dropped_in_the_middle(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    first = next(stream)
    del stream
    gc.collect()
    return first


def broken(client: Any, server: LlmServer) -> Any:
    chunks = []
    try:
        for chunk in create(client, server, stream=True):
            chunks.append(chunk)  # noqa: PERF402 - what came before the error counts too
    except Exception as exc:  # noqa: BLE001 - what the application would see is compared
        return [chunks, exc]
    return chunks


def helper(client: Any, server: LlmServer) -> Any:
    with client.chat.completions.stream(**ASK) as stream:
        events = [(event.type, type(event).__name__) for event in stream]
        return [events, stream.get_final_completion()]


def parse(client: Any, server: LlmServer) -> Any:
    return client.chat.completions.parse(**ASK, response_format=FORM)


def responses_stream(client: Any, server: LlmServer) -> Any:
    return list(client.responses.create(**QUERY, stream=True))


def responses_helper(client: Any, server: LlmServer) -> Any:
    with client.responses.stream(**QUERY) as stream:
        return [[event.type for event in stream], stream.get_final_response()]


def background(client: Any, server: LlmServer) -> Any:
    answers = [client.responses.create(**QUERY, background=True)]
    for _ in range(4):
        answers.append(client.responses.retrieve(answers[0].id))
    return answers


def background_raw(client: Any, server: LlmServer) -> Any:
    made = client.responses.with_raw_response.create(**QUERY, background=True).parse()
    return [client.responses.with_raw_response.retrieve(made.id).parse().status for _ in range(3)]


def two_threads(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    chunks: list[Any] = []
    thread = threading.Thread(target=lambda: chunks.extend(stream))
    thread.start()
    thread.join()
    return chunks


async def acreate(client: Any, server: LlmServer) -> Any:
    return await client.chat.completions.create(**ASK)


async def astreamed(client: Any, server: LlmServer) -> Any:
    stream = await client.chat.completions.create(**ASK, stream=True)
    return [type(stream).__name__, [chunk async for chunk in stream]]


async def aleft(client: Any, server: LlmServer) -> Any:
    async for chunk in await client.chat.completions.create(**ASK, stream=True):
        return chunk
    return None


async def aleft_block(client: Any, server: LlmServer) -> Any:
    async with await client.chat.completions.create(**ASK, stream=True) as stream:
        async for chunk in stream:
            return chunk
    return None


async def aclosed(client: Any, server: LlmServer) -> Any:
    stream = await client.chat.completions.create(**ASK, stream=True)
    first = await stream.__anext__()
    await stream.close()
    await stream.response.aclose()
    return first


async def adropped(client: Any, server: LlmServer) -> Any:
    stream = await client.chat.completions.create(**ASK, stream=True)
    kind = type(stream).__name__
    del stream
    gc.collect()
    return kind


async def acancelled(client: Any, server: LlmServer) -> Any:
    """The task that reads a stream is cancelled while it waits for the second frame."""
    read = asyncio.Event()
    chunks = []

    async def reading() -> None:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            chunks.append(chunk)
            read.set()

    task = asyncio.create_task(reading())
    await read.wait()
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as exc:
        return [chunks, type(exc).__name__]
    finally:
        if server.script.gate is not None:
            server.script.gate.set()
    return chunks


async def acancelled_request(client: Any, server: LlmServer) -> Any:
    task = asyncio.create_task(client.chat.completions.create(**ASK))
    while not server.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as exc:
        return type(exc).__name__


async def abroken(client: Any, server: LlmServer) -> Any:
    chunks = []
    try:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            chunks.append(chunk)  # noqa: PERF401 - what came before the error counts too
    except Exception as exc:  # noqa: BLE001 - what the application would see is compared
        return [chunks, exc]
    return chunks


async def ahelper(client: Any, server: LlmServer) -> Any:
    async with client.chat.completions.stream(**ASK) as stream:
        events = [event.type async for event in stream]
        return [events, await stream.get_final_completion()]


async def aresponses(client: Any, server: LlmServer) -> Any:
    whole = await client.responses.create(**QUERY)
    return [whole.output_text, whole]


async def araw_streamed(client: Any, server: LlmServer) -> Any:
    async with client.chat.completions.with_streaming_response.create(**ASK) as answer:
        return [type(answer).__name__, await answer.json()]


def _gated() -> Script:
    return Script(gate=threading.Event())


def _scripted(**options: Any) -> Any:
    return lambda: Script(**options)


def _case(name: str, use: Any, span: Any, *, client: str = "OpenAI", **more: Any) -> Case:
    if asyncio.iscoroutinefunction(use):
        client = f"Async{client}"
    return Case(name, use, span, client, **more)


_AZURE = {"azure_endpoint": "{url}", "api_version": "2024-10-21"}
_HUNG = {"timeout": 0.3, "max_retries": 0}

CASES = [
    _case("a completion", create, {**CHAT, "ttft_ns": 0}),
    _case("a completion, async", acreate, CHAT),
    _case("a gzipped completion", create, CHAT, script=_scripted(encoding="gzip")),
    _case(
        "a completion with tools",
        lambda c, s: create(c, s, tools=TOOLS),
        {**CHAT, "attributes": {"tool_calls": 1, "request_id": REQUEST_ID}},
    ),
    _case("a copied client", lambda c, s: create(c.with_options(timeout=9).copy(), s), CHAT),
    _case("retries", create, CHAT, script=_scripted(statuses=(429, 500))),
    _case("a raw response", raw, {**CHAT, "attributes": {"request_id": REQUEST_ID}}),
    _case(
        "a raw response after a retry",
        raw,
        {**CHAT, "attributes": {"resend_count": 1}},
        script=_scripted(statuses=(500,)),
    ),
    _case("a streaming response", streaming, CHAT),
    _case("a streaming response, gzipped", streaming, CHAT, script=_scripted(encoding="gzip", piece=7)),
    _case("a streaming response, async", araw_streamed, CHAT),
    _case(
        "a streaming response that is not read",
        streaming_unread,
        {**CLOSED, "model": "gpt-4o", "response_id": "", "pricing_context": None},
    ),
    _case("parse", parse, CHAT, script=_scripted(content="{}")),
    _case(
        "parse that is cut by the length",
        parse,
        {
            **CHAT,
            "status": "error",
            "error": "LengthFinishReasonError: ",
            "attributes": {"finish_reason": "length"},
        },
        script=_scripted(finish_reason="length"),
    ),
    _case(
        "a text completion", lambda c, s: c.completions.create(model="gpt-4o", prompt="Say hello."), {**TWO, **COUNTS}
    ),
    _case(
        "a streamed text completion",
        lambda c, s: list(c.completions.create(model="gpt-4o", prompt="Say hello.", stream=True)),
        {**TWO, **NONE, "usage_state": "missing"},
        asking=COUNTED,
    ),
    _case(
        "embeddings",
        lambda c, s: c.embeddings.create(model="text-embedding-3-small", input="hello"),
        {"name": "embeddings", "kind": "embedding", "prompt_tokens": 8, "completion_tokens": 0},
    ),
    _case(
        "decisions",
        lambda c, s: c.post("/decisions", cast_to=object, body={"model": "gpt-6-luna"}),
        {"name": "decisions", "prompt_tokens": 80, "completion_tokens": 20, "model": "gpt-6-luna"},
    ),
    _case(
        "a transcription",
        lambda c, s: c.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF")),
        {"name": "audio.transcriptions", "kind": "llm", "model": "whisper-1", "usage": {"audio_seconds": 9}},
    ),
    _case("Azure", create, {**CHAT, "provider": "azure"}, client="AzureOpenAI", options=_AZURE),
    _case("a model that is not tracked", lambda c, s: c.models.list(), None),
    _case(
        "status 400",
        create,
        {
            **UNCOUNTED,
            "model": "gpt-4o",
            "response_id": "",
            "pricing_context": None,
            "status": "error",
            "usage_state": "",
            "error": "BadRequestError: Error code: 400",
            "attributes": {"http_status": 400, "error_type": "server_error", "request_id": REQUEST_ID},
        },
        script=_scripted(statuses=(400,)),
    ),
    _case(
        "status 429 after all retries",
        create,
        {"status": "error", "attributes": {"http_status": 429, "error_type": "rate_limit_error", "resend_count": 2}},
        script=_scripted(statuses=(429, 429, 429)),
    ),
    _case(
        "a timeout",
        create,
        {
            "status": "timeout",
            "error": "APITimeoutError: Request timed out.",
            "attributes": {"error_type": "APITimeoutError"},
        },
        script=_scripted(hang=True),
        options=_HUNG,
    ),
    _case("a timeout, async", acreate, {"status": "timeout"}, script=_scripted(hang=True), options=_HUNG),
    _case(
        "no server",
        create,
        {"status": "error", "error": "APIConnectionError: Connection error."},
        options={"base_url": "http://127.0.0.1:9/v1", "max_retries": 0},
    ),
    _case("a stream", streamed, UNCOUNTED, asking=COUNTED),
    _case("a stream in pieces of 5 bytes", streamed, UNCOUNTED, asking=COUNTED, script=_scripted(piece=5)),
    _case("a gzipped stream", streamed, UNCOUNTED, asking=COUNTED, script=_scripted(encoding="gzip")),
    _case(
        "a deflated stream in pieces",
        streamed,
        UNCOUNTED,
        asking=COUNTED,
        script=_scripted(encoding="deflate", piece=3),
    ),
    _case("a stream, async", astreamed, UNCOUNTED, asking=COUNTED),
    _case("a gzipped stream, async", astreamed, UNCOUNTED, asking=COUNTED, script=_scripted(encoding="gzip", piece=11)),
    _case(
        "a stream of tool calls",
        lambda c, s: list(create(c, s, stream=True, tools=TOOLS)),
        {**UNCOUNTED, "attributes": {"tool_calls": 1}},
        asking=COUNTED,
    ),
    _case(
        "a stream whose usage the application asks for",
        lambda c, s: list(create(c, s, stream=True, stream_options={"include_usage": True})),
        CHAT,
    ),
    _case(
        "a stream without usage by the application",
        lambda c, s: list(create(c, s, stream=True, stream_options={"include_usage": False})),
        UNCOUNTED,
    ),
    _case("a stream read by another thread", two_threads, UNCOUNTED, asking=COUNTED),
    _case("a raw stream", streamed_raw, UNCOUNTED, asking=COUNTED),
    _case("the lines of a stream", streamed_lines, UNCOUNTED, asking=COUNTED),
    _case("the helper for streams", helper, UNCOUNTED, asking=COUNTED),
    _case("the helper for streams, async", ahelper, UNCOUNTED, asking=COUNTED),
    _case("a stream that is left", left, CLOSED, asking=dict(CLOSED)),
    _case("a stream that is left, async", aleft, CLOSED, asking=dict(CLOSED), leaves_generators=True),
    _case("a block that is left", left_block, CLOSED, asking=dict(CLOSED)),
    _case("a block that is left, async", aleft_block, CLOSED, asking=dict(CLOSED)),
    _case("a stream that is closed", closed, CLOSED, asking=dict(CLOSED)),
    _case("a stream that is closed, async", aclosed, CLOSED, asking=dict(CLOSED)),
    _case("a stream that is dropped in the middle", dropped_in_the_middle, CLOSED, asking=dict(CLOSED)),
    _case("a cancelled stream", acancelled, CANCELLED, asking=dict(CANCELLED), script=_gated),
    _case(
        "a cancelled request",
        acancelled_request,
        {"status": "ok", "usage_state": "missing", "attributes": {"stream_end": "cancelled"}},
        script=_scripted(hang=True),
    ),
    _case(
        "an error event",
        broken,
        {**FAILED, "error": "overloaded", "attributes": {"error_type": "server_error"}},
        asking={"usage_state": "missing"},
        script=_scripted(error_after=3),
    ),
    _case(
        "an error event, async",
        abroken,
        {**FAILED, "error": "overloaded"},
        asking={"usage_state": "missing"},
        script=_scripted(error_after=3),
    ),
    _case(
        "a connection that is cut",
        broken,
        {
            **FAILED,
            "error": "RemoteProtocolError: peer closed connection "
            "without sending complete message body (incomplete chunked read)",
        },
        asking={"usage_state": "missing"},
        script=_scripted(cut_after=3),
    ),
    _case(
        "a connection that is cut, async",
        abroken,
        {**FAILED, "error": "RemoteProtocolError: ", "attributes": {"error_type": "RemoteProtocolError"}},
        asking={"usage_state": "missing"},
        script=_scripted(cut_after=3),
    ),
    _case("responses", lambda c, s: c.responses.create(**QUERY), RESPONSE),
    _case("responses, async", aresponses, RESPONSE),
    _case("a stream of responses", responses_stream, RESPONSE),
    _case("the helper for responses", responses_helper, RESPONSE),
    _case(
        "an error event of responses",
        responses_stream,
        {"name": "responses", "status": "error", "error": "overloaded", "usage_state": "missing"},
        script=_scripted(error_after=5),
    ),
    _case("responses in the background", background, {**RESPONSE, "attributes": {"background": True}}),
    _case("raw responses in the background", background_raw, RESPONSE),
]
#: A stream that is never read is collected by the garbage collector; the old SDK warns that it was left open.
CASES += [
    _case(
        "a stream that is dropped",
        dropped,
        {**CLOSED, "model": "gpt-4o", "response_id": "", "pricing_context": None},
        asking={"usage_state": "missing"},
    ),
    _case(
        "a stream that is dropped, async",
        adropped,
        {**CLOSED, "model": "gpt-4o", "response_id": "", "pricing_context": None},
        asking={"usage_state": "missing"},
    ),
]
