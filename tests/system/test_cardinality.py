"""Thousands of different models, providers, callers and names: answers come, are complete and say what is ``other``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kit.pipeline import Pipeline

FLOOD = 5000
KNOWN = {"model": "gpt-4o", "provider": "openai", "caller": "checkout", "name": "answer", "cost_usd": 0.25}
DIMENSIONS = ("model", "provider", "caller", "name")


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline with ten known calls, 5,000 calls of different models, providers, callers and names, and ten more."""
    pipeline = Pipeline(tmp_path_factory.mktemp("flood"))
    pipeline.start()
    send(pipeline, [call(f"early-{n}", **KNOWN) for n in range(10)])
    flood = [
        call(f"c{n}", model=f"m{n}", provider=f"p{n}", caller=f"c{n}", name=f"n{n}", cost_usd=0.01)
        for n in range(FLOOD)
    ]
    for at in range(0, FLOOD, 500):
        send(pipeline, flood[at : at + 500])
    send(pipeline, [call(f"late-{n}", **KNOWN, status="error") for n in range(10)])
    total = FLOOD + 20
    pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] == total, "counted")
    pipeline.until(lambda: pipeline.get("/health").json()["stored_spans"] == total, "stored")
    yield pipeline
    pipeline.stop()


def call(span_id: str, **fields: Any) -> dict[str, Any]:
    return {"trace_id": "t", "span_id": span_id, "prompt_tokens": 10, "comp_tokens": 2, "latency_ms": 5, **fields}


def send(pipeline: Pipeline, spans: list[dict[str, Any]]) -> None:
    assert pipeline.post("/spans", spans).status == 202


def assert_answers(pipeline: Pipeline) -> None:
    """Check that the routes answer and that no value that is shown by name lacks a span."""
    health = pipeline.get("/health")
    assert health.status == 200, health.body
    state = health.json()
    assert state["span_count"] == FLOOD + 20
    dimensions = state["series"]["dimensions"]
    assert (dimensions["model"]["kept"], dimensions["provider"]["kept"]) == (500, 100)
    assert dimensions["model"]["folded"] == pytest.approx(FLOOD - 499, rel=0.1)
    assert any("model" in warning for warning in state["warnings"])

    stats = pipeline.get("/stats")
    assert (stats.status, stats.json()["total_cost_usd"]) == (200, 0.25 * 20 + 0.01 * FLOOD)
    assert stats.json()["folded"] == ["name"]
    assert stats.json()["by_operation"]["answer"] == {"count": 20, "errors": 10}

    for dimension in DIMENSIONS:
        answer = pipeline.get(f"/metrics/total_cost?groupby={dimension}").json()
        assert answer["folded"] == [dimension]
        groups = answer[f"by_{dimension}"]
        assert groups.pop(KNOWN[dimension]) == 5.0
        other = groups.pop("other")
        assert set(groups.values()) == {0.01}
        assert round(100 * other) + len(groups) == FLOOD
    everything = pipeline.get("/metrics").json()
    assert (everything["folded"], everything["cost"]["by_model"]["gpt-4o"]) == (["model"], 5.0)


def test_a_flood_of_values_stops_no_answer_and_known_values_are_complete(flooded: Pipeline) -> None:
    assert_answers(flooded)


def test_a_value_under_other_is_answered_from_the_store_and_a_value_that_never_was_is_none(flooded: Pipeline) -> None:
    for dimension, first in zip(DIMENSIONS, "mpcn", strict=True):
        for number in (3, 3100, FLOOD - 1):
            answer = flooded.get(f"/metrics/total_cost?{dimension}={first}{number}").json()
            assert (answer["value"], answer["span_count"]) == (0.01, 1), (dimension, number)
            assert "folded" not in answer
            assert [one["cost_usd"] for one in answer["exemplars"]] == [0.01]
        answer = flooded.get(f"/metrics/total_cost?{dimension}=nobody").json()
        assert (answer["value"], answer["span_count"]) == (None, 0)


def test_a_series_of_a_value_under_other_is_answered_from_the_store(flooded: Pipeline) -> None:
    series = flooded.get("/metrics/total_cost/series?window=1h&step=10m&caller=c3100&groupby=model").json()
    assert sum(point["value"] or 0 for point in series["points"]) == 0.01
    assert list(series["by_model"]) == ["m3100"]
    assert sum(point["span_count"] for point in series["by_model"]["m3100"]) == 1


def test_a_filter_on_other_is_what_is_counted_there_and_says_so(flooded: Pipeline) -> None:
    answer = flooded.get("/metrics/total_cost?model=other").json()
    assert (answer["folded"], answer["span_count"]) == (["model"], FLOOD - 499)


def test_the_scrape_has_a_bounded_number_of_label_sets_and_known_labels_are_complete(flooded: Pipeline) -> None:
    page = flooded.get("/metrics/prometheus")
    assert page.status == 200
    samples = dict(line.rsplit(" ", 1) for line in page.body.decode().splitlines() if not line.startswith("#"))
    assert samples['tokentrace_cost_total{caller="checkout",model="gpt-4o",provider="openai"}'] == "5.0"
    models = {name for name in samples if name.startswith("tokentrace_latency_ms_count")}
    assert len(models) == 501
    assert len([name for name in samples if name.startswith("tokentrace_cost_total")]) <= 4000
    assert float(samples['tokentrace_folded_values{dimension="model"}']) == pytest.approx(FLOOD - 499, rel=0.1)


def test_after_a_restart_the_answers_are_the_same(flooded: Pipeline) -> None:
    assert flooded.stop() == 0
    flooded.start()
    flooded.until(lambda: flooded.get("/metrics/prometheus").status == 200, "caught up")
    assert_answers(flooded)
