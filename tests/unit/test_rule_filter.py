"""Which spans a rule counts: those that pass its filter and have a value for its metric."""

from __future__ import annotations

from typing import Any

import pytest

from kit.builders import make_span
from kit.rules import START_NS, make_rule
from tokentrace.rollup import SeriesTable, rows_of
from tokentrace.units import SECOND
from tokentrace_alerter.rules import (
    FilterIndex,
    RuleEvaluator,
    select,
)


def counted(filter_: dict[str, str], *spans: dict[str, Any], metric: str = "span_count") -> int:
    """Return how many of *spans* a rule on *metric* with the filter *filter_* counts."""
    table = SeriesTable()
    watch = RuleEvaluator(make_rule(metric=metric, window="10s", threshold=1e9, filter=filter_), table)
    at = START_NS - SECOND
    made = [make_span(ended_ns=at, arrived_ns=at, **fields) for fields in spans]
    for _, indices in FilterIndex({"rule": filter_}).match(made):
        watch.fold(*select(made, rows_of(made, table, at), indices), at)
    watch.start_at(at)
    watch.evaluate()
    return watch.state.span_count


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, 4),
        ({"model": "gpt-4o"}, 2),
        ({"model": "gpt"}, 0),
        ({"model": "unknown"}, 1),
        ({"provider": "openai"}, 4),
        ({"caller": "chat"}, 1),
        ({"caller": "unknown"}, 3),
        ({"name": "summarize-document"}, 3),
        ({"status": "error"}, 1),
        ({"status": "error", "model": "gpt-4o"}, 1),
        ({"status": "error", "model": "o3"}, 0),
        ({"model": "GPT-4o"}, 0),
    ],
)
def test_only_spans_with_the_dimensions_of_the_filter_count(filter_: dict[str, str], expected: int) -> None:
    spans: list[dict[str, Any]] = [
        {"model": "gpt-4o"},
        {"model": "gpt-4o", "status": "error"},
        {"model": "o3", "caller": "chat"},
    ]
    assert counted(filter_, *spans, {"model": "", "name": "other"}) == expected


@pytest.mark.parametrize(
    ("value", "text", "matches"),
    [
        ("synthesize", "synthesize", True),
        ("synthesize", "synth", False),
        ("", "", True),
        (True, "true", True),
        (True, "True", False),
        (True, "1", False),
        (False, "false", True),
        (False, "", False),
        (3, "3", True),
        (3, "3.0", False),
        (0, "0", True),
        (0.5, "0.5", True),
        (1e-7, "1e-7", True),
        (2**63, "9223372036854775808", True),
        ("true", "true", True),
        ("3", "3", True),
        (None, "None", False),
        (None, "null", False),
        (None, "", False),
    ],
)
def test_an_attribute_matches_by_its_text(value: Any, text: str, matches: bool) -> None:
    assert counted({"step_name": text}, {"attributes": {"step_name": value}}) == matches


def test_a_span_without_the_attribute_does_not_match() -> None:
    assert counted({"step_name": "unknown"}, {}, {"attributes": {"step": "unknown"}}) == 0
    assert counted({"step_name": ""}, {}) == 0


def test_dimensions_and_attributes_of_a_filter_must_all_match() -> None:
    both = {"model": "gpt-4o", "step_name": "synthesize", "final": "true"}
    full = {"model": "gpt-4o", "attributes": {"step_name": "synthesize", "final": True}}
    assert counted(both, full, full) == 2
    assert counted(both, {**full, "model": "o3"}, {**full, "attributes": {"step_name": "synthesize"}}) == 0


def test_a_filter_on_the_kind_counts_that_kind_alone() -> None:
    spans: list[dict[str, Any]] = [{}, {"kind": "tool"}, {"kind": "tool"}, {"kind": "agent"}]
    assert counted({}, *spans) == 1
    assert counted({"kind": "tool"}, *spans) == 2
    assert counted({"kind": "agent"}, *spans) == 1
    assert counted({"kind": "tool"}, *spans, metric="total_cost") == 2


def test_a_quality_rule_counts_scored_spans_of_every_kind() -> None:
    spans: list[dict[str, Any]] = [{"score": 1}, {}, {"kind": "agent", "score": 5}, {"kind": "tool", "score": 0}]
    assert counted({}, *spans, metric="quality_score") == 3


def test_a_latency_rule_counts_spans_with_a_latency() -> None:
    assert counted({}, {"latency_ns": 0}, {}, {}, metric="latency_p95") == 2
    assert counted({}, {"ttft_ns": 0}, {"ttft_ns": 5}, metric="ttft_p50") == 1


def test_a_cost_rule_counts_spans_of_kinds_whose_cost_is_added() -> None:
    spans: list[dict[str, Any]] = [
        {"cost_nusd": 1},
        {"kind": "tool", "cost_nusd": 2},
        {"kind": "workflow", "cost_nusd": 4},
        {},
    ]
    assert counted({}, *spans, metric="total_cost") == 3
