"""The fixture ``bus``: each test runs on the bus in memory and on JetStream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from kit.broker import Broker
from kit.rule_store import STREAMS
from tokentrace.bus import Bus, jetstream
from tokentrace.bus.memory import MemoryBroker, MemoryBus


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Yield a bus in memory, then one on JetStream, with the streams of ``kit.rule_store``."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            connected: Bus = MemoryBus(MemoryBroker())
        else:
            server: Broker = request.getfixturevalue("broker")
            connected = await stack.enter_async_context(jetstream.connect(server.url, name="contract"))
        for stream in STREAMS:
            await connected.ensure(stream)
        yield connected
