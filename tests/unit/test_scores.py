"""Late scores: results are those of the spans with their present scores, whichever shard folds a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kit.late_scores import CUSTOM, NOW_S, ONE, QUALITY, SECOND, ShardSet, call, rank, scored, shows
from kit.shard_results import as_received
from tokentrace.errors import Rejected
from tokentrace.metrics import (
    CustomMetric,
    CustomValue,
    Query,
    finish,
    merge_results,
)
from tokentrace.metrics.quality import render_quality
from tokentrace.rollup import RELATIVE_ERROR, Summary
from tokentrace_aggregator.shard import VERSION, Shard

# ---- single cases


def test_a_score_can_be_added_changed_and_removed() -> None:
    #   span    +0.4    0.4 -> 0.9    0.9 -> none    +0.2
    pipeline, span = ShardSet(), call()
    pipeline.send(spans=[span])
    assert pipeline.quality() == shows([])
    pipeline.send(scores=[scored(span, 4 * ONE // 10, None)])
    assert pipeline.quality() == shows([0.4])
    pipeline.send(scores=[scored(span, 9 * ONE // 10, 4 * ONE // 10)])
    assert pipeline.quality() == shows([0.9])
    pipeline.send(scores=[scored(span, None, 9 * ONE // 10)])
    assert pipeline.quality() == shows([])
    pipeline.send(scores=[scored(span, ONE // 5, None)])
    assert pipeline.quality() == shows([0.2])


def test_the_score_that_a_span_arrived_with_can_be_changed() -> None:
    pipeline = ShardSet()
    spans = [call(score=n * ONE // 10) for n in range(10)]
    pipeline.send(spans=spans)
    pipeline.send(scores=[scored(spans[0], ONE, 0), scored(spans[9], None, 9 * ONE // 10)])
    assert pipeline.quality() == shows([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])


@pytest.mark.parametrize("first", ["span", "score"])
def test_a_change_in_another_shard_than_the_span_is_right_after_merging(first: str) -> None:
    #   shard 0: [0.5] [0.7]        shard 1: 0.5 -> 0.1
    pipeline = ShardSet(2)
    one, other = call(score=ONE // 2), call(score=7 * ONE // 10)
    steps: list[Callable[[], None]] = [
        lambda: pipeline.send(0, spans=[one, other]),
        lambda: pipeline.send(1, scores=[scored(one, ONE // 10, ONE // 2)]),
    ]
    for step in steps if first == "span" else reversed(steps):
        step()
    pipeline.restart(1)
    assert pipeline.quality() == shows([0.1, 0.7])


def test_a_score_removed_in_another_shard_leaves_its_group_without_scores() -> None:
    pipeline = ShardSet(2)
    span = call(kind="tool", model="o3", score=ONE // 2)
    pipeline.send(0, spans=[span, call(score=ONE)])
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    groups = pipeline.ask(msgspec.structs.replace(QUALITY, groupby="model")).groups
    assert {name: render_quality(aggregates)["scored_span_count"] for name, aggregates in groups.items()} == {
        "gpt-4o": 1,
        "o3": 0,
    }
    assert pipeline.quality() == shows([1.0])


def test_changes_whose_sums_cancel_still_change_the_quantiles_of_a_group() -> None:
    #   shard 0: [0.1] [0.5]     shard 1: 0.1 -> 0.3, 0.5 -> 0.3: the same number, the same sum
    pipeline = ShardSet(2)
    low, high = call(score=ONE // 10), call(score=ONE // 2)
    pipeline.send(0, spans=[low, high])
    pipeline.send(1, scores=[scored(low, 3 * ONE // 10, ONE // 10), scored(high, 3 * ONE // 10, ONE // 2)])
    aggregates = pipeline.ask(msgspec.structs.replace(QUALITY, groupby="model")).groups["gpt-4o"]
    assert render_quality(aggregates) == shows([0.3, 0.3])


def test_a_late_score_counts_at_the_time_its_span_ended() -> None:
    #   two hours ago      now
    #   span               its score
    pipeline, span = ShardSet(), call(7200)
    pipeline.send(spans=[span, call(5, score=ONE)])
    pipeline.send(scores=[scored(span, 0, None)])
    assert pipeline.quality() == shows([1.0])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 9000)) == shows([0.0, 1.0])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 86400)) == shows([0.0, 1.0])


def test_a_late_score_of_a_span_dated_too_far_ahead_counts_at_the_arrival_of_the_span() -> None:
    #   arrived      now                 ended: too far ahead
    pipeline = ShardSet()
    span = call(-900, arrived_ns=(NOW_S - 60) * SECOND)
    pipeline.send(spans=[span])
    pipeline.send(scores=[scored(span, ONE // 4, None)])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 60, to_s=NOW_S - 59)) == shows([0.25])
    assert pipeline.ask(Query(what="lifetime")).cumulative.clamped == 1


def test_a_late_score_changes_no_other_score_and_no_other_number() -> None:
    pipeline = ShardSet()
    span = call(100, score=ONE // 2, cost_nusd=7, status="error", latency_ns=5)
    pipeline.send(spans=[span])
    query = msgspec.structs.replace(QUALITY, fields=["latency", "prompt", "score"], by_model=True)
    before, cumulative = pipeline.ask(query), pipeline.ask(Query(what="lifetime"))
    pipeline.send(scores=[scored(span, ONE, None, "eval.helpful")])
    assert pipeline.ask(query) == before
    pipeline.send(scores=[scored(span, None, ONE // 2)])
    after = pipeline.ask(query)
    assert (after.total.sums.score_n, after.total.sums.score) == (0, 0)
    for answer in (before, after):
        answer.total.sums.score_n = answer.total.sums.score = 0
        for aggregates in answer.models.values():
            aggregates.sums.score_n = aggregates.sums.score = 0
    assert (after.total.sums, after.total.paid, after.models) == (before.total.sums, before.total.paid, before.models)
    assert after.total.summaries["latency"] == before.total.summaries["latency"]
    assert after.total.summaries["prompt"] == before.total.summaries["prompt"]
    now = pipeline.ask(Query(what="lifetime"))
    assert (now.cumulative.by_operation, now.cumulative.walls, now.cumulative.histograms, now.transport) == (
        cumulative.cumulative.by_operation,
        cumulative.cumulative.walls,
        cumulative.cumulative.histograms,
        cumulative.transport,
    )


def test_a_late_score_without_its_span_adds_no_operation() -> None:
    pipeline = ShardSet()
    pipeline.send(scores=[scored(call(), ONE, None)])
    pipeline.restart(0)
    assert pipeline.ask(Query(what="lifetime")).cumulative.by_operation == {}


def test_a_repeated_batch_of_scores_counts_once() -> None:
    pipeline, span = ShardSet(), call()
    pipeline.send(spans=[span])
    for _ in range(3):
        pipeline.send(scores=[scored(span, ONE, None)], id="the same")
        pipeline.restart(0)
    assert pipeline.quality() == shows([1.0])


def test_up_to_a_hundred_added_scores_are_exact_and_more_are_within_the_error() -> None:
    # 50 spans, each changed once: 100 values are added and 50 removed. Then 50 more spans.
    pipeline = ShardSet()
    spans = [call(n / 10, score=n * 1_234_567) for n in range(100)]
    pipeline.send(spans=spans[:50])
    summary = pipeline.ask().total.summary("score")
    assert summary.exact
    pipeline.send(scores=[scored(span, span.score + 1, span.score) for span in spans[:50] if span.score is not None])
    summary = pipeline.ask().total.summary("score")
    assert summary == Summary.of([n * 1_234_567 + 1 for n in range(50)])
    pipeline.send(spans=spans[50:])
    # 150 values added and 50 removed: more than are kept unrounded.
    summary = pipeline.ask().total.summary("score")
    assert (summary.exact, summary.count) == (False, 100)
    values = [n * 1_234_567 + (n < 50) for n in range(100)]
    assert summary.quantile(0.5) == pytest.approx(rank(values, 0.5), rel=RELATIVE_ERROR)


def test_a_bin_whose_counts_cancel_makes_the_result_inexact() -> None:
    #   shard 0: one unrounded value      shard 1: so many changes within one bin that only counts are kept
    pipeline = ShardSet(2)
    span = call(score=500_000_000)
    pipeline.send(0, spans=[span])
    value = 500_000_000
    for _ in range(120):
        pipeline.send(1, scores=[scored(span, value + 1, value)])
        value += 1
    summary = pipeline.ask().total.summary("score")
    assert not summary.exact
    assert summary.quantile(0.5) == pytest.approx(value, rel=RELATIVE_ERROR)


def test_while_a_shard_is_missing_no_negative_count_is_shown() -> None:
    pipeline = ShardSet(2)
    span = call(score=ONE // 2)
    pipeline.send(0, spans=[span])
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    alone = as_received(finish(pipeline._shards[1].answer(QUALITY, True)))
    assert render_quality(merge_results([alone], 2, QUALITY).total) == shows([])
    assert not alone.total.summary("score").exact


def test_a_group_whose_only_score_was_removed_is_not_shown() -> None:
    #   shard 0: a scored agent, which counts for quality only     shard 1: its score is removed
    pipeline = ShardSet(2)
    span = call(kind="agent", model="o3", score=ONE // 2)
    pipeline.send(0, spans=[span])
    query = msgspec.structs.replace(QUALITY, groupby="model")
    assert pipeline.ask(query).groups.keys() == {"o3"}
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    assert pipeline.ask(query).groups == {}


def test_hundreds_of_scores_removed_in_another_shard_leave_the_remaining_ones() -> None:
    #   shard 0: 300 values     shard 1: 299 of them are removed, and one of another span is added
    pipeline = ShardSet(2)
    spans = [call(n / 10, score=n * 3_000_000) for n in range(300)]
    late = call()
    pipeline.send(0, spans=[*spans, late])
    pipeline.send(1, scores=[scored(span, None, span.score) for span in spans[1:]] + [scored(late, ONE, None)])
    summary = pipeline.ask().total.summary("score")
    assert summary.count == 2
    assert [summary.quantile(q) for q in (0, 1)] == [0, pytest.approx(ONE, rel=RELATIVE_ERROR)]
    # Without shard 0 there is one value, and the removed values are not among it.
    alone = as_received(finish(pipeline._shards[1].answer(QUALITY, True))).total.summary("score")
    assert [alone.quantile(q) for q in (0, 1)] == [pytest.approx(ONE, rel=RELATIVE_ERROR)] * 2


def test_a_snapshot_from_before_the_two_previous_versions_is_refused() -> None:
    state, _ = Shard(0, 1).snapshot({})
    old = msgspec.msgpack.decode(state())
    assert old["version"] == VERSION
    for version in range(VERSION - 2):
        with pytest.raises(Rejected, match="written by version"):
            Shard(0, 1).restore(msgspec.msgpack.encode({**old, "version": version}), {})


# ---- custom metrics


def custom_value(pipeline: ShardSet, name: str) -> float | None:
    query = msgspec.structs.replace(QUALITY, custom=[name])
    metric = next(custom for custom in CUSTOM if custom.name == name)
    return metric.value(pipeline.ask(query).total.custom.get(name, CustomValue()))


@pytest.mark.parametrize(
    ("name", "attributes", "before", "given", "after"),
    [
        ("mean", {"eval.score": 0.5}, 0.5, {"eval.score": 0.75}, 0.75),
        ("mean", {"eval.score": 0.5}, 0.5, {"eval.score": None}, None),
        ("mean", {}, None, {"eval.score": 0.25}, 0.25),
        ("p95", {"eval.helpful": 0.5}, 0.5, {"eval.helpful": 1.0}, 1.0),
        ("p95", {"eval.helpful": 0.5}, 0.5, {"eval.score": 1.0}, 0.5),
        ("legal", {"doc": "legal", "eval.score": 1}, 1.0, {"eval.score": 0.5}, 0.5),
        ("legal", {"doc": "news"}, None, {"eval.score": 0.5}, None),
        ("gpt", {}, 0.0, {"eval.helpful": 0.5}, 1.0),
        ("rated", {}, 0.0, {"eval.helpful": 0.5}, 1.0),
        ("rated", {"eval.helpful": 0.5}, 1.0, {"eval.helpful": 0.25}, 1.0),
        ("rated", {"eval.helpful": 0.5}, 1.0, {"eval.helpful": None}, 0.0),
        ("rated", {"eval": {"helpful": 0.5, "fair": 1}}, 1.0, {"eval.helpful": None}, 0.0),
        ("best", {"eval.helpful": 0.5}, 0.0, {"eval.helpful": 1.0}, 1.0),
        ("best", {"eval.helpful": 1.0}, 1.0, {"eval.helpful": 0.5}, 0.0),
        ("steps", {"step": 3}, None, {"eval.helpful": 0.5}, 3.0),
        ("steps", {"step": 3, "eval.helpful": 0}, 3.0, {"eval.helpful": None}, None),
        ("all_steps", {"step": 3}, 3.0, {"eval.helpful": 0.5}, 3.0),
    ],
)
def test_a_custom_metric_follows_late_scores(
    name: str, attributes: dict[str, Any], before: float | None, given: dict[str, float | None], after: float | None
) -> None:
    pipeline, span = ShardSet(2, CUSTOM), call(attributes=attributes)
    pipeline.send(0, spans=[span])
    assert custom_value(pipeline, name) == before
    [(score, value)] = given.items()
    flat = attributes | {f"eval.{key}": held for key, held in attributes.get("eval", {}).items()}
    old = flat.get(score)
    value, old = (None if one is None else round(one * ONE) for one in (value, old))
    pipeline.send(1, scores=[scored(span, value, old, score)])
    assert custom_value(pipeline, name) == after


def test_a_filter_on_a_score_compares_the_text_that_the_caller_wrote() -> None:
    # The caller wrote an integer, so the text is 1 and not 1.0.
    metric = CustomMetric(name="ones", type="count", filter_key="eval.helpful", filter_val="1")
    pipeline, span = ShardSet(1, [metric]), call(attributes={"eval.helpful": 1})
    query = msgspec.structs.replace(QUALITY, custom=["ones"])
    pipeline.send(spans=[span])
    assert pipeline.ask(query).total.custom["ones"].size == 1
    pipeline.send(scores=[scored(span, ONE // 2, ONE, "eval.helpful")])
    assert pipeline.ask(query).total.custom["ones"].size == 0


def test_a_metric_that_a_late_score_does_not_change_keeps_its_unrounded_values() -> None:
    pipeline = ShardSet(1, [CustomMetric(name="steps", type="p95", field="attr.step")])
    query = msgspec.structs.replace(QUALITY, custom=["steps"])
    spans = [call(n / 10, attributes={"step": n}) for n in range(100)]
    pipeline.send(spans=spans)
    before = pipeline.ask(query).total.custom["steps"].summary
    pipeline.send(scores=[scored(span, ONE, None, "eval.helpful") for span in spans])
    assert pipeline.ask(query).total.custom["steps"].summary == before
    assert before.exact


@pytest.mark.parametrize(
    ("metric", "falls"),
    [
        ({"type": "count", "field": "attr.eval.helpful"}, True),
        ({"type": "count", "filter_key": "eval.helpful"}, True),
        ({"type": "count", "filter_key": "attr.eval.helpful"}, True),
        ({"type": "count", "field": "attr.step"}, False),
        ({"type": "count", "field": "cost", "filter_key": "eval.helpful"}, False),
        ({"type": "sum", "field": "cost", "filter_key": "eval.helpful"}, False),
        ({"type": "sum", "field": "attr.step"}, True),
    ],
)
def test_a_metric_that_can_decrease_is_no_counter_in_prometheus(metric: dict[str, Any], falls: bool) -> None:
    own = CustomMetric(name="mine", **metric)
    assert own.falls == falls
    assert own.prometheus == ("tokentrace_custom_mine" if falls else "tokentrace_custom_mine_total")


def test_the_cumulative_value_of_a_custom_metric_decreases_when_a_score_is_removed() -> None:
    pipeline, span = ShardSet(2, CUSTOM), call(attributes={"eval.helpful": 1.0})
    pipeline.send(0, spans=[span, call(attributes={"eval.helpful": 0.5})])
    pipeline.send(1, scores=[scored(span, None, ONE, "eval.helpful")])
    custom = pipeline.ask(Query(what="lifetime")).cumulative.custom
    assert (custom["rated"].size, custom["best"].size, custom["p95"].total) == (1, 0, ONE // 2)
