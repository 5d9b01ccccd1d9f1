"""The captured requests of all emitters through a running ``serve``: what is shown adds up to what the server said."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from kit import otlp
from kit.otlp import ENCODINGS
from kit.otlp_fixtures import Fixture, fixtures
from kit.pipeline import Pipeline
from tokentrace.units import usd_to_nusd

#: The price list finds this model although Langfuse names no provider; nano-dollars.
BETTER = {"langfuse/openai.embeddings": 1_280}


class Case(NamedTuple):
    """A fixture as it was sent: its program and the ids of its traces."""

    fixture: Fixture
    service: str
    traces: frozenset[str]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("fixtures"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def cases(pipeline: Pipeline) -> list[Case]:
    """Send every fixture once, in one encoding or the other, and wait until all are counted and stored."""
    dice, sent, total = random.Random(1), [], 0
    for number, fixture in enumerate(fixtures(), 1):
        request, service = otlp.unique(fixture, number, time.time_ns())
        encoding = dice.choice(ENCODINGS)
        otlp.assert_stored(otlp.post(pipeline, request, encoding), encoding)
        # Ids are hexadecimal in any case, and are kept in lower case.
        ids = {span["traceId"].lower() for span in otlp.spans_of(request)}
        sent.append(Case(fixture, service, frozenset(ids)))
        total += len(fixture.expected["spans"])
    pipeline.until(lambda: pipeline.get("/metrics/span_count?window=1h&kind=all").json()["value"] >= total, "counted")
    for case in sent:
        for trace in case.traces:
            pipeline.until(partial(is_stored, pipeline, trace), f"{case.fixture.name} stored", 30)
    return sent


def is_stored(pipeline: Pipeline, trace: str) -> bool:
    return pipeline.get(f"/traces/{trace}").status == 200


def cost_of(case: Case) -> int:
    """Return what the calls of a fixture cost, nano-dollars."""
    return usd_to_nusd(case.fixture.expected["totals"]["cost_usd"]) + BETTER.get(case.fixture.name, 0)


def shown_spans(pipeline: Pipeline, case: Case) -> list[tuple[str, dict[str, Any]]]:
    """Return (trace, span) for each shown span of a fixture."""
    traces = sorted(case.traces)
    return [(trace, span) for trace in traces for span in pipeline.get(f"/traces/{trace}").json()["spans"]]


def test_the_traces_of_a_fixture_hold_its_spans_and_cost_what_it_cost(pipeline: Pipeline, cases: list[Case]) -> None:
    wrong = {}
    for case in cases:
        spans = [span for _, span in shown_spans(pipeline, case)]
        calls = [span for span in spans if span["kind"] in ("llm", "embedding")]
        cost = sum(usd_to_nusd(span.get("cost_usd") or 0) for span in calls)
        got = (len(spans), len(calls), cost)
        wanted = (len(case.fixture.expected["spans"]), case.fixture.expected["totals"]["calls"], cost_of(case))
        if got != wanted:
            wrong[case.fixture.name] = (got, wanted)
    assert wrong == {}


def test_the_metrics_of_a_fixture_are_its_totals(pipeline: Pipeline, cases: list[Case]) -> None:
    wrong = {}
    for case in cases:
        if not any(span["caller"] == "demo-app" for span in case.fixture.expected["spans"].values()):
            continue
        asked = f"window=1h&caller={case.service}"
        calls = sum(
            pipeline.get(f"/metrics/span_count?{asked}&kind={kind}").json()["value"] for kind in ("llm", "embedding")
        )
        cost = usd_to_nusd(pipeline.get(f"/metrics/total_cost?{asked}").json()["value"] or 0)
        if (calls, cost) != (case.fixture.expected["totals"]["calls"], cost_of(case)):
            wrong[case.fixture.name] = ((calls, cost), (case.fixture.expected["totals"]["calls"], cost_of(case)))
    assert wrong == {}


def test_the_receipts_of_a_fixture_add_up_to_its_cost(pipeline: Pipeline, cases: list[Case]) -> None:
    wrong = {}
    for case in cases:
        receipts = [
            pipeline.get(f"/traces/{trace}/spans/{span['span_id']}/receipt").json()
            for trace, span in shown_spans(pipeline, case)
            if span["kind"] in ("llm", "embedding")
        ]
        cost = sum(usd_to_nusd(float(receipt["cost_usd"] or 0)) for receipt in receipts)
        if cost != cost_of(case):
            wrong[case.fixture.name] = (cost, cost_of(case))
    assert wrong == {}


def test_what_is_saved_from_double_count_is_what_the_spans_say(pipeline: Pipeline, cases: list[Case]) -> None:
    expected = sum("duplicate_of" in span for case in cases for span in case.fixture.expected["spans"].values())
    stored = [span.get("attributes", {}) for case in cases for _, span in shown_spans(pipeline, case)]
    again = [attributes for attributes in stored if "duplicate_of" in attributes]
    nusd = sum(attributes.get("rollup.cost_nusd", 0) for attributes in again)
    assert len(again) == expected > 0
    assert pipeline.metrics()["saved_from_double_count"] == {"calls": expected, "nusd": nusd}
    page = pipeline.get("/metrics/prometheus").body.decode()
    assert f"tokentrace_saved_from_double_count_calls_total {float(expected)}" in page
