"""Tests of the contract of the bus, on the bus in memory and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from kit.broker import Broker
from tokentrace.bus import Bus, Delivery, Stream, jetstream
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Conflict, Rejected, Unavailable
from tokentrace.records import Position

LOG = Stream(name="LOG", subjects=("log.>",), max_bytes=64 * 1024 * 1024)
QUEUE = Stream(name="QUEUE", subjects=("queue.>",), work_queue=True, max_bytes=1024 * 1024)
KV = Stream(name="KV_box", subjects=("$KV.box.>",), per_subject=1, max_bytes=1024 * 1024, kind="kv")
OBJ = Stream(
    name="OBJ_shelf",
    subjects=("$O.shelf.C.>", "$O.shelf.M.>"),
    max_bytes=64 * 1024 * 1024,
    kind="objects",
    durable=False,
)


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            connected: Bus = MemoryBus(MemoryBroker())
        else:
            server: Broker = request.getfixturevalue("broker")
            connected = await stack.enter_async_context(jetstream.connect(server.url, name="contract"))
        for stream in (LOG, QUEUE, KV, OBJ):
            await connected.ensure(stream)
        yield connected


async def test_a_published_message_is_acknowledged_with_ascending_sequences(bus: Bus) -> None:
    acks = [await bus.publish("log.a", b"x") for _ in range(3)]
    assert [ack.sequence for ack in acks] == [1, 2, 3]
    assert not any(ack.duplicate for ack in acks)


async def test_the_same_id_is_stored_once(bus: Bus) -> None:
    first = await bus.publish("log.a", b"x", id="one")
    again = await bus.publish("log.a", b"x", id="one")
    assert again == (first.sequence, True)
    assert (await bus.state("LOG")).messages == 1


async def test_a_compare_and_set_publish_lets_one_of_two_win(bus: Bus) -> None:
    await bus.publish("log.rule", b"1", expect_last=0)
    with pytest.raises(Conflict):
        await bus.publish("log.rule", b"2", expect_last=0)
    assert (await bus.publish("log.rule", b"2", expect_last=1)).sequence == 2


async def test_publishing_on_a_subject_that_no_stream_stores_is_unavailable(bus: Bus) -> None:
    with pytest.raises(Unavailable):
        await bus.publish("nowhere.at.all", b"")


async def test_a_message_over_the_limit_is_rejected(bus: Bus) -> None:
    with pytest.raises(Rejected):
        await bus.publish("log.a", bytes(bus.max_payload + 1))


async def test_ensure_twice_changes_nothing(bus: Bus) -> None:
    await bus.publish("log.a", b"x")
    before = await bus.state("LOG")
    await bus.ensure(LOG)
    assert await bus.state("LOG") == before


async def test_ensure_brings_a_stream_to_new_settings(bus: Bus) -> None:
    await bus.ensure(Stream(name="LOG", subjects=("log.>", "more.>"), max_bytes=64 * 1024 * 1024))
    assert (await bus.publish("more.a", b"x")).sequence == 1


async def test_an_erased_message_is_gone_and_its_neighbours_stay(bus: Bus) -> None:
    for n in range(3):
        await bus.publish("log.a", str(n).encode())
    await bus.erase("LOG", 2)
    await bus.erase("LOG", 2)
    assert await _read(bus, None, 2) == [b"0", b"2"]
    assert (await bus.publish("log.a", b"3")).sequence == 4


async def test_an_erased_message_of_a_work_queue_is_not_delivered_again(bus: Bus) -> None:
    for n in range(2):
        await bus.publish("queue.a", str(n).encode())
    feed = bus.consume("QUEUE", "crew", batch=1, ack_wait_s=1.0)
    async with asyncio.timeout(20), contextlib.aclosing(feed):
        (first,) = await anext(feed)
        await bus.erase("QUEUE", first.message.sequence)
        await first.ack()
        (later,) = await anext(feed)
        await later.ack()
    assert [first.message.payload, later.message.payload] == [b"0", b"1"]
    while (await bus.state("QUEUE")).messages:
        await asyncio.sleep(0.02)


async def _read(bus: Bus, after: Position | None, want: int, subject: str = "log.>") -> list[bytes]:
    got: list[bytes] = []
    async with asyncio.timeout(10), contextlib.aclosing(bus.follow("LOG", [subject], after)) as feed:
        async for chunk in feed:
            got += [message.payload for message in chunk.messages]
            if len(got) >= want and chunk.pending == 0:
                return got
    return got


async def test_a_follower_reads_everything_and_again_in_the_same_order(bus: Bus) -> None:
    sent = [str(n).encode() for n in range(700)]
    await asyncio.gather(*(bus.publish("log.a", body) for body in sent))
    assert sorted(await _read(bus, None, 700)) == sorted(sent)
    assert await _read(bus, None, 700) == await _read(bus, None, 700)


async def test_a_follower_continues_behind_its_position(bus: Bus) -> None:
    for n in range(10):
        await bus.publish("log.a", str(n).encode())
    created = (await bus.state("LOG")).created_ns
    assert await _read(bus, Position(created, 7), 3) == [b"7", b"8", b"9"]


async def test_a_follower_of_one_subject_sees_no_other(bus: Bus) -> None:
    for n in range(6):
        await bus.publish(f"log.{n % 2}", str(n).encode())
    assert await _read(bus, None, 3, "log.1") == [b"1", b"3", b"5"]


async def test_a_follower_of_an_empty_stream_learns_that_it_is_caught_up(bus: Bus) -> None:
    async with asyncio.timeout(5), contextlib.aclosing(bus.follow("LOG", ["log.>"], None)) as feed:
        chunk = await anext(feed)
    assert (list(chunk.messages), chunk.pending) == ([], 0)


async def test_a_follower_receives_what_is_published_later(bus: Bus) -> None:
    async with asyncio.timeout(5), contextlib.aclosing(bus.follow("LOG", ["log.>"], None)) as feed:
        await anext(feed)
        await bus.publish("log.a", b"later")
        assert (await anext(feed)).messages[0].payload == b"later"


async def test_a_reader_of_a_recreated_stream_is_rewound(bus: Bus) -> None:
    await bus.publish("log.a", b"x")
    async with asyncio.timeout(5), contextlib.aclosing(bus.follow("LOG", ["log.>"], Position(12345, 7))) as feed:
        chunk = await anext(feed)
        assert chunk.rewound
        position = chunk.after(Position(12345, 7))
        while not chunk.messages:
            chunk = await anext(feed)
            position = chunk.after(position)
    assert position == Position((await bus.state("LOG")).created_ns, 1)


async def test_a_reader_beyond_the_end_is_rewound(bus: Bus) -> None:
    await bus.publish("log.a", b"x")
    created = (await bus.state("LOG")).created_ns
    async with asyncio.timeout(5), contextlib.aclosing(bus.follow("LOG", ["log.>"], Position(created, 99))) as feed:
        assert (await anext(feed)).rewound


async def test_messages_that_the_stream_discarded_are_reported(bus: Bus) -> None:
    await bus.ensure(Stream(name="LOG", subjects=("log.>",), max_bytes=4096))
    for _ in range(40):
        await bus.publish("log.a", bytes(300))
    state = await bus.state("LOG")
    assert state.first_sequence > 1
    async with (
        asyncio.timeout(5),
        contextlib.aclosing(bus.follow("LOG", ["log.>"], Position(state.created_ns, 0))) as feed,
    ):
        assert (await anext(feed)).missing == (1, state.first_sequence - 1)


async def test_a_full_bucket_refuses_or_discards_its_oldest_entry(bus: Bus) -> None:
    for name, evicts in (("refuses", False), ("evicts", True)):
        await bus.ensure(
            Stream(
                name=f"KV_{name}",
                subjects=(f"$KV.{name}.>",),
                per_subject=1,
                max_bytes=16 * 1024,
                kind="kv",
                evicts=evicts,
            )
        )

    async def fill(bucket: str) -> None:
        for number in range(40):
            await bus.kv(bucket).create(f"k{number}", bytes(1000))

    with pytest.raises(Unavailable):
        await fill("refuses")
    assert await bus.kv("refuses").get("k0") is not None
    await fill("evicts")
    assert await bus.kv("evicts").get("k0") is None
    last = await bus.kv("evicts").get("k39")
    assert last is not None
    await bus.kv("evicts").update("k39", bytes(1000), last.revision)
    await bus.kv("evicts").create("k0", b"again")


async def _take(bus: Bus, want: int, ack_wait_s: float = 30.0) -> list[Delivery]:
    got: list[Delivery] = []
    async with (
        asyncio.timeout(10),
        contextlib.aclosing(bus.consume("QUEUE", "ingest", batch=8, ack_wait_s=ack_wait_s)) as feed,
    ):
        async for deliveries in feed:
            got += deliveries
            if len(got) >= want:
                return got
    return got


async def test_an_acknowledged_message_leaves_the_queue(bus: Bus) -> None:
    await bus.publish("queue.a", b"x")
    (delivery,) = await _take(bus, 1)
    assert (delivery.message.payload, delivery.deliveries) == (b"x", 1)
    await delivery.ack()
    await asyncio.sleep(0.1)
    assert (await bus.state("QUEUE")).messages == 0


async def test_a_message_with_a_negative_acknowledgement_is_delivered_again(bus: Bus) -> None:
    await bus.publish("queue.a", b"x")
    (delivery,) = await _take(bus, 1)
    await delivery.nak()
    (again,) = await _take(bus, 1)
    assert (again.message.payload, again.deliveries) == (b"x", 2)
    await again.ack()


async def test_an_unacknowledged_message_is_delivered_again_after_ack_wait(bus: Bus) -> None:
    await bus.publish("queue.a", b"x")
    await _take(bus, 1, ack_wait_s=0.5)
    (again,) = await _take(bus, 1, ack_wait_s=0.5)
    assert again.deliveries == 2


async def test_a_terminated_message_is_not_delivered_again(bus: Bus) -> None:
    await bus.publish("queue.a", b"x")
    (delivery,) = await _take(bus, 1)
    await delivery.term("bad")
    await asyncio.sleep(0.1)
    assert (await bus.state("QUEUE")).messages == 0


async def test_a_full_queue_refuses_and_keeps_what_it_has(bus: Bus) -> None:
    async def fill() -> None:
        for _ in range(20):
            await bus.publish("queue.a", bytes(100_000))

    with pytest.raises(Unavailable):
        await fill()
    assert (await bus.state("QUEUE")).messages >= 5


async def test_a_key_is_written_only_over_the_revision_that_was_read(bus: Bus) -> None:
    box = bus.kv("box")
    assert await box.get("k") is None
    revision = await box.create("k", b"1")
    with pytest.raises(Conflict):
        await box.create("k", b"2")
    newer = await box.update("k", b"2", revision)
    with pytest.raises(Conflict):
        await box.update("k", b"3", revision)
    assert await box.get("k") == (b"2", newer)
    await box.delete("k")
    assert await box.get("k") is None
    await box.create("k", b"4")
    await box.put("other.key", b"5")
    assert {key: entry.value for key, entry in (await box.items()).items()} == {"k": b"4", "other.key": b"5"}


async def test_a_bucket_is_followed_as_a_stream(bus: Bus) -> None:
    await bus.kv("box").put("k", b"1")
    async with asyncio.timeout(5), contextlib.aclosing(bus.follow("KV_box", ["$KV.box.>"], None)) as feed:
        chunk = await anext(feed)
        while not chunk.messages:
            chunk = await anext(feed)
    assert chunk.messages[0].payload == b"1"


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 3_000_000])
async def test_an_object_comes_back_as_it_was(bus: Bus, size: int) -> None:
    shelf = bus.objects("shelf")
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    await shelf.put("a.0.17", data)
    assert await shelf.names() == ["a.0.17"]
    assert await shelf.get("a.0.17") == data
    await shelf.delete("a.0.17")
    assert await shelf.get("a.0.17") is None
    assert await shelf.names() == []


@pytest.mark.broker
async def test_a_follower_survives_kills_of_the_broker_and_misses_nothing(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats")
    broker.start()
    try:
        async with jetstream.connect(broker.url, name="kill") as bus:
            await bus.ensure(LOG)
            sent = 0

            async def write() -> None:
                nonlocal sent
                while sent < 2000:
                    try:
                        await bus.publish("log.a", str(sent).encode(), id=str(sent))
                        sent += 1
                    except Unavailable:
                        await asyncio.sleep(0.05)

            got: list[bytes] = []

            async def read() -> None:
                async with contextlib.aclosing(bus.follow("LOG", ["log.>"], None)) as feed:
                    async for chunk in feed:
                        got.extend(message.payload for message in chunk.messages)
                        if len(got) >= 2000:
                            return

            async with asyncio.timeout(60):
                tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
                for _ in range(3):
                    await asyncio.sleep(0.15)
                    broker.kill()
                    await asyncio.sleep(0.1)
                    broker.start()
                await asyncio.gather(*tasks)
            assert got == [str(n).encode() for n in range(2000)]
    finally:
        broker.stop()


@pytest.mark.broker
async def test_publishing_without_the_broker_is_unavailable_and_works_after_its_restart(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats")
    broker.start()
    try:
        async with jetstream.connect(broker.url, name="away") as bus:
            await bus.ensure(LOG)
            broker.kill()
            with pytest.raises(Unavailable):
                async with asyncio.timeout(8):
                    await bus.publish("log.a", b"x")
            broker.start()
            async with asyncio.timeout(10):
                while True:
                    try:
                        await bus.publish("log.a", b"x")
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
    finally:
        broker.stop()


@pytest.mark.long
async def test_a_request_that_is_cancelled_as_its_answer_arrives_is_cancelled(bus: Bus) -> None:
    """With ``asyncio.wait_for`` of Python 3.11 the cancellation could be lost, and a loop of requests would go on."""

    async def ask() -> None:
        while True:
            await bus.state("LOG")
            await asyncio.sleep(0)

    for number in range(600):
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.0005 + number % 100 * 0.00003)
        asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=2)
        assert done, f"try {number}"


async def test_an_object_that_is_removed_while_it_is_read_is_whole_or_gone(bus: Bus) -> None:
    objects, data = bus.objects("shelf"), b"x" * 300_000
    for number in range(60):
        await objects.put("one", data)
        reading = asyncio.create_task(objects.get("one"))
        await asyncio.sleep(number % 20 * 0.0003)
        await objects.delete("one")
        async with asyncio.timeout(10):
            assert await reading in (None, data)


async def test_reading_objects_leaves_no_consumer_behind(broker: Broker) -> None:
    """A stream allows a thousand consumers, and loading a snapshot of 150 pieces creates 150."""
    async with jetstream.connect(broker.url, name="reader") as bus:
        await bus.ensure(OBJ)
        shelf = bus.objects("shelf")
        for number in range(20):
            await shelf.put(f"piece-{number}", b"x" * 1000)
            assert await shelf.get(f"piece-{number}") == b"x" * 1000
        raw = await nats.connect(broker.url)
        try:
            for _ in range(100):
                left = (await raw.jetstream().stream_info("OBJ_shelf")).state.consumer_count
                if left == 0:
                    break
                await asyncio.sleep(0.02)
        finally:
            await raw.close()
    assert left == 0
