"""Uses of the SDK of Anthropic, for ``sdk_matrix``."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from kit.llm_answers import MESSAGE_ID, REQUEST_ID
from kit.llm_server import LlmServer, Script
from kit.sdk_matrix import Case

ASK: dict[str, Any] = {
    "model": "claude-local-1",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Say hello."}],
}
_INPUT = {"cache_read_tokens": 400, "cache_write_tokens": 60, "prompt_tokens": 510}
HEAD = {
    "name": "messages",
    "kind": "llm",
    "provider": "anthropic",
    "status": "ok",
    "error": "",
    "model": "claude-local-1-20250929",
    "response_id": MESSAGE_ID,
    "scope": "tokentrace.anthropic",
    **_INPUT,
}
MESSAGE = {
    **HEAD,
    "completion_tokens": 21,
    "total_tokens": 531,
    "usage_state": "",
    "pricing_context": {"service_tier": "standard"},
    "attributes": {"finish_reason": "end_turn", "stream_end": None, "request_model": "claude-local-1"},
}
#: The count of the output at the start is a placeholder.
PARTIAL = {**HEAD, "completion_tokens": 1, "usage_state": "partial", "attributes": {"stream_end": "closed"}}
UNREAD = {
    "name": "messages",
    "status": "ok",
    "model": "claude-local-1",
    "prompt_tokens": 0,
    "usage_state": "missing",
    "attributes": {"stream_end": "closed"},
}


def create(client: Any, server: LlmServer, **more: Any) -> Any:
    return client.messages.create(**ASK, **more)


def raw(client: Any, server: LlmServer) -> Any:
    answer = client.messages.with_raw_response.create(**ASK)
    return [type(answer).__name__, answer.http_response.status_code, answer.http_response.text, answer.parse()]


def streaming(client: Any, server: LlmServer) -> Any:
    with client.messages.with_streaming_response.create(**ASK) as answer:
        return [type(answer).__name__, answer.parse(), answer.json()]


def streamed(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    return [type(stream).__name__, list(stream), stream.response.is_closed]


def left(client: Any, server: LlmServer) -> Any:
    for event in create(client, server, stream=True):
        return event
    return None


def closed(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    first = next(iter(stream))
    stream.close()
    return first


def dropped(client: Any, server: LlmServer) -> Any:
    stream = create(client, server, stream=True)
    kind = type(stream).__name__
    del stream
    gc.collect()
    return kind


def broken(client: Any, server: LlmServer) -> Any:
    events = []
    try:
        for event in create(client, server, stream=True):
            events.append(event)  # noqa: PERF402 - what came before the error counts too
    except Exception as exc:  # noqa: BLE001 - what the application would see is compared
        # Older SDKs hand on the error of httpx, whose text names nothing that differs.
        return [events, exc]
    return events


def helper(client: Any, server: LlmServer) -> Any:
    with client.messages.stream(**ASK) as stream:
        texts = list(stream.text_stream)
        return [texts, stream.get_final_message(), stream.get_final_text(), stream.current_message_snapshot]


def helper_events(client: Any, server: LlmServer) -> Any:
    with client.messages.stream(**ASK) as stream:
        return [event.type for event in stream]


def helper_left(client: Any, server: LlmServer) -> Any:
    with client.messages.stream(**ASK) as stream:
        return next(iter(stream.text_stream))


async def acreate(client: Any, server: LlmServer) -> Any:
    return await client.messages.create(**ASK)


async def astreamed(client: Any, server: LlmServer) -> Any:
    stream = await client.messages.create(**ASK, stream=True)
    return [type(stream).__name__, [event async for event in stream]]


async def aleft(client: Any, server: LlmServer) -> Any:
    async for event in await client.messages.create(**ASK, stream=True):
        return event
    return None


async def aclosed(client: Any, server: LlmServer) -> Any:
    stream = await client.messages.create(**ASK, stream=True)
    first = await stream.__anext__()
    await stream.close()
    return first


async def adropped(client: Any, server: LlmServer) -> Any:
    stream = await client.messages.create(**ASK, stream=True)
    kind = type(stream).__name__
    del stream
    gc.collect()
    return kind


async def ahelper(client: Any, server: LlmServer) -> Any:
    async with client.messages.stream(**ASK) as stream:
        texts = [text async for text in stream.text_stream]
        return [texts, await stream.get_final_message()]


async def acancelled(client: Any, server: LlmServer) -> Any:
    """The task that reads a stream is cancelled while it waits for the second frame."""
    read = asyncio.Event()

    async def reading() -> None:
        async for _ in await client.messages.create(**ASK, stream=True):
            read.set()

    task = asyncio.create_task(reading())
    await read.wait()
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as exc:
        return type(exc).__name__
    finally:
        if server.script.gate is not None:
            server.script.gate.set()


async def abroken(client: Any, server: LlmServer) -> Any:
    events = []
    try:
        async for event in await client.messages.create(**ASK, stream=True):
            events.append(event)  # noqa: PERF401 - what came before the error counts too
    except Exception as exc:  # noqa: BLE001 - what the application would see is compared
        return [events, exc]
    return events


def _gated() -> Script:
    return Script(gate=threading.Event())


def _scripted(**options: Any) -> Any:
    return lambda: Script(**options)


def _case(name: str, use: Any, span: Any, **more: Any) -> Case:
    return Case(name, use, span, "AsyncAnthropic" if asyncio.iscoroutinefunction(use) else "Anthropic", **more)


_FAILED = {**PARTIAL, "status": "error"}
_HUNG = {"timeout": 0.3, "max_retries": 0}

CASES = [
    _case("a message", create, {**MESSAGE, "ttft_ns": 0}),
    _case("a message, async", acreate, MESSAGE),
    _case("a gzipped message", create, MESSAGE, script=_scripted(encoding="gzip")),
    Case("Foundry", create, {**MESSAGE, "provider": "azure"}, "AnthropicFoundry"),
    Case("Foundry, async", acreate, {**MESSAGE, "provider": "azure"}, "AsyncAnthropicFoundry"),
    Case("a stream of Foundry", streamed, {**MESSAGE, "provider": "azure"}, "AnthropicFoundry"),
    _case("a beta message", lambda c, s: c.beta.messages.create(**ASK), MESSAGE),
    _case("a copied client", lambda c, s: create(c.with_options(timeout=9).copy(), s), MESSAGE),
    _case("retries", create, MESSAGE, script=_scripted(statuses=(429, 500))),
    _case("counting tokens", lambda c, s: c.messages.count_tokens(model=ASK["model"], messages=ASK["messages"]), None),
    _case("a raw response", raw, {**MESSAGE, "attributes": {"request_id": REQUEST_ID}}),
    _case("a streaming response", streaming, MESSAGE),
    _case(
        "status 400",
        create,
        {
            "status": "error",
            "usage_state": "",
            "error": "BadRequestError: Error code: 400",
            "attributes": {"http_status": 400, "error_type": "server_error", "request_id": REQUEST_ID},
        },
        script=_scripted(statuses=(400,)),
    ),
    _case(
        "status 529 after all retries",
        create,
        {"status": "error", "attributes": {"http_status": 529, "resend_count": 2}},
        script=_scripted(statuses=(529, 529, 529)),
    ),
    _case("a timeout", create, {"status": "timeout"}, script=_scripted(hang=True), options=_HUNG),
    _case("a timeout, async", acreate, {"status": "timeout"}, script=_scripted(hang=True), options=_HUNG),
    _case("a stream", streamed, MESSAGE),
    _case("a stream in pieces of 5 bytes", streamed, MESSAGE, script=_scripted(piece=5)),
    _case("a gzipped stream", streamed, MESSAGE, script=_scripted(encoding="gzip")),
    _case("a stream, async", astreamed, MESSAGE),
    _case("a beta stream", lambda c, s: list(c.beta.messages.create(**ASK, stream=True)), MESSAGE),
    _case("the helper for streams", helper, MESSAGE),
    _case("the events of the helper", helper_events, MESSAGE),
    _case("the helper for streams, async", ahelper, MESSAGE),
    _case("a helper that is left", helper_left, PARTIAL),
    _case("a stream that is left", left, PARTIAL),
    _case("a stream that is left, async", aleft, PARTIAL),
    _case("a stream that is closed", closed, PARTIAL),
    _case("a stream that is closed, async", aclosed, PARTIAL),
    _case("a stream that is dropped", dropped, UNREAD),
    _case("a stream that is dropped, async", adropped, UNREAD),
    _case("a cancelled stream", acancelled, {**PARTIAL, "attributes": {"stream_end": "cancelled"}}, script=_gated),
    _case(
        "an error event",
        broken,
        {**_FAILED, "error": "overloaded", "attributes": {"error_type": "overloaded_error"}},
        script=_scripted(error_after=4),
    ),
    _case(
        "an error event, async",
        abroken,
        {**_FAILED, "error": "overloaded", "attributes": {}},
        script=_scripted(error_after=4),
    ),
    _case(
        "a connection that is cut",
        broken,
        {**_FAILED, "error": "RemoteProtocolError: ", "attributes": {}},
        script=_scripted(cut_after=4),
    ),
    _case(
        "a connection that is cut, async",
        abroken,
        {**_FAILED, "error": "RemoteProtocolError: ", "attributes": {}},
        script=_scripted(cut_after=4),
    ),
]
