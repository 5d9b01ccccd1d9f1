"""What a tracked call tells: its place in a trace, its times, its cost, its messages, and what a budget does to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from kit.llm_answers import CHAT_USAGE
from kit.llm_server import LlmServer, Script
from tokentrace import (
    Budget,
    BudgetExceeded,
    BudgetUnavailable,
    BufferTransport,
    ConfigError,
    Rate,
    SharedBudget,
    Tracer,
    cost_or_none,
    current,
    instrument,
    set_default_tracer,
    suppress,
    uninstrument,
)

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello."}]}
MESSAGE: dict[str, Any] = {**ASK, "model": "claude-local-1", "max_tokens": 50}


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    with LlmServer() as running:
        yield running


@pytest.fixture
def buffer(server: LlmServer) -> BufferTransport:
    server.start(Script())
    return BufferTransport()


@pytest.fixture
def tracer(buffer: BufferTransport) -> Tracer:
    return Tracer(buffer)


@pytest.fixture
def client(server: LlmServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", base_url=f"{server.url}/v1") as made:
        yield made


@pytest.fixture
def claude(server: LlmServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="k", base_url=server.url) as made:
        yield made


def test_the_first_token_is_the_first_frame_with_content(
    server: LlmServer, client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    gate = threading.Event()
    server.start(Script(gate=gate))
    instrument(client, tracer=tracer)
    stream = client.chat.completions.create(**ASK, stream=True)
    next(stream)
    role_ns = time.time_ns()
    gate.set()
    next(stream)
    content_ns = time.time_ns()
    list(stream)
    (span,) = buffer.spans
    # The role came before the gate opened, the content after; the two clocks differ by less than a millisecond.
    assert role_ns - 1_000_000 <= span.started_ns + span.ttft_ns <= content_ns + 1_000_000


def test_a_call_is_below_what_is_current_when_it_starts_and_a_stream_stays_there(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    instrument(client, tracer=tracer)
    with tracer.trace("answer") as trace, trace.span("step", kind="chain") as step:
        client.chat.completions.create(**ASK)
        stream = client.chat.completions.create(**ASK, stream=True)
        assert current() is step
    with tracer.trace("another"):
        list(stream)
    calls = [span for span in buffer.spans if span.kind == "llm"]
    assert [(call.trace_id, call.parent_span_id) for call in calls] == [(trace.id, step.span_id)] * 2


def test_nothing_inside_a_block_of_suppress_is_tracked(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    instrument(client, tracer=tracer)
    with suppress():
        client.chat.completions.create(**ASK)
    assert buffer.spans == []


def test_a_client_and_its_sdk_tracked_together_make_one_span(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport, server: LlmServer
) -> None:
    others = BufferTransport()
    instrument("openai", tracer=Tracer(others))
    try:
        instrument(client, tracer=tracer)
        client.chat.completions.create(**ASK)
        with openai.OpenAI(api_key="k", base_url=f"{server.url}/v1") as other:
            other.chat.completions.create(**ASK)
    finally:
        uninstrument("openai")
    client.chat.completions.create(**ASK)
    assert (len(buffer), len(others)) == (2, 1)


def test_a_second_call_replaces_the_settings_and_uninstrument_gives_the_class_back(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    first = BufferTransport()
    assert instrument(client, tracer=Tracer(first)) is client
    instrument(client, tracer=tracer, provider="vllm")
    assert (type(client).__name__, type(client).__module__) == ("OpenAI", openai.OpenAI.__module__)
    assert isinstance(client, openai.OpenAI)
    client.chat.completions.create(**ASK)
    uninstrument(client)
    uninstrument(client)
    client.chat.completions.create(**ASK)
    assert type(client) is openai.OpenAI
    assert (len(first), [span.provider for span in buffer.spans]) == (0, ["vllm"])


def test_an_sdk_gets_its_own_method_back() -> None:
    seam = next(cls for cls in openai.OpenAI.__mro__ if "request" in vars(cls))
    before = vars(seam)["request"]
    instrument(openai)
    instrument("openai")
    assert vars(seam)["request"] is not before
    uninstrument(openai)
    assert vars(seam)["request"] is before


def test_the_default_tracer_is_used_where_none_is_given(client: openai.OpenAI, tracer: Tracer) -> None:
    set_default_tracer(tracer)
    try:
        instrument(client)
        client.chat.completions.create(**ASK)
        assert len(tracer.transport.spans) == 1  # type: ignore[attr-defined]  # it is the buffer
    finally:
        set_default_tracer(None)


def test_tracking_imports_no_sdk_and_no_http_library() -> None:
    heavy = ["openai", "anthropic", "httpx", "httpx2", "pydantic"]
    program = f"import sys, tokentrace; tokentrace.instrument; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("target", ["gpt", object(), 3, json])
def test_a_target_that_cannot_be_tracked_is_named(target: object) -> None:
    with pytest.raises(ConfigError, match=r"instrument: .*cannot be tracked"):
        instrument(target)


def test_many_threads_make_one_span_for_each_call(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    instrument(client, tracer=tracer)

    def call(number: int) -> None:
        if number % 2:
            client.chat.completions.create(**ASK)
        else:
            list(client.chat.completions.create(**ASK, stream=True))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(100)))
    assert len(buffer) == 100
    assert len({span.span_id for span in buffer.spans}) == 100


def test_clients_work_in_one_event_loop_after_another(
    server: LlmServer, tracer: Tracer, buffer: BufferTransport
) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1") as client:
            await client.chat.completions.create(**ASK)
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass

    instrument("openai", tracer=tracer)
    try:
        asyncio.run(ask())
        asyncio.run(ask())
    finally:
        uninstrument("openai")
    assert len(buffer) == 4


# -- messages


def test_no_message_is_kept_by_default(client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport) -> None:
    instrument(client, tracer=tracer)
    client.chat.completions.create(**ASK)
    list(client.chat.completions.create(**ASK, stream=True))
    assert not [key for span in buffer.spans for key in span.attributes if "messages" in key]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", ["chat", "responses", "messages", "tools"])
def test_messages_are_kept_where_they_are_asked_for(
    client: openai.OpenAI, claude: anthropic.Anthropic, buffer: BufferTransport, api: str, stream: bool
) -> None:
    tracer = Tracer(buffer, capture="messages")
    instrument(client, tracer=tracer)
    instrument(claude, tracer=tracer)
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(**ASK, stream=stream),
        "tools": lambda: client.chat.completions.create(**ASK, stream=stream, tools=tools),
        "responses": lambda: client.responses.create(model="gpt-5", input="Say hello.", stream=stream),
        "messages": lambda: claude.messages.create(**MESSAGE, stream=stream),
    }
    answer = calls[api]()
    if stream:
        list(answer)
    (span,) = buffer.spans
    asked = [{"role": "user", "parts": [{"type": "text", "content": "Say hello."}]}]
    said: dict[str, Any] = {"type": "text", "content": "Hello, world"}
    if api == "tools":
        said = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
    assert json.loads(span.attributes["gen_ai.input.messages"]) == asked
    (message,) = json.loads(span.attributes["gen_ai.output.messages"])
    assert (message["role"], [part for part in message["parts"] if part.get("content") != ""]) == ("assistant", [said])


# -- budgets


def test_a_call_is_paid_from_the_budget_with_what_it_has_cost(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    budget = Budget(1)
    instrument(client, tracer=tracer, budget=budget)
    client.chat.completions.create(**ASK)
    (span,) = buffer.spans
    assert budget.spent == pytest.approx(float(cost_or_none("gpt-4o", span) or 0), abs=1e-12)
    assert budget.spent == pytest.approx((120 - 64) * 2.5e-6 + 64 * 1.25e-6 + 30 * 1e-5, abs=1e-12)
    assert budget.reserved == 0


def test_a_call_that_does_not_fit_is_refused_before_it_is_sent(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport, server: LlmServer
) -> None:
    # 4,096 tokens of output cost 4 cents, 100 tokens a tenth of a cent.
    instrument(client, tracer=tracer, budget=Budget(0.01))
    with pytest.raises(BudgetExceeded):
        client.chat.completions.create(**ASK)
    assert (server.requests, buffer.spans) == ([], [])
    client.chat.completions.create(**ASK, max_tokens=100)
    assert len(buffer) == 1


def test_an_async_call_that_does_not_fit_is_refused_before_it_is_sent(
    tracer: Tracer, buffer: BufferTransport, server: LlmServer
) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1") as client:
            instrument(client, tracer=tracer, budget=Budget(0.01))
            with pytest.raises(BudgetExceeded):
                await client.chat.completions.create(**ASK, n=100, max_tokens=100)

    asyncio.run(ask())
    assert (server.requests, buffer.spans) == ([], [])


def test_a_failed_call_costs_nothing_and_a_stream_without_usage_what_was_reserved(
    client: openai.OpenAI, tracer: Tracer, server: LlmServer
) -> None:
    budget = Budget(1)
    instrument(client, tracer=tracer, budget=budget)
    server.start(Script(statuses=(400,)))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASK)
    assert (budget.spent, budget.reserved) == (0, 0)
    stream = client.chat.completions.create(**ASK, max_tokens=100, stream=True)
    reserved = budget.reserved
    assert reserved > 100 * 1e-5
    list(stream)
    assert (budget.spent, budget.reserved) == (reserved, 0)


def test_a_model_without_a_price_reserves_nothing(client: openai.OpenAI, tracer: Tracer) -> None:
    budget = Budget(0)
    instrument(client, tracer=tracer, budget=budget)
    client.chat.completions.create(model="our-own-model", messages=ASK["messages"])
    assert budget.spent == 0


def test_a_shared_budget_that_refuses_in_doubt_refuses_a_model_without_a_price(
    client: openai.OpenAI, tracer: Tracer, server: LlmServer
) -> None:
    # Nothing is asked of the broker, which is not there.
    budget = SharedBudget("calls", 1, url="nats://127.0.0.1:9", if_unavailable="refuse")
    instrument(client, tracer=tracer, budget=budget)
    with pytest.raises(BudgetUnavailable, match="the price of model our-own-model is not known"):
        client.chat.completions.create(model="our-own-model", messages=ASK["messages"])
    assert server.requests == []


# -- background


def test_answers_in_the_background_that_are_never_fetched_end_with_the_program_and_without_usage(
    client: openai.OpenAI, tracer: Tracer, buffer: BufferTransport
) -> None:
    from tokentrace.client.track.answers import background

    instrument(client, tracer=tracer)
    client.responses.create(model="gpt-5", input="Say hello.", background=True)
    assert buffer.spans == []
    background.begin_close(1)
    (span,) = buffer.spans
    assert (span.usage_state, span.status, span.attributes["background"]) == ("missing", "ok", True)


def test_the_usage_of_a_stream_is_never_asked_for_where_the_tracer_says_so(
    client: openai.OpenAI, buffer: BufferTransport, server: LlmServer
) -> None:
    instrument(client, tracer=Tracer(buffer, stream_usage="never"), stream_usage_hosts=[server.host])
    list(client.chat.completions.create(**ASK, stream=True))
    assert b"stream_options" not in server.requests[0].body
    instrument(client, tracer=Tracer(buffer), stream_usage_hosts=["127.0.0.1"])
    list(client.chat.completions.create(**ASK, stream=True))
    assert b'"stream_options":{"include_usage":true}' in server.requests[1].body
    assert [span.total_tokens for span in buffer.spans] == [0, CHAT_USAGE["total_tokens"]]


def test_the_own_prices_of_a_budget_decide_what_a_call_reserves_and_costs(
    client: openai.OpenAI, tracer: Tracer
) -> None:
    rate = Rate(prompt_per_1m=Decimal(1_000), completion_per_1m=Decimal(1_000))
    budget = Budget(6, prices={"house": rate, "house-2024-08-06": rate})
    instrument(client, tracer=tracer, budget=budget)
    ask = {**ASK, "model": "house", "max_tokens": 1_000}
    client.chat.completions.create(**ask)
    assert budget.spent == (CHAT_USAGE["prompt_tokens"] + CHAT_USAGE["completion_tokens"]) / 1_000  # type: ignore[operator] # numbers, both
    with pytest.raises(BudgetExceeded):
        client.chat.completions.create(**{**ask, "max_tokens": 6_000})
