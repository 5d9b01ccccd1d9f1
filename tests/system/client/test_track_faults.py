"""A tracker that fails at any point changes nothing for the application."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import anthropic
import openai
import pytest

from kit import sdk_cases_anthropic, sdk_cases_openai, sdk_truth_openai
from kit.llm_server import LlmServer, Script
from kit.sdk_matrix import seen
from tokentrace import Budget, BufferTransport, Tracer, instrument
from tokentrace.client.track import body
from tokentrace.client.track.faults import faults
from tokentrace.client.track.providers import provider_of_url

MODULES = (
    *(
        "answers",
        "background",
        "body",
        "budgets",
        "call",
        "decoding",
        "frames",
        "hiding",
        "messages",
        "providers",
        "reader",
    ),
    *("anthropic_streams", "openai_streams", "rules", "seam", "stream_usage"),
)
#: What hands calls and bytes on, and the guard itself: here a fault could not be caught by anything.
HANDS_ON = {
    *("_Stream.__init__", "_Stream.__getattr__", "_Stream.__del__", "_Stream._kept", "_Stream._rest", "_Stream._over"),
    *("_SyncStream.__iter__", "_SyncStream.close", "_AsyncStream.__aiter__", "_AsyncStream.aclose", "watched"),
    *("Hider.kept", "Hider.rest", "Hider._through"),
}
#: What leaves out the usage that tracking asked for. If it fails, the application sees that usage.
HIDES = {
    *("take", "http_response_of", "_is_response", "is_unread", "observe", "_class_of", "_end", "_taken", "hidden"),
    *("Hider.__init__", "Hider._kept", "Hider._rest", "EventFrames.__init__", "EventFrames.feed", "EventFrames.finish"),
    *("Decoder.__init__", "Decoder.decode", "Encoder.__init__", "Encoder.encode", "Encoder.finish"),
}
#: What these uses do not reach: the end of the program, forks, contracts, refusals, and events of other answers.
NOT_REACHED = {
    *("Background.begin_close", "Background.finish_close", "Background.reset", "Hider._again", "refusal"),
    *("Reader.frame", "Reader.response", "Reader.has_final_usage", "AnyBudget.reserve", "AnyBudget.areserve"),
    *("Frames.feed", "Frames.finish", "Frames.content", "EventReader.__init__", "EventReader.frame"),
    *("EventReader.response", "Settings.key", "Call.abandon", "Call.stop", "_finish", "report_fault"),
    *("Background.__init__", "Reserved.release", "__create_fn__.<locals>.__repr__"),
}
Use = tuple[str, Callable[[], Script], Callable[[Any, LlmServer], Any]]
o, a = sdk_cases_openai, sdk_cases_anthropic
USES: list[Use] = [
    ("openai", Script, o.create),
    ("openai", Script, o.streamed_lines),
    ("openai", lambda: Script(encoding="gzip", piece=9), o.streamed),
    ("openai", lambda: Script(encoding="deflate"), o.streamed_raw),
    ("openai", lambda: Script(encoding="deflate"), o.streaming),
    ("openai", Script, o.raw),
    ("openai", Script, o.closed),
    ("openai", lambda: Script(statuses=(400,)), o.create),
    ("openai", lambda: Script(error_after=3), o.broken),
    ("openai", lambda: Script(cut_after=3), o.broken),
    ("openai", Script, lambda c, s: list(o.create(c, s, stream=True, tools=sdk_truth_openai.TOOLS))),
    ("openai", Script, o.responses_stream),
    ("openai", Script, o.background),
    ("openai", Script, o.background_raw),
    ("openai", Script, o.acreate),
    ("openai", Script, o.astreamed),
    ("anthropic", Script, a.create),
    ("anthropic", Script, a.streamed),
    ("anthropic", Script, a.closed),
    ("anthropic", Script, a.astreamed),
]


class Planted(Exception):
    """The fault."""


class World:
    """The server, one client of each kind, untouched and tracked, and what the untouched ones see."""

    def __init__(self, server: LlmServer) -> None:
        self.server = server
        self.plain, self.tracked = self._clients(), self._clients()
        tracer = Tracer(BufferTransport(), capture="messages")
        for client in self.tracked.values():
            instrument(client, tracer=tracer, budget=Budget(1_000_000), stream_usage_hosts=[server.host])
        self.expected = [self.see(use, self.plain) for use in USES]
        # What the application sees where it asks for usage itself.
        server.always_with_usage = True
        self.with_usage = [self.see(use, self.plain) for use in USES]
        server.always_with_usage = False

    def _clients(self) -> dict[tuple[str, bool], Any]:
        return {
            ("openai", False): openai.OpenAI(api_key="k", base_url=f"{self.server.url}/v1"),
            ("openai", True): openai.AsyncOpenAI(api_key="k", base_url=f"{self.server.url}/v1"),
            ("anthropic", False): anthropic.Anthropic(api_key="k", base_url=self.server.url),
            ("anthropic", True): anthropic.AsyncAnthropic(api_key="k", base_url=self.server.url),
        }

    def see(self, use: Use, clients: dict[tuple[str, bool], Any]) -> Any:
        sdk, script, function = use
        self.server.start(script())
        client = clients[sdk, asyncio.iscoroutinefunction(function)]
        try:
            if asyncio.iscoroutinefunction(function):
                return seen(self.loop.run_until_complete(function(client, self.server)))
            return seen(function(client, self.server))
        except Exception as exc:  # noqa: BLE001 - what the application would see is compared
            return seen(exc)

    loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()

    def close(self) -> None:
        for clients in (self.plain, self.tracked):
            for (_, is_async), client in clients.items():
                if is_async:
                    self.loop.run_until_complete(client.close())
                else:
                    client.close()
        self.loop.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with LlmServer() as server:
        made = World(server)
        yield made
        made.close()


def functions(module: Any) -> Iterator[FunctionType]:
    """Yield every function and method that *module* defines, without the guards around them."""
    for value in vars(module).values():
        members = list(vars(value).values()) if inspect.isclass(value) else [value]
        for member in members:
            found = getattr(member, "fget", None) or getattr(member, "__func__", member)
            found = inspect.unwrap(found) if callable(found) else found
            if isinstance(found, FunctionType) and found.__module__ == module.__name__:
                yield found


@pytest.mark.parametrize("name", MODULES)
def test_a_function_that_fails_changes_nothing_for_the_application(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"tokentrace.client.track.{name}")
    never_reached, checked = [], 0
    for function in functions(module):
        if function.__qualname__ in HANDS_ON or function.__code__.co_freevars:
            continue
        reached: list[int] = []

        def fail(*args: Any, reached: list[int] = reached, **kwargs: Any) -> Any:
            reached.append(1)
            raise Planted("planted")

        provider_of_url.cache_clear()
        body._class_of.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(function, "__code__", _calling(function, fail, patch).__code__)
            for use, expected, shown in zip(USES, world.expected, world.with_usage, strict=True):
                allowed = [expected, shown] if function.__qualname__ in HIDES else [expected]
                assert world.see(use, world.tracked) in allowed, (function.__qualname__, use)
        checked += 1
        if not reached:
            never_reached.append(function.__qualname__)
    assert checked
    assert set(never_reached) <= NOT_REACHED, never_reached


def _calling(function: FunctionType, fail: Callable[..., Any], patch: pytest.MonkeyPatch) -> Any:
    """Return a function of the same kind that calls *fail*, which it finds in the module of *function*."""
    patch.setitem(function.__globals__, "planted_fault", fail)
    if inspect.iscoroutinefunction(function):

        async def acalls(*args: Any, **kwargs: Any) -> Any:
            return planted_fault(*args, **kwargs)  # type: ignore[name-defined]  # noqa: F821 - in the other module

        return acalls

    def calls(*args: Any, **kwargs: Any) -> Any:
        return planted_fault(*args, **kwargs)  # type: ignore[name-defined]  # noqa: F821 - in the other module

    return calls


def test_faults_are_counted_and_logged_once_for_each_place(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("tokentrace.client.track.answers.take", fail)
    before = faults()
    for _ in range(3):
        assert world.see(USES[0], world.tracked) == world.expected[0]
    assert faults() == before + 3
    lines = [record for record in caplog.records if record.name == "tokentrace.track"]
    assert [record.levelname for record in lines] == ["WARNING"]
    assert "ZeroDivisionError" in lines[0].getMessage()
