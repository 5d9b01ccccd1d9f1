"""The routes of the api over real shards of two aggregators and a real store, all of which have read one history."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

from kit.call_histories import History
from kit.call_machines import NOW_S, Machines
from kit.call_recount import Recount, Sent
from kit.call_views import Views
from kit.raw_messages import CREATED_NS
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace.service.web import make_app
from tokentrace.units import DAY, SECOND
from tokentrace_aggregator.service import Aggregator
from tokentrace_aggregator.service import Config as AggregatorConfig
from tokentrace_api.app import compose
from tokentrace_api.service import Api
from tokentrace_api.service import Config as ApiConfig
from tokentrace_api.store import Item, Store


class CallServices:
    """
    Everything that answers questions about one history, without a network.

    Args:
        directory: Where the store keeps its files.
        calls, seed: As for ``Machines``; the seed also decides when the store is closed and opened again.

    Attributes:
        machines: The shards and the alerter.
    """

    def __init__(self, directory: Path, history: Sequence[Sent], shards: int, calls: int, seed: int) -> None:
        self._directory, self._shards, self._calls = directory, shards, calls
        self.machines = Machines(history, shards, calls, seed)
        self._runner = asyncio.Runner()
        self._readers = ThreadPoolExecutor(2)
        self._open = contextlib.AsyncExitStack()
        bus = MemoryBus(MemoryBroker(lambda: NOW_S * SECOND))
        half = (shards + 1) // 2
        for own in (range(half), range(half, shards)):
            aggregator = Aggregator(bus, AggregatorConfig(shards, tuple(own)))
            aggregator.machines[:] = [self.machines.aggregator[shard] for shard in own]
            self._runner.run(self._open.enter_async_context(bus.serve(subjects.QUERY_METRICS, aggregator._answer)))
        self._store = self._filled(random.Random(seed))
        app = compose(bus, replace(ApiConfig.of(Settings()), shards=shards))
        assert isinstance(app.service, Api)
        app.service.store_writer._readers, app.service.store_writer._store = self._readers, self._store
        transport = httpx.ASGITransport(make_app(app.routes))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://api")
        self._runner.run(self._open.enter_async_context(self._client))

    def _new_store(self) -> Store:
        keep_ns = 60 * DAY
        return Store(self._directory, shards=self._shards, keep_ns=keep_ns, memory_limit_mb=256, capacity=self._calls)

    def _filled(self, dice: random.Random) -> Store:
        """Return a store that has read the log; it was closed and opened again between some messages."""
        store = self._new_store()
        rest = [
            Item(shard, CREATED_NS, message)
            for message in self.machines.log
            for shard in range(self._shards)
            if message.subject == subjects.spans("default", shard)
        ]
        while rest:
            size = dice.choice([1, 1, 3, len(rest)])
            # A reader that restarts continues after the position that is stored.
            store.append([item for item in rest[:size] if _is_new(store, item)])
            rest = rest[size:]
            if rest and dice.random() < 0.2:
                store.close()
                store = self._new_store()
        return store

    def get(self, path: str) -> str:
        """Return the body of GET *path*, which must be answered with 200."""
        answer = self._runner.run(self._client.get(path))
        assert answer.status_code == 200, (path, answer.text)
        return answer.text

    def digests(self) -> Iterator[tuple[int, object, object]]:
        """Yield the shards, with what the aggregator and what the store remember of calls."""
        for shard, aggregator in enumerate(self.machines.aggregator):
            yield shard, aggregator.dedup.digests, self._store.digests(shard)

    def close(self) -> None:
        """Close the routes and the store, and stop the threads."""
        self._runner.run(self._open.aclose())
        self._store.close()
        self._readers.shutdown()
        self._runner.close()


def _is_new(store: Store, item: Item) -> bool:
    position = store.position(item.shard)
    return position is None or item.message.sequence > position.sequence


def disagreements(directory: Path, numbers: list[int], shards: int, calls: int, seed: int) -> list[str]:
    """
    Return how the answers differ from the recount of the history that *numbers* make.

    Args:
        directory: Where the store keeps its files.
        calls, seed: As for ``CallServices``.
    """
    history = History(numbers, NOW_S * 1000)
    recount = Recount(calls * shards)
    for sent in history.sent:
        recount.read(sent)
    serving = CallServices(directory, history.sent, shards, calls, seed)
    try:
        views = Views(serving.get, recount)
        memories = [f"memory of {shard}" for shard, aggregator, store in serving.digests() if aggregator != store]
        return [*views.metrics(), *views.stored(), *memories]
    finally:
        serving.close()
