"""
A program with an instrumented client, which runs in the environment of an emitter.

``python -m kit.emitter_program APP DRIVER CASE...`` runs the program APP, which sets the instrumentation up and makes
the calls of the case ``page``, and then the named cases with the client DRIVER.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loopback_only

from kit.emitter_cases import CASES, TIMEOUT_S, Case

# OpenTelemetry's own launcher takes the place of the module that would install it.
loopback_only.install()

MESSAGES = [{"role": "user", "content": "How is the weather in Rome?"}]
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": _SCHEMA}
CHAT_TOOLS = [{"type": "function", "function": _FUNCTION}]
MESSAGE_TOOLS = [{"name": "weather", "description": "The weather of a city", "input_schema": _SCHEMA}]


def use_openai(case: Case) -> None:
    """Make the call of *case* with OpenAI's SDK."""
    client = importlib.import_module("openai").OpenAI(max_retries=0)
    ask: dict[str, Any] = {"model": case.model, "messages": MESSAGES}
    if case.name == "embeddings":
        client.embeddings.create(model=case.model, input="weather")
    elif case.name in ("stream", "unasked"):
        options = {"stream_options": {"include_usage": True}} if case.name == "stream" else {}
        assert list(client.chat.completions.create(**ask, **options, stream=True))
    elif case.name == "tools":
        client.chat.completions.create(**ask, tools=CHAT_TOOLS)
    elif case.name == "timeout":
        client.with_options(timeout=TIMEOUT_S).chat.completions.create(**ask)
    else:
        client.chat.completions.create(**ask)


def use_anthropic(case: Case) -> None:
    """Make the call of *case* with Anthropic's SDK."""
    client = importlib.import_module("anthropic").Anthropic(max_retries=0)
    ask: dict[str, Any] = {"model": case.model, "messages": MESSAGES, "max_tokens": 1000}
    if case.name == "stream":
        with client.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == "Hello, world"
    elif case.name == "tools":
        client.messages.create(**ask, tools=MESSAGE_TOOLS)
    elif case.name == "timeout":
        client.with_options(timeout=TIMEOUT_S).messages.create(**ask)
    else:
        client.messages.create(**ask)


def use_pydantic_ai(case: Case) -> None:
    """Make the call of *case* with an agent of pydantic-ai; with a tool there are two calls."""
    pydantic_ai = importlib.import_module("pydantic_ai")
    sdk = importlib.import_module(case.provider)
    if case.provider == "openai":
        models = importlib.import_module("pydantic_ai.models.openai")
        provider = importlib.import_module("pydantic_ai.providers.openai").OpenAIProvider
        model = models.OpenAIChatModel(case.model, provider=provider(openai_client=sdk.AsyncOpenAI(max_retries=0)))
    else:
        models = importlib.import_module("pydantic_ai.models.anthropic")
        provider = importlib.import_module("pydantic_ai.providers.anthropic").AnthropicProvider
        client = sdk.AsyncAnthropic(max_retries=0)
        model = models.AnthropicModel(case.model, provider=provider(anthropic_client=client))
    agent = pydantic_ai.Agent(
        model, name="helper", model_settings={"timeout": TIMEOUT_S} if case.name == "timeout" else {}
    )
    if case.name == "tools":

        @agent.tool_plain  # type: ignore[untyped-decorator]  # only the environment of pydantic-ai knows it
        def weather(city: str) -> str:
            """Return the weather of a city."""
            return f"sunny in {city}"

    if case.name == "stream":
        # Without ``with`` the span ends when the garbage is collected.
        with agent.run_stream_sync("How is the weather?") as answer:
            list(answer.stream_text())
    else:
        agent.run_sync("How is the weather?")


def use_litellm(case: Case) -> None:
    """Make the call of *case* with litellm."""
    litellm = importlib.import_module("litellm")
    ask: dict[str, Any] = {"model": f"{case.provider}/{case.model}", "messages": MESSAGES, "max_retries": 0}
    if case.name == "embeddings":
        litellm.embedding(model=f"openai/{case.model}", input=["weather"])
    elif case.name in ("stream", "unasked"):
        options = {"stream_options": {"include_usage": True}} if case.name == "stream" else {}
        assert list(litellm.completion(**ask, **options, stream=True))
    elif case.name == "tools":
        litellm.completion(**ask, tools=CHAT_TOOLS)
    elif case.name == "timeout":
        litellm.completion(**ask, timeout=TIMEOUT_S)
    else:
        litellm.completion(**ask)


DRIVERS: dict[str, Callable[[Case], None]] = {
    "sdk": lambda case: (use_openai if case.provider == "openai" else use_anthropic)(case),
    "pydantic_ai": use_pydantic_ai,
    "litellm": use_litellm,
}


def run(case: Case, driver: str) -> None:
    """Run *case*; it must raise an exception if and only if the call fails."""
    try:
        DRIVERS[driver](case)
    except Exception as exc:
        if case.counts is not None:
            raise
        print(f"{case.provider} {case.name}: {type(exc).__name__}")
    else:
        assert case.counts is not None, f"{case.name} raised nothing"
        print(f"{case.provider} {case.name}: ok")


def main(app: str, driver: str, names: list[str]) -> None:
    """Run the program *app* and the cases *names*, each ``provider:case``; send all spans."""
    program = {"__name__": "__main__", "__file__": app}
    exec(compile(Path(app).read_text(), app, "exec"), program)
    for case in CASES:
        if f"{case.provider}:{case.name}" in names:
            run(case, driver)
    # litellm and Langfuse hand their spans over in threads of their own.
    time.sleep(1 if driver == "litellm" else 0)
    provider = importlib.import_module("opentelemetry.trace").get_tracer_provider()
    if hasattr(provider, "force_flush"):
        provider.force_flush()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
