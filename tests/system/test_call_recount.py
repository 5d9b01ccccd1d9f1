"""
A call counts once, in every answer of real services: they agree with an independent recount through kills.

The recount takes the order of the log and what the senders kept, and imports nothing of the product.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.call_fleet import CallFleet
from kit.call_histories import History, random_history
from kit.examples import SEED, examples, matrix

pytestmark = pytest.mark.story


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int, int, int], CallFleet]]:
    """Start services: number of shards, number of aggregators, number of calls that a shard remembers."""
    started: list[CallFleet] = []

    def start(shards: int, aggregators: int, calls: int) -> CallFleet:
        fleet = CallFleet(tmp_path, shards, aggregators, calls, SEED)
        started.append(fleet)
        fleet.start()
        return fleet

    yield start
    for fleet in started:
        fleet.stop()


@pytest.mark.parametrize(
    ("shards", "aggregators", "calls"), matrix([(1, 1, 64), (4, 2, 4096), (4, 1, 4096), (1, 2, 64)], 2)
)
def test_all_answers_agree_with_a_recount_through_kills(
    start: Callable[[int, int, int], CallFleet], shards: int, aggregators: int, calls: int
) -> None:
    fleet = start(shards, aggregators, calls)
    # Readers are compared every 256 messages of the log, so there must be more.
    history = History(random_history(SEED, 2200), time.time_ns() // 10**6)
    half = random.Random(SEED).randrange(len(history.sent) // 3, len(history.sent) * 2 // 3)
    fleet.deliver(history.sent[:half], kills=examples(10))
    fleet.await_agreement(fleet.recount())
    fleet.deliver(history.sent[half:], kills=examples(10))
    for name in fleet.ports:
        fleet.kill(name)
        fleet.start_one(name)
    fleet.await_agreement(fleet.recount())
    fleet.await_equal_memories()
    assert "readers_that_differ" not in fleet.get("api", "/health").json()["calls"]
