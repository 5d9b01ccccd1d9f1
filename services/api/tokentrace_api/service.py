"""The api service: follows the log into the span store, counts alerts, and serves the routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from tokentrace.bus import Bus, subjects
from tokentrace.config import Pricing, Settings
from tokentrace.dedup import capacity_for
from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.records import Batch, Span, encode_batches, shard_of
from tokentrace.redact import Redactor
from tokentrace.service.alive import Roll
from tokentrace.service.bootstrap import agreed_capacity
from tokentrace.service.call_readers import calls_key, encode_calls
from tokentrace.service.health import Health, Sample
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace.units import DAY, SECOND
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.erasure import Erasure
from tokentrace_api.live_tail import Tails
from tokentrace_api.log_coverage import LogCoverage
from tokentrace_api.rejected_history import RejectedHistory
from tokentrace_api.reporter_states import ReporterStates
from tokentrace_api.store import Store
from tokentrace_api.store_writer import StoreWriter

log = logging.getLogger("tokentrace.api")

NAME = "api"
#: The services whose processes ``/health`` shows.
SERVICES = ("ingest", "aggregator", "alerter", NAME)
#: Pause between two counts of the processes of all services, seconds.
_COUNT_EVERY_S = 10.0
#: Pause between two publications of the positions, seconds.
_PUBLISH_POSITIONS_EVERY_S = 2.0
#: How long ``Api.publish`` waits until its batch is stored, seconds.
_STORED_WITHIN_S = 10.0
#: How long ``Api.find`` repeats a query that finds nothing, seconds.
_FOUND_WITHIN_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """
    The settings of the api.

    Attributes:
        shards: Number of shards of the log.
        directory: Where the files of the store are.
        max_spans: How many of the newest spans are shown; 0 = all.
        keep_ns: How long after its arrival a span is shown, nanoseconds.
        memory_limit_mb: Memory limit of DuckDB, MB.
        metrics_path, prometheus_path, health_path: Paths of these routes.
        ingest_url: Base URL of the ingest to which posted spans are forwarded; "" = the api accepts none.
        ingest_path: Path under which that ingest accepts spans.
        max_body_bytes: The largest body that is forwarded, bytes.
        max_otlp_bytes: The largest body of OTLP that is forwarded, bytes.
        max_bytes: Limit of the size of all files of the store together, bytes; 0 = no limit.
        project: Project under which the api publishes deletions, scores and session ends.
        log_keeps_ns: How long the log keeps records, deleted ones included, nanoseconds.
        custom: Name -> custom metric.
        pricing: Settings of the prices that receipts show; the same as those of ingest.
        spans_path: Path under which this server or another one at its address takes spans; None = nowhere.
        redactor: Redacts the errors of session ends and the names of scores, which do not pass through ingest.
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
    max_otlp_bytes: int
    max_bytes: int = 0
    project: str = subjects.DEFAULT_PROJECT
    log_keeps_ns: int = 7 * DAY
    custom: Mapping[str, CustomMetric] = field(default_factory=dict)
    pricing: Pricing = field(default_factory=Pricing)
    redactor: Redactor = field(default_factory=Redactor)
    spans_path: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """Take the settings of the api from *settings*."""
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
            max_otlp_bytes=settings.otlp.max_body_bytes,
            max_bytes=settings.retention.max_bytes,
            project=settings.nats.project,
            log_keeps_ns=int(settings.nats.spans_max_age),
            custom=parse_custom_metrics(settings.customs),
            pricing=settings.pricing,
            redactor=settings.redaction.redactor,
            spans_path=http.ingest_path if http.ingest_url else None,
        )


class Api:
    """
    The api service.

    Attributes:
        aggregators: Answers queries for metrics.
        alert_history: Counts of firings and deliveries.
        rejected_history: Counts of refused spans, and the dead letters.
        erasure: Erases what the streams keep about deleted users.
        roll: Asks which services are alive.
        log_coverage: How far the log reaches back.
        tails: The live tails of all clients.
        store_writer: Fills and reads the span store.
        stopping: Set when the service stops.
        pricer: Explains costs in receipts.
        started: When this object was created, seconds of ``time.monotonic``.
        reporters: The last counters of every reporter.
    """

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.aggregators = AggregatorClient(bus, config.shards)
        self.alert_history = AlertHistory(bus)
        self.rejected_history = RejectedHistory(bus)
        self.reporters = ReporterStates()
        self.erasure = Erasure(bus, self.alert_history)
        self.roll = Roll(bus, SERVICES)
        self.log_coverage = LogCoverage(config.log_keeps_ns)
        self.tails = Tails()
        self.store_writer = StoreWriter(bus, config.shards, self._open_store, self._note_stored)
        self.stopping = asyncio.Event()
        self.pricer = config.pricing.pricer()
        self.started = time.monotonic()
        self._capacity = capacity_for(config.shards)

    async def run(self, stopping: asyncio.Event) -> None:
        """Fill the store, publish its positions, count alerts and refused spans until *stopping* is set."""
        self.stopping = stopping
        try:
            self._capacity = await unless_stopped(stopping, agreed_capacity(self.bus, self.config.shards))
        except Stopped:
            return
        async with asyncio.TaskGroup() as tasks:
            working = [
                tasks.create_task(work)
                for work in (
                    self.store_writer.run(),
                    self._publish_positions(),
                    self.alert_history.open_and_follow(),
                    self.rejected_history.open_and_follow(),
                    self.erasure.run(),
                    self._count_processes(),
                )
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
            capacity=self._capacity,
            reporters=self.reporters,
        )

    async def _note_stored(self, spans: list[Span]) -> None:
        await self.tails.offer(spans, int(time.monotonic()))

    async def _publish_positions(self) -> None:
        """
        Every 2 s, publish store positions and digests of the calls, and save the counts of alerts and refused spans.

        Ingest measures the lag from the positions; the digests show whether all readers remember the same calls.
        """
        meta = self.bus.kv(subjects.META)
        while True:
            await asyncio.sleep(_PUBLISH_POSITIONS_EVERY_S)
            try:
                store = self.store_writer.store
                for shard in range(self.config.shards):
                    position = store.position(shard)
                    if position is not None:
                        await meta.put(reader_key(NAME, shard), encode_position(position, self.now_ns()))
                        await meta.put(calls_key(NAME, shard), encode_calls({shard: store.digests(shard)}))
                await self.alert_history.save()
                await self.rejected_history.save()
            except TokentraceError as exc:
                log.info("%s", exc)

    @property
    def started_ns(self) -> int:
        """When this object was created by the broker's time, Unix nanoseconds."""
        return self.now_ns() - int((time.monotonic() - self.started) * SECOND)

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds."""
        return self.bus.clock.now_ns()

    async def _count_processes(self) -> None:
        """Count the processes of every service, and measure the log, again and again: ``/health`` shows both."""
        while True:
            with contextlib.suppress(TokentraceError):
                self.log_coverage.note(await self.bus.state(subjects.SPANS), self.now_ns())
                await self.roll.count()
            await asyncio.sleep(_COUNT_EVERY_S)

    async def read(self, work: Callable[[Store], T]) -> T:
        """
        Return what *work* returns for the store, called in a reading thread.

        Raises:
            Unavailable: The store is not open, or *work* could not read it.
        """
        return await self.store_writer.read(work)

    async def publish(self, batch: Batch, shard: int | None = None) -> None:
        """
        Publish *batch* to the log; return when this api has stored it.

        Args:
            shard: The shard to publish to, always the same for the same batch; None = the one of ``shard_of``.

        Raises:
            Unavailable: The broker cannot be reached, or the store takes too long. The call may be repeated with the
                same batch id.
        """
        if batch.session_ends:
            batch = replace(batch, session_ends=[self.config.redactor.session_end(end) for end in batch.session_ends])
        shard = shard_of(batch, self.config.shards) if shard is None else shard
        ack = await self.bus.publish(subjects.spans(self.config.project, shard), encode_batches([batch]))
        deadline = time.monotonic() + _STORED_WITHIN_S
        while not self.store_writer.holds(shard, ack.sequence):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"span store: the batch is published but was not stored within {_STORED_WITHIN_S:.0f} s"
                )
            await asyncio.sleep(0.02)

    async def find(self, work: Callable[[Store], list[T]]) -> list[T]:
        """
        Return what *work* returns for the store; repeat it for up to a second while that is empty.

        Without the repetition, spans that have just arrived and are not stored yet would be reported as missing.

        Raises:
            Unavailable: As ``read``.
        """
        deadline = time.monotonic() + _FOUND_WITHIN_S
        while True:
            results = await self.read(work)
            if results or time.monotonic() > deadline:
                return results
            await asyncio.sleep(0.1)

    def health(self) -> Health:
        """Return problems of the broker and the store, and the shards that the store has not yet read to the end."""
        writer, missing = self.store_writer, list(self.bus.problems)
        if not writer.is_open:
            missing.append("span store")
        missing += [f"shard {shard}" for shard in range(self.config.shards) if not writer.caught_up(shard)]
        if writer.problem:
            missing.append(writer.problem)
        return Health(missing, self.details())

    @property
    def queue_depth(self) -> int:
        """Number of messages in the log that wait to be stored."""
        return self.store_writer.queue_depth

    def details(self) -> dict[str, object]:
        """
        Return how far the store is behind, lost messages and damaged files as ``/health`` shows them.

        A list without entries is left out.
        """
        shown: dict[str, object] = {"store_behind_s": round(self.store_writer.behind_s, 1)}
        if self.store_writer.lost:
            shown["lost"] = [
                {"shard": shard, "first": first, "last": last} for shard, first, last in self.store_writer.lost
            ]
        if self.store_writer.damaged:
            shown["damaged"] = self.store_writer.damaged
        return shown

    def samples(self) -> Iterator[Sample]:
        """Yield the api's own metrics."""
        yield Sample(
            "tokentrace_api_stored_spans_total", "Spans stored since the start of the api.", self.store_writer.stored
        )
        yield Sample("tokentrace_api_queue_depth", "Messages not yet stored.", self.store_writer.queue_depth)
        yield Sample(
            "tokentrace_api_store_behind_seconds",
            "How long the oldest message that was read has waited to be stored.",
            self.store_writer.behind_s,
        )
        if self.store_writer.is_open:
            store = self.store_writer.store
            left_out = store.left_out
            yield Sample(
                "tokentrace_api_repeated_batches_total",
                "Batches skipped because they were stored before.",
                left_out.repeated_batches,
            )
            yield Sample("tokentrace_duplicate_spans_total", "Spans that told a call again.", left_out.repeated)
            yield Sample(
                "tokentrace_api_unstored_repetitions_total",
                "Spans not stored since the start of the api, because they said nothing new about a known span.",
                store.repetitions,
            )
            yield Sample(
                "tokentrace_api_rejected_messages_total",
                "Messages skipped because they could not be decoded.",
                store.rejected,
            )
            yield Sample("tokentrace_api_disk_bytes", "Size of the span store, bytes.", store.disk_bytes())
            yield Sample(
                "tokentrace_api_disk_free_bytes", "Free space on the disk of the span store, bytes.", store.free_bytes()
            )
        yield Sample("tokentrace_api_tails", "Live tails that are open now.", len(self.tails))
        yield Sample(
            "tokentrace_api_tail_dropped_total",
            "Spans that tails dropped, over the rate or too fast for the client.",
            self.tails.dropped,
        )
