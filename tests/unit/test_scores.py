"""
Scores after the fact: wherever and in whatever order they are folded, what is read is that of the spans as they are.

The oracle keeps every span with its last attributes, and recounts with fractions and sorted lists.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.bus import Message
from tokentrace.errors import Rejected
from tokentrace.metrics import (
    Aggregates,
    Answer,
    CustomMetric,
    CustomValue,
    Query,
    decode_result,
    encode_result,
    finish,
    merge_results,
)
from tokentrace.metrics.quality import render_quality
from tokentrace.records import Batch, Score, Span, encode_batches
from tokentrace.rollup import RELATIVE_ERROR, Summary
from tokentrace_aggregator.shard import VERSION, Shard

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
    """What the api publishes when *span* is given a score."""
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
    """A call that ended *age_s* before now."""
    ended = NOW_S * SECOND - round(age_s * SECOND)
    return make_span(**{"ended_ns": ended, "started_ns": ended, "arrived_ns": ended, **fields})


class Pipeline:
    """Some shards, and the stream of each."""

    def __init__(self, shards: int = 1, custom: Sequence[CustomMetric] = ()) -> None:
        self._custom = custom
        self._shards = [Shard(number, shards, custom) for number in range(shards)]
        self._sent = 0

    def send(self, shard: int = 0, *, spans: Sequence[Span] = (), scores: Sequence[Score] = (), id: str = "") -> None:
        """One batch."""
        self._sent += 1
        payload = encode_batches([Batch(id=id or f"b{self._sent}", spans=list(spans), scores=list(scores))])
        subject = f"tokentrace.spans.default.{shard}"
        self._shards[shard].fold(Message(subject, payload, self._sent, NOW_S * SECOND, {}), 7)

    def restart(self, shard: int) -> None:
        """From its own snapshot."""
        state, parts = self._shards[shard].snapshot({})
        made = {name: part.encode() for name, part in parts.items() if part.encode}
        self._shards[shard] = Shard(shard, len(self._shards), self._custom)
        self._shards[shard].restore(state(), made)

    def settle(self, shard: int) -> None:
        """As its clock does, ten times a second."""
        self._shards[shard].tick((NOW_S + self._sent) * SECOND)

    def ask(self, query: Query = QUALITY) -> Answer:
        """All shards, over the wire."""
        partials = [decode_result(encode_result(finish(shard.answer(query, True)))) for shard in self._shards]
        return merge_results(partials, len(partials), query)

    def quality(self, query: Query = QUALITY) -> dict[str, Any]:
        """What ``GET /metrics/quality`` shows."""
        return render_quality(self.ask(query).total)


def shows(scores: Sequence[float]) -> dict[str, Any]:
    """What is to be shown of *scores*."""
    return {
        "score_avg": pytest.approx(sum(scores) / len(scores)) if scores else None,
        "score_p10": pytest.approx(rank(scores, 0.1), rel=1e-9) if scores else None,
        "score_p50": pytest.approx(rank(scores, 0.5), rel=1e-9) if scores else None,
        "scored_span_count": len(scores),
    }


def rank(values: Sequence[float], q: float) -> float:
    """The *q* quantile between ranks, in fractions."""
    below, above, weight = neighbours([Fraction(value) for value in values], q)
    return float(below + (above - below) * weight)


def neighbours(values: Sequence[Fraction], q: float) -> tuple[Fraction, Fraction, Fraction]:
    ascending = sorted(values)
    at = Fraction(q) * (len(ascending) - 1)
    low = math.floor(at)
    return ascending[low], ascending[min(low + 1, len(ascending) - 1)], at - low


# ---- drawings


def test_a_score_is_given_changed_and_taken_away() -> None:
    #   span    +0.4    0.4 -> 0.9    0.9 -> none    +0.2
    pipeline, span = Pipeline(), call()
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


def test_a_span_that_came_with_a_score_is_corrected() -> None:
    pipeline = Pipeline()
    spans = [call(score=n * ONE // 10) for n in range(10)]
    pipeline.send(spans=spans)
    pipeline.send(scores=[scored(spans[0], ONE, 0), scored(spans[9], None, 9 * ONE // 10)])
    assert pipeline.quality() == shows([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])


@pytest.mark.parametrize("first", ["span", "score"])
def test_a_correction_in_another_shard_than_the_span_is_right_once_added_up(first: str) -> None:
    #   shard 0: [0.5] [0.7]        shard 1: 0.5 -> 0.1
    pipeline = Pipeline(2)
    one, other = call(score=ONE // 2), call(score=7 * ONE // 10)
    steps: list[Callable[[], None]] = [
        lambda: pipeline.send(0, spans=[one, other]),
        lambda: pipeline.send(1, scores=[scored(one, ONE // 10, ONE // 2)]),
    ]
    for step in steps if first == "span" else reversed(steps):
        step()
    pipeline.restart(1)
    assert pipeline.quality() == shows([0.1, 0.7])


def test_what_is_taken_away_in_another_shard_leaves_nothing_of_its_group() -> None:
    pipeline = Pipeline(2)
    span = call(kind="tool", model="o3", score=ONE // 2)
    pipeline.send(0, spans=[span, call(score=ONE)])
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    groups = pipeline.ask(msgspec.structs.replace(QUALITY, groupby="model")).groups
    assert {name: render_quality(figures)["scored_span_count"] for name, figures in groups.items()} == {
        "gpt-4o": 1,
        "o3": 0,
    }
    assert pipeline.quality() == shows([1.0])


def test_changes_that_cancel_in_sum_still_move_the_quantiles_of_a_group() -> None:
    #   shard 0: [0.1] [0.5]     shard 1: 0.1 -> 0.3, 0.5 -> 0.3: the same number, the same sum
    pipeline = Pipeline(2)
    low, high = call(score=ONE // 10), call(score=ONE // 2)
    pipeline.send(0, spans=[low, high])
    pipeline.send(1, scores=[scored(low, 3 * ONE // 10, ONE // 10), scored(high, 3 * ONE // 10, ONE // 2)])
    figures = pipeline.ask(msgspec.structs.replace(QUALITY, groupby="model")).groups["gpt-4o"]
    assert render_quality(figures) == shows([0.3, 0.3])


def test_a_score_counts_when_its_span_ended() -> None:
    #   two hours ago      now
    #   span               its score
    pipeline, span = Pipeline(), call(7200)
    pipeline.send(spans=[span, call(5, score=ONE)])
    pipeline.send(scores=[scored(span, 0, None)])
    assert pipeline.quality() == shows([1.0])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 9000)) == shows([0.0, 1.0])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 86400)) == shows([0.0, 1.0])


def test_a_score_of_a_span_dated_too_far_ahead_counts_when_that_arrived() -> None:
    #   arrived      now                 ended: nobody believes it
    pipeline = Pipeline()
    span = call(-900, arrived_ns=(NOW_S - 60) * SECOND)
    pipeline.send(spans=[span])
    pipeline.send(scores=[scored(span, ONE // 4, None)])
    assert pipeline.quality(msgspec.structs.replace(QUALITY, from_s=NOW_S - 60, to_s=NOW_S - 59)) == shows([0.25])
    lived = pipeline.ask(Query(what="lifetime")).cumulative
    assert lived.clamped == 1


def test_other_scores_and_other_figures_are_left_alone() -> None:
    pipeline = Pipeline()
    span = call(100, score=ONE // 2, cost_nusd=7, status="error", latency_ns=5)
    pipeline.send(spans=[span])
    query = msgspec.structs.replace(QUALITY, fields=["latency", "prompt", "score"], by_model=True)
    before, lived = pipeline.ask(query), pipeline.ask(Query(what="lifetime"))
    pipeline.send(scores=[scored(span, ONE, None, "eval.helpful")])
    assert pipeline.ask(query) == before
    pipeline.send(scores=[scored(span, None, ONE // 2)])
    after = pipeline.ask(query)
    assert (after.total.sums.score_n, after.total.sums.score) == (0, 0)
    for one in (before, after):
        one.total.sums.score_n = one.total.sums.score = 0
        for figures in one.models.values():
            figures.sums.score_n = figures.sums.score = 0
    assert (after.total.sums, after.total.paid, after.models) == (before.total.sums, before.total.paid, before.models)
    assert after.total.summaries["latency"] == before.total.summaries["latency"]
    assert after.total.summaries["prompt"] == before.total.summaries["prompt"]
    now = pipeline.ask(Query(what="lifetime"))
    assert (now.cumulative.by_operation, now.cumulative.walls, now.cumulative.histograms, now.transport) == (
        lived.cumulative.by_operation,
        lived.cumulative.walls,
        lived.cumulative.histograms,
        lived.transport,
    )


def test_a_score_of_a_span_of_another_shard_makes_no_operation() -> None:
    pipeline = Pipeline()
    pipeline.send(scores=[scored(call(), ONE, None)])
    pipeline.restart(0)
    assert pipeline.ask(Query(what="lifetime")).cumulative.by_operation == {}


def test_a_batch_of_scores_counts_once() -> None:
    pipeline, span = Pipeline(), call()
    pipeline.send(spans=[span])
    for _ in range(3):
        pipeline.send(scores=[scored(span, ONE, None)], id="the same")
        pipeline.restart(0)
    assert pipeline.quality() == shows([1.0])


def test_a_hundred_scores_are_exact_and_more_come_with_their_error() -> None:
    #   100 spans, each corrected once: a hundred values come, a hundred go
    pipeline = Pipeline()
    spans = [call(n / 10, score=n * 1_234_567) for n in range(100)]
    pipeline.send(spans=spans[:50])
    summary = pipeline.ask().total.summary("score")
    assert summary.exact
    pipeline.send(scores=[scored(span, span.score + 1, span.score) for span in spans[:50] if span.score is not None])
    summary = pipeline.ask().total.summary("score")
    assert summary == Summary.of([n * 1_234_567 + 1 for n in range(50)])
    pipeline.send(spans=spans[50:])
    # 150 values came and 50 went: more than are kept raw.
    summary = pipeline.ask().total.summary("score")
    assert (summary.exact, summary.count) == (False, 100)
    values = [n * 1_234_567 + (n < 50) for n in range(100)]
    assert summary.quantile(0.5) == pytest.approx(rank(values, 0.5), rel=RELATIVE_ERROR)


def test_a_bucket_that_comes_to_nothing_is_not_taken_for_exact() -> None:
    #   shard 0: one value, raw      shard 1: so many changes within one histogram bucket that only counts are left
    pipeline = Pipeline(2)
    span = call(score=500_000_000)
    pipeline.send(0, spans=[span])
    value = 500_000_000
    for _ in range(120):
        pipeline.send(1, scores=[scored(span, value + 1, value)])
        value += 1
    summary = pipeline.ask().total.summary("score")
    assert not summary.exact
    assert summary.quantile(0.5) == pytest.approx(value, rel=RELATIVE_ERROR)


def test_while_a_shard_is_missing_nothing_is_below_zero() -> None:
    pipeline = Pipeline(2)
    span = call(score=ONE // 2)
    pipeline.send(0, spans=[span])
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    lonely = decode_result(encode_result(finish(pipeline._shards[1].answer(QUALITY, True))))
    assert render_quality(merge_results([lonely], 2, QUALITY).total) == shows([])
    assert not lonely.total.summary("score").exact


def test_a_group_of_which_nothing_is_left_is_not_shown() -> None:
    #   shard 0: a scored agent, which counts for quality alone     shard 1: its score goes
    pipeline = Pipeline(2)
    span = call(kind="agent", model="o3", score=ONE // 2)
    pipeline.send(0, spans=[span])
    query = msgspec.structs.replace(QUALITY, groupby="model")
    assert pipeline.ask(query).groups.keys() == {"o3"}
    pipeline.send(1, scores=[scored(span, None, ONE // 2)])
    assert pipeline.ask(query).groups == {}


def test_hundreds_that_go_where_they_never_came_leave_what_is_left() -> None:
    #   shard 0: 300 values     shard 1: 299 of them go, and one of another span comes
    pipeline = Pipeline(2)
    spans = [call(n / 10, score=n * 3_000_000) for n in range(300)]
    late = call()
    pipeline.send(0, spans=[*spans, late])
    pipeline.send(1, scores=[scored(span, None, span.score) for span in spans[1:]] + [scored(late, ONE, None)])
    summary = pipeline.ask().total.summary("score")
    assert summary.count == 2
    assert [summary.quantile(q) for q in (0, 1)] == [0, pytest.approx(ONE, rel=RELATIVE_ERROR)]
    # Without shard 0 there is one value, and what goes is none of it.
    lonely = decode_result(encode_result(finish(pipeline._shards[1].answer(QUALITY, True)))).total.summary("score")
    assert [lonely.quantile(q) for q in (0, 1)] == [pytest.approx(ONE, rel=RELATIVE_ERROR)] * 2


def test_a_snapshot_of_before_there_were_scores_is_refused() -> None:
    state, _ = Shard(0, 1).snapshot({})
    old = msgspec.msgpack.decode(state())
    assert old["version"] == VERSION
    for version in range(VERSION):
        with pytest.raises(Rejected, match="written by version"):
            Shard(0, 1).restore(msgspec.msgpack.encode({**old, "version": version}), {})


# ---- metrics of one's own


def tally(pipeline: Pipeline, name: str) -> float | None:
    query = msgspec.structs.replace(QUALITY, custom=[name])
    metric = next(one for one in CUSTOM if one.name == name)
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
        ("gpt", {}, None, {"eval.helpful": 0.5}, 1.0),
        ("rated", {}, None, {"eval.helpful": 0.5}, 1.0),
        ("rated", {"eval.helpful": 0.5}, 1.0, {"eval.helpful": 0.25}, 1.0),
        ("rated", {"eval.helpful": 0.5}, 1.0, {"eval.helpful": None}, None),
        ("rated", {"eval": {"helpful": 0.5, "fair": 1}}, 1.0, {"eval.helpful": None}, None),
        ("best", {"eval.helpful": 0.5}, None, {"eval.helpful": 1.0}, 1.0),
        ("best", {"eval.helpful": 1.0}, 1.0, {"eval.helpful": 0.5}, None),
        ("steps", {"step": 3}, None, {"eval.helpful": 0.5}, 3.0),
        ("steps", {"step": 3, "eval.helpful": 0}, 3.0, {"eval.helpful": None}, None),
        ("all_steps", {"step": 3}, 3.0, {"eval.helpful": 0.5}, 3.0),
    ],
)
def test_a_metric_of_ones_own_follows(
    name: str, attributes: dict[str, Any], before: float | None, given: dict[str, float | None], after: float | None
) -> None:
    pipeline, span = Pipeline(2, CUSTOM), call(attributes=attributes)
    pipeline.send(0, spans=[span])
    assert tally(pipeline, name) == before
    [(score, value)] = given.items()
    flat = attributes | {f"eval.{key}": held for key, held in attributes.get("eval", {}).items()}
    old = flat.get(score)
    value, old = (None if one is None else round(one * ONE) for one in (value, old))
    pipeline.send(1, scores=[scored(span, value, old, score)])
    assert tally(pipeline, name) == after


def test_a_filter_on_the_score_itself_compares_the_text_it_had() -> None:
    #   1 is not 1.0: a filter compares texts, and the caller had written an integer
    metric = CustomMetric(name="ones", type="count", filter_key="eval.helpful", filter_val="1")
    pipeline, span = Pipeline(1, [metric]), call(attributes={"eval.helpful": 1})
    query = msgspec.structs.replace(QUALITY, custom=["ones"])
    pipeline.send(spans=[span])
    assert pipeline.ask(query).total.custom["ones"].size == 1
    pipeline.send(scores=[scored(span, ONE // 2, ONE, "eval.helpful")])
    assert pipeline.ask(query).total.custom["ones"].size == 0


def test_a_metric_that_a_score_does_not_change_keeps_its_raw_values() -> None:
    pipeline = Pipeline(1, [CustomMetric(name="steps", type="p95", field="attr.step")])
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
def test_what_a_score_can_take_away_is_no_counter_for_prometheus(metric: dict[str, str], falls: bool) -> None:
    own = CustomMetric(name="mine", **metric)
    assert own.falls == falls
    assert own.prometheus == ("tokentrace_custom_mine" if falls else "tokentrace_custom_mine_total")


def test_what_was_measured_over_all_time_falls_with_a_score_taken_away() -> None:
    pipeline, span = Pipeline(2, CUSTOM), call(attributes={"eval.helpful": 1.0})
    pipeline.send(0, spans=[span, call(attributes={"eval.helpful": 0.5})])
    pipeline.send(1, scores=[scored(span, None, ONE, "eval.helpful")])
    lived = pipeline.ask(Query(what="lifetime")).cumulative.custom
    assert (lived["rated"].size, lived["best"].size, lived["p95"].total) == (1, 0, ONE // 2)


# ---- any story

AGE = st.one_of(st.integers(-299, 60), st.integers(0, 1250), st.integers(0, 4 * 3600), st.integers(0, 30 * 86400))
VALUE = st.one_of(st.sampled_from([0, 1, ONE, ONE // 2, ONE // 2 + 1]), st.integers(0, ONE))
STEP = st.tuples(st.sampled_from(["eval.score", "eval.helpful"]), st.one_of(st.none(), VALUE))
CALL = st.fixed_dictionaries(
    {
        "age_s": AGE,
        "kind": st.sampled_from(["llm", "llm", "tool", "agent"]),
        "model": st.sampled_from(["gpt-4o", "o3", ""]),
        "name": st.sampled_from(["x", "y"]),
        "status": st.sampled_from(["ok", "error"]),
        "first": st.fixed_dictionaries({}, optional={"eval.score": VALUE, "eval.helpful": VALUE}),
        "doc": st.sampled_from(["legal", "news"]),
        "steps": st.lists(STEP, max_size=4),
        "times": st.sampled_from([1, 1, 1, 1, 1, 25]),
    }
)
WINDOW = st.sampled_from([10, 300, 3600, 86400, 7 * 86400, 31 * 86400])
DIMENSION = st.sampled_from(["model", "name", "kind"])


class Told:
    """A span, its scores, and its attributes after the last of them."""

    def __init__(self, number: int, fields: dict[str, Any], shift: int) -> None:
        def moved(value: int | None) -> int | None:
            return None if value is None else min(ONE, value + shift)

        now = {name: moved(value) for name, value in fields["first"].items()}
        plain = {"doc": fields["doc"], "step": number % 7}
        self.span = call(
            fields["age_s"],
            trace_id=f"{number:032x}",
            arrived_ns=(NOW_S - max(fields["age_s"], 0)) * SECOND,
            **{key: fields[key] for key in ("kind", "model", "name", "status")},
            score=now.get("eval.score"),
            attributes=plain | {name: value / ONE for name, value in now.items() if value is not None},
        )
        self.scores = []
        for name, wanted in fields["steps"]:
            value, old = moved(wanted), now.get(name)
            current = plain | {key: held / ONE for key, held in now.items() if held is not None}
            score = scored(self.span, value, old, name)
            self.scores.append(msgspec.structs.replace(score, attributes=current))
            now[name] = value
        self.score = now.get("eval.score")
        self.attributes = plain | {name: value / ONE for name, value in now.items() if value is not None}


def story_of(fields: Sequence[dict[str, Any]]) -> list[Told]:
    told = []
    for one in fields:
        for shift in range(one["times"]):
            told.append(Told(len(told), one, shift * 7_654_321))
    return told


def folded(told: Sequence[Told], shards: int, dice: random.Random) -> Pipeline:
    """Every span and score in a random batch of a random shard, in random order, some batches twice."""
    pipeline = Pipeline(shards, CUSTOM)
    records: list[Span | Score] = [record for one in told for record in (one.span, *one.scores)]
    dice.shuffle(records)
    batches = []
    while records:
        size = dice.choice([1, 2, 5, 40])
        batches.append((f"batch-{len(batches)}", dice.randrange(shards), records[:size]))
        records = records[size:]
    batches += [batch for batch in batches if dice.random() < 0.2]
    dice.shuffle(batches)
    for id_, shard, held in batches:
        spans = [record for record in held if isinstance(record, Span)]
        scores = [record for record in held if isinstance(record, Score)]
        pipeline.send(shard, spans=spans, scores=scores, id=id_)
        if dice.random() < 0.2:
            pipeline.settle(shard)
        if dice.random() < 0.1:
            pipeline.restart(shard)
    return pipeline


def assert_summarises(summary: Summary, values: Sequence[int]) -> None:
    assert summary.count == len(values)
    for q in (0.0, 0.1, 0.5, 0.95, 1.0):
        found = summary.quantile(q)
        if not values:
            assert found is None
            continue
        below, above, weight = neighbours([Fraction(value) for value in values], q)
        error = Fraction(0 if summary.exact else RELATIVE_ERROR)
        want = below + (above - below) * weight
        assert found is not None
        # A rank in floating point is off by some ulps, and so is what it lies between.
        rounding = Fraction(1, 2**50) * len(values) * above
        assert abs(Fraction(found) - want) <= error * (below * (1 - weight) + above * weight) + rounding


def assert_quality(figures: Aggregates, told: Sequence[Told]) -> None:
    values = [one.score for one in told if one.score is not None]
    assert (figures.sums.score_n, figures.sums.score) == (len(values), sum(values))
    average = float(Fraction(sum(values), len(values) * ONE)) if values else None
    assert render_quality(figures)["score_avg"] == (None if average is None else pytest.approx(average, rel=1e-12))
    assert_summarises(figures.summary("score"), values)


MEASURED: dict[str, Callable[[Told], Any]] = {
    "mean": lambda one: one.attributes.get("eval.score"),
    "p95": lambda one: one.attributes.get("eval.helpful"),
    "legal": lambda one: one.attributes.get("eval.score") if one.attributes["doc"] == "legal" else None,
    "gpt": lambda one: one.attributes.get("eval.helpful") if one.span.model == "gpt-4o" else None,
    "rated": lambda one: 0 if "eval.helpful" in one.attributes else None,
    "best": lambda one: 0 if one.attributes.get("eval.helpful") == 1.0 else None,
    "steps": lambda one: one.attributes["step"] if "eval.helpful" in one.attributes else None,
    "all_steps": lambda one: one.attributes["step"],
}


def assert_measured(custom: dict[str, CustomValue], told: Sequence[Told]) -> None:
    for name, of in MEASURED.items():
        values = [round(value * ONE) for value in map(of, told) if value is not None]
        found = custom.get(name, CustomValue())
        assert (name, found.size, found.total) == (name, len(values), sum(values))
        if name == "p95":
            assert_summarises(found.summary, values)


@settings(max_examples=120, deadline=None)
@given(st.lists(CALL, max_size=14), st.integers(1, 3), WINDOW, DIMENSION, st.integers())
def test_any_story_is_a_recount_of_the_spans_as_they_are_now(
    fields: list[dict[str, Any]], shards: int, window_s: int, dimension: str, seed: int
) -> None:
    told = story_of(fields)
    pipeline = folded(told, shards, random.Random(seed))
    query = Query(
        from_s=NOW_S - window_s,
        to_s=NOW_S + 1,
        now_s=NOW_S,
        fields=["score"],
        groupby=dimension,
        custom=[metric.name for metric in CUSTOM],
    )
    answer = pipeline.ask(query)
    inside = [one for one in told if answer.from_s <= one.span.ended_ns // SECOND < answer.to_s]
    assert answer.total.sums.spans == sum(one.span.kind == "llm" for one in inside)
    assert_quality(answer.total, inside)
    assert_measured(answer.total.custom, inside)
    values = {getattr(one.span, dimension) or "unknown" for one in inside}
    assert answer.groups.keys() <= values
    for value in values:
        mine = [one for one in inside if (getattr(one.span, dimension) or "unknown") == value]
        figures = answer.groups.get(value, Aggregates())
        assert_quality(figures, mine)
        assert_measured(figures.custom, mine)
    lived = pipeline.ask(Query(what="lifetime"))
    every = [one.score for one in told if one.score is not None]
    assert (lived.total.sums.score_n, lived.total.sums.score) == (len(every), sum(every))
    assert lived.total.sums.spans == len(told)
