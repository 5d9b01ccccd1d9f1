"""Spans as a reporter sends them, and the check that exactly the valid ones are counted and stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline
from tokentrace.records import Batch, Span, encode_batches


def reported_span(caller: str, **fields: Any) -> Span:
    """Return a call of *caller* with new ids, as a reporter sends it; it is valid unless *fields* are not."""
    return Span(
        **{
            "trace_id": fresh("trace"),
            "span_id": fresh("span"),
            "caller": caller,
            "model": "gpt-4o",
            "provider": "openai",
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 6,
            **fields,
        }
    )


def encode_batch(*spans: Span, **fields: Any) -> bytes:
    """Return a reporter's message of one batch with a new id."""
    return encode_batches(
        [Batch(**{"id": f"default.test.{uuid.uuid4().hex}", "sequence": 1, "spans": spans, **fields})]
    )


def counted(pipeline: Pipeline, caller: str) -> int:
    """Return how many spans of *caller* are in the metrics."""
    return int(pipeline.get(f"/metrics?window=30d&kind=all&caller={caller}").json()["span_count"])


def stored(pipeline: Pipeline, caller: str) -> int:
    """Return how many spans are in the traces of *caller*, which must hold no span of another caller."""
    page = pipeline.get(f"/traces?caller={caller}&limit=200").json()
    assert page["total"] <= 200
    return sum(int(trace["span_count"]) for trace in page["traces"])


def assert_exact(pipeline: Pipeline, expected: Mapping[str, int], seconds: float = 20.0) -> None:
    """
    Check that the pipeline accepts another valid span, and has counted and stored exactly *expected*.

    Args:
        expected: Caller -> number of its spans.
        seconds: How long the spans may take to arrive.
    """
    last = fresh("last")
    answer = pipeline.post("/spans", json_call(caller=last, trace_id=last))
    assert answer.status == 202, answer.body
    pipeline.until(lambda: counted(pipeline, last) == 1, "the last span counted", seconds)
    pipeline.until(lambda: stored(pipeline, last) == 1, "the last span stored", seconds)
    deadline = time.monotonic() + seconds
    wrong = dict.fromkeys(expected, (0, 0))
    while True:
        numbers = {caller: (counted(pipeline, caller), stored(pipeline, caller)) for caller in wrong}
        wrong = {caller: pair for caller, pair in numbers.items() if pair != (expected[caller], expected[caller])}
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    wanted = {caller: expected[caller] for caller in wrong}
    assert not wrong, f"(counted, stored) is {wrong}, expected was {wanted}"
    assert pipeline.get("/healthz").status == 200
    assert pipeline.get("/readyz").status == 200
