"""A rule store with its machine, on the memory bus or on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from kit.broker import Broker
from kit.environment import PATIENCE
from tokentrace.bus import Bus, Stream, jetstream, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.metrics import parse_custom_metrics
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace_alerter import rule_store as rule_store
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rule_store import RuleStore
from tokentrace_alerter.rules import Rule, parse_rule
from tokentrace_alerter.stored_rules import RuleChange

MIB = 1024 * 1024
STREAMS = [
    subjects.bucket(subjects.RULES, max_bytes=MIB),
    Stream(name=subjects.SPANS, subjects=(subjects.ALL_SPANS,), max_bytes=64 * MIB),
    Stream(name="LOG", subjects=("log.>",), max_bytes=MIB),
]
CUSTOMS = parse_custom_metrics([{"name": "hops", "type": "sum", "field": "attr.hops"}])


@contextlib.asynccontextmanager
async def open_bus(request: pytest.FixtureRequest, streams: Sequence[Stream] = STREAMS) -> AsyncIterator[Bus]:
    """Open the bus that the parameter of *request* names, memory or jetstream, and create *streams* on it."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            opened: Bus = MemoryBus(MemoryBroker())
        else:
            server: Broker = request.getfixturevalue("broker")
            opened = await stack.enter_async_context(jetstream.connect(server.url, name="rules"))
        for stream in streams:
            await opened.ensure(stream)
        yield opened


def written(name: str = "mine", **overrides: Any) -> dict[str, Any]:
    rule = {"name": name, "metric": "span_count", "op": "gt", "threshold": 5, "window": "10s"}
    return {**rule, **overrides}


def make_rule(name: str = "configured", **overrides: Any) -> Rule:
    return parse_rule(written(name, **overrides), "alerts[0]")


class StoreAndMachine:
    """
    A rule store and a machine.

    As a context manager it follows the changes of the store and applies them to the machine, as the alerter does. After
    ``open`` alone it does not.
    """

    def __init__(self, bus: Bus, *configured: Rule, customs: bool = True) -> None:
        self.store = RuleStore(bus, configured, CUSTOMS if customs else {}, None, AllowedHosts())
        self.machine = AlerterMachine(configured, "default")
        self.changes: list[RuleChange] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> StoreAndMachine:
        self.store.apply_to(self.machine, await self.store.open())
        return self

    async def __aenter__(self) -> StoreAndMachine:
        await self.open()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        async for change in self.store.changes():
            self.changes.append(change)
            change.apply_to(self.machine)

    async def ask(self, asked: Any, now_ns: int | None = None) -> tuple[int, Any]:
        payload = asked if isinstance(asked, bytes) else msgspec.json.encode(asked)
        answer = msgspec.json.decode(await self.store.answer(payload, self.machine, now_ns or time.time_ns()))
        return answer["status"], answer["body"]

    async def create(self, name: str = "mine", **overrides: Any) -> tuple[int, Any]:
        return await self.ask({"ask": "create", "rule": written(name, **overrides)})

    async def delete(self, name: str = "mine") -> tuple[int, Any]:
        return await self.ask({"ask": "delete", "name": name})

    async def silence(self, name: str = "mine", duration: Any = "2h") -> tuple[int, Any]:
        return await self.ask({"ask": "silence", "name": name, "duration": duration})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(4 * PATIENCE):
            while not holds():
                await asyncio.sleep(0.005)

    async def knows(self, name: str = "mine") -> None:
        await self.until(lambda: name in self.machine.evaluators)

    async def knows_not(self, name: str = "mine") -> None:
        await self.until(lambda: name not in self.machine.evaluators and self.store.rule(name) is None)

    async def names(self) -> list[str]:
        status, shown = await self.ask({"ask": "list"})
        assert status == 200
        return sorted(rule["name"] for rule in shown)


async def make_memory() -> MemoryBus:
    bus = MemoryBus(MemoryBroker())
    for stream in STREAMS:
        await bus.ensure(stream)
    return bus


HUGE = b"1" + b"0" * 400
