"""The aggregator's state, shard by shard: rollups, lifetime counters, metrics of one's own, what was folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from tokentrace.bad_data import reading
from tokentrace.bus import Message
from tokentrace.dedup import FoldedBatches
from tokentrace.errors import Rejected
from tokentrace.metrics import (
    Aggregates,
    Counter,
    Cumulative,
    CustomMetric,
    CustomRollup,
    Point,
    Query,
    Read,
    ReporterTotals,
    RollupReader,
    ShardResult,
    Work,
    add_custom,
)
from tokentrace.records import Batch, Position, ReporterStats, counts_as_cost, decode_batches
from tokentrace.rollup import (
    CLAMPED,
    HORIZON_NS,
    MAX_MODELS,
    OTHER,
    RESOLUTIONS,
    SPAN_SCHEMA,
    STATUS,
    CumulativeCounters,
    Rollup,
    SeriesTable,
    Steps,
    Sums,
    add_by,
    changes_in,
    cover,
    rows_of,
    score_rows,
    split_at,
)
from tokentrace.service.machine import Effect
from tokentrace.state import Part, Saved
from tokentrace.units import HOUR, MINUTE, SECOND

VERSION = 5
_MAX_LOSSES = 20
#: Rows wait this long for company before they are put into their buckets.
_SETTLE_NS = SECOND // 10
#: A reporter that has told nothing for this long has nothing waiting.
_QUIET_NS = 2 * MINUTE


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """
    Messages that a reader never saw.

    Attributes:
        until_ns: Stream time of the first message after them; 0 = none has come yet.
    """

    first: int
    last: int
    until_ns: int = 0


class Shard:
    """
    ``Machine`` of one shard.

    Args:
        custom: Metrics of one's own, measured beside the others.
    """

    def __init__(self, shard: int, shards: int, custom: Sequence[CustomMetric] = ()) -> None:
        self.shard = shard
        self._shards, self._custom = shards, tuple(custom)
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = SeriesTable()
        self._lifetime = CumulativeCounters()
        self._rollup = Rollup(self._table, RESOLUTIONS, SPAN_SCHEMA, self._lifetime)
        self._measured = {metric.name: CustomRollup(metric) for metric in self._custom}
        self._seen = FoldedBatches(self._shards)
        self._forgot_ns = self._settled_ns = self._time_ns = 0
        self.losses: list[Loss] = []
        #: Id -> number of its last batch, stream time of it, spans that waited then.
        self._queues: dict[str, tuple[int, int, int]] = {}
        self._sent = self._dropped = self._failed = self._clamped = 0
        self.spans = 0
        self.batches = 0
        self.repeated = 0

    @property
    def position(self) -> Position | None:
        """As ``Machine.position``."""
        return self._position

    @property
    def late(self) -> int:
        """Spans behind every tier: counted for life, in no window."""
        return self._rollup.late

    @property
    def clamped(self) -> int:
        """Spans that claimed to end over five minutes after they arrived, and count when they did."""
        return self._clamped

    @property
    def too_many_models(self) -> bool:
        """More models than are ever folded together: memory grows with each."""
        return self._table.distinct("model") > MAX_MODELS

    def fold(self, message: Message, created_ns: int) -> None:
        """As ``Machine.fold``."""
        self._position = Position(created_ns, message.sequence)
        if self.losses and self.losses[-1].until_ns == 0:
            last = self.losses.pop()
            self.losses.append(Loss(last.first, last.last, message.time_ns))
        for batch in decode_batches(message.payload):
            self._fold_batch(batch, message.time_ns)
        self._time_ns = max(self._time_ns, message.time_ns)
        if message.time_ns - self._forgot_ns > HOUR:
            self._forgot_ns = message.time_ns
            self._seen.forget(message.time_ns)

    def _fold_batch(self, batch: Batch, time_ns: int) -> None:
        if not self._seen.add(batch, time_ns):
            self.repeated += 1
            return
        self.batches += 1
        if batch.reporter is not None:
            self._account(batch, batch.reporter, time_ns)
        if batch.spans:
            self.spans += len(batch.spans)
            self._sent += len(batch.spans) if batch.sequence else 0
            rows = rows_of(batch.spans, self._table, time_ns)
            self._clamped += int((rows[:, STATUS] >= CLAMPED).sum())
            self._rollup.fold(rows)
            for measured in self._measured.values():
                measured.fold(batch.spans, time_ns)
        if batch.scores:
            changes = changes_in(batch.scores)
            self._rollup.change(score_rows(changes, self._table.number_of, time_ns))
            for measured in self._measured.values():
                measured.change(changes, time_ns)

    def _account(self, batch: Batch, stats: ReporterStats, time_ns: int) -> None:
        self._dropped += stats.newly_dropped
        self._failed += stats.newly_failed
        held = self._queues.get(batch.id)
        if held is None or held[0] <= batch.sequence:
            self._queues[batch.id] = (batch.sequence, time_ns, stats.queue_depth)

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """As ``Machine.lost``."""
        self._position = Position(created_ns, last)
        self.losses = [*self.losses, Loss(first, last)][-_MAX_LOSSES:]

    def rewound(self, created_ns: int) -> None:
        """As ``Machine.rewound``; what was folded stays folded, and what comes again is known."""
        self._position = Position(created_ns, 0)

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """As ``Machine.tick``: nothing is due, only old buckets go."""
        if now_ns - self._settled_ns >= _SETTLE_NS:
            self._settled_ns = now_ns
            self._rollup.settle()
            self._rollup.evict(now_ns)
            for measured in self._measured.values():
                measured.tick(now_ns)
            quiet = [name for name, (_, told_ns, _) in self._queues.items() if told_ns < now_ns - _QUIET_NS]
            for name in quiet:
                del self._queues[name]
        return ()

    def performed(self, effect: Effect) -> None:
        """As ``Machine.performed``: there never are any."""

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """As ``Machine.snapshot``; a part is a stretch of a tier."""
        rollup, parts = self._rollup.snapshot({name: revision for name, revision in saved.items() if ":" not in name})
        named: dict[str, Part] = dict(parts)
        custom = {}
        for name, measured in self._measured.items():
            custom[name], parts = measured.snapshot(_below(f"{name}:", saved))
            named |= {f"{name}:{part}": value for part, value in parts.items()}
        state = {
            "version": VERSION,
            "shard": self.shard,
            "shards": self._shards,
            "position": self._position,
            "cells": list(self._table.cells),
            "lifetime": self._lifetime.snapshot(),
            "rollup": rollup,
            "custom": custom,
            "seen": self._seen.snapshot(),
            "forgot_ns": self._forgot_ns,
            "time_ns": self._time_ns,
            "losses": self.losses,
            "queues": dict(self._queues),
            "counts": [self.spans, self.batches, self.repeated, self._sent, self._dropped, self._failed, self._clamped],
        }
        return Saved(partial(msgspec.msgpack.encode, state), named)

    def restore(self, state: bytes, parts: Mapping[str, bytes]) -> None:
        """As ``Machine.restore``."""
        try:
            with reading("cannot be read"):
                self._restore(msgspec.msgpack.decode(state), parts)
        except Rejected:
            self._reset()
            raise

    def _restore(self, saved: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
        if saved["version"] != VERSION:
            raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
        if (saved["shard"], saved["shards"]) != (self.shard, self._shards):
            raise Rejected(f"of shard {saved['shard']} of {saved['shards']}, this is {self.shard} of {self._shards}")
        self._position = msgspec.convert(saved["position"], Position | None)
        self._table = SeriesTable(saved["cells"])
        self._lifetime.restore(saved["lifetime"])
        own = {name: data for name, data in parts.items() if ":" not in name}
        self._rollup = Rollup.restore(self._table, saved["rollup"], own, RESOLUTIONS, SPAN_SCHEMA, self._lifetime)
        self._time_ns, self._forgot_ns = msgspec.convert([saved["time_ns"], saved["forgot_ns"]], tuple[int, int])
        for name, measured in self._measured.items():
            held = saved["custom"].get(name)
            if held is None or not measured.restore(held, _below(f"{name}:", parts)):
                measured.since_ns = self._time_ns
        self._seen = FoldedBatches.restore(saved["seen"])
        self.losses = msgspec.convert(saved["losses"], list[Loss])
        self._queues = msgspec.convert(saved["queues"], dict[str, tuple[int, int, int]])
        (
            self.spans,
            self.batches,
            self.repeated,
            self._sent,
            self._dropped,
            self._failed,
            self._clamped,
        ) = msgspec.convert(saved["counts"], tuple[int, int, int, int, int, int, int])

    def since_ns(self, now_ns: int) -> int:
        """Before this instant something is missing; 0 = nothing is. Losses older than every window do not count."""
        recent = [loss.until_ns or now_ns for loss in self.losses]
        return max((until for until in recent if until > now_ns - HORIZON_NS), default=0)

    def answer(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        """This shard's part of the answer to *query*, piece by piece, so that others get a turn."""
        if query.what == "lifetime":
            return self._answer_lifetime(caught_up)
        if query.what == "series":
            return (yield from self._answer_series(query, caught_up))
        return (yield from self._answer_window(query, caught_up))

    def _answer_lifetime(self, caught_up: bool) -> ShardResult:
        self._rollup.settle()
        return ShardResult(
            shard=self.shard,
            position=self._position,
            caught_up=caught_up,
            total=Aggregates(sums=self._lifetime_sums()),
            transport=self._transport(),
            lived=self._lived(),
        )

    def _answer_window(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        from_s, since_ns = self._bounds(query)
        stretches = cover(from_s, query.to_s, query.now_s)
        position, transport = self._position, self._transport()
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
        )

    def _answer_series(self, query: Query, caught_up: bool) -> Work[ShardResult]:
        from_s, since_ns = self._bounds(query)
        reader, points = RollupReader(self._rollup, self._table, query), []
        steps = split_at(from_s, query.to_s, query.now_s, query.step_s)
        for portion in self._rollup.portions(steps):
            found = yield from self._read(reader, portion, query)
            for stretches, (total, groups, _) in zip(portion, found, strict=True):
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
        )

    def _read(self, reader: RollupReader, steps: Steps, query: Query) -> Work[list[Read]]:
        asked = [name for name in query.custom if name in self._measured]
        measured = {name: self._measured[name].read(steps, query) for name in asked}
        found = yield from reader.reading(steps)
        add_custom(found, measured)
        return found

    def _bounds(self, query: Query) -> tuple[int, int]:
        """(From when there is something to read, Unix seconds; since when nothing is missing, ns, 0 = always)."""
        oldest = query.now_s - HORIZON_NS // SECOND
        if max(query.from_s, oldest) >= query.to_s:
            raise Rejected("query: its interval is empty or lies behind everything that is kept")
        since = self.since_ns(query.now_s * SECOND)
        if query.from_s < oldest:
            since = max(since, oldest * SECOND)
        own = [self._measured[name].since_ns for name in query.custom if name in self._measured]
        return max(query.from_s, oldest), max([since, *(at for at in own if at > query.from_s * SECOND)])

    def _transport(self) -> ReporterTotals:
        queues = {name: (number, depth) for name, (number, _, depth) in self._queues.items()}
        return ReporterTotals(sent=self._sent, dropped=self._dropped, failed=self._failed, queues=queues)

    def _lifetime_sums(self) -> Sums:
        """Over every kind; money over those that cost."""
        totals, table = self._lifetime.totals, self._table
        everything = Sums.of(add_by(np.zeros(len(totals), np.int64), totals, 1))
        paying = np.array([0 if counts_as_cost(cell.kind) else -1 for cell in table.cells[: len(totals)]], np.int64)
        paid = Sums.of(add_by(paying, totals, 1))
        everything.cost, everything.unpriced, everything.partly_priced = paid.cost, paid.unpriced, paid.partly_priced
        return everything

    def _lived(self) -> Cumulative:
        lifetime, table = self._lifetime, self._table
        by_operation: dict[str, tuple[int, int]] = {}
        counters: dict[tuple[str, str, str, str], Counter] = {}
        shown = _at_most(table, "model", MAX_MODELS)
        for number in range(len(lifetime.totals)):
            cell, sums = table.cells[number], Sums.of(lifetime.totals, number)
            if sums.spans:  # a score of a span that another shard has counted makes a cell too
                count, errors = by_operation.get(cell.name, (0, 0))
                by_operation[cell.name] = (count + sums.spans, errors + sums.errors)
            key = (shown[cell.model], cell.provider, cell.caller, cell.status)
            counter = counters.setdefault(key, Counter(model=key[0], provider=key[1], caller=key[2], status=key[3]))
            cost = sums.cost if counts_as_cost(cell.kind) else 0
            counter.sums.add(sums if cell.kind == "llm" else Sums(cost=cost))
        return Cumulative(
            by_operation=by_operation,
            walls=lifetime.walls.tolist(),
            longest_ns=lifetime.longest_ns,
            counters=list(counters.values()),
            histograms=self._histograms(shown),
            custom={name: measured.lived() for name, measured in self._measured.items()},
            clamped=self._clamped,
            lost=[(self.shard, loss.first, loss.last) for loss in self.losses],
        )

    def _histograms(self, shown: Mapping[str, str]) -> dict[str, list[list[int]]]:
        """The documented histograms of model calls, by model."""
        histograms = self._lifetime.histograms
        models = [shown[cell.model] if cell.kind == "llm" else "" for cell in self._table.cells[: len(histograms)]]
        own = np.array(models, dtype=object)
        return {model: histograms[own == model].sum(axis=0).tolist() for model in sorted({*models} - {""})}


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """What is named *prefix* and more, without it."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _at_most(table: SeriesTable, dimension: str, most: int) -> dict[str, str]:
    """Value of *dimension* -> the label it is shown under: its own for the first *most* that ever came, else other."""
    _, known = table.column(dimension)
    return {value: value if code < most else OTHER for value, code in known.items()}
