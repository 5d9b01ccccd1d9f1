"""Helpers for tests of snapshots: the content of the object store, and shards that are saved in it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from kit.builders import make_span
from kit.whole_snapshots import CAPACITY
from tokentrace.bus import Bus, Message, Objects, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Rejected, Unavailable
from tokentrace.metrics import CustomMetric, Query, finish
from tokentrace.records import Batch, encode_batches
from tokentrace.service.snapshots import Snapshots
from tokentrace.units import SECOND
from tokentrace_aggregator.shard import Shard

PREFIX = "aggregator.0."
PIECES = PREFIX + "piece."


class Manifest(NamedTuple):
    """
    The decoded manifest of a snapshot.

    Attributes:
        name: The name of the manifest in the object store.
        state: The name of the piece with the state.
        parts: Part -> the name of its piece.
    """

    name: str
    state: str
    parts: dict[str, str]

    @property
    def pieces(self) -> set[str]:
        return {self.state, *self.parts.values()}


async def manifests(objects: Objects, prefix: str = PREFIX) -> list[Manifest]:
    """Return the manifests with *prefix* that can be decoded, the oldest first."""
    snapshots = []
    for name in await objects.names():
        if name.startswith(prefix) and name.removeprefix(prefix).isdigit():
            with contextlib.suppress(Rejected, TypeError, KeyError, msgspec.DecodeError):
                decoded = msgspec.msgpack.decode(await objects.get(name) or b"")
                snapshots.append(Manifest(name, decoded["state"], decoded["parts"]))
    return snapshots


async def pieces(objects: Objects) -> set[str]:
    """Return the names of all pieces of shard 0."""
    return {name for name in await objects.names() if name.startswith(PIECES)}


def read_state(data: bytes | None) -> dict[str, Any]:
    """Decode the state piece of a snapshot."""
    assert data is not None
    state: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(data))
    return state


START_NS = 1_790_000_000 * SECOND
CUSTOM_METRIC = CustomMetric(name="legal", type="p95", field="cost", filter_key="document_type", filter_val="legal")


class World:
    """A broker in memory, a log of spans, and a clock of the broker that a test moves."""

    def __init__(self, broker: type[MemoryBroker] = MemoryBroker) -> None:
        self.now_ns = START_NS
        self.broker = broker(lambda: self.now_ns)
        self.bus = MemoryBus(self.broker)
        self.log: list[Message] = []

    @property
    def objects(self) -> Objects:
        return self.bus.objects(subjects.SNAPSHOTS)

    async def begin(self) -> None:
        for stream in subjects.streams():
            await self.bus.ensure(stream)

    def add(self, *ages_ns: int) -> None:
        """Add a message with one span for each of *ages_ns*, the nanoseconds from its end to now."""
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

    def advance(self, ns: int) -> None:
        """Move the clock by *ns* nanoseconds."""
        self.now_ns += ns


class BusWith:
    """*bus* with another object store."""

    def __init__(self, bus: Bus, objects: Any) -> None:
        self._bus, self._objects = bus, objects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def objects(self, bucket: str) -> Any:
        return self._objects


class ObjectsWith:
    """*objects* with another ``put``."""

    def __init__(self, objects: Objects, put: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._objects, self.put = objects, put

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)


class Worker:
    """A shard with its snapshots, without the loop of ``Runner``."""

    def __init__(self, world: World, bus: Any = None) -> None:
        self.world = world
        self.shard = Shard(0, 1, (CUSTOM_METRIC,), capacity=CAPACITY)
        self.snapshots = Snapshots(bus or world.bus, "aggregator", 0)

    async def load(self) -> str | None:
        return await self.snapshots.load_into(self.shard)

    @property
    def read(self) -> int:
        """The sequence of the last message folded; 0 = none."""
        return self.shard.position.sequence if self.shard.position else 0

    def follow(self) -> None:
        for message in self.world.log[self.read :]:
            self.shard.fold(message, 7)
        self.shard.tick(self.world.now_ns)

    async def save(self) -> None:
        while True:
            await self.snapshots.refresh()
            # If another worker removed a piece meanwhile, save again, as the runner does.
            with contextlib.suppress(Unavailable):
                await self.snapshots.save(self.shard.snapshot(self.snapshots.revisions))
                return

    def numbers(self) -> Any:
        """Return the numbers of queries over five windows and over all time, as plain data."""
        now_s = self.world.now_ns // SECOND
        numbers: list[Any] = [self.read, self.shard.spans, self.shard.batches]
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
            for aggregates in (answer.total, *(answer.groups[name] for name in sorted(answer.groups))):
                custom = aggregates.custom.get("legal")
                numbers.append(list(aggregates.sums.numbers()))
                numbers.append([aggregates.summaries[name].quantile(0.9) for name in aggregates.summaries])
                numbers.append(custom and [custom.size, custom.total, custom.summary.quantile(0.95)])
        lifetime = finish(self.shard.answer(Query(what="lifetime"), True)).cumulative
        assert lifetime is not None
        numbers += [(counter.model, counter.status, list(counter.sums.numbers())) for counter in lifetime.counters]
        return [*numbers, lifetime.walls, lifetime.histograms, lifetime.custom["legal"].total]


async def restarted(world: World) -> Worker:
    """Return a new worker that has loaded the newest snapshot, if there is one; check that no snapshot is damaged."""
    worker = Worker(world)
    assert await worker.load() is None
    return worker


def fresh_numbers(world: World, upto: int | None = None) -> Any:
    """Return the numbers of a worker that has read the log (up to message *upto*) and was never restarted."""
    worker = Worker(world)
    for message in world.log[:upto]:
        worker.shard.fold(message, 7)
    worker.shard.tick(world.now_ns)
    return worker.numbers()
