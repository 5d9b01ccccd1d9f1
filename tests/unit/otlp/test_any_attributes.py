"""Whatever emitters send: the mapping never fails, keeps every call, and makes valid records."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.random_otlp import random_request
from tokentrace.dialect.otlp import Mapped, OtlpSpan, map_spans
from tokentrace.pricing import Pricer
from tokentrace.records import MODEL_KINDS, Span, check_span, fit_span, settle_usage

PRICER = Pricer()
decode_span = msgspec.msgpack.Decoder(Span).decode


def price(span: Span) -> int | None:
    return PRICER.quote(span).cost_nusd


def assert_valid(mapped: Mapped, request: list[OtlpSpan]) -> None:
    assert mapped.bad == []
    assert len(mapped.readings) == len(request)
    assert [reading.span for reading in mapped.readings if reading.kind != "pending"] == mapped.spans
    for reading in mapped.readings:
        span = reading.span
        if span is None:
            continue
        # Every call stays: as one, or as another view of one.
        assert (span.kind == reading.kind) is not bool(reading.duplicate_of or reading.why_duplicate)
        assert reading.kind in MODEL_KINDS or not reading.why_duplicate
        assert min(span.prompt_tokens, span.completion_tokens, span.total_tokens) >= 0
        assert span.cache_read_tokens + span.cache_write_tokens <= span.prompt_tokens
        assert span.cache_write_1h_tokens <= span.cache_write_tokens
        assert span.reasoning_tokens <= span.completion_tokens
        if span.kind not in MODEL_KINDS:
            assert (span.total_tokens, span.usage, span.cost_nusd) == (0, None, None)
        elif span.status == "ok" and not (span.total_tokens or span.usage):
            assert span.usage_state == "missing"
        check_span(span, needs_model=False)
        assert fit_span(span) == settle_usage(span) == span
        assert decode_span(msgspec.msgpack.encode(span)) == span
    assert mapped.saved["calls"] == sum(bool(reading.why_duplicate) for reading in mapped.readings)


@pytest.mark.long
@settings(max_examples=examples(10_000))
@given(st.integers(0, 2**64).map(lambda seed: random_request(random.Random(seed))))
def test_any_attributes_make_valid_records_of_every_call_and_always_the_same(request: list[OtlpSpan]) -> None:
    mapped = map_spans(request, price)
    assert_valid(mapped, request)
    assert map_spans(request, price) == mapped
