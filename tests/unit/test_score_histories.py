"""The results of any late scores, folded in any order and shard, equal a recount of the spans' present scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.late_scores import CUSTOM, NOW_S, ONE, SECOND, ShardSet, call, neighbours, scored
from tokentrace.metrics import (
    Aggregates,
    CustomValue,
    Query,
)
from tokentrace.metrics.quality import render_quality
from tokentrace.records import Score, Span
from tokentrace.rollup import RELATIVE_ERROR, Summary

# ---- any history of scores

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


class ScoredSpan:
    """A span, its late scores, and its score and attributes after the last of them."""

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
        self.scores: list[Score] = []
        for name, wanted in fields["steps"]:
            value, old = moved(wanted), now.get(name)
            current = plain | {key: held / ONE for key, held in now.items() if held is not None}
            score = scored(self.span, value, old, name)
            self.scores.append(msgspec.structs.replace(score, attributes=current))
            now[name] = value
        self.score = now.get("eval.score")
        self.attributes = plain | {name: value / ONE for name, value in now.items() if value is not None}


def histories_of(fields: Sequence[dict[str, Any]]) -> list[ScoredSpan]:
    scored_spans: list[ScoredSpan] = []
    for drawn in fields:
        for shift in range(drawn["times"]):
            scored_spans.append(ScoredSpan(len(scored_spans), drawn, shift * 7_654_321))
    return scored_spans


def folded(scored_spans: Sequence[ScoredSpan], shards: int, dice: random.Random) -> ShardSet:
    """Return shards that have folded all spans and scores in random batches, shards and order, some batches twice."""
    pipeline = ShardSet(shards, CUSTOM)
    records: list[Span | Score] = []
    for scored_span in scored_spans:
        records += [scored_span.span, *scored_span.scores]
    dice.shuffle(records)
    batches: list[tuple[str, int, list[Span | Score]]] = []
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
        quantile = summary.quantile(q)
        if not values:
            assert quantile is None
            continue
        below, above, weight = neighbours([Fraction(value) for value in values], q)
        error = Fraction(0 if summary.exact else RELATIVE_ERROR)
        want = below + (above - below) * weight
        assert quantile is not None
        # A rank in floating point is wrong by a few ulps, and so is the value interpolated at that rank.
        rounding = Fraction(1, 2**50) * len(values) * above
        assert abs(Fraction(quantile) - want) <= error * (below * (1 - weight) + above * weight) + rounding


def assert_quality(aggregates: Aggregates, scored_spans: Sequence[ScoredSpan]) -> None:
    values = [scored_span.score for scored_span in scored_spans if scored_span.score is not None]
    assert (aggregates.sums.score_n, aggregates.sums.score) == (len(values), sum(values))
    average = float(Fraction(sum(values), len(values) * ONE)) if values else None
    assert render_quality(aggregates)["score_avg"] == (None if average is None else pytest.approx(average, rel=1e-12))
    assert_summarises(aggregates.summary("score"), values)


CUSTOM_RECOUNTS: dict[str, Callable[[ScoredSpan], Any]] = {
    "mean": lambda scored_span: scored_span.attributes.get("eval.score"),
    "p95": lambda scored_span: scored_span.attributes.get("eval.helpful"),
    "legal": lambda scored_span: (
        scored_span.attributes.get("eval.score") if scored_span.attributes["doc"] == "legal" else None
    ),
    "gpt": lambda scored_span: (
        scored_span.attributes.get("eval.helpful") if scored_span.span.model == "gpt-4o" else None
    ),
    "rated": lambda scored_span: 0 if "eval.helpful" in scored_span.attributes else None,
    "best": lambda scored_span: 0 if scored_span.attributes.get("eval.helpful") == 1.0 else None,
    "steps": lambda scored_span: scored_span.attributes["step"] if "eval.helpful" in scored_span.attributes else None,
    "all_steps": lambda scored_span: scored_span.attributes["step"],
}


def assert_measured(custom: dict[str, CustomValue], scored_spans: Sequence[ScoredSpan]) -> None:
    for name, value_of in CUSTOM_RECOUNTS.items():
        # A count of spans is of LLM calls; attributes are of every kind.
        counted = [one for one in scored_spans if one.span.kind == "llm" or name not in ("rated", "best")]
        values = [round(value * ONE) for value in map(value_of, counted) if value is not None]
        measured = custom.get(name, CustomValue())
        assert (name, measured.size, measured.total) == (name, len(values), sum(values))
        if name == "p95":
            assert_summarises(measured.summary, values)


@settings(max_examples=examples(120), deadline=None)
@given(st.lists(CALL, max_size=14), st.integers(1, 3), WINDOW, DIMENSION, st.integers())
def test_any_history_of_scores_equals_a_recount_of_the_spans_with_their_present_scores(
    fields: list[dict[str, Any]], shards: int, window_s: int, dimension: str, seed: int
) -> None:
    scored_spans = histories_of(fields)
    pipeline = folded(scored_spans, shards, random.Random(seed))
    query = Query(
        from_s=NOW_S - window_s,
        to_s=NOW_S + 1,
        now_s=NOW_S,
        fields=["score"],
        groupby=dimension,
        custom=[metric.name for metric in CUSTOM],
    )
    answer = pipeline.ask(query)
    inside = [
        scored_span
        for scored_span in scored_spans
        if answer.from_s <= scored_span.span.ended_ns // SECOND < answer.to_s
    ]
    assert answer.total.sums.spans == sum(scored_span.span.kind == "llm" for scored_span in inside)
    assert_quality(answer.total, inside)
    assert_measured(answer.total.custom, inside)
    values = {getattr(scored_span.span, dimension) or "unknown" for scored_span in inside}
    assert answer.groups.keys() <= values
    for value in values:
        mine = [scored_span for scored_span in inside if (getattr(scored_span.span, dimension) or "unknown") == value]
        aggregates = answer.groups.get(value, Aggregates())
        assert_quality(aggregates, mine)
        assert_measured(aggregates.custom, mine)
    cumulative = pipeline.ask(Query(what="lifetime"))
    every = [scored_span.score for scored_span in scored_spans if scored_span.score is not None]
    assert (cumulative.total.sums.score_n, cumulative.total.sums.score) == (len(every), sum(every))
    assert cumulative.total.sums.spans == len(scored_spans)
