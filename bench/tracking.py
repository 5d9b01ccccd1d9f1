"""Tracking: a call and a streamed chunk of the SDK of OpenAI, tracked and untouched, without a network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai

from bench.row import Budget, Measured, Plan, Runner
from tokentrace import NoopTransport, Tracer, instrument

_CHUNKS = 1000
_CALLS = 20
_TRIES = 12
_UNTOUCHED = "the SDK alone"

CALL = Plan("call the SDK, tracked", "s", _UNTOUCHED, Budget("<=", 1.5))
CHUNK = Plan("read a chunk of a stream, tracked", "s", _UNTOUCHED, Budget("<=", 1.25))
ASKED = Plan("read a chunk of a stream that is asked for usage, tracked", "s", _UNTOUCHED, Budget("<=", 1.3))
PLANS = (CALL, CHUNK, ASKED)

_USAGE = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
_HEAD = {"id": "chatcmpl-CXk2v0Zq3mFvT1Yb7HqWfN4sR8aLd", "created": 1_767_000_000, "model": "gpt-4o-2024-08-06"}
_ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello."}]}


class _Stream(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        for number in range(_CHUNKS):
            choice = {"index": 0, "delta": {"content": f" word{number}"}, "finish_reason": None}
            chunk = {**_HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None}
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _answer(request: httpx2.Request) -> httpx2.Response:
    if b'"stream":true' in request.content:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream())
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return httpx2.Response(200, json={**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def run(runner: Runner) -> None:
    """Measure tracking; the limit is the SDK alone, in the same process."""
    runner.row(CALL, lambda: _ratio(_call, _CALLS))
    runner.row(CHUNK, lambda: _ratio(_read, _CHUNKS))
    runner.row(ASKED, lambda: _ratio(_read, _CHUNKS, stream_usage_hosts=["llm.test"]))


def _client() -> openai.OpenAI:
    http_client = httpx2.Client(transport=httpx2.MockTransport(_answer))
    return openai.OpenAI(api_key="k", base_url="http://llm.test/v1", http_client=http_client)


def _call(client: openai.OpenAI) -> None:
    for _ in range(_CALLS):
        client.chat.completions.create(**_ASK)


def _read(client: openai.OpenAI) -> None:
    for _ in client.chat.completions.create(**_ASK, stream=True):
        pass


def _ratio(work: Callable[[openai.OpenAI], None], units: int, **options: Any) -> Measured:
    """Time *work* with an untouched and a tracked client in turn, and return the lowest time of each for a unit."""
    plain, tracked = _client(), _client()
    instrument(tracked, tracer=Tracer(NoopTransport()), **options)
    alone = both = float("inf")
    for _ in range(_TRIES):
        alone = min(alone, _seconds(work, plain) / units)
        both = min(both, _seconds(work, tracked) / units)
    return Measured(both, alone, f"{(both - alone) * 1e6:.1f} µs more, processor time")


def _seconds(work: Callable[[openai.OpenAI], None], client: openai.OpenAI) -> float:
    """Return the processor time of *work*, which waits for nothing."""
    began = time.thread_time()
    work(client)
    return time.thread_time() - began
