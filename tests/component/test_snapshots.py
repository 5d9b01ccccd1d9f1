"""Tests of snapshots on a bus in memory, with a clock that the tests set: removal, damage, several workers."""

from __future__ import annotations

import asyncio
import random
import zlib

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.examples import WHOLE, examples
from kit.snapshots import (
    PIECES,
    PREFIX,
    START_NS,
    BusWith,
    ObjectsWith,
    Worker,
    World,
    fresh_numbers,
    manifests,
    pieces,
    restarted,
)
from tokentrace.bus.memory import MemoryBroker
from tokentrace.errors import Unavailable
from tokentrace.service import snapshots
from tokentrace.service.snapshots import KEEP_SNAPSHOTS, Snapshots
from tokentrace.units import DAY, HOUR, MINUTE, SECOND
from tokentrace_aggregator.shard import Shard


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    return made


async def test_three_snapshots_are_kept_with_all_their_pieces(world: World) -> None:
    worker = Worker(world)
    world.add(6 * DAY, 6 * DAY + HOUR)
    seen: set[str] = set()
    for turn in range(40):
        world.advance(MINUTE)
        world.add(0, HOUR)
        worker.follow()
        await worker.save()
        snapshots_kept = await manifests(world.objects)
        assert len(snapshots_kept) == min(turn + 1, KEEP_SNAPSHOTS)
        held = await pieces(world.objects)
        used = set().union(*(manifest.pieces for manifest in snapshots_kept))
        assert used <= held
        seen |= held
        # A piece that no snapshot uses is removed after ten minutes.
        floor = f"{PIECES}{world.now_ns - 10 * MINUTE:020d}"
        assert all(name in used or name >= floor for name in held)
    assert min(await pieces(world.objects)).startswith(f"{PIECES}{START_NS + MINUTE:020d}")
    assert len(seen) > 100
    assert len(await pieces(world.objects)) < len(seen) / 2
    assert (await restarted(world)).numbers() == worker.numbers() == fresh_numbers(world)


async def test_pieces_without_a_snapshot_are_removed_after_ten_minutes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(world)
    orphan = f"{PIECES}{world.now_ns:020d}.1"
    other = f"aggregator.01.piece.{world.now_ns:020d}.1"
    await world.objects.put(orphan, b"half a snapshot")
    await world.objects.put(other, b"of another shard")
    for minutes, there in ((1, True), (8, True), (1, True), (1, False)):
        world.advance(minutes * MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
        assert (orphan in await pieces(world.objects)) is there, minutes
    assert other in await world.objects.names()
    monkeypatch.setattr(snapshots, "_WRITING_NS", 0)
    young = f"{PIECES}{world.now_ns:020d}.99"
    await world.objects.put(young, b"half a snapshot")
    world.advance(1)
    world.add(0)
    worker.follow()
    await worker.save()
    assert young not in await pieces(world.objects)
    assert (await restarted(world)).numbers() == worker.numbers()


async def test_only_changed_parts_are_written(world: World) -> None:
    worker = Worker(world)
    world.add(6 * DAY, 3 * HOUR, 0)
    worker.follow()
    await worker.save()
    (first,) = await manifests(world.objects)
    assert len(await pieces(world.objects)) == len(first.pieces)
    worker = await restarted(world)
    for ages in ([0], [HOUR], [6 * DAY], []):
        before = await pieces(world.objects)
        (*_, old) = await manifests(world.objects)
        world.advance(MINUTE)
        if ages:
            world.add(*ages)
        worker.follow()
        await worker.save()
        (*_, new) = await manifests(world.objects)
        written = await pieces(world.objects) - before
        again = {name for name, piece in new.parts.items() if old.parts.get(name) != piece}
        assert written == {new.state, *(new.parts[name] for name in again)}
        # At most one part for each of six resolutions, for the spans and for the custom metric.
        assert len(again) <= 12 if ages else not again
        assert len(new.parts) - len(again) >= 3
        assert (await restarted(world)).numbers() == worker.numbers() == fresh_numbers(world)


@pytest.mark.long
async def test_two_workers_of_a_shard_do_not_remove_each_other_s_pieces(world: World) -> None:
    first, second = Worker(world), Worker(world)
    world.add(6 * DAY, 0)
    for turn in range(60):
        world.advance(30 * SECOND)
        world.add(0, HOUR)
        worker = (first, second)[turn % 2]
        worker.follow()
        await worker.save()
        for manifest in await manifests(world.objects):
            assert manifest.pieces <= await pieces(world.objects), turn
        again = await restarted(world)
        assert again.numbers() == worker.numbers()


async def test_the_pieces_of_an_unfinished_snapshot_are_not_removed_by_another_worker(world: World) -> None:
    """The manifest is written last, so pieces that no manifest names are kept for ten minutes."""
    put, begun, go_on = world.objects.put, asyncio.Event(), asyncio.Event()

    async def hesitate(name: str, data: bytes) -> None:
        if not name.startswith(PIECES):
            begun.set()
            await go_on.wait()
        await put(name, data)

    slow, quick = Worker(world, BusWith(world.bus, ObjectsWith(world.objects, hesitate))), Worker(world)
    world.add(6 * DAY, 0)
    slow.follow()
    saving = asyncio.create_task(slow.save())
    await begun.wait()
    for _ in range(4):
        world.advance(2 * MINUTE)
        world.add(0)
        quick.follow()
        await quick.save()
    go_on.set()
    await saving
    for manifest in await manifests(world.objects):
        assert manifest.pieces <= await pieces(world.objects)


async def alone(world: World, worker: Worker) -> None:
    """Save with *worker* until all snapshots that are kept are its own."""
    for _ in range(KEEP_SNAPSHOTS):
        world.advance(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()


async def test_a_worker_writes_pieces_again_that_another_worker_removed(world: World) -> None:
    first, second = Worker(world), Worker(world)
    world.add(6 * DAY, 0)
    first.follow()
    await first.save()
    for _ in range(12):
        world.advance(MINUTE)
        world.add(0)
        second.follow()
        await second.save()
    await alone(world, first)
    again = await restarted(world)
    assert again.numbers() == first.numbers() == fresh_numbers(world)


@pytest.mark.long
async def test_four_workers_of_a_shard_do_not_remove_each_other_s_pieces(world: World) -> None:
    workers = [Worker(world) for _ in range(4)]
    world.add(6 * DAY, 0)
    for turn in range(60):
        world.advance(15 * SECOND)
        world.add(0)
        workers[turn % 4].follow()
        await workers[turn % 4].save()
    await alone(world, workers[0])
    again = await restarted(world)
    assert again.numbers() == workers[0].numbers() == fresh_numbers(world)


@pytest.mark.parametrize("minutes", [5, 45])
async def test_the_newest_snapshot_is_loaded_after_the_clock_was_set_back(world: World, minutes: int) -> None:
    worker = Worker(world)
    world.add(6 * DAY, 0)
    for _ in range(4):
        world.advance(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    world.advance(-30 * MINUTE)
    for _ in range(minutes):
        world.advance(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    again = await restarted(world)
    assert again.read == worker.read
    assert again.numbers() == worker.numbers()


class Fragile(MemoryBroker):
    """A broker that is unreachable after *left* more calls; -1 = it stays reachable."""

    left = -1

    def check(self) -> None:
        if self.left == 0:
            raise Unavailable("the broker is unreachable")
        self.left -= self.left > 0
        super().check()


@pytest.mark.long
async def test_a_failure_at_any_call_of_saving_leaves_a_snapshot_that_can_be_read() -> None:
    step = 1 if WHOLE else 4
    start = random.randrange(step)
    print(f"every {step} calls, from call {start + 1}")
    for broken_at in range(1 + start, 200, step):
        world = World(Fragile)
        broker = world.broker
        assert isinstance(broker, Fragile)
        await world.begin()
        worker = Worker(world)
        world.add(6 * DAY, 0)
        for _ in range(4):
            world.advance(6 * MINUTE)
            world.add(0)
            worker.follow()
            await worker.save()
        before = worker.numbers()
        world.advance(6 * MINUTE)
        world.add(0, HOUR)
        worker.follow()
        broker.left = broken_at
        try:
            await worker.save()
            failed = False
        except Unavailable:
            failed = True
        broker.left = -1
        again = await restarted(world)
        assert again.read in (worker.read, worker.read - 1)
        again.follow()
        assert again.numbers() == worker.numbers() != before
        # Both the worker that saved and the restarted one can save again.
        for survivor in (worker, again):
            world.advance(MINUTE)
            world.add(0)
            survivor.follow()
            await survivor.save()
            third = await restarted(world)
            assert third.read == survivor.read == len(world.log)
            assert third.numbers() == survivor.numbers() == fresh_numbers(world)
        if not failed:
            assert broken_at > 10
            return
    raise AssertionError("saving takes more than 200 calls")


async def test_a_snapshot_that_was_removed_is_skipped(world: World) -> None:
    worker = Worker(world)
    for _ in range(3):
        world.advance(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    for expected in (2, 1):
        (*_, newest) = await manifests(world.objects)
        await world.objects.delete(newest.name)
        assert (await restarted(world)).read == expected
    (last,) = await manifests(world.objects)
    await world.objects.delete(last.name)
    assert (await restarted(world)).read == 0


async def test_the_problem_names_the_snapshot_and_the_piece(world: World) -> None:
    worker = Worker(world)
    for _ in range(3):
        world.advance(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    saved = await manifests(world.objects)
    await world.objects.delete(saved[2].state)
    again = Worker(world)
    problem = await again.load()
    assert problem is not None
    assert saved[2].name in problem
    assert saved[2].state in problem
    assert again.read == 2
    for manifest in saved[:2]:
        await world.objects.delete(manifest.state)
    blank = Worker(world)
    assert await blank.load() is not None
    assert (blank.read, blank.snapshots.revisions) == (0, {})
    blank.follow()
    assert blank.numbers() == fresh_numbers(world)
    await blank.save()
    assert (await restarted(world)).numbers() == blank.numbers()


async def test_a_snapshot_of_another_shard_or_service_is_not_loaded(world: World) -> None:
    worker = Worker(world)
    world.add(0)
    worker.follow()
    await worker.save()
    for service, shard in (("aggregator", 1), ("aggregator", 10), ("alerter", 0)):
        assert await Snapshots(world.bus, service, shard).load_into(Shard(shard, 16)) is None
    wrong = Shard(0, 2)
    problem = await Snapshots(world.bus, "aggregator", 0).load_into(wrong)
    assert problem is not None
    assert "shard 0 of 1" in problem
    assert wrong.position is None


GOOD = msgspec.msgpack.encode({"state": PIECES + "1.0", "parts": {"0-1": PIECES + "1.1"}})
not_text = GOOD.replace(b"aggregator", b"aggreg\xff\xfeor")


def load_behind(data: bytes) -> tuple[str | None, int]:
    """Load snapshots of which *data* is the newest; return (problem, sequence of the last message read)."""

    async def run() -> tuple[str | None, int]:
        world = World()
        await world.begin()
        worker = Worker(world)
        world.add(0)
        worker.follow()
        await worker.save()
        await world.objects.put(f"{PREFIX}{world.now_ns + HOUR:020d}", data)
        again = Worker(world)
        return await again.load(), again.read

    return asyncio.run(run())


def assert_skipped(data: bytes) -> None:
    problem, read = load_behind(data)
    assert problem is not None
    assert read == 1


@settings(max_examples=examples(150), deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(zlib.compress),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
            max_leaves=12,
        ).map(msgspec.msgpack.encode),
        st.integers(0, len(GOOD)).map(lambda size: GOOD[:size]),
    )
)
@example(GOOD)
@example(b"")
def test_arbitrary_bytes_in_place_of_a_manifest_are_skipped(data: bytes) -> None:
    assert_skipped(data)


@pytest.mark.parametrize("data", [not_text, b"\x81\xa5other" + b"\x91" * 100_000], ids=["no text", "nested"])
def test_a_manifest_that_cannot_be_decoded_is_skipped(data: bytes) -> None:
    assert_skipped(data)
