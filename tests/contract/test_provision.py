"""Tests of creating and updating streams and buckets within the space of a broker's disk, and of NATS URLs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from kit.broker import Broker
from kit.pipeline import free_port
from tokentrace.bus import jetstream, subjects
from tokentrace.config import Duration, Nats, Settings
from tokentrace.errors import ConfigError
from tokentrace.service.bootstrap import bootstrap, fit
from tokentrace.units import DAY

pytestmark = pytest.mark.broker
MIB = 1024 * 1024


async def test_stream_sizes_are_cut_in_proportion_to_the_space(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats", room="300MB")
    broker.start()
    try:
        async with asyncio.timeout(30), jetstream.connect(broker.url, name="small") as bus:
            await bootstrap(bus, Settings(), room_bytes=280 * 1024 * 1024)
            await bootstrap(bus, Settings(), room_bytes=280 * 1024 * 1024)
            spans, raw = await bus.state(subjects.SPANS), await bus.state(subjects.RAW)
            assert 100 * 1024 * 1024 < spans.max_bytes < 280 * 1024 * 1024
            assert spans.max_bytes == pytest.approx(8 * raw.max_bytes, rel=0.01)
    finally:
        broker.stop()


async def test_a_stream_is_never_cut_below_one_and_a_half_times_what_it_holds(broker: Broker) -> None:
    async with asyncio.timeout(30), jetstream.connect(broker.url, name="full") as bus:
        await bootstrap(bus, Settings())
        for _ in range(20):
            await bus.publish(subjects.spans("default", 0), bytes(200_000))
            await bus.publish("$KV.tt_meta.filler", bytes(200_000))
        await bootstrap(bus, Settings(), room_bytes=1)
        after = await bus.state(subjects.SPANS)
        assert (after.messages, after.first_sequence) == (20, 1)
        assert after.bytes * 1.5 <= after.max_bytes < 100 * MIB
        kept = await bus.state("KV_tt_meta")
        assert kept.bytes * 1.5 <= kept.max_bytes < 64 * MIB


async def test_streams_that_were_cut_grow_again_when_there_is_space(broker: Broker) -> None:
    async with asyncio.timeout(30), jetstream.connect(broker.url, name="roomy") as bus:
        await bootstrap(bus, Settings(), room_bytes=1024 * MIB)
        await bus.publish(subjects.spans("default", 0), bytes(200_000))
        small = await bus.state(subjects.SPANS)
        await bootstrap(bus, Settings(), room_bytes=20_000 * MIB)
        large = await bus.state(subjects.SPANS)
        assert small.max_bytes < 1024 * MIB
        assert large.max_bytes == 8192 * MIB


async def test_existing_streams_are_kept_on_a_broker_with_less_space_than_they_reserve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(tmp_path / "nats")
    broker.start()
    try:
        async with asyncio.timeout(30), jetstream.connect(broker.url, name="large") as bus:
            await bootstrap(bus, Settings())
            await bus.publish(subjects.spans("default", 0), bytes(1000))
        broker.stop()
        broker.room = "4GB"
        broker.start()
        async with asyncio.timeout(30), jetstream.connect(broker.url, name="small") as bus:
            await bootstrap(bus, Settings(nats=Nats(spans_max_age=Duration(3 * DAY))))
            assert (await bus.state(subjects.SPANS)).max_bytes == 8192 * MIB
            assert (await bus.publish(subjects.spans("default", 0), b"x")).sequence == 2
        logged = [record.getMessage() for record in caplog.records if record.name == "tokentrace.service.bootstrap"]
        assert logged == ["the broker has no space for the configured sizes: TT_SPANS: left unchanged, 8192 MiB"]
    finally:
        broker.stop()


async def test_bootstrap_without_space_waits_and_logs_the_reason_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokentrace.service.retry._COMPLAIN_AFTER_S", 0.1)
    broker = Broker(tmp_path / "nats", room="100KB")
    broker.start()
    try:
        async with jetstream.connect(broker.url, name="none") as bus:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(4):
                    await bootstrap(bus, Settings())
        logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(logged) == 1
        assert "cannot be created: insufficient" in logged[0]
        assert "insufficient storage" in logged[0]
    finally:
        broker.stop()


async def test_bootstrap_keeps_the_replicas_that_an_operator_set(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    brokers = []
    for n, port in enumerate(ports):
        cluster = f'cluster {{ name: "three", listen: "127.0.0.1:{port}", routes: [{routes}] }}'
        brokers.append(Broker(tmp_path / f"nats{n}", extra=f'server_name: "n{n}"\n{cluster}\n'))
    try:
        for member in brokers:
            member.start()
        # The first server of the list does not exist.
        urls = ",".join([f"nats://127.0.0.1:{free_port()}", *(member.url for member in brokers)])
        async with asyncio.timeout(60), jetstream.connect(urls, name="replicated") as bus:
            await bootstrap(bus, Settings())
            names = [stream.name for stream in subjects.streams()]
            changed = []
            for name in names:
                config = (await _api(bus, f"STREAM.INFO.{name}"))["config"]
                if config.get("persist_mode") != "async":
                    changed.append(name)
                    await _api(bus, f"STREAM.UPDATE.{name}", {**config, "num_replicas": 3})
            await bootstrap(bus, Settings(nats=Nats(spans_max_age=Duration(3 * DAY))))
            replicas = {name: (await _api(bus, f"STREAM.INFO.{name}"))["config"]["num_replicas"] for name in changed}
            assert replicas == dict.fromkeys(changed, 3)
            assert {
                subjects.RAW,
                subjects.SPANS,
                subjects.ALERTS,
                f"KV_{subjects.META}",
                f"KV_{subjects.RULES}",
            } <= set(changed)
            assert (await _api(bus, f"STREAM.INFO.{subjects.SPANS}"))["config"]["max_age"] == 3 * DAY
            for wanted in (1, 3):
                assert await _replicas_after_a_start(bus, wanted) == wanted
    finally:
        for member in brokers:
            member.stop()


async def _replicas_after_a_start(bus: jetstream.JetStream, wanted: int) -> int:
    """Set the replicas of the consumer of deliveries to *wanted*, start to consume again, and return the replicas."""
    durable = "delivery"
    name = f"{subjects.ALERTS}.{durable}"

    async def consume_one() -> None:
        await bus.publish(subjects.alerts("default", "r"), b"x")
        async with contextlib.aclosing(bus.consume(subjects.ALERTS, durable, batch=1, ack_wait_s=5)) as queue:
            async for deliveries in queue:
                for delivery in deliveries:
                    await delivery.ack()
                return

    await consume_one()
    config = (await _api(bus, f"CONSUMER.INFO.{name}"))["config"]
    changed = {"stream_name": subjects.ALERTS, "config": {**config, "num_replicas": wanted}}
    await _api(bus, f"CONSUMER.CREATE.{name}", changed)
    await consume_one()
    return int((await _api(bus, f"CONSUMER.INFO.{name}"))["config"]["num_replicas"])


async def _api(bus: jetstream.JetStream, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a request to JetStream's API and return the answer; repeat it until the cluster has a leader."""
    while True:
        answer = json.loads(await bus.request(f"$JS.API.{call}", json.dumps(body or {}).encode(), timeout_s=5))
        if "error" not in answer:
            return dict(answer)
        assert answer["error"]["code"] == 503, answer["error"]
        await asyncio.sleep(0.1)


def test_the_smallest_streams_take_less_than_128_mib() -> None:
    streams = subjects.streams()
    assert sum(stream.max_bytes for stream in fit(streams, 1)) < 128 * MIB


@pytest.mark.parametrize("room", [300 * MIB, 1024 * MIB, 6553 * MIB, 12_735 * MIB])
def test_streams_that_were_cut_fill_the_space_to_within_1_kib(room: int) -> None:
    total = sum(stream.max_bytes for stream in fit(subjects.streams(), room))
    assert room - 1024 <= total <= room


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("nats://a:4222", ["nats://a:4222"]),
        ("nats://a:4222,nats://b:4223", ["nats://a:4222", "nats://b:4223"]),
        ("nats://a:4222, b:4223", ["nats://a:4222", "nats://b:4223"]),
        ("tls://user:pass@a,tls://user:pass@b", ["tls://user:pass@a", "tls://user:pass@b"]),
        ("nats://user:pa,ss@a:1", ["nats://user:pa,ss@a:1"]),
    ],
)
def test_nats_urls_are_separated_by_commas(text: str, urls: list[str]) -> None:
    assert jetstream.parse_urls(text) == urls


@pytest.mark.parametrize(
    "text", ["", "nats://", "nats://a:4222,", "nats://a:b", "http://a:1", "nats://u:hunter2@a:x", "nats://a:99999"]
)
def test_an_invalid_nats_url_is_a_configuration_error_without_its_password(text: str) -> None:
    with pytest.raises(ConfigError, match="NATS URL") as caught:
        jetstream.parse_urls(text)
    assert "hunter2" not in str(caught.value)


def test_streams_that_fit_are_not_cut() -> None:
    streams = subjects.streams()
    assert fit(streams, 10**12) == streams


async def test_another_shard_count_is_refused_with_instructions(broker: Broker) -> None:
    async with asyncio.timeout(30), jetstream.connect(broker.url, name="shards") as bus:
        await bootstrap(bus, Settings(nats=Nats(shards=2)))
        await bootstrap(bus, Settings(nats=Nats(shards=2)))
        with pytest.raises(ConfigError, match="to reshard"):
            await bootstrap(bus, Settings(nats=Nats(shards=3)))
