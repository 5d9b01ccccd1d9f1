"""The documented JSON span as it is shown, and decoded again from what is shown."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import ENDED_NS, make_span
from kit.examples import examples
from tokentrace.dialect.docs import decode_spans, render_span
from tokentrace.records import (
    FREE_REASONS,
    KINDS,
    MAX_COST_NUSD,
    MAX_LATENCY_NS,
    UNPRICED_REASONS,
    Span,
    check_span,
    is_response_id,
    settle_usage,
)
from tokentrace.units import MS

EXAMPLE = {
    "trace_id": "7f3a1c2b-0000-4000-8000-000000000001",
    "span_id": "a1b2c3d4-0000-4000-8000-000000000002",
    "name": "summarize-document",
    "model": "gpt-4o",
    "provider": "openai",
    "prompt_tokens": 512,
    "comp_tokens": 128,
    "total_tokens": 640,
    "cost_usd": 0.00448,
    "latency_ms": 1240,
    "status": "ok",
    "started_at": "2026-03-15T14:23:01.441Z",
    "ended_at": "2026-03-15T14:23:02.681Z",
}


def test_the_documented_example_is_shown_as_it_was_sent() -> None:
    [span] = decode_spans(json.dumps([EXAMPLE]).encode())
    assert render_span(span) == {**EXAMPLE, "parent_span_id": None, "kind": "llm"}


def test_a_root_is_shown_with_a_null_parent_and_without_empty_fields() -> None:
    shown = render_span(make_span())
    assert shown["parent_span_id"] is None
    assert shown["cost_usd"] is None
    for absent in ("attributes", "error", "caller", "ttft_ms", "session_id", "usage", "reasoning_tokens", "cost_model"):
        assert absent not in shown


def test_a_cost_of_zero_is_shown_as_zero() -> None:
    assert render_span(make_span(cost_nusd=0))["cost_usd"] == 0


ascii_ids = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)


names = st.text(max_size=20)


instants = st.integers(946_684_800_000, 4_102_444_800_000).map(lambda ms: ms * MS)


scalars = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)


keys = st.text(min_size=1, max_size=20).filter(lambda key: not key.startswith(("tt.", "eval.")))


contexts = st.sampled_from(["service_tier", "processing", "speed", "search_type"])


@st.composite
def valid_spans(draw: st.DrawFn) -> Span:
    cached, written, reasoning = (draw(st.integers(0, 2**30)) for _ in range(3))
    prompt = draw(st.integers(max(1, cached + written), 2**39))
    completion = draw(st.integers(reasoning, 2**39))
    started, ended = sorted((draw(instants), draw(instants)))
    latency = draw(st.integers(0, MAX_LATENCY_NS))
    source = draw(st.sampled_from(["", "reported", "priced", "unpriced", "free"]))
    return make_span(
        trace_id=draw(ascii_ids),
        span_id=draw(ascii_ids),
        parent_span_id=draw(st.none() | ascii_ids),
        name=draw(names),
        kind=draw(st.sampled_from(KINDS)),
        caller=draw(names),
        model=draw(names.filter(bool)),
        provider=draw(names),
        status=draw(st.sampled_from(["ok", "error", "timeout"])),
        started_ns=started,
        ended_ns=ended,
        latency_ns=latency,
        ttft_ns=draw(st.integers(0, latency)),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion + draw(st.sampled_from([0, 0, 7])),
        cost_nusd=draw(st.none() | st.integers(int(source == "reported"), MAX_COST_NUSD)),
        attributes=draw(st.dictionaries(keys, scalars, max_size=3)),
        error=draw(names),
        error_stack=draw(names),
        session_id=draw(st.none() | ascii_ids),
        user_id=draw(st.none() | ascii_ids),
        cost_model=draw(names),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)),
        reasoning_tokens=reasoning,
        usage=draw(st.none() | st.dictionaries(names, st.integers(0, 2**40), min_size=1, max_size=2)),
        arrived_ns=ENDED_NS,
        cost_source=source,
        unpriced_reason=draw(names | st.sampled_from(UNPRICED_REASONS)),
        usage_state=draw(st.sampled_from(["", "partial", "estimated"])),
        pricing_context=draw(st.none() | st.dictionaries(contexts, names.filter(bool), min_size=1, max_size=3)),
        response_id=draw(st.just("") | ascii_ids.filter(is_response_id)),
        scope=draw(names),
    )


@settings(max_examples=examples(150), deadline=None)
@given(valid_spans())
def test_a_shown_span_decodes_to_the_same_span_without_what_ingest_sets(span: Span) -> None:
    # Ingest sets the three replaced fields, so the decoder leaves them empty. A sender may state only one source.
    span = settle_usage(span)
    check_span(span)
    [back] = decode_spans(json.dumps(render_span(replace(span, unpriced_reason="no_usage"))).encode())
    stated = span.cost_source == "reported" and bool(span.cost_nusd)
    if span.cost_source != "reported" or stated:
        assert back == replace(span, cost_source="reported" if stated else "", unpriced_reason="", arrived_ns=0)


@pytest.mark.parametrize("reason", FREE_REASONS)
def test_a_true_zero_is_shown_and_taken_again_with_its_reason(reason: str) -> None:
    span = make_span(cost_nusd=0, cost_source="reported", unpriced_reason=reason, arrived_ns=0)
    shown = render_span(span)
    assert shown["cost_reason"] == reason
    assert "unpriced_reason" not in shown
    assert decode_spans(json.dumps(shown).encode()) == [span]


def test_the_reason_of_an_unknown_cost_is_shown_under_both_names() -> None:
    shown = render_span(make_span(cost_source="unpriced", unpriced_reason="no_rate:web_searches"))
    assert (shown["cost_reason"], shown["unpriced_reason"]) == ("no_rate:web_searches", "no_rate:web_searches")


@given(instants, st.integers(0, MS - 1))
def test_instants_are_shown_with_milliseconds_and_a_z(instant: int, below_ms: int) -> None:
    shown = render_span(make_span(started_ns=instant + below_ms, ended_ns=instant))["started_at"]
    assert len(shown) == len("2026-03-15T14:23:01.441Z")
    assert shown.endswith("Z")
    assert datetime.fromisoformat(shown) == datetime.fromisoformat(render_span(make_span(ended_ns=instant))["ended_at"])
