"""The api as a service: follows the spans into its store, asks the aggregators, answers people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace
from starlette.routing import BaseRoute

from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, TokentraceError, Unavailable
from tokentrace.http import Health, Sample
from tokentrace.metric.custom import CustomMetric, parse_customs
from tokentrace.pricing import Pricer
from tokentrace.pump import encode_position, reader_key, until_available
from tokentrace.records import Batch, Tombstone, decode_batches, encode_batches
from tokentrace.records.batch import shard_of
from tokentrace.redact import Redactor
from tokentrace.settings import Pricing, Settings
from tokentrace.units import DAY
from tokentrace_api.alert_counts import AlertCounts
from tokentrace_api.ask import Aggregators
from tokentrace_api.recent import RecentSpans
from tokentrace_api.store import Item, Store
from tokentrace_api.tail import Tails

log = logging.getLogger("tokentrace.api")

NAME = "api"
_FLUSH_S = 0.1
_FLUSH_BYTES = 8 * 1024 * 1024
_QUEUE = 64
_PRUNE_EVERY_S = 60.0
_TELL_EVERY_S = 2.0
#: How long what was just published may take to be stored, and what is asked for to arrive.
_SETTLE_S = 10.0
_FIND_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """
    What the api has to know.

    Attributes:
        shards: How many there are.
        directory: Where the store's files are.
        max_spans: Rows shown; 0 = no limit.
        keep_ns: How long spans are shown.
        metrics_path, prometheus_path, health_path: Where people find them.
        custom: Name -> metric of one's own.
        max_bytes: What the store's files may take; 0 = no limit.
        project: Whose deletions and scores these are.
        log_keeps_ns: How long the log keeps what is deleted here.
        pricing: What a receipt is explained with: the same as ingest's.
        ingest_url: Where what is posted here goes; "" = nothing can be posted here.
        redactor: Cleans what is said here of sessions and scores, as ingest does with all else.
    """

    shards: int
    directory: Path
    max_spans: int
    keep_ns: int
    memory_limit_mb: int
    metrics_path: str
    prometheus_path: str
    health_path: str
    ingest_url: str
    ingest_path: str
    max_body_bytes: int
    max_bytes: int = 0
    project: str = subjects.DEFAULT_PROJECT
    log_keeps_ns: int = 7 * DAY
    custom: Mapping[str, CustomMetric] = field(default_factory=dict)
    pricing: Pricing = field(default_factory=Pricing)
    redactor: Redactor = field(default_factory=Redactor)

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """The api's part of *settings*."""
        http = settings.http_server
        return cls(
            shards=settings.nats.shards,
            directory=Path(settings.storage.dir) / "spans",
            max_spans=settings.retention.max_spans,
            keep_ns=int(settings.retention.memory_window),
            memory_limit_mb=settings.storage.memory_limit_mb,
            metrics_path=http.metrics_path,
            prometheus_path=http.prometheus_path,
            health_path=http.health_path,
            ingest_url=http.ingest_url,
            ingest_path=http.ingest_path,
            max_body_bytes=http.max_body_bytes,
            max_bytes=settings.retention.max_bytes,
            project=settings.nats.project,
            log_keeps_ns=int(settings.nats.spans_max_age),
            custom=parse_customs(settings.customs),
            pricing=settings.pricing,
            redactor=settings.redaction.redactor,
        )


class Api:
    """The span store and everything that can be asked."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.aggregators = Aggregators(bus, config.shards)
        self.alert_counts = AlertCounts(bus)
        self.tails = Tails()
        self.recent = RecentSpans()
        self.stopping = asyncio.Event()
        self.pricer = Pricer(config.pricing.rates, config.pricing.trust_zero)
        self.started = time.monotonic()
        self.trouble = ""
        self.lost: list[tuple[int, int, int]] = []
        self._store: Store | None = None
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="store-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._queue: asyncio.Queue[Item] = asyncio.Queue(_QUEUE * 256)
        self._queued = [0] * config.shards
        self._targets: list[int | None] = [None] * config.shards
        self._pending = [0] * config.shards
        self._behind = [0] * config.shards
        self.stored = 0

    @property
    def store(self) -> Store:
        """The open store; Unavailable before it is."""
        if self._store is None:
            raise Unavailable("span store: not open yet")
        return self._store

    async def run(self, stopping: asyncio.Event) -> None:
        """Store spans until *stopping* is set; what is not stored by then is read again at the next start."""
        config = self.config
        self.stopping = stopping
        stop = asyncio.create_task(stopping.wait())
        opening = asyncio.create_task(self._open())
        await asyncio.wait([opening, stop], return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            return
        store = opening.result()
        # What was deleted has to be known before anything is read, or it would be shown again for a while.
        buried = asyncio.Event()
        burying = asyncio.create_task(self._bury(store, buried))
        hearing = asyncio.create_task(buried.wait())
        await asyncio.wait([hearing, burying, stop], return_when=asyncio.FIRST_COMPLETED)
        hearing.cancel()
        self._store = store
        tasks = [asyncio.create_task(self._follow(shard)) for shard in range(config.shards)]
        tasks += [
            burying,
            asyncio.create_task(self._write()),
            asyncio.create_task(self._look_after()),
            asyncio.create_task(self.alert_counts.open_and_follow()),
        ]
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in [*tasks, stop]:
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
            self._readers.shutdown()
            await self._in_writer(store.close)
            self._writer.shutdown()
        for task in done:
            task.result()

    async def _open(self) -> Store:
        """The store, as soon as its disk can be written."""
        config, pause = self.config, 0.5
        while True:
            try:
                store = await self._in_writer(
                    lambda: Store(
                        config.directory,
                        shards=config.shards,
                        max_spans=config.max_spans,
                        keep_ns=config.keep_ns,
                        max_bytes=config.max_bytes,
                        memory_limit_mb=config.memory_limit_mb,
                    )
                )
            except Unavailable as exc:
                if not self.trouble:
                    log.error("%s", exc)
                self.trouble = str(exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                self.trouble = ""
                return store

    async def _in_writer(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def read(self, work: Callable[[Store], T]) -> T:
        """*work* on the store in a thread of its own."""
        store = self.store
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: work(store))

    async def _bury(self, store: Store, buried: asyncio.Event) -> None:
        """Hear of deletions, from the beginning of the log on; *buried* is set when those are carried out."""
        feed = self.bus.follow(subjects.SPANS, [subjects.ALL_TOMBSTONES], None)
        async with contextlib.aclosing(feed):
            async for chunk in feed:
                stones = [stone for message in chunk.messages for stone in _tombstones_in(message.payload)]
                if stones:
                    await until_available(lambda stones=stones: self.bury(store, stones))  # type: ignore[misc]
                if chunk.pending == 0:
                    buried.set()

    async def bury(self, store: Store, stones: list[Tombstone]) -> None:
        """Carry out deletions in *store*; Unavailable when the disk refuses."""
        await self._in_writer(lambda: store.bury(stones))

    async def _follow(self, shard: int) -> None:
        feed = self.bus.follow(subjects.SPANS, [subjects.shard_spans(shard)], self.store.position(shard))
        async with contextlib.aclosing(feed):
            async for chunk in feed:
                if chunk.missing is not None:
                    log.error("shard %d: messages %d to %d are gone from the stream", shard, *chunk.missing)
                    self.lost = [*self.lost, (shard, *chunk.missing)][-20:]
                for message in chunk.messages:
                    await self._queue.put(Item(shard, chunk.created_ns, message))
                    self._queued[shard] = message.sequence
                self._pending[shard] = chunk.pending
                if chunk.pending == 0 and self._targets[shard] is None:
                    self._targets[shard] = self._queued[shard]

    async def _write(self) -> None:
        while True:
            items = [await self._queue.get()]
            await asyncio.sleep(_FLUSH_S)
            size = len(items[0].message.payload)
            while not self._queue.empty() and size < _FLUSH_BYTES:
                items.append(self._queue.get_nowait())
                size += len(items[-1].message.payload)
            await self._store_all(items)

    async def _store_all(self, items: list[Item]) -> None:
        pause = 0.1
        store = self.store
        while True:
            try:
                spans = await self._in_writer(lambda: store.append(items))
                self.stored += len(spans)
                self.recent.add(spans)
                await self.tails.offer(spans, int(time.monotonic()))
                self.trouble = ""
                return
            except Unavailable as exc:
                if not self.trouble:
                    log.error("%s", exc)
                self.trouble = str(exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _look_after(self) -> None:
        pruned = 0.0
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            store = self.store
            try:
                for shard in range(self.config.shards):
                    position = store.position(shard)
                    if position is not None:
                        await self.bus.kv(subjects.META).put(reader_key(NAME, shard), encode_position(position))
                await self.alert_counts.save()
                if time.monotonic() - pruned > _PRUNE_EVERY_S:
                    pruned = time.monotonic()
                    await self._in_writer(partial(store.prune, time.time_ns()))
            except TokentraceError as exc:
                log.info("%s", exc)

    async def publish(self, batch: Batch, shard: int | None = None) -> None:
        """
        Store what was decided here, and return when it is stored here as well.

        Args:
            shard: Always the same for the same batch; None = by its id.

        Raises:
            Unavailable: The broker is away, or the store takes too long; it may be tried again under the same id.
        """
        if batch.session_ends:
            batch = replace(batch, session_ends=[self.config.redactor.session_end(end) for end in batch.session_ends])
        shard = shard_of(batch, self.config.shards) if shard is None else shard
        ack = await self.bus.publish(subjects.spans(self.config.project, shard), encode_batches([batch]))
        deadline = time.monotonic() + _SETTLE_S
        while not self._holds(shard, ack.sequence):
            if time.monotonic() > deadline:
                raise Unavailable("span store: is behind")
            await asyncio.sleep(0.02)

    def _holds(self, shard: int, sequence: int) -> bool:
        position = self.store.position(shard)
        return position is not None and position.sequence >= sequence

    async def find(self, work: Callable[[Store], list[T]]) -> list[T]:
        """What *work* finds; nothing is believed not to be there before what arrived a moment ago could be stored."""
        deadline = time.monotonic() + _FIND_S
        while True:
            found = await self.read(work)
            if found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.1)

    @property
    def queue_depth(self) -> int:
        """Messages read or known of and not yet stored."""
        return self._queue.qsize() + sum(self._pending)

    def health(self) -> Health:
        """Ready when the store holds what the stream had."""
        missing = list(self.bus.troubles)
        if self._store is None:
            missing.append("span store")
        missing += [f"shard {shard}" for shard in range(self.config.shards) if not self._caught_up(shard)]
        if self.trouble:
            missing.append(self.trouble)
        return Health(missing, self.details())

    def _caught_up(self, shard: int) -> bool:
        """The store holds what the stream had when it was first read to the end."""
        target = self._targets[shard]
        if target is None or self._store is None:
            return False
        position = self._store.position(shard)
        return target == 0 or (position is not None and position.sequence >= target)

    def details(self) -> dict[str, object]:
        """What is gone or damaged, for people."""
        found: dict[str, object] = {}
        if self.lost:
            found["lost"] = [{"shard": shard, "first": first, "last": last} for shard, first, last in self.lost]
        if self._store is not None and self._store.damaged:
            found["damaged"] = self._store.damaged
        return found

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        yield Sample("tokentrace_api_stored_spans_total", "Spans stored since start.", self.stored)
        yield Sample("tokentrace_api_queue_depth", "Messages not yet stored.", self.queue_depth)
        if self._store is not None:
            yield Sample("tokentrace_api_repeated_batches_total", "Batches known already.", self._store.repeated)
            yield Sample("tokentrace_api_rejected_messages_total", "Messages not read.", self._store.rejected)
            yield Sample("tokentrace_api_disk_bytes", "Size of the span store.", self._store.disk_bytes())
            yield Sample("tokentrace_api_disk_free_bytes", "Room left on its disk.", self._store.free_bytes())
        yield Sample(
            "tokentrace_duplicate_spans_total", "Spans that came again in another batch.", self.recent.repeated
        )
        yield Sample("tokentrace_api_tails", "Live tails that are followed now.", len(self.tails))
        yield Sample("tokentrace_api_tail_dropped_total", "Spans that tails were too slow for.", self.tails.dropped)

    def routes(self) -> list[BaseRoute]:
        """Its HTTP side."""
        from tokentrace_api.routes import (
            alerts,
            deletions,
            export,
            forward,
            health,
            metrics,
            prometheus,
            receipt,
            scores,
            sessions,
            tail,
            traces,
        )

        return [
            *prometheus.routes(self),
            *metrics.routes(self),
            *receipt.routes(self),
            *tail.routes(self),
            *deletions.routes(self),
            *traces.routes(self),
            *export.routes(self),
            *scores.routes(self),
            *sessions.routes(self),
            *alerts.routes(self),
            *forward.routes(self),
            *health.routes(self),
        ]


def _tombstones_in(payload: bytes) -> list[Tombstone]:
    try:
        return [stone for batch in decode_batches(payload) for stone in batch.tombstones]
    except Rejected as exc:
        log.warning("a deletion cannot be read: %s", exc)
        return []
