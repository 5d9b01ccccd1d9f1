"""The memory of the nats-server that ``serve`` starts: it stays flat where messages of all sizes are read for long."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.memory import nats_pid, rss_bytes
from kit.pipeline import free_port
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace_standalone.broker import Broker, private_broker

MIB = 1024 * 1024
ROUNDS = 240
SMALL, LARGE = b"x" * 1000, b"x" * MIB
#: The broker holds 210 MiB after the rounds, and as much after a quarter of them. With Go's own settings it is 370 MiB,
#: if readers ask for 256 messages at once 390 MiB, and with both 690 MiB.
MOST_HELD_BYTES = 288 * MIB


def variables() -> set[str]:
    """Return the environment of the broker's process, as ``NAME=value``."""
    return set(Path(f"/proc/{nats_pid(os.getpid())}/environ").read_text().split("\0"))


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[Broker]:
    async with private_broker(tmp_path / "nats", free_port()) as broker:
        yield broker


async def read_letters(bus: Bus, *, forever: bool = False) -> None:
    async with contextlib.aclosing(bus.follow(subjects.REJECTED, [subjects.ALL_REJECTED], None)) as chunks:
        async for chunk in chunks:
            if chunk.pending == 0 and not forever:
                return


async def read_deliveries(bus: Bus) -> None:
    async with contextlib.aclosing(bus.follow(subjects.DELIVERIES, [subjects.ALL_DELIVERIES], None)) as chunks:
        async for _ in chunks:
            pass


@pytest.mark.story
async def test_many_small_messages_between_large_ones_leave_the_memory_flat(private: Broker) -> None:
    async with jetstream.connect(private.url, name="test") as bus:
        for stream in subjects.streams():
            await bus.ensure(stream)
        await asyncio.gather(*(bus.publish(subjects.rejected("default"), SMALL) for _ in range(1000)))
        readers = [asyncio.create_task(read_deliveries(bus)), asyncio.create_task(read_letters(bus, forever=True))]
        taken, pid = [], nats_pid(os.getpid())
        for _ in range(ROUNDS):
            await asyncio.gather(*(bus.publish(subjects.deliveries("default", "r"), LARGE) for _ in range(4)))
            await read_letters(bus)
            taken.append(rss_bytes(pid))
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    print("MiB after each tenth round:", [size // MIB for size in taken[::10]])
    # What is garbage goes with the next collection, so what the broker holds is at most the least of some samples.
    assert min(taken[-20:]) < MOST_HELD_BYTES


@pytest.mark.usefixtures("private")
async def test_the_broker_collects_garbage_often() -> None:
    assert {"GOGC=20", "GOMEMLIMIT=768MiB"} <= variables()


async def test_own_settings_of_gos_memory_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMEMLIMIT", "2GiB")
    async with private_broker(tmp_path / "nats", free_port()):
        assert {"GOGC=20", "GOMEMLIMIT=2GiB"} <= variables()
