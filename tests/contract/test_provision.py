"""Streams and buckets on a real broker: made once, brought up to date, cut to the disk there is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conftest import Broker
from tokentrace.bus import jetstream, subjects
from tokentrace.errors import ConfigError
from tokentrace.provision import fit, provision
from tokentrace.settings import Nats, Settings


async def test_streams_are_cut_in_proportion_to_the_room_there_is(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats", room="300MB")
    broker.start()
    try:
        async with asyncio.timeout(30), jetstream.connect(broker.url, name="small") as bus:
            await provision(bus, Settings(), room_bytes=280 * 1024 * 1024)
            await provision(bus, Settings(), room_bytes=280 * 1024 * 1024)
            spans, raw = await bus.state(subjects.SPANS), await bus.state(subjects.RAW)
            assert 100 * 1024 * 1024 < spans.max_bytes < 280 * 1024 * 1024
            assert spans.max_bytes == pytest.approx(8 * raw.max_bytes, rel=0.01)
    finally:
        broker.stop()


async def test_a_stream_is_never_cut_below_what_it_holds(broker: Broker) -> None:
    async with asyncio.timeout(30), jetstream.connect(broker.url, name="full") as bus:
        await provision(bus, Settings())
        for _ in range(20):
            await bus.publish(subjects.spans("default", 0), bytes(200_000))
        before = await bus.state(subjects.SPANS)
        await provision(bus, Settings(), room_bytes=1)
        after = await bus.state(subjects.SPANS)
        assert (after.messages, after.first_sequence) == (20, 1)
        assert after.max_bytes == before.max_bytes


def test_streams_that_fit_are_left_alone() -> None:
    streams = subjects.streams()
    assert fit(streams, 10**12) == streams


async def test_another_shard_count_is_refused_with_what_to_do(broker: Broker) -> None:
    async with asyncio.timeout(30), jetstream.connect(broker.url, name="shards") as bus:
        await provision(bus, Settings(nats=Nats(shards=2)))
        await provision(bus, Settings(nats=Nats(shards=2)))
        with pytest.raises(ConfigError, match="to reshard"):
            await provision(bus, Settings(nats=Nats(shards=3)))
