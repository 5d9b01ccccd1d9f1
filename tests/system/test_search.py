"""``GET /traces`` with every documented filter, over spans that are really stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import Pipeline


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
    ("query", "found"),
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
def test_a_filter_finds_these_traces_newest_first(pipeline: Pipeline, query: str, found: list[str]) -> None:
    page: Any = pipeline.get(f"/traces?{query}").json()
    assert page["trace_ids"] == found
    assert page["total"] == len(found)


@pytest.mark.parametrize("query", ["since=yesterday", "until=2026-02-30T00:00:00Z", "since=", "attr.=1", "attr=1"])
def test_a_filter_that_makes_no_sense_is_a_400_that_names_it(pipeline: Pipeline, query: str) -> None:
    answer = pipeline.get(f"/traces?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.json()["error"]
