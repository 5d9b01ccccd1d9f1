"""The aggregator as a service: a runner for each shard it holds, and answers to ``tokentrace.query.metrics``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from tokentrace.bus import Bus, subjects
from tokentrace.config import Settings, own_shards
from tokentrace.metrics import CustomMetric, decode_query, encode_pending, encode_result, parse_custom_metrics, pieces
from tokentrace.service.health import Health, Sample
from tokentrace.service.runner import TURN_S, Runner
from tokentrace.units import SECOND
from tokentrace_aggregator.shard import Shard

NAME = "aggregator"


@dataclass(frozen=True)
class Config:
    """
    What an aggregator has to know.

    Attributes:
        shards: How many there are.
        own: Which of them this one holds.
        snapshot_every_s: At least this often, seconds.
        custom: Metrics of one's own.
    """

    shards: int
    own: tuple[int, ...]
    snapshot_every_s: float = 60.0
    custom: tuple[CustomMetric, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """The aggregator's part of *settings*."""
        return cls(
            shards=settings.nats.shards,
            own=tuple(own_shards(settings.nats)),
            snapshot_every_s=settings.storage.snapshot_interval / SECOND,
            custom=tuple(parse_custom_metrics(settings.customs).values()),
        )


@dataclass
class Aggregator:
    """The shards this worker holds, and how far each is."""

    bus: Bus
    config: Config
    machines: list[Shard] = field(default_factory=list)
    runners: list[Runner] = field(default_factory=list)

    def __post_init__(self) -> None:
        for shard in self.config.own:
            machine = Shard(shard, self.config.shards, self.config.custom)
            self.machines.append(machine)
            self.runners.append(
                Runner(
                    self.bus,
                    machine,
                    stream=subjects.SPANS,
                    filters=[subjects.shard_spans(shard)],
                    service=NAME,
                    shard=shard,
                    save_every_s=self.config.snapshot_every_s,
                )
            )

    async def run(self, stopping: asyncio.Event) -> None:
        """Fold and answer until *stopping* is set."""
        async with self.bus.serve(subjects.QUERY_METRICS, self._answer), asyncio.TaskGroup() as tasks:
            for runner in self.runners:
                tasks.create_task(runner.run(stopping))

    async def _answer(self, payload: bytes) -> AsyncIterator[bytes]:
        query = decode_query(payload)
        unpromised = {machine.shard for machine in self.machines}
        turn = time.perf_counter() + TURN_S
        for machine, runner in zip(self.machines, self.runners, strict=True):
            for found in pieces(machine.answer(query, runner.progress.caught_up)):
                if found is not None:
                    yield encode_result(found)
                    unpromised.discard(machine.shard)
                elif time.perf_counter() > turn:
                    for shard in sorted(unpromised):
                        yield encode_pending(shard)
                    unpromised.clear()
                    await asyncio.sleep(0)
                    turn = time.perf_counter() + TURN_S

    def health(self) -> Health:
        """Ready when every shard has read what there was."""
        missing = list(self.bus.problems)
        missing += [
            f"shard {m.shard}" for m, p in zip(self.machines, self.runners, strict=True) if not p.progress.caught_up
        ]
        details = {
            "shards": [machine.shard for machine in self.machines],
            "lost": {str(m.shard): [[loss.first, loss.last] for loss in m.losses] for m in self.machines if m.losses},
            "trouble": [runner.progress.problem for runner in self.runners if runner.progress.problem],
            "too_many_models": [machine.shard for machine in self.machines if machine.too_many_models],
        }
        return Health(missing, {key: value for key, value in details.items() if value or key == "shards"})

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        for machine, runner in zip(self.machines, self.runners, strict=True):
            labels, progress = {"shard": str(machine.shard)}, runner.progress
            yield Sample("tokentrace_aggregator_spans_total", "Spans folded.", machine.spans, labels)
            yield Sample("tokentrace_aggregator_batches_total", "Batches folded.", machine.batches, labels)
            yield Sample("tokentrace_aggregator_repeated_total", "Batches known already.", machine.repeated, labels)
            yield Sample("tokentrace_aggregator_late_total", "Spans behind every tier.", machine.late, labels)
            yield Sample("tokentrace_aggregator_clamped_total", "Spans from the future.", machine.clamped, labels)
            yield Sample("tokentrace_aggregator_rejected_total", "Messages not read.", progress.rejected, labels)
            yield Sample("tokentrace_aggregator_lag_messages", "Messages still to read.", progress.pending, labels)
