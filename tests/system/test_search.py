"""``GET /traces`` with filters, and the timeline and the depths of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.pipeline import Pipeline
from tokentrace_api.reads import depths


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("search"))
    serving.start()
    spans = [
        {
            "trace_id": f"t{number}",
            "span_id": "1",
            "model": "gpt-4o",
            "prompt_tokens": 1,
            "started_at": f"2026-03-15T14:00:0{number}.000Z",
            "ended_at": f"2026-03-15T14:00:0{number}.500Z",
            "attributes": attributes,
        }
        for number, attributes in enumerate(
            [
                {"request_id": "abc123", "step": 3},
                {"request_id": "abc123", "step": 4, "done": True},
                {"step": 3, "a/b~c": "odd", "eval.score": 0.5},
                {"step": "3", "user.name": "Zoë"},
            ]
        )
    ]
    assert serving.post("/spans", spans).status == 202
    serving.until(lambda: serving.get("/traces").json()["total"] == 4, "stored")
    yield serving
    serving.stop()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("attr.request_id=abc123", ["t1", "t0"]),
        ("attr.step=3", ["t3", "t2", "t0"]),
        ("attr.step=3&attr.request_id=abc123", ["t0"]),
        ("attr.done=true", ["t1"]),
        ("attr.eval.score=0.5", ["t2"]),
        ("attr.a%2Fb~c=odd", ["t2"]),
        ("attr.user.name=Zo%C3%AB", ["t3"]),
        ("attr.nothing=1", []),
        ("since=2026-03-15T14:00:02Z", ["t3", "t2"]),
        ("until=2026-03-15T14:00:01Z", ["t1", "t0"]),
        ("since=2026-03-15T15:00:01%2B01:00&until=2026-03-15T14:00:02.000Z", ["t2", "t1"]),
        ("since=2026-03-15T15:00:03+01:00", ["t3"]),
        ("since=2026-03-15T14:00:01Z&attr.step=3&model=gpt-4o", ["t3", "t2"]),
    ],
)
def test_a_filter_finds_exactly_the_matching_traces_newest_first(
    pipeline: Pipeline, query: str, expected: list[str]
) -> None:
    page: Any = pipeline.get(f"/traces?{query}").json()
    assert page["trace_ids"] == expected
    assert page["total"] == len(expected)


@pytest.mark.parametrize("query", ["since=yesterday", "until=2026-02-30T00:00:00Z", "since=", "attr.=1", "attr=1"])
def test_an_invalid_filter_is_refused_with_400_by_name(pipeline: Pipeline, query: str) -> None:
    answer = pipeline.get(f"/traces?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.json()["error"]


TREE: list[dict[str, Any]] = [
    {"span_id": "root", "kind": "agent", "name": "Ask", "at": 0, "ms": 900, "session_id": "s1", "user_id": "u1"},
    {"span_id": "plan", "parent_span_id": "root", "name": "plan", "at": 100, "ms": 200, "cost_usd": 0.5},
    {"span_id": "tool", "parent_span_id": "plan", "kind": "tool", "name": "look up", "at": 350, "ms": 50},
    {"span_id": "fail", "parent_span_id": "root", "name": "answer", "at": 450, "ms": 400, "error": "Rate LIMIT hit"},
    {"span_id": "lost", "parent_span_id": "missing", "kind": "tool", "name": "late", "at": 500, "ms": 10},
]


@pytest.fixture(scope="module")
def tree(pipeline: Pipeline) -> str:
    """Store a trace of three levels, in which the parent of one span is missing, and return its id."""
    spans = []
    for node in TREE:
        start, ms = node["at"], node["ms"]
        span = {key: value for key, value in node.items() if key not in ("at", "ms")}
        span |= {
            "trace_id": "tree",
            "model": "gpt-4o",
            "prompt_tokens": 1,
            "status": "error" if "error" in node else "ok",
            "started_at": f"2026-03-16T10:00:00.{start:03}Z",
            "ended_at": f"2026-03-16T10:00:00.{start + ms:03}Z",
            "latency_ms": ms,
        }
        spans.append(span)
    assert pipeline.post("/spans", spans).status == 202
    pipeline.until(lambda: pipeline.get("/traces/tree").status == 200, "stored")
    return "tree"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("session=s1", True),
        ("session=s2", False),
        ("user=u1&kind=agent", True),
        ("user=u1&kind=tool", False),
        ("min_cost=0.5", True),
        ("min_cost=0.500000001", False),
        ("min_latency=900", True),
        ("min_latency=900.5", False),
        ("min_latency=400&status=error", True),
        ("q=rate%20limit", True),
        ("q=OOK%20U", True),
        ("q=%25", False),
        ("q=rate%20limit&kind=tool", False),
    ],
)
def test_one_span_of_a_trace_must_match_all_filters(pipeline: Pipeline, tree: str, query: str, expected: bool) -> None:
    shown = pipeline.get(f"/traces?{query}").json()["trace_ids"]
    assert (tree in shown) is expected


@pytest.mark.parametrize("query", ["min_cost=-1", "min_cost=nan", "min_latency=soon", "min_latency=", "min_cost=inf"])
def test_a_bound_that_is_not_a_number_is_refused_by_name(pipeline: Pipeline, query: str) -> None:
    answer = pipeline.get(f"/traces?{query}")
    assert answer.status == 400
    assert answer.json()["error"].startswith(query.partition("=")[0] + ":")


def test_a_timeline_gives_depth_start_and_duration_of_every_span(pipeline: Pipeline, tree: str) -> None:
    #   root  |=================================|        depth 0
    #   plan      |=======|                              depth 1
    #   tool               |=|                           depth 2
    #   fail                  |===============|          depth 1
    #   lost                    |                        its parent is missing: depth 0
    shown = pipeline.get(f"/traces/{tree}/timeline").json()
    assert (shown["started_at"], shown["duration_ms"]) == ("2026-03-16T10:00:00.000Z", 900)
    rows = [(row["span_id"], row["depth"], row["start_ms"], row["duration_ms"]) for row in shown["rows"]]
    assert rows == [
        ("root", 0, 0, 900),
        ("plan", 1, 100, 200),
        ("tool", 2, 350, 50),
        ("fail", 1, 450, 400),
        ("lost", 0, 500, 10),
    ]
    whole = pipeline.get(f"/traces/{tree}").json()
    assert {span["span_id"]: span["depth"] for span in whole["spans"]} == {row[0]: row[1] for row in rows}
    assert pipeline.get("/traces/nope/timeline").status == 404


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 14)), max_size=40))
def test_a_depth_counts_the_ancestors_that_are_present(pairs: list[tuple[int, int]]) -> None:
    parents = {f"{child}": f"{parent}" for child, parent in pairs if child != parent}
    spans = [make_span(span_id=child, parent_span_id=parent) for child, parent in parents.items()]
    depth_of = {span_id: depth for (_, span_id), depth in depths(spans).items()}
    assert set(depth_of) == set(parents)
    for child in parents:
        chain, at = [child], parents[child]
        while at in parents and at not in chain:
            chain.append(at)
            at = parents[at]
        if at not in parents:  # no cycle: every ancestor that is present counts
            assert depth_of[child] == len(chain) - 1
