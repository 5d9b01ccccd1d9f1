"""Test of rules that are created while messages arrive."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from kit.builders import make_batch, make_span
from kit.receiver import (
    make_rule,
)
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.records import encode_batches
from tokentrace_alerter.service import Alerter, Config


@pytest.mark.long
async def test_a_rule_created_during_traffic_counts_each_message_once() -> None:
    """On the memory bus a message can be read between the creation of a rule and its backfill."""
    bus = MemoryBus(MemoryBroker())
    for stream in subjects.streams():
        await bus.ensure(stream)
    service = Alerter(bus, Config((), "default"))
    stopping = asyncio.Event()
    running = asyncio.create_task(service.run(stopping))

    async def send_one(number: int) -> None:
        now = time.time_ns()
        span = make_span(ended_ns=now, started_ns=now, latency_ns=0, arrived_ns=now)
        await bus.publish(subjects.spans("default", 0), encode_batches([make_batch(span, sequence=number)]))

    async def send_many() -> None:
        for number in range(2, 302):
            await send_one(number)

    await send_one(1)
    while service.health().missing or service.machine.position is None:
        await asyncio.sleep(0.01)
    sending = asyncio.create_task(send_many())
    for number in range(40):
        rule = make_rule(f"rule {number}", threshold=1e12, eval_interval="1s")
        asked = msgspec.json.encode({"ask": "create", "rule": rule})
        answer = await bus.request(subjects.QUERY_ALERTS, asked, timeout_s=5)
        assert json.loads(answer)["status"] == 201
        await asyncio.sleep(0.005)
    await sending
    deadline = time.monotonic() + 5
    counts: Counter[Any] = Counter()
    while counts != {301: 40} and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        shown = json.loads(await bus.request(subjects.QUERY_ALERTS, b"", timeout_s=5))["body"]
        counts = Counter(rule["current_value"] for rule in shown)
    stopping.set()
    await running
    assert counts == {301: 40}
