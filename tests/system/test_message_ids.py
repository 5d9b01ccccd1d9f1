"""What the ``Nats-Msg-Id`` of a foreign publisher means: within the broker's window and after it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kit.nats_client import RAW, on_nats
from kit.pipeline import Pipeline

#: The broker's duplicate window in ``Pipeline``, seconds.
WINDOW_S = 1.0


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("ids"))
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


def publish(serving: Pipeline, message_id: str, spans: list[dict[str, Any]]) -> bool:
    """Publish *spans* as one JSON message and return whether the broker dropped it as a duplicate."""

    async def send(client: Any) -> bool:
        ack = await client.jetstream().publish(RAW, json.dumps(spans).encode(), headers={"Nats-Msg-Id": message_id})
        return bool(ack.duplicate)

    return on_nats(serving, send)


def spans_of(caller: str, *tokens: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"model": "gpt-4o", "prompt_tokens": n, "comp_tokens": 1, "caller": caller, **fields} for n in tokens]


def counts(serving: Pipeline, caller: str, spans: int, tokens: int) -> None:
    """Wait until *caller* has *spans* spans with *tokens* prompt tokens in the metrics and in the traces."""
    shown = f"/metrics?window=30d&caller={caller}"

    def is_so() -> bool:
        metrics = serving.get(shown).json()
        stored = sum(trace["span_count"] for trace in serving.get(f"/traces?caller={caller}").json()["traces"])
        return bool((metrics["span_count"], metrics["tokens"]["prompt_total"], stored) == (spans, tokens, spans))

    serving.until(is_so, f"{spans} spans and {tokens} tokens of {caller}", 20)


def test_a_publisher_that_numbers_from_0_after_each_restart_loses_no_span(serving: Pipeline) -> None:
    for run in range(3):
        for number in range(4):
            assert not publish(serving, f"{number}", spans_of("numbers", 100 * run + number))
        time.sleep(1.5 * WINDOW_S)
    counts(serving, "numbers", 12, sum(100 * run + number for run in range(3) for number in range(4)))


def test_within_the_window_an_id_means_the_same_message_whatever_its_content(serving: Pipeline) -> None:
    assert not publish(serving, "within", spans_of("within", 5))
    assert publish(serving, "within", spans_of("within", 5))
    assert publish(serving, "within", spans_of("within", 7))
    counts(serving, "within", 1, 5)


def test_after_the_window_equal_content_under_the_same_id_counts_once(serving: Pipeline) -> None:
    assert not publish(serving, "later", spans_of("later", 5, 6))
    time.sleep(1.5 * WINDOW_S)
    assert not publish(serving, "later", spans_of("later", 5, 6))
    # A third message under another id is counted after the second one was read.
    assert not publish(serving, "another", spans_of("later", 5, 6))
    counts(serving, "later", 4, 22)


def test_spans_with_ids_count_once_under_any_message_id(serving: Pipeline) -> None:
    for message_id in ("one", "two"):
        assert not publish(serving, message_id, spans_of("withids", 5, trace_id="t", span_id="s"))
    assert not publish(serving, "three", spans_of("withids", 1, trace_id="t", span_id="s2"))
    counts(serving, "withids", 2, 6)
