"""
The captured requests of all emitters through a running ``serve``: what is shown is what the server said.

Each is sent twice, its spans in one request, or each in a request of its own, the inner ones or the outer ones first.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from kit import otlp
from kit.examples import SEED, WHOLE
from kit.fixture_cases import WAYS, Case, differences, make_case, send, shown_spans
from kit.json_spans import fresh
from kit.otlp import ENCODINGS
from kit.otlp_fixtures import POORER_OUTSIDE, UNKNOWN_WRAPPERS, fixtures
from kit.pipeline import Pipeline
from tokentrace.records import MODEL_KINDS
from tokentrace.units import usd_to_nusd

#: What a request for each span cannot tell, by the way it is sent: fixture -> (calls, nano-dollars).
UNKNOWN = {"merged": {}, "inner first": UNKNOWN_WRAPPERS, "outer first": UNKNOWN_WRAPPERS | POORER_OUTSIDE}
#: The tokens that these calls have more, or fewer, than expected: fixture -> name in ``tokens`` of /metrics -> number.
TOLD_TWICE = {
    "langfuse+anthropic-sdk/anthropic.manual_generation": {
        "prompt_total": 5100,
        "completion_total": 250,
        "cache_read_total": 3000,
        "cache_write_total": 2000,
    }
}
NOT_TOLD = {name: {"cache_write_1h_total": -500} for name in POORER_OUTSIDE}
OTHER_TOKENS = {"merged": {}, "inner first": TOLD_TWICE, "outer first": TOLD_TWICE | NOT_TOLD}


class Sent(NamedTuple):
    """A case, and what is shown of it."""

    case: Case
    spans: list[dict[str, Any]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("fixtures"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def sent(pipeline: Pipeline) -> list[Sent]:
    """Send every fixture in all ways and encodings, in a short run in one of each; wait until all is counted."""
    every = list(itertools.product(WAYS, ENCODINGS))
    dice = random.Random(SEED)
    cases: list[Case] = []
    for fixture in fixtures():
        for way, encoding in every if WHOLE else [dice.choice(every)]:
            case = make_case(fixture, way, encoding, len(cases) + 1)
            send(pipeline, case, 2)
            cases.append(case)
    # What is repeated is in the log before this call.
    last = fresh("last")
    otlp.assert_stored(otlp.post(pipeline, otlp.traces([otlp.call()], last)), "protobuf")
    pipeline.until(lambda: overview(pipeline, last)["span_count"] == 1, "counted", 120)
    for case in cases:
        pipeline.until(partial(is_stored, pipeline, case), f"{case.name} stored", 30)
    return [Sent(case, shown_spans(pipeline, case)) for case in cases]


def is_stored(pipeline: Pipeline, case: Case) -> bool:
    return len(shown_spans(pipeline, case)) >= len(case.fixture.expected["spans"])


def overview(pipeline: Pipeline, service: str, kind: str = "llm") -> dict[str, Any]:
    found: dict[str, Any] = pipeline.get(f"/metrics?window=1h&caller={service}&kind={kind}").json()
    return found


def expected_totals(case: Case) -> tuple[int, int]:
    """Return (calls, nano-dollars) of a case."""
    return UNKNOWN[case.way].get(case.fixture.name, (case.fixture.expected["totals"]["calls"], case.expected_nusd))


def expected_tokens(case: Case) -> Counter[str]:
    """Return name in ``tokens`` of /metrics -> tokens of a case."""
    found = case.expected_tokens()
    found.update(OTHER_TOKENS[case.way].get(case.fixture.name, {}))
    return +found


def test_each_span_is_shown_once_and_as_its_emitter_meant_it(sent: list[Sent]) -> None:
    wrong = {}
    for case, spans in sent:
        assert len(spans) == len(case.fixture.expected["spans"]), case.name
        # A request for each span keeps both views of a call as they are; the next tests say which counts.
        left_out = set() if case.way == "merged" else case.told_twice()
        if found := differences(case, spans, left_out):
            wrong[case.name] = found
    assert wrong == {}


def test_the_spans_that_count_cost_what_the_calls_cost(sent: list[Sent]) -> None:
    wrong = {}
    for case, spans in sent:
        calls = [span for span in spans if span["kind"] in MODEL_KINDS and span.get("counted", True)]
        got = len(calls), sum(usd_to_nusd(span.get("cost_usd") or 0) for span in calls)
        if got != expected_totals(case):
            wrong[case.name] = (expected_totals(case), got)
    assert wrong == {}


def test_the_metrics_of_a_fixture_are_its_totals(pipeline: Pipeline, sent: list[Sent]) -> None:
    wrong = {}
    for case, _ in sent:
        if not any(span["caller"] == "demo-app" for span in case.fixture.expected["spans"].values()):
            continue
        kinds = [overview(pipeline, case.service, kind) for kind in ("llm", "embedding")]
        calls = sum(shown["span_count"] for shown in kinds)
        nusd = sum(usd_to_nusd(shown["cost"]["total_usd"] or 0) for shown in kinds)
        tokens: Counter[str] = Counter()
        for shown in kinds:
            tokens.update({name: shown["tokens"][name] or 0 for name in case.expected_tokens()})
        if ((calls, nusd), +tokens) != (expected_totals(case), expected_tokens(case)):
            wrong[case.name] = (expected_totals(case), expected_tokens(case)), ((calls, nusd), +tokens)
    assert wrong == {}


def test_the_receipts_that_count_add_up_to_the_cost(pipeline: Pipeline, sent: list[Sent]) -> None:
    wrong = {}
    for case, spans in sent:
        receipts = [
            pipeline.get(f"/traces/{span['trace_id']}/spans/{span['span_id']}/receipt").json() for span in spans
        ]
        nusd = sum(usd_to_nusd(float(receipt["cost_usd"] or 0)) for receipt in receipts if receipt["counted"])
        winners = {receipt["span_id"]: receipt["duplicate_of"] for receipt in receipts if "duplicate_of" in receipt}
        shown = {span["span_id"]: span.get("attributes", {}).get("duplicate_of") for span in spans}
        told = {span_id: winner for span_id, winner in shown.items() if winner}
        if (nusd, winners) != (expected_totals(case)[1], told):
            wrong[case.name] = (expected_totals(case)[1], told), (nusd, winners)
    assert wrong == {}


def test_what_is_saved_from_double_count_is_what_the_spans_say(pipeline: Pipeline, sent: list[Sent]) -> None:
    expected = sum(
        "duplicate_of" in span
        for case, _ in sent
        if case.way == "merged"
        for span in case.fixture.expected["spans"].values()
    )
    stored = [span.get("attributes", {}) for _, spans in sent for span in spans]
    again = [attributes for attributes in stored if "duplicate_of" in attributes]
    nusd = sum(attributes.get("rollup.cost_nusd", 0) for attributes in again)
    assert len(again) == expected
    assert pipeline.metrics()["saved_from_double_count"] == {"calls": expected, "nusd": nusd}
    page = pipeline.get("/metrics/prometheus").body.decode()
    assert f"tokentrace_saved_from_double_count_calls_total {float(expected)}" in page
