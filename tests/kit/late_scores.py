"""Helpers for tests of late scores: shards, records of scores, queries, and expected answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from kit.builders import make_span
from kit.shard_results import as_received
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.metrics import (
    Answer,
    CustomMetric,
    Query,
    finish,
    merge_results,
)
from tokentrace.metrics.quality import render_quality
from tokentrace.records import Batch, Score, Span, encode_batches
from tokentrace_aggregator.shard import Shard

NOW_S = 1_790_000_000
SECOND = 10**9
ONE = 10**9
QUALITY = Query(from_s=NOW_S - 3600, to_s=NOW_S + 1, now_s=NOW_S, fields=["score"])

CUSTOM = (
    CustomMetric(name="mean", type="avg", field="attr.eval.score"),
    CustomMetric(name="p95", type="p95", field="attr.eval.helpful"),
    CustomMetric(name="legal", type="sum", field="attr.eval.score", filter_key="doc", filter_val="legal"),
    CustomMetric(name="gpt", type="count", field="attr.eval.helpful", filter_key="model", filter_val="gpt-4o"),
    CustomMetric(name="rated", type="count", filter_key="eval.helpful"),
    CustomMetric(name="best", type="count", filter_key="eval.helpful", filter_val="1.0"),
    CustomMetric(name="steps", type="sum", field="attr.step", filter_key="attr.eval.helpful"),
    CustomMetric(name="all_steps", type="avg", field="attr.step"),
)


def scored(span: Span, value: int | None, previous: int | None, name: str = "eval.score") -> Score:
    """Return the record that the api publishes when a score of *span* changes from *previous* to *value*."""
    return Score(
        trace_id=span.trace_id,
        span_id=span.span_id,
        name=name,
        value=value,
        previous=previous,
        kind=span.kind,
        model=span.model,
        provider=span.provider,
        caller=span.caller,
        span_name=span.name,
        status=span.status,
        ended_ns=span.ended_ns,
        arrived_ns=span.arrived_ns,
        attributes=span.attributes,
    )


def call(age_s: float = 10, **fields: Any) -> Span:
    """Return a call that ended *age_s* seconds before NOW_S."""
    ended = NOW_S * SECOND - round(age_s * SECOND)
    return make_span(**{"ended_ns": ended, "started_ns": ended, "arrived_ns": ended, **fields})


class ShardSet:
    """Some shards that fold batches and answer queries together."""

    def __init__(self, shards: int = 1, custom: Sequence[CustomMetric] = ()) -> None:
        self._custom = custom
        self._shards = [Shard(number, shards, custom, capacity=CAPACITY) for number in range(shards)]
        self._sent = 0

    def send(self, shard: int = 0, *, spans: Sequence[Span] = (), scores: Sequence[Score] = (), id: str = "") -> None:
        """Fold one batch into a shard."""
        self._sent += 1
        payload = encode_batches([Batch(id=id or f"b{self._sent}", spans=list(spans), scores=list(scores))])
        subject = f"tokentrace.spans.default.{shard}"
        self._shards[shard].fold(Message(subject, payload, self._sent, NOW_S * SECOND, {}), 7)

    def restart(self, shard: int) -> None:
        """Replace a shard by a new one that is restored from its snapshot."""
        snapshot = save(self._shards[shard])
        self._shards[shard] = Shard(shard, len(self._shards), self._custom, capacity=CAPACITY)
        load(self._shards[shard], snapshot)

    def settle(self, shard: int) -> None:
        """Tick a shard, so that it adds its waiting rows to the rollups."""
        self._shards[shard].tick((NOW_S + self._sent) * SECOND)

    def ask(self, query: Query = QUALITY) -> Answer:
        """Return the merged results of all shards; each result is encoded and decoded first."""
        results = [as_received(finish(shard.answer(query, True))) for shard in self._shards]
        return merge_results(results, len(results), query)

    def quality(self, query: Query = QUALITY) -> dict[str, Any]:
        """Return the numbers of ``GET /metrics/quality`` for *query*."""
        return render_quality(self.ask(query).total)


def shows(scores: Sequence[float]) -> dict[str, Any]:
    """Return the expected numbers of ``GET /metrics/quality`` for *scores*."""
    return {
        "score_avg": pytest.approx(sum(scores) / len(scores)) if scores else None,
        "score_p10": pytest.approx(rank(scores, 0.1), rel=1e-9) if scores else None,
        "score_p50": pytest.approx(rank(scores, 0.5), rel=1e-9) if scores else None,
        "scored_span_count": len(scores),
    }


def rank(values: Sequence[float], q: float) -> float:
    """Return the *q* quantile, interpolated between ranks and computed with fractions."""
    below, above, weight = neighbours([Fraction(value) for value in values], q)
    return float(below + (above - below) * weight)


def neighbours(values: Sequence[Fraction], q: float) -> tuple[Fraction, Fraction, Fraction]:
    ascending = sorted(values)
    at = Fraction(q) * (len(ascending) - 1)
    low = math.floor(at)
    return ascending[low], ascending[min(low + 1, len(ascending) - 1)], at - low
