"""``GET /traces`` with filters, ``GET /calls``, and the timeline and the depths of a trace."""

from __future__ import annotations

import json
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


def test_calls_are_listed_in_pages_by_what_is_asked_for(pipeline: Pipeline) -> None:
    first = pipeline.get("/calls?limit=3").json()
    assert ([call["trace_id"] for call in first["calls"]], first["count"], first["total"]) == (["t3", "t2", "t1"], 3, 4)
    rest = pipeline.get(f"/calls?limit=3&cursor={first['next_cursor']}").json()
    assert ([call["trace_id"] for call in rest["calls"]], rest["next_cursor"]) == (["t0"], None)
    [call] = rest["calls"]
    assert (call["latency_ms"], call["cost_usd"], call["started_at"]) == (500.0, 0.0000025, "2026-03-15T14:00:00.000Z")
    for query, expected in (
        ("order=cost", ["t3", "t2", "t1", "t0"]),
        ("order=latency&attr.step=3", ["t3", "t2", "t0"]),
        ("since=2026-03-15T14:00:02Z&not.attr.step=3", []),
        ("kind=tool", []),
    ):
        assert [call["trace_id"] for call in pipeline.get(f"/calls?{query}").json()["calls"]] == expected, query
    for query, error in (
        ("order=duration", "order: 'duration' is none of started, cost, latency, tokens"),
        (f"order=cost&cursor={first['next_cursor']}", "cursor: is that of a list in another order"),
        ("cursor=x", "cursor: 'x' is not a cursor of an earlier answer"),
    ):
        answer = pipeline.get(f"/calls?{query}")
        assert (answer.status, answer.json()["error"]) == (400, error)


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
        ("attr.step=3&attr.step=4&attr.request_id=abc123", ["t1", "t0"]),
        ("not.attr.request_id=abc123", ["t3", "t2"]),
        ("not.attr.done=true&not.attr.step=3", []),
        ("not.attr.step=4&attr.request_id=abc123", ["t0"]),
        ("not.model=gpt-4o", []),
        ("not.model=other&not.model=another", ["t3", "t2", "t1", "t0"]),
        ("model=other&model=gpt-4o&not.user=&not.session=x", []),
        ("min_tokens=1&max_tokens=1", ["t3", "t2", "t1", "t0"]),
        ("min_tokens=2", []),
        ("max_tokens=0", []),
        ("order=duration", ["t0", "t1", "t2", "t3"]),
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
        ("max_cost=0.5&name=plan", True),
        ("max_cost=0.499999999&name=plan", False),
        ("min_latency=50&max_latency=50", True),
        ("min_latency=51&max_latency=199", False),
        ("name=plan&name=none", True),
        ("name=plan&not.name=answer", False),
        ("name=plan&not.name=none", True),
        ("not.session=s1", False),
        ("not.session_id=s2", True),
        ("not.user=u1", False),
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


def test_a_row_of_the_list_says_what_became_of_the_trace(pipeline: Pipeline, tree: str) -> None:
    score = {"trace_id": tree, "span_id": "plan", "name": "eval.score", "value": 0.25}
    other = {"trace_id": tree, "span_id": "tool", "name": "eval.score", "value": 1}
    assert pipeline.post("/scores", [score, other]).status == 202

    def row() -> Any:
        return pipeline.get("/traces?session=s1").json()["traces"][0]

    pipeline.until(lambda: row()["score"] == 0.625, "scored")
    shown = row()
    fields = ("trace_id", "name", "duration_ms", "error", "models", "caller", "user_id", "session_id", "status")
    assert {name: shown[name] for name in fields} == {
        "trace_id": tree,
        "name": "Ask",
        "duration_ms": 900,
        "error": "Rate LIMIT hit",
        "models": ["gpt-4o"],
        "caller": None,
        "user_id": "u1",
        "session_id": "s1",
        "status": "error",
    }
    # The root is of a roll-up kind; of the other four, only one says what it cost, and three are priced.
    assert shown["unpriced_span_count"] == 0


def test_an_export_holds_the_spans_without_an_excluded_value(pipeline: Pipeline, tree: str) -> None:
    lines = pipeline.get("/export?since=2026-03-16T00:00:00Z&not.kind=tool&not.name=answer").body.splitlines()
    assert [json.loads(line)["span_id"] for line in lines] == ["root", "plan"]
    lines = pipeline.get("/export?since=2026-03-16T00:00:00Z&name=late&name=plan&max_latency=10").body.splitlines()
    assert [json.loads(line)["span_id"] for line in lines] == ["lost"]


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


def test_values_and_keys_of_the_spans_are_listed_with_counts(pipeline: Pipeline) -> None:
    within = "since=2026-03-15T00:00:00Z&until=2026-03-15T23:00:00Z"
    answer = pipeline.get(f"/values?key=attr.request_id&{within}").json()
    assert answer == {
        "key": "attr.request_id",
        "values": [{"value": "abc123", "count": 2, "last_started_at": "2026-03-15T14:00:01.000Z"}],
        "more": False,
    }
    models = pipeline.get(f"/values?key=model&prefix=GPT&{within}&not.attr.done=true").json()["values"]
    assert [(each["value"], each["count"]) for each in models] == [("gpt-4o", 3)]
    keys = {each["key"]: each for each in pipeline.get(f"/keys?{within}").json()["keys"]}
    assert (keys["step"]["types"], keys["step"]["count"]) == (["number", "text"], 4)
    assert keys["done"]["types"] == ["boolean"]
    assert pipeline.get(f"/keys?{within}&limit=1").json()["more"] is True
    refused = pipeline.get("/values?key=price")
    assert (refused.status, refused.json()["error"].partition(";")[0][:24]) == (400, "key: 'price' is none of ")
