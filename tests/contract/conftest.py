"""The fixture ``bus``: each test runs on the bus in memory and on JetStream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kit.rule_store import open_bus
from tokentrace.bus import Bus


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Yield a bus in memory, then one on JetStream, with the streams of ``kit.rule_store``."""
    async with open_bus(request) as opened:
        yield opened
