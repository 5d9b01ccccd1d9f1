"""The reason of a refusal: one word of a small vocabulary, whatever the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_batch, make_span
from tokentrace.dialect import docs
from tokentrace.errors import Rejected
from tokentrace.records import (
    REFUSAL_REASONS,
    check_span,
    decode_batches,
    encode_batches,
    reason_of,
    salvage_batches,
    settle_usage,
)


def text_of(work: Callable[[], object]) -> str:
    with pytest.raises(Rejected) as caught:
        work()
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": ""}, "model"),
        ({"prompt_tokens": 0, "completion_tokens": 0}, "prompt_tokens"),
        ({"total_tokens": 3}, "total_tokens"),
        ({"trace_id": "line\nbreak"}, "trace_id"),
        ({"parent_span_id": "ünïcode"}, "parent_span_id"),
        ({"started_ns": 5}, "started_at"),
        ({"ended_ns": 5}, "ended_at"),
        ({"cache_read_tokens": 5000}, "cache_read_tokens"),
        ({"reasoning_tokens": 6000}, "reasoning_tokens"),
        ({"usage_state": "none"}, "usage_state"),
        ({"usage": {"audio_tokens": 1.5}}, "usage"),
        ({"attributes": {"tt.own": 1}}, "attributes"),
        ({"attributes": {"x": float("nan")}}, "attributes"),
        ({"pricing_context": {str(number): "x" for number in range(20)}}, "pricing_context"),
    ],
)
def test_the_reason_of_an_invalid_span_is_its_field(fields: dict[str, Any], reason: str) -> None:
    assert reason_of(text_of(lambda: check_span(settle_usage(make_span(**fields))))) == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'[{"model": "m", "prompt_tokens": 1}, {"model": "m", "prompt_tokens": -1}]', "prompt_tokens"),
        (b'{"model": "m", "prompt_tokens": "many"}', "prompt_tokens"),
        (b'{"model": "m", "comp_tokens": -1}', "completion_tokens"),
        (b'{"model": "m", "prompt_tokens": 1, "started_at": "yesterday"}', "started_at"),
        (b'{"model": "m", "prompt_tokens": 1, "cost_usd": -1}', "cost_usd"),
        (b'{"model": "m", "prompt_tokens": 1, "kind": "poem"}', "kind"),
        (b'{"model": "m"', "undecodable"),
    ],
)
def test_the_reason_of_invalid_json_is_the_field_as_its_sender_wrote_it(body: bytes, reason: str) -> None:
    assert reason_of(text_of(lambda: docs.decode_spans(body))) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"completion_tokens": 2**41}, "completion_tokens"),
        ({"latency_ns": -1}, "latency_ms"),
        ({"ttft_ns": "soon"}, "ttft_ms"),
        ({"cost_nusd": -1}, "cost_usd"),
        ({"status": "perhaps"}, "status"),
        ({"trace_id": "x" * 300}, "trace_id"),
    ],
)
def test_the_reason_of_an_undecodable_value_is_the_documented_name_of_its_field(
    fields: dict[str, Any], reason: str
) -> None:
    [(_, [(_, _, text)])] = salvage_batches(encode_batches([make_batch(make_span(**fields))]))
    assert reason_of(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (text_of(lambda: decode_batches(b"hello")), "undecodable"),
        ("span 3: not an object", "undecodable"),
        ("span 3: over 524288 bytes", "too_large"),
        ("span: 600000 bytes, at most 524288 are accepted", "too_large"),
        ("batch: 9000000 bytes after cleaning, at most 8000000 fit into a message", "too_large"),
        ("scores: only the api may write these records", "forbidden"),
        ("delivered 5 times without success", "other"),
        ("ingest failed on it: KeyError", "other"),
        ("subject: the project's name is too long", "other"),
        ("", "other"),
    ],
)
def test_what_is_about_no_field_has_one_of_four_reasons(text: str, reason: str) -> None:
    assert reason_of(text) == reason


@given(st.text() | st.sampled_from(REFUSAL_REASONS).map(lambda name: f"span 7: {name}x: wrong"))
def test_every_text_has_a_reason_of_the_vocabulary(text: str) -> None:
    assert reason_of(text) in REFUSAL_REASONS


def test_the_vocabulary_is_small() -> None:
    assert len(REFUSAL_REASONS) == len(set(REFUSAL_REASONS)) < 60
