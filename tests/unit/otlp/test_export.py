"""Records that are sent on by OTLP: the same record comes back, and a receiver finds it in the conventions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import asdict, replace

from kit.otlp_records import START_NS, stored_spans
from tokentrace.dialect.otlp import OtlpSpan, map_spans
from tokentrace.dialect.otlp.encode import export_spans
from tokentrace.dialect.otlp.protobuf_encode import encode_traces
from tokentrace.dialect.otlp.protobuf_wire import decode_traces
from tokentrace.records import MODEL_KINDS, ROLLUP_KINDS, Span


def sent(*spans: Span) -> list[OtlpSpan]:
    """Return *spans* as a receiver decodes them."""
    return decode_traces(encode_traces(export_spans(spans)))


def test_a_call_is_told_in_the_names_of_the_conventions() -> None:
    span = Span(
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        parent_span_id="00f067aa0ba902b7",
        name="answer",
        caller="checkout",
        model="claude-sonnet-4-5",
        provider="anthropic",
        started_ns=START_NS,
        ended_ns=START_NS + 2_000_000_000,
        latency_ns=2_000_000_000,
        ttft_ns=250_000_000,
        prompt_tokens=5100,
        completion_tokens=250,
        total_tokens=5350,
        cache_read_tokens=3000,
        cache_write_tokens=2000,
        cache_write_1h_tokens=500,
        reasoning_tokens=50,
        cost_nusd=13_575_000,
        cost_source="priced",
        session_id="s1",
        user_id="alice",
        response_id="msg_01AbCdEfGhIjKlMn",
        attributes={
            "requested_model": "claude-sonnet",
            "finish_reason": "stop",
            "input": '[{"role":"user","content":"Hi"}]',
            "output": "Hello",
            "plan": "pro",
        },
        source="reporter",
    )
    (told,) = sent(span)
    assert (told.trace_id, told.span_id, told.parent_span_id) == (span.trace_id, span.span_id, span.parent_span_id)
    assert (told.name, told.kind, told.status, told.resource) == ("answer", 3, 0, {"service.name": "checkout"})
    assert {name: value for name, value in told.attributes.items() if not name.startswith("tokentrace.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet",
        "gen_ai.response.model": "claude-sonnet-4-5",
        "gen_ai.response.id": "msg_01AbCdEfGhIjKlMn",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 5100,
        "gen_ai.usage.output_tokens": 250,
        "gen_ai.usage.cache_read.input_tokens": 3000,
        "gen_ai.usage.cache_write.input_tokens": 2000,
        "gen_ai.usage.cache_creation.input_tokens": 2000,
        "anthropic.usage.cache_creation.ephemeral_1h_input_tokens": 500,
        "gen_ai.usage.reasoning.output_tokens": 50,
        "gen_ai.usage.cost": 0.013575,
        "operation.cost": 0.013575,
        "gen_ai.conversation.id": "s1",
        "session.id": "s1",
        "user.id": "alice",
        "gen_ai.input.messages": '[{"role":"user","content":"Hi"}]',
        "output.value": "Hello",
        "requested_model": "claude-sonnet",
        "finish_reason": "stop",
        "plan": "pro",
    }


def test_a_failure_is_told_as_a_status_a_type_and_an_exception() -> None:
    span = Span(
        trace_id="t1",
        span_id="s1",
        status="timeout",
        error="Request timed out",
        error_stack="Traceback",
        ended_ns=START_NS,
        started_ns=START_NS,
    )
    (told,) = sent(span)
    assert (told.status, told.message, told.attributes["error.type"]) == (2, "Request timed out", "timeout")
    (event,) = told.events
    assert event.name == "exception"
    assert event.attributes == {
        "exception.type": "timeout",
        "exception.message": "Request timed out",
        "exception.stacktrace": "Traceback",
    }


def test_ids_of_another_form_become_the_digits_of_traceparent_and_are_told_as_they_were() -> None:
    spans = [
        Span(trace_id="order 7", span_id="step-1", started_ns=START_NS, ended_ns=START_NS),
        Span(trace_id="order 7", span_id="step-2", parent_span_id="step-1", started_ns=START_NS, ended_ns=START_NS),
    ]
    first, second = sent(*spans)
    assert first.trace_id == second.trace_id
    assert second.parent_span_id == first.span_id != second.span_id
    assert first.attributes["tokentrace.trace_id"] == "order 7"
    assert second.attributes["tokentrace.parent_span_id"] == "step-1"


@pytest.mark.long
@given(stored_spans())
def test_the_same_record_comes_back(span: Span) -> None:
    mapped = map_spans(sent(span))
    assert not mapped.bad
    (back,) = mapped.spans
    kept_source = "reported" if span.cost_nusd is not None and span.cost_source else ""
    wanted = replace(span, source="otlp", cost_source=kept_source, arrived_ns=0)
    assert asdict(back) == asdict(wanted)


@pytest.mark.long
@given(stored_spans())
def test_a_receiver_that_knows_only_the_conventions_finds_the_call(span: Span) -> None:
    span = replace(span, attributes={}, provider="openai")
    (told,) = sent(span)
    attributes = {name: value for name, value in told.attributes.items() if not name.startswith("tokentrace.")}
    mapped = map_spans([told._replace(attributes=attributes, scope="")])
    assert not mapped.bad
    (found,) = mapped.spans
    if span.kind in MODEL_KINDS:
        assert (found.kind, found.model, found.provider) == (span.kind, span.model, span.provider)
        assert tokens_of(found) == tokens_of(span)
        assert (found.cost_nusd or 0) == (span.cost_nusd or 0)
        assert found.response_id == (span.response_id if span.status == "ok" else "")
    elif span.kind in ROLLUP_KINDS:
        assert not found.total_tokens
        assert not found.cost_nusd
    assert (found.session_id, found.user_id, found.name) == (span.session_id, span.user_id, span.name)
    assert (found.started_ns, found.ended_ns, found.ttft_ns) == (span.started_ns, span.ended_ns, span.ttft_ns)
    assert (found.status == "ok") == (span.status == "ok")


def tokens_of(span: Span) -> Any:
    return (
        span.prompt_tokens,
        span.completion_tokens,
        span.cache_read_tokens,
        span.cache_write_tokens,
        span.cache_write_1h_tokens,
        span.reasoning_tokens,
    )


@pytest.mark.long
@settings(max_examples=20)
@given(stored_spans(), stored_spans())
def test_the_same_records_make_the_same_bytes(first: Span, second: Span) -> None:
    assert encode_traces(export_spans([first, second])) == encode_traces(export_spans([first, second]))


def test_a_span_that_claims_to_be_ours_and_is_not_is_read_by_the_conventions() -> None:
    (told,) = sent(Span(trace_id="a" * 32, span_id="b" * 16, model="gpt-4o", prompt_tokens=5, total_tokens=5))
    for name, value in (("tokentrace.kind", "nonsense"), ("tokentrace.cost_nusd", "much"), ("tokentrace.score", -1)):
        mapped = map_spans([told._replace(attributes={**told.attributes, name: value})])
        assert [(span.kind, span.model, span.prompt_tokens) for span in mapped.spans] == [("llm", "gpt-4o", 5)]
