"""The aggregator's state, shard by shard: rollups, lifetime counters, what was folded."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokentrace.cell import MAX_MODELS, Sums, Table, rows_of
from tokentrace.errors import Rejected
from tokentrace.lifetime import Lifetime
from tokentrace.machine import Effect, Message
from tokentrace.metric.query import Figures, Partial, Query
from tokentrace.metric.reader import Reader
from tokentrace.records import Batch, ReporterStats, counts_as_cost, decode_batches
from tokentrace.records.position import Position
from tokentrace.seen import Seen
from tokentrace.units import HOUR, SECOND
from tokentrace.window import HORIZON_NS, Rollup, plan

VERSION = 2
_MAX_LOSSES = 20


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
    """``Machine`` of one shard."""

    def __init__(self, shard: int, shards: int) -> None:
        self.shard = shard
        self._shards = shards
        self._reset()

    def _reset(self) -> None:
        self._position: Position | None = None
        self._table = Table()
        self._rollup = Rollup(self._table)
        self._seen = Seen(self._shards)
        self._forgot_ns = 0
        self.losses: list[Loss] = []
        self.reporters: dict[str, tuple[int, ReporterStats]] = {}
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
        if message.time_ns - self._forgot_ns > HOUR:
            self._forget(message.time_ns)

    def _fold_batch(self, batch: Batch, time_ns: int) -> None:
        if not self._seen.add(batch, time_ns):
            self.repeated += 1
            return
        self.batches += 1
        if batch.reporter is not None:
            held = self.reporters.get(batch.id)
            if held is None or held[0] <= batch.sequence:
                self.reporters[batch.id] = (batch.sequence, batch.reporter)
        if batch.spans:
            self.spans += len(batch.spans)
            rows = rows_of(batch.spans, self._table, time_ns)
            self._rollup.fold(rows)

    def _forget(self, now_ns: int) -> None:
        self._forgot_ns = now_ns
        self._seen.forget(now_ns)
        known = self._seen.reporters()
        self.reporters = {key: value for key, value in self.reporters.items() if key in known}

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """As ``Machine.lost``."""
        self._position = Position(created_ns, last)
        self.losses = [*self.losses, Loss(first, last)][-_MAX_LOSSES:]

    def rewound(self, created_ns: int) -> None:
        """As ``Machine.rewound``; what was folded stays folded, and what comes again is known."""
        self._position = Position(created_ns, 0)

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """As ``Machine.tick``: nothing is due, only old buckets go."""
        self._rollup.settle()
        self._rollup.evict(now_ns)
        return ()

    def performed(self, effect: Effect) -> None:
        """As ``Machine.performed``: there never are any."""

    def snapshot(self) -> bytes:
        """As ``Machine.snapshot``."""
        state = {
            "version": VERSION,
            "shard": self.shard,
            "shards": self._shards,
            "position": self._position,
            "cells": self._table.cells,
            "rollup": self._rollup.snapshot(),
            "seen": self._seen.snapshot(),
            "forgot_ns": self._forgot_ns,
            "losses": self.losses,
            "reporters": self.reporters,
            "counts": [self.spans, self.batches, self.repeated],
        }
        return zlib.compress(msgspec.msgpack.encode(state), level=1)

    def restore(self, state: bytes) -> None:
        """As ``Machine.restore``."""
        try:
            saved = msgspec.msgpack.decode(zlib.decompress(state))
            if saved["version"] != VERSION:
                raise Rejected(f"written by version {saved['version']}, this is {VERSION}")
            if (saved["shard"], saved["shards"]) != (self.shard, self._shards):
                raise Rejected(
                    f"of shard {saved['shard']} of {saved['shards']}, this is {self.shard} of {self._shards}"
                )
            self._restore(saved)
        except Rejected:
            self._reset()
            raise
        except (zlib.error, msgspec.DecodeError, msgspec.ValidationError, ValueError, KeyError, TypeError) as exc:
            self._reset()
            raise Rejected(f"cannot be read: {exc}") from exc

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._position = msgspec.convert(saved["position"], Position | None)
        self._table = Table(saved["cells"])
        self._rollup = Rollup.restore(self._table, saved["rollup"])
        self._seen = Seen.restore(saved["seen"])
        self._forgot_ns = saved["forgot_ns"]
        self.losses = msgspec.convert(saved["losses"], list[Loss])
        self.reporters = msgspec.convert(saved["reporters"], dict[str, tuple[int, ReporterStats]])
        self.spans, self.batches, self.repeated = saved["counts"]

    def since_ns(self, now_ns: int) -> int:
        """Before this instant something is missing; 0 = nothing is. Losses older than every window do not count."""
        recent = [loss.until_ns or now_ns for loss in self.losses]
        return max((until for until in recent if until > now_ns - HORIZON_NS), default=0)

    def answer(self, query: Query, caught_up: bool) -> Partial:
        """This shard's part of the answer to *query*."""
        if query.what == "lifetime":
            return self._lifetime(caught_up)
        now_s = query.now_s
        oldest = now_s - HORIZON_NS // SECOND
        if max(query.from_s, oldest) >= query.to_s:
            raise Rejected("query: its interval is empty or lies behind everything that is kept")
        stretches = plan(max(query.from_s, oldest), query.to_s, now_s)
        total, groups = Reader(self._rollup, self._table, query).read(stretches)
        since = self.since_ns(now_s * SECOND)
        if query.from_s < oldest:
            since = max(since, oldest * SECOND)
        return Partial(
            shard=self.shard,
            position=self._position,
            caught_up=caught_up,
            from_s=stretches[0].start_s,
            to_s=stretches[-1].end_s,
            since_ns=since,
            total=total,
            groups=groups,
        )

    def _lifetime(self, caught_up: bool) -> Partial:
        self._rollup.settle()
        lifetime: Lifetime = self._rollup.lifetime
        total = Sums()
        by_operation: dict[str, tuple[int, int]] = {}
        for cell, row in zip(self._table.cells, lifetime.sums, strict=False):
            sums = Sums.of(row)
            if not counts_as_cost(cell.kind):
                sums.cost = sums.unpriced = sums.partly_priced = 0
            total.add(sums)
            count, errors = by_operation.get(cell.name, (0, 0))
            by_operation[cell.name] = (count + sums.spans, errors + sums.errors)
        return Partial(
            shard=self.shard,
            position=self._position,
            caught_up=caught_up,
            total=Figures(sums=total),
            by_operation=by_operation,
            walls=lifetime.walls.tolist(),
            longest_ns=lifetime.longest_ns,
        )
