"""
Snapshots: a manifest and pieces that generations share, through kills, damage and several workers.

First on a real ``tokentrace serve``, whose log is cut behind what a snapshot holds, so that only a snapshot can know
it; then on the memory bus with a clock that can be set, for what takes ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from kit.pipeline import Pipeline
from tokentrace.bus import Bus, Message, Objects, jetstream, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metrics import CustomMetric, Query, finish
from tokentrace.records import Batch, encode_batches
from tokentrace.service import snapshots
from tokentrace.service.runner import Runner
from tokentrace.service.snapshots import KEEP_SNAPSHOTS, Snapshots
from tokentrace.units import DAY, HOUR, MINUTE, SECOND
from tokentrace_aggregator.shard import Shard

T = TypeVar("T")
#: Snapshots are acknowledged before they are written: what is not yet on disk is read from the log again.
SETTLES_S = 1.0
PREFIX = "aggregator.0."
PIECES = PREFIX + "piece."


class Manifest(NamedTuple):
    """A snapshot as it lies in the object store."""

    name: str
    state: str
    parts: dict[str, str]

    @property
    def pieces(self) -> set[str]:
        return {self.state, *self.parts.values()}


async def manifests(objects: Objects, prefix: str = PREFIX) -> list[Manifest]:
    """The snapshots of a shard that are any, the oldest first."""
    found = []
    for name in await objects.names():
        if name.startswith(prefix) and name.removeprefix(prefix).isdigit():
            with contextlib.suppress(Rejected, TypeError, KeyError, msgspec.DecodeError):
                decoded = msgspec.msgpack.decode(await objects.get(name) or b"")
                found.append(Manifest(name, decoded["state"], decoded["parts"]))
    return found


async def pieces(objects: Objects) -> set[str]:
    return {name for name in await objects.names() if name.startswith(PIECES)}


def read_state(data: bytes | None) -> dict[str, Any]:
    """The small part of a snapshot."""
    assert data is not None
    state: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(data))
    return state


# --- a real pipeline -------------------------------------------------------------------------------------------------


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "200ms"})
    made.start()
    yield made
    made.stop()


def make(**fields: Any) -> dict[str, Any]:
    made = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
    return {"trace_id": uuid.uuid4().hex, "span_id": uuid.uuid4().hex, **made}


def send(serving: Pipeline, *spans: Mapping[str, Any]) -> None:
    answer = serving.post("/spans", list(spans))
    assert answer.status == 202, answer.body


def with_objects(serving: Pipeline, work: Callable[[Objects], Awaitable[T]]) -> T:
    """What *work* makes of the object store of a pipeline that runs."""

    async def run() -> T:
        async with jetstream.connect(serving.nats_url, name="test") as bus:
            return await work(bus.objects(subjects.SNAPSHOTS))

    return asyncio.run(run())


def listed(serving: Pipeline) -> list[Manifest]:
    return with_objects(serving, manifests)


def positions(serving: Pipeline) -> list[int]:
    """The last message that each snapshot holds, the oldest first."""

    async def position(objects: Objects, one: Manifest) -> int:
        try:
            return int(read_state(await objects.get(one.state))["position"][1])
        except (AssertionError, TypeError, Rejected, zlib.error, msgspec.DecodeError):
            return -1

    async def work(objects: Objects) -> list[int]:
        return [await position(objects, one) for one in await manifests(objects)]

    return with_objects(serving, work)


def generation(serving: Pipeline, *spans: Mapping[str, Any]) -> list[Manifest]:
    """Send *spans* and wait for a snapshot that holds them and nothing is to be saved after."""
    before = [one.name for one in listed(serving)]
    counted = serving.get("/stats").json()["total_spans"]
    send(serving, *spans)
    serving.until(lambda: serving.get("/stats").json()["total_spans"] == counted + len(spans), "counted")
    last = with_stream(serving, None)
    serving.until(lambda: positions(serving)[-1:] == [last], "saved")
    found = listed(serving)
    assert found[-1].name not in before
    return found


def with_stream(serving: Pipeline, keep_from: int | None) -> int:
    """The last message of the log; those before *keep_from* are removed for good."""

    async def run() -> int:
        client = await nats.connect(serving.nats_url)
        try:
            context = client.jetstream()
            if keep_from is not None:
                await context.purge_stream(subjects.SPANS, seq=keep_from)
            return (await context.stream_info(subjects.SPANS)).state.last_seq
        finally:
            await client.close()

    return asyncio.run(run())


def three_generations(serving: Pipeline) -> tuple[list[Manifest], list[float]]:
    """(Three snapshots of nine spans, each of one message more; the costs of the spans)."""
    costs = [0.001 * (number + 1) for number in range(9)]
    found: list[Manifest] = []
    for at in (0, 3, 6):
        found = generation(serving, *(make(cost_usd=cost, model=f"m{n}") for n, cost in enumerate(costs[at : at + 3])))
    assert len(found) == 3
    return found, costs


def assert_totals(serving: Pipeline, costs: Sequence[float]) -> None:
    """Every number of the aggregator is exact."""
    serving.until(lambda: serving.get("/readyz").status == 200, "ready")
    nusd = sum(round(cost * 1e9) for cost in costs)
    shown, stats = serving.metrics(), serving.get("/stats").json()
    assert (shown["span_count"], stats["total_spans"]) == (len(costs), len(costs))
    assert round(shown["cost"]["total_usd"] * 1e9) == round(stats["total_cost_usd"] * 1e9) == nusd
    assert shown["tokens"]["prompt_total"] == stats["total_tokens_in"] == 512 * len(costs)
    assert sum(round(usd * 1e9) for usd in shown["cost"]["by_model"].values()) == nusd
    assert shown["since"] is None
    page = serving.get("/metrics/prometheus").body.decode()
    counted = [
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("tokentrace_spans_total")
    ]
    assert sum(counted) == len(costs)


def restart(serving: Pipeline) -> None:
    """Stop and start; nothing is left to be saved, and what was done to the objects is on disk."""
    assert serving.stop() == 0
    serving.start()


def log_of(serving: Pipeline) -> list[str]:
    lines = serving.log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["message"] for line in lines if line.startswith("{")]


def test_a_snapshot_is_all_that_is_needed_after_a_kill(serving: Pipeline) -> None:
    found, costs = three_generations(serving)
    last = positions(serving)[-1]
    with_stream(serving, last + 1)
    time.sleep(SETTLES_S)
    serving.kill()
    serving.start()
    assert_totals(serving, costs)
    assert not any("snapshot" in line for line in log_of(serving))
    assert "trouble" not in serving.get("/readyz").json()
    after = generation(serving, make(cost_usd=1))
    assert [one.name for one in after[:2]] == [one.name for one in found[1:]], "three are kept, the newest"
    assert_totals(serving, [*costs, 1])


def test_kills_at_any_moment_of_saving_leave_exact_totals(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path, env={"TOKENTRACE_SNAPSHOT_INTERVAL": "50ms"})
    serving.start()
    costs: list[float] = []
    try:
        for turn in range(5):
            for _ in range(10):
                costs.append(0.001 * (len(costs) + 1))
                send(serving, make(cost_usd=costs[-1], model=f"m{len(costs) % 3}"))
            time.sleep(0.07 * turn)
            serving.kill()
            serving.start()
            assert_totals(serving, costs)
    finally:
        serving.stop()


Damage = Callable[[Objects, Manifest, str], Awaitable[None]]


async def remove(objects: Objects, newest: Manifest, name: str) -> None:
    await objects.delete(name)


async def overwrite(objects: Objects, newest: Manifest, name: str) -> None:
    await objects.put(name, b"\xc1 this was a snapshot" * 20)


async def cut_short(objects: Objects, newest: Manifest, name: str) -> None:
    data = await objects.get(name)
    assert data is not None
    await objects.put(name, data[: len(data) // 2])


async def lose_the_bytes(objects: Objects, newest: Manifest, name: str) -> None:
    """The description is still there and what it describes is not: what a broken disk leaves."""
    bus: Any = objects._bus  # type: ignore[attr-defined]
    meta = json.loads((await bus.last(f"OBJ_{subjects.SNAPSHOTS}", objects._meta_subject(name))).payload)  # type: ignore[attr-defined]
    await bus.purge(f"OBJ_{subjects.SNAPSHOTS}", f"$O.{subjects.SNAPSHOTS}.C.{meta['nuid']}")


async def take_for_another(objects: Objects, newest: Manifest, name: str) -> None:
    """Well formed, and of another time: the bytes of one of the parts."""
    data = await objects.get(next(iter(newest.parts.values())))
    assert data is not None
    await objects.put(name, data)


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("state", remove),
        ("state", lose_the_bytes),
        ("state", take_for_another),
        ("part", remove),
        ("part", cut_short),
        ("manifest", overwrite),
        ("manifest", lose_the_bytes),
    ],
)
def test_a_damaged_snapshot_falls_back_to_the_one_before(serving: Pipeline, what: str, damage: Damage) -> None:
    found, costs = three_generations(serving)
    newest = found[-1]
    hurt(serving, found, what, damage)
    restart(serving)
    assert_totals(serving, costs)
    assert any("falling back to the one before" in line for line in log_of(serving))
    (trouble,) = serving.get("/readyz").json()["trouble"]
    assert newest.name in trouble


def hurt(serving: Pipeline, found: Sequence[Manifest], what: str, damage: Damage) -> None:
    """Damage the newest snapshot; what the one before it holds is nowhere but in that."""
    newest, before = found[-1], found[-2]
    own = sorted(newest.pieces - before.pieces - {newest.state})
    name = {"state": newest.state, "part": own[0], "manifest": newest.name}[what]
    with_stream(serving, positions(serving)[-2] + 1)

    async def work(objects: Objects) -> None:
        await damage(objects, newest, name)

    with_objects(serving, work)


def test_after_falling_back_it_goes_on_with_snapshots_that_can_be_read(serving: Pipeline) -> None:
    found, costs = three_generations(serving)
    hurt(serving, found, "part", remove)
    restart(serving)
    generation(serving, make(cost_usd=1))
    with_stream(serving, positions(serving)[-1] + 1)
    restart(serving)
    assert_totals(serving, [*costs, 1])
    assert "trouble" not in serving.get("/readyz").json()


def test_what_is_no_snapshot_of_this_program_is_set_aside(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    with_stream(serving, positions(serving)[-1] + 1)
    now_ns = time.time_ns()
    strange = [
        zlib.compress(msgspec.msgpack.encode({"version": 2, "shard": 0, "shards": 1, "cells": []})),
        msgspec.msgpack.encode({"version": 2, "shard": 0}),
        bytes(range(256)) * 40,
        b"",
        msgspec.msgpack.encode({"state": PIECES + "1.0", "parts": {}}),
    ]

    async def work(objects: Objects) -> None:
        for number, data in enumerate(strange):
            await objects.put(f"{PREFIX}{now_ns + number:020d}", data)
            await objects.put(f"{PREFIX}latest{number}", data)

    with_objects(serving, work)
    restart(serving)
    assert_totals(serving, costs)
    said = log_of(serving)
    for number in range(len(strange)):
        (line,) = [line for line in said if f"{PREFIX}{now_ns + number:020d}" in line]
        assert line.endswith("falling back to the one before")
    assert not any("latest" in line for line in said)
    # They make room for what can be read.
    for _ in range(KEEP_SNAPSHOTS):
        generation(serving, make(cost_usd=1))
        costs.append(1)
    assert len(listed(serving)) == KEEP_SNAPSHOTS
    restart(serving)
    assert_totals(serving, costs)
    assert "trouble" not in serving.get("/readyz").json()


def break_all(serving: Pipeline) -> None:
    """Remove the small part of every snapshot."""

    async def work(objects: Objects) -> None:
        for one in await manifests(objects):
            await objects.delete(one.state)

    with_objects(serving, work)


def test_without_any_snapshot_the_whole_log_is_read_again(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    break_all(serving)
    restart(serving)
    assert_totals(serving, costs)
    assert serving.get("/readyz").json()["trouble"]


def test_what_neither_a_snapshot_nor_the_log_has_moves_since(serving: Pipeline) -> None:
    _, costs = three_generations(serving)
    first = positions(serving)[-1]
    with_stream(serving, first)
    break_all(serving)
    restart(serving)
    for path in ("/metrics", "/metrics/cost", "/metrics/error_rate", "/metrics/cost_by_model", "/metrics/cost/series"):
        shown = serving.get(path).json()
        since = datetime.fromisoformat(shown["since"])
        assert datetime.now(UTC) - timedelta(minutes=1) < since <= datetime.now(UTC), path
    shown = serving.metrics()
    assert shown["span_count"] == 3
    assert round(shown["cost"]["total_usd"] * 1e9) == sum(round(cost * 1e9) for cost in costs[6:])
    ready = serving.get("/readyz").json()
    assert ready["trouble"]
    assert ready["lost"] == {"0": [[1, first - 1]]}


def test_health_says_what_is_gone(serving: Pipeline) -> None:
    three_generations(serving)
    with_stream(serving, positions(serving)[-1])
    break_all(serving)
    restart(serving)
    shown = serving.get("/health").json()
    assert "lost" in shown, shown


def test_three_snapshots_of_each_service_are_kept(serving: Pipeline) -> None:
    names: set[str] = set()
    for _ in range(5):
        found = generation(serving, make())
        assert len(found) <= KEEP_SNAPSHOTS
        names |= {one.name for one in found}
    assert len(names) >= 5

    async def work(objects: Objects) -> tuple[int, list[Manifest], set[str]]:
        return len(await manifests(objects, "alerter.0.")), await manifests(objects), await pieces(objects)

    alerters, aggregators, held = with_objects(serving, work)
    assert (alerters, len(aggregators)) == (KEEP_SNAPSHOTS, KEEP_SNAPSHOTS)
    assert all(one.pieces <= held for one in aggregators)


def test_a_piece_that_did_not_change_is_not_written_again_not_even_after_a_restart(serving: Pipeline) -> None:
    ended = (datetime.now(UTC) - timedelta(days=6)).isoformat()
    costs = [0.5] * 3
    old = generation(serving, *(make(ended_at=ended, model=f"old{n}", cost_usd=0.5) for n in range(3)))[-1]
    assert len(old.parts) >= 3
    for turn in range(4):
        newer = generation(serving, make())[-1]
        costs.append(0.00256)
        kept = {name: piece for name, piece in newer.parts.items() if name in old.parts}
        assert kept == old.parts
        assert len(newer.parts) > len(kept)
        if turn == 1:
            time.sleep(SETTLES_S)
            serving.kill()
            serving.start()
        if turn == 2:
            restart(serving)
    assert_totals(serving, costs)


# --- on the memory bus, with a clock that can be set -----------------------------------------------------------------

START_NS = 1_790_000_000 * SECOND
OWN = CustomMetric(name="legal", type="p95", field="cost", filter_key="document_type", filter_val="legal")


class World:
    """A broker in memory, a log of spans, and a clock that everybody sees."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.now_ns = START_NS
        self.broker = broker or MemoryBroker(lambda: self.now_ns)
        self.bus = MemoryBus(self.broker)
        self.log: list[Message] = []

    @property
    def objects(self) -> Objects:
        return self.bus.objects(subjects.SNAPSHOTS)

    async def begin(self) -> None:
        for stream in subjects.streams():
            await self.bus.ensure(stream)

    def add(self, *ages_ns: int) -> None:
        """One message with a span for each of *ages_ns* before now."""
        number = len(self.log) + 1
        spans = [
            make_span(
                trace_id=f"t{number}",
                span_id=str(index),
                model=f"m{(number + index) % 3}",
                ended_ns=self.now_ns - age,
                arrived_ns=self.now_ns,
                cost_nusd=number * 1000 + index,
                attributes={"document_type": "legal"} if index % 2 else {},
            )
            for index, age in enumerate(ages_ns)
        ]
        payload = encode_batches([Batch(id=f"b{number}", spans=spans)])
        self.log.append(Message("tokentrace.spans.default.0", payload, number, self.now_ns, {}))

    def pass_by(self, ns: int) -> None:
        self.now_ns += ns


class Worker:
    """A shard, and where it is saved; the pump without its loop."""

    def __init__(self, world: World, bus: Bus | None = None) -> None:
        self.world = world
        self.shard = Shard(0, 1, (OWN,))
        self.snapshots = Snapshots(bus or world.bus, "aggregator", 0)

    async def load(self) -> str | None:
        return await self.snapshots.load_into(self.shard)

    @property
    def read(self) -> int:
        """The last message it has folded."""
        return self.shard.position.sequence if self.shard.position else 0

    def follow(self) -> None:
        for message in self.world.log[self.read :]:
            self.shard.fold(message, 7)
        self.shard.tick(self.world.now_ns)

    async def save(self) -> None:
        while True:
            await self.snapshots.refresh()
            # A piece that another worker removes meanwhile has to be written again, as the pump does.
            with contextlib.suppress(Unavailable):
                await self.snapshots.save(self.shard.snapshot(self.snapshots.revisions))
                return

    def numbers(self) -> Any:
        """Everything that can be asked of it, in plain data."""
        now_s = self.world.now_ns // SECOND
        found: list[Any] = [self.read, self.shard.spans, self.shard.batches]
        for window_s in (20 * 60, 3 * 3600, 36 * 3600, 8 * 86400, 30 * 86400):
            query = Query(
                from_s=now_s - window_s,
                to_s=now_s + 1,
                now_s=now_s,
                groupby="model",
                fields=["latency", "prompt"],
                custom=["legal"],
            )
            answer = finish(self.shard.answer(query, True))
            for figures in (answer.total, *(answer.groups[name] for name in sorted(answer.groups))):
                tally = figures.custom.get("legal")
                found.append(list(figures.sums.numbers()))
                found.append([figures.summaries[name].quantile(0.9) for name in figures.summaries])
                found.append(tally and [tally.size, tally.total, tally.summary.quantile(0.95)])
        lived = finish(self.shard.answer(Query(what="lifetime"), True)).lived
        assert lived is not None
        found += [(one.model, one.status, list(one.sums.numbers())) for one in lived.counters]
        return [*found, lived.walls, lived.histograms, lived.custom["legal"].total]


async def restarted(world: World) -> Worker:
    """A new worker, loaded without trouble."""
    worker = Worker(world)
    assert await worker.load() is None
    return worker


def fresh_numbers(world: World, upto: int | None = None) -> Any:
    """What a worker comes to that has read the log from its first message and was never saved."""
    worker = Worker(world)
    for message in world.log[:upto]:
        worker.shard.fold(message, 7)
    worker.shard.tick(world.now_ns)
    return worker.numbers()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    clock = SimpleNamespace(time_ns=lambda: made.now_ns, monotonic=time.monotonic, perf_counter=time.perf_counter)
    monkeypatch.setattr(snapshots, "time", clock)
    await made.begin()
    return made


async def test_three_snapshots_are_kept_and_the_pieces_of_them_whatever_their_age(world: World) -> None:
    worker = Worker(world)
    world.add(6 * DAY, 6 * DAY + HOUR)
    seen: set[str] = set()
    for turn in range(40):
        world.pass_by(MINUTE)
        world.add(0, HOUR)
        worker.follow()
        await worker.save()
        found = await manifests(world.objects)
        assert len(found) == min(turn + 1, KEEP_SNAPSHOTS)
        held = await pieces(world.objects)
        assert set().union(*(one.pieces for one in found)) <= held
        seen |= held
        # Nothing older than ten minutes is there that no snapshot is made of.
        floor = f"{PIECES}{world.now_ns - 10 * MINUTE:020d}"
        kept = set().union(*(one.pieces for one in found))
        assert all(name in kept or name >= floor for name in held)
    assert min(await pieces(world.objects)).startswith(f"{PIECES}{START_NS + MINUTE:020d}"), "of the old day"
    assert len(seen) > 100
    assert len(await pieces(world.objects)) < len(seen) / 2
    assert (await restarted(world)).numbers() == worker.numbers() == fresh_numbers(world)


async def test_pieces_whose_snapshot_never_came_go_after_ten_minutes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(world)
    orphan = f"{PIECES}{world.now_ns:020d}.1"
    other = f"aggregator.01.piece.{world.now_ns:020d}.1"
    await world.objects.put(orphan, b"half a snapshot")
    await world.objects.put(other, b"of another shard")
    for minutes, there in ((1, True), (8, True), (1, True), (1, False)):
        world.pass_by(minutes * MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
        assert (orphan in await pieces(world.objects)) is there, minutes
    assert other in await world.objects.names()
    monkeypatch.setattr(snapshots, "_WRITING_NS", 0)
    young = f"{PIECES}{world.now_ns:020d}.99"
    await world.objects.put(young, b"half a snapshot")
    world.pass_by(1)
    world.add(0)
    worker.follow()
    await worker.save()
    assert young not in await pieces(world.objects)
    assert (await restarted(world)).numbers() == worker.numbers()


async def test_only_what_changed_is_written(world: World) -> None:
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
        world.pass_by(MINUTE)
        if ages:
            world.add(*ages)
        worker.follow()
        await worker.save()
        (*_, new) = await manifests(world.objects)
        written = await pieces(world.objects) - before
        again = {name for name, piece in new.parts.items() if old.parts.get(name) != piece}
        assert written == {new.state, *(new.parts[name] for name in again)}
        # Each of six tiers at most, for the spans and for the metric of one's own; the others are those of before.
        assert len(again) <= 12 if ages else not again
        assert len(new.parts) - len(again) >= 3
        assert (await restarted(world)).numbers() == worker.numbers() == fresh_numbers(world)


async def test_two_workers_of_a_shard_leave_each_other_s_pieces(world: World) -> None:
    one, other = Worker(world), Worker(world)
    world.add(6 * DAY, 0)
    for turn in range(60):
        world.pass_by(30 * SECOND)
        world.add(0, HOUR)
        worker = (one, other)[turn % 2]
        worker.follow()
        await worker.save()
        for found in await manifests(world.objects):
            assert found.pieces <= await pieces(world.objects), turn
        again = await restarted(world)
        assert again.numbers() == worker.numbers()


async def test_a_worker_that_is_writing_keeps_its_pieces_from_another_that_cleans(world: World) -> None:
    """Pieces come first and their manifest last: for ten minutes nobody takes them for rubbish."""
    slow, quick = Worker(world), Worker(world)
    world.add(6 * DAY, 0)
    slow.follow()
    put, begun, go_on = slow.snapshots._objects.put, asyncio.Event(), asyncio.Event()

    async def hesitate(name: str, data: bytes) -> None:
        if not name.startswith(PIECES):
            begun.set()
            await go_on.wait()
        await put(name, data)

    slow.snapshots._objects = SimpleNamespace(  # type: ignore[assignment]
        put=hesitate, get=world.objects.get, names=world.objects.names, delete=world.objects.delete
    )
    saving = asyncio.create_task(slow.save())
    await begun.wait()
    for _ in range(4):
        world.pass_by(2 * MINUTE)
        world.add(0)
        quick.follow()
        await quick.save()
    go_on.set()
    await saving
    for found in await manifests(world.objects):
        assert found.pieces <= await pieces(world.objects)


async def alone(world: World, worker: Worker) -> None:
    """From now on only *worker* saves, until every snapshot is its own."""
    for _ in range(KEEP_SNAPSHOTS):
        world.pass_by(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()


async def test_a_worker_that_could_not_save_for_a_while_writes_again_what_another_removed(world: World) -> None:
    one, other = Worker(world), Worker(world)
    world.add(6 * DAY, 0)
    one.follow()
    await one.save()
    for _ in range(12):
        world.pass_by(MINUTE)
        world.add(0)
        other.follow()
        await other.save()
    await alone(world, one)
    again = await restarted(world)
    assert again.numbers() == one.numbers() == fresh_numbers(world)


async def test_four_workers_of_a_shard_leave_each_other_s_pieces(world: World) -> None:
    workers = [Worker(world) for _ in range(4)]
    world.add(6 * DAY, 0)
    for turn in range(60):
        world.pass_by(15 * SECOND)
        world.add(0)
        workers[turn % 4].follow()
        await workers[turn % 4].save()
    await alone(world, workers[0])
    again = await restarted(world)
    assert again.numbers() == workers[0].numbers() == fresh_numbers(world)


@pytest.mark.parametrize("minutes", [5, 45])
async def test_snapshots_outlive_a_clock_that_is_set_back(world: World, minutes: int) -> None:
    worker = Worker(world)
    world.add(6 * DAY, 0)
    for _ in range(4):
        world.pass_by(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    world.pass_by(-30 * MINUTE)
    for _ in range(minutes):
        world.pass_by(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    again = await restarted(world)
    assert again.read == worker.read
    assert again.numbers() == worker.numbers()


class Fragile(MemoryBroker):
    """Goes away at a chosen call and stays away until it is mended."""

    left = -1

    def check(self) -> None:
        if self.left == 0:
            raise Unavailable("the broker is away")
        self.left -= self.left > 0
        super().check()


async def test_whatever_call_of_saving_fails_the_state_is_saved_or_the_one_before_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for broken_at in range(1, 200):
        broker = Fragile()
        world = World(broker)
        clock = SimpleNamespace(time_ns=lambda world=world: world.now_ns)
        monkeypatch.setattr(snapshots, "time", clock)
        await world.begin()
        worker = Worker(world)
        world.add(6 * DAY, 0)
        for _ in range(4):
            world.pass_by(6 * MINUTE)
            world.add(0)
            worker.follow()
            await worker.save()
        before = worker.numbers()
        world.pass_by(6 * MINUTE)
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
        # Whoever goes on, the one that failed or the one that took over: the next one is whole.
        for survivor in (worker, again):
            world.pass_by(MINUTE)
            world.add(0)
            survivor.follow()
            await survivor.save()
            third = await restarted(world)
            assert third.read == survivor.read == len(world.log)
            assert third.numbers() == survivor.numbers() == fresh_numbers(world)
        if not failed:
            assert broken_at > 10
            return
    raise AssertionError("saving takes more calls than anybody thought")


async def test_what_is_removed_by_hand_is_passed_over(world: World) -> None:
    worker = Worker(world)
    for _ in range(3):
        world.pass_by(MINUTE)
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


async def test_the_trouble_names_the_snapshot_and_the_piece(world: World) -> None:
    worker = Worker(world)
    for _ in range(3):
        world.pass_by(MINUTE)
        world.add(0)
        worker.follow()
        await worker.save()
    found = await manifests(world.objects)
    await world.objects.delete(found[2].state)
    again = Worker(world)
    trouble = await again.load()
    assert trouble is not None
    assert found[2].name in trouble
    assert found[2].state in trouble
    assert again.read == 2
    for one in found[:2]:
        await world.objects.delete(one.state)
    nobody = Worker(world)
    assert await nobody.load() is not None
    assert (nobody.read, nobody.snapshots.revisions) == (0, {})
    nobody.follow()
    assert nobody.numbers() == fresh_numbers(world)
    await nobody.save()
    assert (await restarted(world)).numbers() == nobody.numbers()


async def test_a_snapshot_of_another_shard_or_service_is_not_taken(world: World) -> None:
    worker = Worker(world)
    world.add(0)
    worker.follow()
    await worker.save()
    for service, shard in (("aggregator", 1), ("aggregator", 10), ("alerter", 0)):
        assert await Snapshots(world.bus, service, shard).load_into(Shard(shard, 16)) is None
    wrong = Shard(0, 2)
    trouble = await Snapshots(world.bus, "aggregator", 0).load_into(wrong)
    assert trouble is not None
    assert "shard 0 of 1" in trouble
    assert wrong.position is None


GOOD = msgspec.msgpack.encode({"state": PIECES + "1.0", "parts": {"0-1": PIECES + "1.1"}})
not_text = GOOD.replace(b"aggregator", b"aggreg\xff\xfeor")


def load_behind(data: bytes) -> tuple[str | None, int]:
    """(Trouble, last message read) when *data* lies where the newest snapshot should be."""

    async def run() -> tuple[str | None, int]:
        world = World()
        await world.begin()
        worker = Worker(world)
        world.add(0)
        worker.follow()
        await worker.save()
        await world.objects.put(f"{PREFIX}{time.time_ns() + HOUR:020d}", data)
        again = Worker(world)
        return await again.load(), again.read

    return asyncio.run(run())


@settings(max_examples=150, deadline=None)
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
def test_whatever_lies_where_a_manifest_should_be_is_passed_over(data: bytes) -> None:
    trouble, read = load_behind(data)
    assert trouble is not None
    assert read == 1


@pytest.mark.parametrize("data", [not_text, b"\x81\xa5other" + b"\x91" * 100_000], ids=["no text", "nested"])
def test_a_manifest_that_cannot_be_decoded_is_passed_over(data: bytes) -> None:
    test_whatever_lies_where_a_manifest_should_be_is_passed_over.hypothesis.inner_test(data)  # type: ignore[attr-defined]


# --- the loop around it ----------------------------------------------------------------------------------------------


def make_pump(bus: Bus, shard: Shard, save_every_s: float) -> Runner:
    return Runner(
        bus,
        shard,
        stream=subjects.SPANS,
        filters=[subjects.shard_spans(0)],
        service="aggregator",
        shard=0,
        save_every_s=save_every_s,
    )


async def publish(world: World, count: int, pause_s: float = 0.0) -> None:
    for _ in range(count):
        world.add(0, 6 * DAY)
        message = world.log[-1]
        await world.bus.publish(message.subject, message.payload)
        await asyncio.sleep(pause_s)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_two_pumps_of_a_shard_at_once_leave_a_state_that_is_exact() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shards = [Shard(0, 1, (OWN,)), Shard(0, 1, (OWN,))]
    for turn in range(3):
        stopping = asyncio.Event()
        running = [
            asyncio.create_task(make_pump(world.bus, shard, pause).run(stopping))
            for shard, pause in zip(shards, (0.02, 0.05), strict=True)
        ]
        await publish(world, 80, 0.01)
        for shard in shards:
            await until(lambda shard=shard: shard.spans == 2 * len(world.log))
        stopping.set()
        await asyncio.gather(*running)
        for found in await manifests(world.objects):
            assert found.pieces <= await pieces(world.objects)
        again = await restarted(world)
        again.follow()
        assert again.numbers() == fresh_numbers(world), turn
        shards = [Shard(0, 1, (OWN,)), Shard(0, 1, (OWN,))]


async def test_a_pump_that_is_stopped_saves_once_more() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shard, stopping = Shard(0, 1, (OWN,)), asyncio.Event()
    running = asyncio.create_task(make_pump(world.bus, shard, 3600).run(stopping))
    await publish(world, 3)
    await until(lambda: shard.spans == 6)
    assert await manifests(world.objects) == []
    stopping.set()
    await running
    assert (await restarted(world)).read == 3


async def test_a_pump_that_is_stopped_amid_saving_saves_once_more() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    shard, stopping, begun = Shard(0, 1, (OWN,)), asyncio.Event(), asyncio.Event()
    running_pump = make_pump(world.bus, shard, 0)
    objects = world.objects
    first = True

    async def put(name: str, data: bytes) -> None:
        nonlocal first
        if first:
            first = False
            begun.set()
            await asyncio.sleep(30)
        await objects.put(name, data)

    running_pump._snapshots._objects = SimpleNamespace(  # type: ignore[assignment]
        put=put, get=objects.get, names=objects.names, delete=objects.delete
    )
    running = asyncio.create_task(running_pump.run(stopping))
    await publish(world, 3)
    await begun.wait()
    await until(lambda: shard.spans == 6)
    stopping.set()
    await running
    assert (await restarted(world)).read == 3


async def test_a_pump_whose_snapshot_is_damaged_says_so_and_goes_on() -> None:
    world = World()
    world.now_ns = time.time_ns()
    await world.begin()
    await publish(world, 3)
    for expected in (False, True):
        shard, stopping = Shard(0, 1, (OWN,)), asyncio.Event()
        running_pump = make_pump(world.bus, shard, 3600)
        running = asyncio.create_task(running_pump.run(stopping))
        await until(lambda shard=shard: shard.spans == 2 * len(world.log))
        assert bool(running_pump.progress.problem) is expected
        await publish(world, 1)
        await until(lambda shard=shard: shard.spans == 2 * len(world.log))
        stopping.set()
        await running
        (*_, newest) = await manifests(world.objects)
        await world.objects.delete(newest.state)
    with pytest.raises(Rejected, match="gone"):
        await Snapshots(world.bus, "aggregator", 0)._pieces_of([newest.state])
