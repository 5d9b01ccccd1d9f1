"""Real aggregators, a real store and the routes of the api, with the spans of a ``World``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from kit.recount_world import DAY, SECOND, World
from kit.whole_snapshots import load, save
from tokentrace.bus import Message, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.service.web import make_app
from tokentrace_aggregator.service import Aggregator
from tokentrace_aggregator.service import Config as AggregatorConfig
from tokentrace_aggregator.shard import Shard
from tokentrace_api.app import compose
from tokentrace_api.service import Api
from tokentrace_api.service import Config as ApiConfig
from tokentrace_api.store import Item, Store


class MetricsServices:
    """Real aggregators, a real store and the routes of the api; the broker's time is ``now_ns``."""

    world: World
    customs: list[dict[str, Any]]
    keep_s: int
    now_ns: int
    store: Store
    api: Api
    aggregators: list[Aggregator]
    client: httpx.AsyncClient

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runner = asyncio.Runner()
        self._readers = ThreadPoolExecutor(2)
        self._open = contextlib.AsyncExitStack()
        self._opened = 0

    def open(
        self,
        world: World,
        customs: Sequence[dict[str, Any]],
        dice: random.Random,
        *,
        restart: bool = False,
        keep_s: int = 60 * DAY,
    ) -> None:
        """
        Fold and store all messages of *world*; queries are answered as of ``world.now_s``.

        Args:
            customs: The custom metrics.
            dice: Decides where restarts and ticks fall.
            restart: Restart each shard and the store at a random message, from their saved states.
            keep_s: How long the store shows spans, seconds.
        """
        self.world, self.customs, self.keep_s = world, list(customs), keep_s
        self.now_ns = world.now_s * SECOND + dice.randrange(SECOND)
        shards, own = len(world.streams), parse_custom_metrics(customs)
        bus = MemoryBus(MemoryBroker(lambda: self.now_ns))
        self.aggregators = []
        for held in (range(shards // 2), range(shards // 2, shards)):
            aggregator = Aggregator(bus, AggregatorConfig(shards, tuple(held), custom=tuple(own.values())))
            machines = [fold(m, world.streams[m.shard], dice, restart=restart) for m in aggregator.machines]
            for machine in machines:
                machine.tick(self.now_ns)
            aggregator.machines[:] = machines
            self.aggregators.append(aggregator)
            self._runner.run(self._open.enter_async_context(bus.serve(subjects.QUERY_METRICS, aggregator._answer)))
        self._opened += 1
        self._fill(self._directory / f"store-{self._opened}", dice, restart=restart)
        self._bus = bus
        self.start_api(own)

    def start_api(self, custom: dict[str, CustomMetric]) -> None:
        """Compose an api with these custom metrics; it uses the open bus and store."""
        config = replace(ApiConfig.of(Settings()), shards=len(self.world.streams), custom=custom)
        app = compose(self._bus, config)
        assert isinstance(app.service, Api)
        self.api, self.routes = app.service, app.routes
        self.api.store_writer._readers, self.api.store_writer._store = self._readers, self.store
        self._connect()

    def _connect(self) -> None:
        transport = httpx.ASGITransport(make_app(self.routes))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://api")
        self._runner.run(self._open.enter_async_context(self.client))

    def _fill(self, directory: Path, dice: random.Random, *, restart: bool) -> None:
        shards = len(self.world.streams)
        streams = enumerate(self.world.streams)
        items = [Item(shard, 7, message) for shard, stream in streams for message in stream]
        items.sort(key=lambda item: item.message.time_ns)
        stored = 0
        if restart:
            stored = dice.randrange(len(items) + 1)
            before = Store(directory, shards=shards, keep_ns=self.keep_s * SECOND, memory_limit_mb=256)
            before.append(items[:stored])
            before.close()
        self.store = Store(directory, shards=shards, keep_ns=self.keep_s * SECOND, memory_limit_mb=256)
        # After a restart the last stored message is read a second time.
        self.store.append(items[max(stored - 1, 0) :])

    def close(self) -> None:
        """Close what ``open`` opened."""
        self._runner.run(self._open.aclose())
        self.store.close()

    def serve(self, world: World, customs: Sequence[dict[str, Any]], directory: Path) -> None:
        """Run an aggregator and an api on one bus, publish *world*, and restart both after half of the messages."""
        self.world, self.customs, self.keep_s = world, list(customs), 7 * DAY
        self.now_ns = world.now_s * SECOND
        self._runner.run(self._serve(directory))
        self._connect()

    async def _serve(self, directory: Path) -> None:
        bus, shards = MemoryBus(MemoryBroker(lambda: self.now_ns)), len(self.world.streams)
        for stream in subjects.streams():
            await bus.ensure(stream)
        messages = sorted((m for stream in self.world.streams for m in stream), key=lambda message: message.time_ns)
        half = len(messages) // 2
        await self._start(bus, shards, directory)
        for message in messages[:half]:
            await bus.publish(message.subject, message.payload)
        await self._until_read(messages[:half])
        await asyncio.sleep(0.6)  # the time in which one or two snapshots are saved
        assert await bus.objects(subjects.SNAPSHOTS).names()
        for message in messages[half : half + 5]:
            await bus.publish(message.subject, message.payload)
        await self._stop()
        for message in messages[half + 5 :]:
            await bus.publish(message.subject, message.payload)
        await self._start(bus, shards, directory)
        await self._until_read(messages)

    async def _start(self, bus: MemoryBus, shards: int, directory: Path) -> None:
        own = parse_custom_metrics(self.customs)
        config = AggregatorConfig(shards, tuple(range(shards)), snapshot_every_s=0.2, custom=tuple(own.values()))
        self.aggregators = [Aggregator(bus, config)]
        app = compose(bus, replace(ApiConfig.of(Settings()), shards=shards, custom=own, directory=directory))
        assert isinstance(app.service, Api)
        self.api, self.routes = app.service, app.routes
        self._stopping = asyncio.Event()
        services: list[Aggregator | Api] = [*self.aggregators, self.api]
        self._running = [asyncio.create_task(service.run(self._stopping)) for service in services]

    async def _until_read(self, messages: Sequence[Message]) -> None:
        """Wait until the shards and the store have read all of *messages*."""
        count = len({(m.subject, m.payload) for m in messages})

        def is_read() -> bool:
            machines = self.aggregators[0].machines
            ready = not self.aggregators[0].health().missing and not self.api.health().missing
            return (
                ready
                and sum(machine.batches for machine in machines) == count
                and not self.api.store_writer.queue_depth
            )

        async with asyncio.timeout(60):
            while not is_read() or self.api.store_writer.store.count(self.now_ns) != sum(
                machine.spans for machine in self.aggregators[0].machines
            ):
                await asyncio.sleep(0.02)

    async def _stop(self) -> None:
        """Cancel the aggregator; ask the api to stop."""
        aggregator, api = self._running
        aggregator.cancel()
        self._stopping.set()
        await asyncio.gather(aggregator, api, return_exceptions=True)

    def stop(self) -> None:
        """Stop the services that ``serve`` started."""
        self._runner.run(self._open.aclose())
        self._runner.run(self._stop())

    def shutdown(self) -> None:
        """Stop the threads."""
        self._readers.shutdown()
        self._runner.close()

    def ask(self, path: str, parameters: Mapping[str, str]) -> tuple[int, Any]:
        """Return (status, body) of GET *path*."""
        answer = self._runner.run(self._get(path, parameters))
        return answer.status_code, json.loads(answer.content)

    async def _get(self, path: str, parameters: Mapping[str, str]) -> httpx.Response:
        return await self.client.get(path, params=dict(parameters))

    def get(self, path: str, parameters: Mapping[str, str]) -> Any:
        """Return the body of GET *path*; check that the status is 200 and the answer complete."""
        status, body = self.ask(path, parameters)
        assert status == 200, (path, parameters, body)
        assert "incomplete" not in body
        return body


def fold(machine: Shard, stream: Sequence[Message], dice: random.Random, *, restart: bool) -> Shard:
    """Fold *stream* into *machine* and return it, or with *restart* the shard that was restored in its place."""

    def fresh() -> Shard:
        return Shard(machine.shard, machine._shards, machine._custom, capacity=machine._capacity)

    cut = dice.randrange(len(stream) + 1) if restart else -1
    for index, message in enumerate(stream):
        if index == cut:
            snapshot = save(machine)
            machine.fold(message, 7)  # folded after the snapshot, lost in the crash, folded again below
            machine = fresh()
            load(machine, snapshot)
        machine.fold(message, 7)
        if dice.random() < 0.1:
            machine.tick(message.time_ns)
    return machine


@contextlib.contextmanager
def opened(services: MetricsServices, *args: Any, **options: Any) -> Iterator[MetricsServices]:
    """Open *services* with these arguments, and close them afterwards."""
    services.open(*args, **options)
    try:
        yield services
    finally:
        services.close()
