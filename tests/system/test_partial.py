"""``POST /spans?partial=true``: the valid spans of a request are stored, and the answer lists the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kit.dead_letters import await_dead_letters, dead_letter_count
from kit.json_spans import fresh, json_span
from kit.pipeline import Answer, Pipeline
from kit.reported_spans import assert_exact


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Start a pipeline."""
    serving = Pipeline(tmp_path_factory.mktemp("serve"))
    serving.start()
    yield serving
    serving.stop()


def mixed(caller: str) -> list[Any]:
    """Return two valid spans and four others."""
    return [
        json_span(caller=caller),
        json_span(caller=caller, kind="rocket"),
        5,
        json_span(caller=caller, prompt_tokens=0, comp_tokens=0),
        json_span(caller=caller, ended_at="2099-12-31T23:59:59Z"),
        {**json_span(caller=caller), "started_at": "2099-12-31T23:59:59Z", "latency_ms": 86_400_000 * 29},
    ]


def post(pipeline: Pipeline, body: Any, query: str = "?partial=true", **headers: str) -> Answer:
    """Post *body* as JSON to ``/spans``."""
    return pipeline.post(f"/spans{query}", json.dumps(body).encode(), headers)


@pytest.mark.parametrize(("query", "headers"), [("?partial=true", {}), ("", {"Prefer": "handling=lenient"})])
def test_the_valid_spans_are_stored_and_the_others_are_listed_and_become_dead_letters(
    pipeline: Pipeline, query: str, headers: dict[str, str]
) -> None:
    caller, before = fresh("caller"), dead_letter_count(pipeline)
    answer = post(pipeline, mixed(caller), query, **headers)
    assert answer.status == 202
    assert answer.headers["preference-applied"] == "handling=lenient"
    body = answer.json()
    assert body["accepted"] == 2
    assert [(error["index"], error["error"].partition(":")[0]) for error in body["rejected"]] == [
        (1, "kind"),
        (2, "not an object"),
        (3, "prompt_tokens, comp_tokens or total_tokens"),
        (5, "ended_at"),
    ]
    letters = await_dead_letters(pipeline, before, 4)
    assert sorted(letter["index"] for letter in letters) == [1, 2, 3, 5]
    assert_exact(pipeline, {caller: 2})


@pytest.mark.parametrize("query", ["", "?partial=false", "?partial=0"])
def test_without_it_one_bad_span_refuses_the_request(pipeline: Pipeline, query: str) -> None:
    caller = fresh("caller")
    answer = post(pipeline, mixed(caller), query)
    assert answer.status == 400
    assert answer.json()["error"].startswith("span 1: kind")
    assert_exact(pipeline, {caller: 0})


def test_a_repeated_request_counts_once(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = mixed(caller)
    for _ in range(2):
        assert post(pipeline, spans, **{"Idempotency-Key": caller}).json()["accepted"] == 2
    assert_exact(pipeline, {caller: 2})


def test_a_request_with_valid_spans_only_lists_none(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    assert post(pipeline, json_span(caller=caller)).json() == {"accepted": 1, "rejected": []}
    assert_exact(pipeline, {caller: 1})


def test_a_single_bad_span_is_listed_too(pipeline: Pipeline) -> None:
    answer = post(pipeline, json_span(kind="rocket"))
    assert (answer.status, answer.json()["accepted"]) == (202, 0)
    assert [error["index"] for error in answer.json()["rejected"]] == [0]


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[{]", b"5", b"null"])
def test_what_is_no_json_object_or_array_is_refused(pipeline: Pipeline, body: bytes) -> None:
    assert pipeline.post("/spans?partial=true", body).status == 400


def test_a_wrong_value_of_the_parameter_is_refused(pipeline: Pipeline) -> None:
    answer = post(pipeline, json_span(), "?partial=perhaps")
    assert answer.status == 400
    assert answer.json()["error"].startswith("partial: ")
