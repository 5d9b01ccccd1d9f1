"""The Prometheus page of spans whose cost is unknown, and of names with characters that break lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.metrics_http import ask, make, send
from kit.pipeline import Pipeline
from kit.prometheus_page import PAGE, Series, by, one, parse, total

#: Characters at which readers of lines may break a line; the format itself escapes a line feed only.
BREAKING = ("\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("unpriced"))
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


@pytest.fixture(scope="module")
def page(serving: Pipeline) -> Series:
    mystery: dict[str, Any] = {"model": "mystery", "provider": "nobody"}
    send(
        serving,
        [
            make(cost_usd=0.01),
            *(make(**mystery, prompt_tokens=4000, comp_tokens=0) for _ in range(3)),
            make(**mystery, kind="embedding", prompt_tokens=5, comp_tokens=0),
            make(**mystery, kind="agent", prompt_tokens=9000, comp_tokens=0),
            make(prompt_tokens=0, comp_tokens=0, total_tokens=77),
            *(make(model=f"a{letter}b", cost_usd=1) for letter in BREAKING),
        ],
    )
    return parse(serving.get(PAGE).body.decode())


def test_unpriced_spans_are_counted_by_model_and_provider(page: Series) -> None:
    unpriced = by(page, "tokentrace_unpriced_spans_total", "model", "provider")
    assert unpriced["mystery", "nobody"] == 4
    assert unpriced["gpt-4o", "openai"] == 1
    assert total(page, "tokentrace_partly_priced_spans_total") == 0


def test_tokens_of_unpriced_spans_are_counted_by_reason_without_roll_up_kinds(page: Series) -> None:
    reasons = by(page, "tokentrace_unpriced_tokens_total", "reason")
    assert {reason: tokens for reason, tokens in reasons.items() if tokens} == {"unknown_model": 12_005, "no_split": 77}
    assert reasons["no_usage"] == 0


def test_tokens_of_unknown_type_are_in_the_sum_as_in_json(serving: Pipeline, page: Series) -> None:
    tokens = by(page, "tokentrace_tokens_total", "model", "token_type")
    assert tokens["gpt-4o", "unclassified"] == 77
    assert total(page, "tokentrace_tokens_total") == ask(serving, "/total_tokens")["value"]
    assert one(page, "tokentrace_cost_per_call") == pytest.approx(ask(serving, "/cost_per_call")["value"])


def test_no_label_has_a_character_at_which_a_reader_may_break_a_line(serving: Pipeline, page: Series) -> None:
    text = serving.get(PAGE).body.decode()
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    models = {
        sample.labels["model"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "tokentrace_cost_total"
    }
    assert {f"a{ascii(letter)[1:-1]}b" for letter in BREAKING} <= models


def test_a_directory_without_spans_shows_every_reason_as_0(tmp_path: Path) -> None:
    with_nothing = Pipeline(tmp_path)
    with_nothing.start()
    try:
        reasons = by(parse(with_nothing.get(PAGE).body.decode()), "tokentrace_unpriced_tokens_total", "reason")
        assert len(reasons) > 10
        assert set(reasons.values()) == {0}
    finally:
        with_nothing.stop()
