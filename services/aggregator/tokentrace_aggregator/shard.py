"""The state of one shard: rollups, cumulative counters, custom metrics, and which batches it has folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Message, subjects
from tokentrace.dedup import Deduplicator, Digest, FoldedBatches, LeftOut, capacity_for
from tokentrace.errors import Rejected
from tokentrace.metrics import (
    Aggregates,
    Cumulative,
    CustomMetric,
    CustomRollup,
    DimensionUse,
    Point,
    Query,
    Read,
    ReporterTotals,
    RollupReader,
    ShardResult,
    ToldTwice,
    Work,
    add_custom,
)
from tokentrace.records import Batch, Position, ReporterStats
from tokentrace.rollup import (
    CLAMPED,
    FOLDABLE,
    HORIZON_NS,
    OTHER,
    REASONS,
    RESOLUTIONS,
    SPAN_SCHEMA,
    STATUS,
    CumulativeCounters,
    Rollup,
    SeriesTable,
    Steps,
    changes_in,
    cover,
    cover_in_steps,
    decode_part,
    rows_of,
    score_rows,
)
from tokentrace.service.machine import Effect
from tokentrace.state import Part, Saved
from tokentrace.units import MS, SECOND
from tokentrace_aggregator import lifetime

VERSION = 7
#: The last version whose snapshots had no memory of calls, and the last one without limits of models and providers;
#: they are converted.
_WITHOUT_CALLS, _WITHOUT_LIMITS = 5, 6
#: First characters of the names of the parts of a snapshot that hold the memory of calls.
_CALLS = "@calls."
_MAX_LOSSES = 20
#: Pause between two ticks that add waiting rows to their buckets, nanoseconds.
_SETTLE_NS = SECOND // 10
#: A reporter that has sent no batch for this long is assumed to have no waiting spans, nanoseconds.
_QUIET_NS = 30 * SECOND
#: Most reporters whose waiting spans are kept; beyond it, the one that was silent the longest counts as 0.
_MAX_QUEUES = 1000


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """
    Messages that the stream discarded before this reader read them.

    Attributes:
        first, last: Sequences of the first and the last of these messages.
        until_ns: Stream time of the next message that was read, Unix nanoseconds; 0 = none was read yet.
    """

    first: int
    last: int
    until_ns: int = 0


class Shard:
    """
    The ``Machine`` of one shard.

    Args:
        shard: Number of the shard.
        shards: Shard count.
        custom: Custom metrics to be measured.
        capacity: Number of calls that are remembered; None = the number for *shards*.

    Attributes:
        losses: The last 20 gaps in the log, in order.
        spans, batches: Number of spans and of batches folded.
        dedup: What was folded before.
    """

    def __init__(
        self, shard: int, shards: int, custom: Sequence[CustomMetric] = (), *, capacity: int | None = None
    ) -> None:
        self.shard = shard
        self._capacity = capacity or capacity_for(shards)
        self._shards, self._custom = shards, tuple(custom)
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = SeriesTable()
        self._cumulative = CumulativeCounters()
        self._rollup = Rollup(self._table, RESOLUTIONS, SPAN_SCHEMA, self._cumulative)
        self._custom_rollups = {metric.name: CustomRollup(metric) for metric in self._custom}
        self.dedup = Deduplicator(self._shards, self._capacity)
        self._settled_ns = self._time_ns = 0
        self.losses: list[Loss] = []
        #: Reporter -> (number of its last batch, stream time of that batch, spans that waited in the reporter then).
        self._queues: dict[str, tuple[int, int, int]] = {}
        self._sent = self._dropped = self._failed = self._clamped = 0
        self._told_twice = ToldTwice()
        self.spans = 0
        self.batches = 0

    def remember(self, capacity: int) -> None:
        """Remember *capacity* calls; only before the first message is folded or a snapshot is restored."""
        self._capacity = capacity
        self.dedup = Deduplicator(self._shards, capacity)

    @property
    def position(self) -> Position | None:
        """The last message folded, as ``Machine.position``."""
        return self._position

    @property
    def digests(self) -> Mapping[int, Sequence[Digest]]:
        """As ``Machine.digests``."""
        return {self.shard: self.dedup.digests}

    @property
    def late(self) -> int:
        """Number of spans too old for any bucket: cumulative counters count them, windows do not."""
        return self._rollup.late

    @property
    def clamped(self) -> int:
        """Number of spans that end over five minutes after their arrival; they count at their arrival."""
        return self._clamped

    @property
    def too_many_models(self) -> bool:
        """True if there are more than 500 models, so that later ones are counted as ``other``."""
        return bool(self._table.folded_count("model"))

    @property
    def time_ns(self) -> int:
        """Stream time of the last message folded, Unix nanoseconds; 0 = none was folded yet."""
        return self._time_ns

    def fold(self, message: Message, created_ns: int) -> None:
        """Fold one message, as ``Machine.fold``."""
        self._position = Position(created_ns, message.sequence)
        if self.losses and self.losses[-1].until_ns == 0:
            last = self.losses.pop()
            self.losses.append(Loss(last.first, last.last, message.time_ns))
        project = subjects.parse_project(message.subject)
        for batch, taken in self.dedup.taken_from(message.payload, message.sequence, message.time_ns, project):
            if batch.sequence and not taken.skipped:
                self._sent += len(batch.spans)
            if taken.batch is not None:
                self._fold_batch(taken.batch, message.time_ns)
        self._time_ns = max(self._time_ns, message.time_ns)

    def _fold_batch(self, batch: Batch, time_ns: int) -> None:
        self.batches += 1
        if batch.reporter is not None:
            self._account(batch, batch.reporter, time_ns)
        if batch.spans:
            self.spans += len(batch.spans)
            self._told_twice = lifetime.with_told_twice(self._told_twice, batch.spans)
            rows = rows_of(batch.spans, self._table, time_ns)
            self._clamped += int((rows[:, STATUS] >= CLAMPED).sum())
            self._rollup.fold(rows)
            for rollup in self._custom_rollups.values():
                rollup.fold(batch.spans, time_ns)
        if batch.scores:
            changes = changes_in(batch.scores)
            self._rollup.change(score_rows(changes, self._table.number_of, time_ns))
            for rollup in self._custom_rollups.values():
                rollup.change(changes, time_ns)

    def _account(self, batch: Batch, stats: ReporterStats, time_ns: int) -> None:
        self._dropped += stats.newly_dropped
        self._failed += stats.newly_failed
        held = self._queues.get(batch.id)
        if held is None or held[0] <= batch.sequence:
            # Last in the order of the keys, so that the first one was silent the longest.
            self._queues.pop(batch.id, None)
            self._queues[batch.id] = (batch.sequence, time_ns, stats.queue_depth)
            if len(self._queues) > _MAX_QUEUES:
                del self._queues[next(iter(self._queues))]

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """Record a gap in the log, as ``Machine.lost``."""
        self._position = Position(created_ns, last)
        self.losses = [*self.losses, Loss(first, last)][-_MAX_LOSSES:]

    def rewound(self, created_ns: int) -> None:
        """Continue at the first message of the stream, as ``Machine.rewound``; what was folded before is skipped."""
        self._position = Position(created_ns, 0)
        self.dedup.rewound()

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """Add waiting rows and drop old buckets, at most every 0.1 s; return no effects."""
        if now_ns - self._settled_ns >= _SETTLE_NS:
            self._settled_ns = now_ns
            self._rollup.settle()
            self._rollup.evict(now_ns)
            for rollup in self._custom_rollups.values():
                rollup.tick(now_ns)
            quiet = [name for name, (_, sent_ns, _) in self._queues.items() if sent_ns < now_ns - _QUIET_NS]
            for name in quiet:
                del self._queues[name]
        return ()

    def performed(self, effect: Effect) -> None:
        """Do nothing: there are no effects."""

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``; a part holds consecutive buckets of one resolution."""
        rollup, parts = self._rollup.snapshot({name: revision for name, revision in saved.items() if ":" not in name})
        dedup, calls = self.dedup.snapshot(_CALLS, saved)
        named: dict[str, Part] = {**parts, **calls}
        custom = {}
        for name, custom_rollup in self._custom_rollups.items():
            custom[name], parts = custom_rollup.snapshot(_below(f"{name}:", saved))
            named |= {f"{name}:{part}": value for part, value in parts.items()}
        state = {
            "version": VERSION,
            "shard": self.shard,
            "shards": self._shards,
            "position": self._position,
            "cells": list(self._table.series),
            "folded": self._table.folded_snapshot(),
            "lifetime": self._cumulative.snapshot(),
            "rollup": rollup,
            "custom": custom,
            "dedup": dedup,
            "time_ns": self._time_ns,
            "losses": self.losses,
            "queues": dict(self._queues),
            "told_twice": self._told_twice,
            "counts": [self.spans, self.batches, self._sent, self._dropped, self._failed, self._clamped],
        }
        return Saved(partial(msgspec.msgpack.encode, state), named)

    def decode_part(self, name: str, data: bytes) -> Any:
        """As ``Machine.decode_part``."""
        if name.startswith(_CALLS):
            return data
        return CustomRollup.decode_part(data) if ":" in name else decode_part(data)

    def restore(self, state: bytes, parts: Mapping[str, Any]) -> None:
        """As ``Machine.restore``; raise ``Rejected`` and start empty if the snapshot cannot be used."""
        try:
            with reading("cannot be read"):
                self._restore(msgspec.msgpack.decode(state), parts)
        except Rejected:
            self._reset()
            raise

    def _restore(self, saved: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        if saved["version"] not in (_WITHOUT_CALLS, _WITHOUT_LIMITS, VERSION):
            raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
        if (saved["shard"], saved["shards"]) != (self.shard, self._shards):
            raise Rejected(f"of shard {saved['shard']} of {saved['shards']}, this is {self.shard} of {self._shards}")
        self._position = msgspec.convert(saved["position"], Position | None)
        self._table = SeriesTable(saved["cells"], folded=saved.get("folded"))
        self._cumulative.restore(saved["lifetime"])
        span_parts = {name: data for name, data in parts.items() if ":" not in name and not name.startswith(_CALLS)}
        self._rollup = Rollup.restore(
            self._table, saved["rollup"], span_parts, RESOLUTIONS, SPAN_SCHEMA, self._cumulative
        )
        self._time_ns = msgspec.convert(saved["time_ns"], int)
        for name, rollup in self._custom_rollups.items():
            held = saved["custom"].get(name)
            if held is None or not rollup.restore(held, _below(f"{name}:", parts)):
                rollup.since_ns = self._time_ns
        if saved["version"] <= _WITHOUT_LIMITS:
            self._keep_limits()
        counts = msgspec.convert(saved["counts"], list[int])
        if saved["version"] == _WITHOUT_CALLS:
            self.dedup.batches = FoldedBatches.restore(saved["seen"])
            self.dedup.left_out = LeftOut(counts.pop(2))
        else:
            self.dedup.restore(saved["dedup"], parts, _CALLS)
        self.losses = msgspec.convert(saved["losses"], list[Loss])
        self._queues = msgspec.convert(saved["queues"], dict[str, tuple[int, int, int]])
        # Snapshots of earlier versions have no such count.
        self._told_twice = msgspec.convert(saved.get("told_twice", []), ToldTwice)
        self.spans, self.batches, self._sent, self._dropped, self._failed, self._clamped = counts

    def _keep_limits(self) -> None:
        """Count the models and providers beyond the limits, which an earlier version kept apart, under ``other``."""
        until_s = self._time_ns // SECOND
        self._table.forget_before(until_s)
        if self._table.is_over_limits:
            self._table, numbers = self._table.within_limits()
            self._rollup.renumber(self._table, numbers)
            self._cumulative.renumber(numbers, len(self._table))
        for rollup in self._custom_rollups.values():
            rollup.keep_limits(until_s)

    def since_ns(self, now_ns: int) -> int:
        """
        Return the stream time before which data is incomplete because of a gap, Unix nanoseconds; 0 = it is complete.

        Gaps that ended more than 31 days ago are ignored.
        """
        recent = [loss.until_ns or now_ns for loss in self.losses]
        return max((until for until in recent if until > now_ns - HORIZON_NS), default=0)

    def answer(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        """Compute the result of this shard for *query*, piece by piece so that folding can go on in between."""
        if query.what == "lifetime":
            return self._answer_cumulative(caught_up)
        if query.what == "series":
            return (yield from self._answer_series(query, caught_up))
        return (yield from self._answer_window(query, caught_up))

    def _answer_cumulative(self, caught_up: bool) -> ShardResult:
        self._rollup.settle()
        return ShardResult(
            shard=self.shard,
            position=self._position,
            caught_up=caught_up,
            total=Aggregates(sums=lifetime.total_of(self._table, self._cumulative)),
            transport=self._transport(),
            told_twice=self._told_twice,
            cumulative=self._cumulative_counters(),
            exact=self._exact(Query(), FOLDABLE),
        )

    def _answer_window(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        from_s, since_ns = self._bounds(query)
        stretches = cover(from_s, query.to_s, query.now_s)
        position, transport, told_twice = self._position, self._transport(), self._told_twice
        reader = RollupReader(self._rollup, self._table, query)
        [(total, groups, models)] = yield from self._read(reader, [stretches], query)
        return ShardResult(
            shard=self.shard,
            position=position,
            caught_up=caught_up,
            from_s=stretches[0].start_s,
            to_s=stretches[-1].end_s,
            since_ns=since_ns,
            total=total,
            groups=groups,
            models=models,
            transport=transport,
            told_twice=told_twice,
            exact=self._exact(query),
            inexact=self._inexact(query, stretches[0].start_s),
        )

    def _answer_series(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        from_s, since_ns = self._bounds(query)
        reader, points = RollupReader(self._rollup, self._table, query), []
        steps = cover_in_steps(from_s, query.to_s, query.now_s, query.step_s)
        for portion in self._rollup.portions(steps):
            results = yield from self._read(reader, portion, query)
            for stretches, (total, groups, _) in zip(portion, results, strict=True):
                points.append(Point(start_s=stretches[0].start_s, total=total, groups=groups))
            yield
        return ShardResult(
            shard=self.shard,
            position=self._position,
            caught_up=caught_up,
            from_s=steps[0][0].start_s,
            to_s=steps[-1][-1].end_s,
            since_ns=since_ns,
            points=points,
            exact=self._exact(query),
            inexact=self._inexact(query, steps[0][0].start_s),
        )

    def _read(self, reader: RollupReader, steps: Steps, query: Query) -> Work[list[Read]]:
        names = [name for name in query.custom if name in self._custom_rollups]
        measured = {name: self._custom_rollups[name].read(steps, query) for name in names}
        results = yield from reader.reading(steps)
        add_custom(results, measured)
        return results

    def _bounds(self, query: Query) -> tuple[int, int]:
        """Return (start of the interval, at most 31 days ago, Unix seconds; ``since_ns`` of the result)."""
        oldest = query.now_s - HORIZON_NS // SECOND
        if max(query.from_s, oldest) >= query.to_s:
            raise Rejected("query: its interval is empty or older than the 31 days that are kept")
        since = self.since_ns(query.now_s * SECOND)
        if query.from_s < oldest:
            since = max(since, oldest * SECOND)
        custom = [self._custom_rollups[name].since_ns for name in query.custom if name in self._custom_rollups]
        return max(query.from_s, oldest), max([since, *(at for at in custom if at > query.from_s * SECOND)])

    def _transport(self) -> ReporterTotals:
        queues = {name: (number, depth) for name, (number, _, depth) in self._queues.items()}
        return ReporterTotals(sent=self._sent, dropped=self._dropped, failed=self._failed, queues=queues)

    def _cumulative_counters(self) -> Cumulative:
        cumulative, table, batches = self._cumulative, self._table, self.dedup.batches
        return Cumulative(
            by_operation=lifetime.by_operation(table, cumulative),
            walls=cumulative.walls.tolist(),
            longest_ns=cumulative.longest_ns,
            counters=lifetime.counters_of(table, cumulative),
            histograms=lifetime.histograms_of(table, cumulative),
            custom={name: rollup.cumulative() for name, rollup in self._custom_rollups.items()},
            clamped=self._clamped,
            lost=[(self.shard, loss.first, loss.last) for loss in self.losses],
            left_out=self.dedup.left_out,
            remembered=len(self.dedup.calls),
            oldest_call_ms=self.dedup.calls.oldest_start_ms,
            unpriced_tokens=dict(zip(REASONS, cumulative.unpriced_tokens, strict=True)),
            dimensions={name: DimensionUse(table.separate(name), table.folded_count(name)) for name in FOLDABLE},
            series=len(table),
            reporters=batches.reporter_count,
            reporters_since_ms=batches.forgotten_ns // MS,
            late=self.late,
        )

    def _tables(self, query: Query) -> list[SeriesTable]:
        """Return the tables of the series that answer *query*."""
        custom = (self._custom_rollups[name].table for name in query.custom if name in self._custom_rollups)
        return [self._table, *custom]

    def _exact(self, query: Query, dimensions: Sequence[str] = ()) -> dict[str, list[str]]:
        """Return ``ShardResult.exact`` for the dimensions that the result of *query* shows, and for *dimensions*."""
        others = [dimension for dimension, value in query.filters.items() if value == OTHER]
        shown = {query.groupby, *others, *dimensions, *(("model",) if query.by_model else ())}
        exact = {}
        for dimension in shown.intersection(FOLDABLE):
            known = [values for table in self._tables(query) if (values := table.exact(dimension)) is not None]
            if known:
                exact[dimension] = sorted(set(known[0]).intersection(*known[1:]))
        return exact

    def _inexact(self, query: Query, from_s: int) -> list[str]:
        """Return ``ShardResult.inexact`` for an interval that begins at *from_s*, Unix seconds."""
        return sorted({name for table in self._tables(query) for name in table.inexact(query.filters, from_s)})


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items of *named* whose name begins with *prefix*, which is removed from the names."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
