"""The limits of a shard: snapshots of a version without them are converted, and its list of reporters is bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from kit.builders import make_span
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.metrics import CustomMetric, Query, ShardResult, finish
from tokentrace.records import Batch, ReporterStats, Span, encode_batches
from tokentrace.rollup import series
from tokentrace.units import SECOND
from tokentrace_aggregator.shard import Shard

NOW_S = 1_790_000_000
CUSTOM = CustomMetric(name="spent", type="sum", field="cost")
MODELS = 700


def message(sequence: int, batch: Batch) -> Message:
    return Message("tokentrace.spans.default.0", encode_batches([batch]), sequence, NOW_S * SECOND, {})


def spans_of(models: int) -> list[Span]:
    """Return two spans for each of *models*, with a provider and a caller of their own."""
    return [
        make_span(
            model=f"m{n}",
            provider=f"p{n}",
            caller=f"c{n}",
            name="x",
            status=status,
            cost_nusd=1000 + n,
            latency_ns=(n + 1) * 10**6,
            score=n * 10**6,
            ended_ns=NOW_S * SECOND - n,
            arrived_ns=NOW_S * SECOND,
        )
        for status in ("ok", "error")
        for n in range(models)
    ]


def snapshot_without_limits(spans: list[Span]) -> bytes:
    """Return what the version without limits saved after it had folded *spans*."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_MODELS", "MAX_PROVIDERS", "MAX_PLAIN"):
            patch.setattr(series, name, 10**9)
        shard = Shard(0, 1, (CUSTOM,), capacity=CAPACITY)
        for number in range(0, len(spans), 100):
            shard.fold(message(number + 1, Batch(id=f"b{number}", spans=spans[number : number + 100])), 7)
        state, parts = msgspec.msgpack.decode(save(shard), type=tuple[bytes, dict[str, bytes]])
    saved: dict[str, Any] = msgspec.msgpack.decode(state)
    assert saved["version"] == 7
    del saved["folded"], saved["custom"]["spent"]["folded"]
    return msgspec.msgpack.encode([msgspec.msgpack.encode({**saved, "version": 6}), parts])


def window(
    shard: Shard, filters: Mapping[str, str] | None = None, groupby: str = "model", custom: str = "spent"
) -> ShardResult:
    return finish(
        shard.answer(
            Query(
                from_s=NOW_S - 3600,
                to_s=NOW_S + 1,
                now_s=NOW_S,
                groupby=groupby,
                filters=dict(filters or {}),
                fields=["latency", "score"],
                custom=[custom],
            ),
            True,
        )
    )


def converted(spans: list[Span]) -> Shard:
    shard = Shard(0, 1, (CUSTOM,), capacity=CAPACITY)
    load(shard, snapshot_without_limits(spans))
    return shard


def test_a_snapshot_with_more_models_than_the_limit_keeps_the_first_and_every_sum() -> None:
    spans = spans_of(MODELS)
    shard, everything = converted(spans), sum(span.cost_nusd or 0 for span in spans)
    answer = window(shard)
    assert len(answer.groups) == series.MAX_MODELS + 1
    for n in (0, 1, 250, series.MAX_MODELS - 1):
        group = answer.groups[f"m{n}"]
        assert (group.sums.spans, group.sums.errors, group.sums.cost) == (2, 1, 2 * (1000 + n))
        assert group.custom["spent"].total == 2 * (1000 + n)
        assert group.summary("latency").count == 2
    rest = range(series.MAX_MODELS, MODELS)
    assert answer.groups["other"].sums.cost == sum(2 * (1000 + n) for n in rest)
    assert answer.groups["other"].custom["spent"].total == sum(2 * (1000 + n) for n in rest)
    assert answer.groups["other"].summary("latency").count == 2 * len(rest)
    assert (answer.total.sums.cost, answer.total.custom["spent"].total) == (everything, everything)
    assert len(answer.exact["model"]) == series.MAX_MODELS

    lifetime = finish(shard.answer(Query(what="lifetime"), True))
    assert lifetime.cumulative is not None
    assert lifetime.total.sums.cost == everything
    assert sum(counter.sums.cost for counter in lifetime.cumulative.counters) == everything
    assert len(lifetime.cumulative.histograms) == series.MAX_MODELS + 1
    assert sum(sum(rows[0]) for rows in lifetime.cumulative.histograms.values()) == len(spans)
    assert lifetime.cumulative.custom["spent"].total == everything


def test_a_converted_shard_folds_on_and_is_restored_as_itself() -> None:
    spans = spans_of(MODELS)
    shard = converted(spans)
    for _ in range(2):
        more = [
            make_span(**{name: getattr(span, name) for name in span.__struct_fields__} | {"span_id": "more"})
            for span in spans[:1]
        ]
        shard.fold(message(10**6, Batch(id="more", spans=more)), 7)
        snapshot = save(shard)
        shard = Shard(0, 1, (CUSTOM,), capacity=CAPACITY)
        load(shard, snapshot)
    answer = window(shard)
    assert answer.groups["m0"].sums.spans == 3
    assert answer.inexact == []
    for custom in ("spent", "none"):
        assert window(shard, {"model": f"m{MODELS - 1}"}, custom=custom).inexact == ["model"]
    assert window(shard, {"model": "m3", "provider": "p3"}).inexact == []
    assert window(shard, {"provider": "p300"}).inexact == ["provider"]


def test_callers_of_a_converted_snapshot_are_shown_although_it_does_not_say_which_were_under_other() -> None:
    spans = [*spans_of(MODELS), *spans_of(1), make_span(caller="other", name="other", ended_ns=NOW_S * SECOND - 1)]
    answer = window(converted(spans), {"caller": "c3"}, groupby="caller")
    assert "c3" in answer.exact["caller"]
    assert (answer.groups["c3"].sums.spans, answer.inexact) == (2, ["caller"])


def test_a_snapshot_within_the_limits_is_taken_over_as_it_is() -> None:
    spans = spans_of(50)
    shard, fresh = converted(spans), Shard(0, 1, (CUSTOM,), capacity=CAPACITY)
    for number in range(0, len(spans), 100):
        fresh.fold(message(number + 1, Batch(id=f"b{number}", spans=spans[number : number + 100])), 7)
    then, now = window(fresh), window(shard)
    assert (now.groups.keys(), now.exact, now.inexact) == (then.groups.keys(), {}, [])
    assert {name: group.sums for name, group in now.groups.items()} == {
        name: group.sums for name, group in then.groups.items()
    }


def test_the_waiting_spans_of_the_newest_thousand_reporters_are_kept() -> None:
    shard = Shard(0, 1, capacity=CAPACITY)
    for n in range(3000):
        shard.fold(message(n + 1, Batch(id=f"default.r{n}", sequence=1, reporter=ReporterStats(queue_depth=1))), 7)
    transport = finish(shard.answer(Query(what="lifetime"), True)).transport
    assert (transport.queue_depth, len(transport.queues)) == (1000, 1000)
    assert "default.r2999" in transport.queues
    assert "default.r1999" not in transport.queues
