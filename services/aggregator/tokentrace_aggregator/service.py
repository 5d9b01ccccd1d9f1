"""The aggregator: a runner for each shard that it holds, and the answers to ``tokentrace.query.metrics``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from tokentrace.bus import Bus, subjects
from tokentrace.config import Settings, own_shards
from tokentrace.metrics import CustomMetric, decode_query, encode_pending, encode_result, parse_custom_metrics, pieces
from tokentrace.service.bootstrap import agreed_capacity
from tokentrace.service.health import Health, Sample
from tokentrace.service.runner import TURN_S, Runner
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace.units import MS, SECOND
from tokentrace_aggregator.shard import Shard

NAME = "aggregator"
#: How often a query looks whether the snapshot is loaded, seconds.
_LOADING_S = 0.05


@dataclass(frozen=True)
class Config:
    """
    Configuration of an aggregator.

    Attributes:
        shards: Shard count.
        own: Numbers of the shards that this aggregator holds.
        snapshot_every_s: Longest time between two snapshots, seconds.
        custom: Custom metrics.
    """

    shards: int
    own: tuple[int, ...]
    snapshot_every_s: float = 60.0
    custom: tuple[CustomMetric, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """Return the aggregator's part of *settings*."""
        return cls(
            shards=settings.nats.shards,
            own=tuple(own_shards(settings.nats)),
            snapshot_every_s=settings.storage.snapshot_interval / SECOND,
            custom=tuple(parse_custom_metrics(settings.customs).values()),
        )


@dataclass
class Aggregator:
    """
    The aggregator service.

    Attributes:
        machines: The state of each shard that it holds.
        runners: The runner of each of *machines*, in the same order.
    """

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
        """Fold messages and answer queries until *stopping* is set."""
        try:
            capacity = await unless_stopped(stopping, agreed_capacity(self.bus, self.config.shards))
        except Stopped:
            return
        for machine in self.machines:
            machine.remember(capacity)
        async with self.bus.serve(subjects.QUERY_METRICS, self._answer), asyncio.TaskGroup() as tasks:
            for runner in self.runners:
                tasks.create_task(runner.run(stopping))

    async def _answer(self, payload: bytes) -> AsyncIterator[bytes]:
        query = decode_query(payload)
        # Shards for which neither a result nor "in progress" has been sent.
        silent = {machine.shard for machine in self.machines}
        turn_ends = time.perf_counter() + TURN_S
        for machine, runner in zip(self.machines, self.runners, strict=True):
            while runner.progress.loading:
                # Without its snapshot, the shard would answer with zeros.
                for shard in sorted(silent):
                    yield encode_pending(shard)
                silent.clear()
                await asyncio.sleep(_LOADING_S)
            for result in pieces(machine.answer(query, runner.progress.caught_up)):
                if result is not None:
                    yield encode_result(replace(result, behind_ms=self._behind_ms(machine, runner)))
                    silent.discard(machine.shard)
                if time.perf_counter() > turn_ends:
                    # The api waits half a second for a shard, but ten seconds after it has replied "in progress".
                    for shard in sorted(silent):
                        yield encode_pending(shard)
                    silent.clear()
                    await asyncio.sleep(0)
                    turn_ends = time.perf_counter() + TURN_S

    def _behind_ms(self, machine: Shard, runner: Runner) -> int:
        """Return the age of the last message that was folded, milliseconds; 0 = all messages are folded."""
        if not machine.time_ns or (runner.progress.caught_up and not runner.progress.pending):
            return 0
        return max(self.bus.clock.now_ns() - machine.time_ns, 0) // MS

    def health(self) -> Health:
        """Return ready if the broker has no problem and every shard has caught up."""
        missing = list(self.bus.problems)
        missing += [
            f"shard {machine.shard}"
            for machine, runner in zip(self.machines, self.runners, strict=True)
            if not runner.progress.caught_up
        ]
        details = {
            "shards": [machine.shard for machine in self.machines],
            "lost": {str(m.shard): [[loss.first, loss.last] for loss in m.losses] for m in self.machines if m.losses},
            "trouble": [runner.progress.problem for runner in self.runners if runner.progress.problem],
            "too_many_models": [machine.shard for machine in self.machines if machine.too_many_models],
        }
        return Health(missing, {key: value for key, value in details.items() if value or key == "shards"})

    def samples(self) -> Iterator[Sample]:
        """Yield the aggregator's own metrics, for ``/internal/metrics``."""
        for machine, runner in zip(self.machines, self.runners, strict=True):
            labels = {"shard": str(machine.shard)}
            progress, left_out = runner.progress, machine.dedup.left_out
            for name, help_text, value in (
                ("spans_total", "Spans folded.", machine.spans),
                ("batches_total", "Batches folded.", machine.batches),
                (
                    "duplicate_batches_total",
                    "Batches skipped because they were folded before.",
                    left_out.repeated_batches,
                ),
                (
                    "repeated_total",
                    "Deprecated: use tokentrace_aggregator_duplicate_batches_total.",
                    left_out.repeated_batches,
                ),
                ("repeated_spans_total", "Spans that told a call again and were not counted.", left_out.repeated),
                ("late_total", "Spans too old for any bucket; only cumulative counters count them.", machine.late),
                ("clamped_total", "Spans that end too far in the future; they count at arrival.", machine.clamped),
                ("rejected_total", "Messages that could not be decoded.", progress.rejected),
                ("lag_messages", "Messages not read yet.", progress.pending),
            ):
                yield Sample(f"tokentrace_aggregator_{name}", help_text, value, labels)
