"""The api as a service: follows the spans into its store, asks the aggregators, answers people."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from tokentrace.bus import Bus, subjects
from tokentrace.config import Pricing, Settings
from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.pricing import Pricer
from tokentrace.records import Batch, Span, encode_batches, shard_of
from tokentrace.redact import Redactor
from tokentrace.service.health import Health, Sample
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace.units import DAY
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.live_tail import Tails
from tokentrace_api.reads import RecentSpans
from tokentrace_api.store import Store
from tokentrace_api.store_writer import StoreWriter

log = logging.getLogger("tokentrace.api")

NAME = "api"
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
            custom=parse_custom_metrics(settings.customs),
            pricing=settings.pricing,
            redactor=settings.redaction.redactor,
        )


class Api:
    """The span store and everything that can be asked."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.aggregators = AggregatorClient(bus, config.shards)
        self.alert_history = AlertHistory(bus)
        self.tails = Tails()
        self.recent = RecentSpans()
        self.store_writer = StoreWriter(bus, config.shards, self._open_store, self._hear)
        self.stopping = asyncio.Event()
        self.pricer = Pricer(config.pricing.rates, config.pricing.trust_zero)
        self.started = time.monotonic()

    async def run(self, stopping: asyncio.Event) -> None:
        """Store spans until *stopping* is set."""
        self.stopping = stopping
        async with asyncio.TaskGroup() as tasks:
            working = [
                tasks.create_task(work)
                for work in (self.store_writer.run(), self._tell(), self.alert_history.open_and_follow())
            ]
            await stopping.wait()
            for task in working:
                task.cancel()

    def _open_store(self) -> Store:
        config = self.config
        return Store(
            config.directory,
            shards=config.shards,
            max_spans=config.max_spans,
            keep_ns=config.keep_ns,
            max_bytes=config.max_bytes,
            memory_limit_mb=config.memory_limit_mb,
            set_aside=self.bus.set_aside,
        )

    async def _hear(self, spans: list[Span]) -> None:
        self.recent.add(spans)
        await self.tails.offer(spans, int(time.monotonic()))

    async def _tell(self) -> None:
        """Say now and then how far the store is, for those who look for who is behind."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            try:
                for shard in range(self.config.shards):
                    position = self.store_writer.store.position(shard)
                    if position is not None:
                        await self.bus.kv(subjects.META).put(reader_key(NAME, shard), encode_position(position))
                await self.alert_history.save()
            except TokentraceError as exc:
                log.info("%s", exc)

    async def read(self, work: Callable[[Store], T]) -> T:
        """*work* on the store in a thread of its own; Unavailable before it is open."""
        return await self.store_writer.read(work)

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
        while not self.store_writer.holds(shard, ack.sequence):
            if time.monotonic() > deadline:
                raise Unavailable("span store: is behind")
            await asyncio.sleep(0.02)

    async def find(self, work: Callable[[Store], list[T]]) -> list[T]:
        """What *work* finds; nothing is believed not to be there before what arrived a moment ago could be stored."""
        deadline = time.monotonic() + _FIND_S
        while True:
            found = await self.read(work)
            if found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.1)

    def health(self) -> Health:
        """Ready when the store holds what the stream had."""
        storing, missing = self.store_writer, list(self.bus.problems)
        if not storing.is_open:
            missing.append("span store")
        missing += [f"shard {shard}" for shard in range(self.config.shards) if not storing.caught_up(shard)]
        if storing.trouble:
            missing.append(storing.trouble)
        return Health(missing, self.details())

    @property
    def queue_depth(self) -> int:
        """Return how many messages wait to be stored."""
        return self.store_writer.queue_depth

    def details(self) -> dict[str, object]:
        """What is gone or damaged, for people."""
        found: dict[str, object] = {}
        if self.store_writer.lost:
            found["lost"] = [
                {"shard": shard, "first": first, "last": last} for shard, first, last in self.store_writer.lost
            ]
        if self.store_writer.damaged:
            found["damaged"] = self.store_writer.damaged
        return found

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        yield Sample("tokentrace_api_stored_spans_total", "Spans stored since start.", self.store_writer.stored)
        yield Sample("tokentrace_api_queue_depth", "Messages not yet stored.", self.store_writer.queue_depth)
        if self.store_writer.is_open:
            store = self.store_writer.store
            yield Sample("tokentrace_api_repeated_batches_total", "Batches known already.", store.repeated)
            yield Sample("tokentrace_api_rejected_messages_total", "Messages not read.", store.rejected)
            yield Sample("tokentrace_api_disk_bytes", "Size of the span store.", store.disk_bytes())
            yield Sample("tokentrace_api_disk_free_bytes", "Room left on its disk.", store.free_bytes())
        yield Sample(
            "tokentrace_duplicate_spans_total", "Spans that came again in another batch.", self.recent.repeated
        )
        yield Sample("tokentrace_api_tails", "Live tails that are followed now.", len(self.tails))
        yield Sample("tokentrace_api_tail_dropped_total", "Spans that tails were too slow for.", self.tails.dropped)
