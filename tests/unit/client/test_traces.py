"""Traces: when spans are handed over, which ids and times they get, and what an exception leaves behind."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tokentrace import BufferTransport, ConfigError, Span, Tracer, current
from tokentrace.records import check_span


@pytest.fixture
def buffer() -> BufferTransport:
    return BufferTransport()


@pytest.fixture
def tracer(buffer: BufferTransport) -> Tracer:
    return Tracer(buffer, source="shop")


def test_spans_reach_the_transport_only_when_the_trace_ends(tracer: Tracer, buffer: BufferTransport) -> None:
    trace = tracer.start("answer")
    recorded = trace.record(model="gpt-4o", provider="openai", prompt_tokens=5, completion_tokens=2)
    assert len(buffer) == 0
    trace.end()
    trace.end()
    assert buffer.spans == [recorded]
    assert (recorded.trace_id, recorded.name, recorded.caller, recorded.kind) == (trace.id, "answer", "shop", "llm")
    check_span(recorded)


def test_a_span_recorded_after_the_end_is_handed_over_at_once(tracer: Tracer, buffer: BufferTransport) -> None:
    trace = tracer.start("answer")
    trace.end()
    trace.record(name="late", kind="custom")
    assert [span.name for span in buffer.spans] == ["late"]


def test_ten_thousand_waiting_spans_are_handed_over_before_the_end(tracer: Tracer, buffer: BufferTransport) -> None:
    trace = tracer.start("import")
    for _ in range(10_000):
        trace.record(kind="custom")
    assert len(buffer) == 10_000
    trace.record(kind="custom")
    assert len(buffer) == 10_000
    trace.end()
    assert len(buffer) == 10_001


def test_a_trace_that_the_program_forgets_hands_its_spans_over(tracer: Tracer, buffer: BufferTransport) -> None:
    trace = tracer.start("forgotten")
    trace.record(kind="custom")
    del trace
    gc.collect()
    assert len(buffer) == 1


def test_a_closed_tracer_has_ended_its_open_traces(tracer: Tracer, buffer: BufferTransport) -> None:
    trace = tracer.start("open")
    trace.record(kind="custom")
    tracer.close()
    assert len(buffer) == 1


def test_units_are_converted_and_the_instants_follow_from_the_latency(tracer: Tracer) -> None:
    ended = datetime(2026, 3, 15, 14, 23, 2, 681000, UTC)
    span = tracer.start("x").record(
        ended_at=ended, latency_ms=1240.5, ttft_ms=12, cost_usd=Decimal("0.00448"), score=0.5, usage={"web_searches": 2}
    )
    assert span.ended_ns - span.started_ns == span.latency_ns == 1_240_500_000
    assert span.ended_ns == round(ended.timestamp() * 1000) * 1_000_000
    assert (span.ttft_ns, span.cost_nusd, span.score, span.usage) == (
        12_000_000,
        4_480_000,
        500_000_000,
        {"web_searches": 2},
    )


def test_a_start_and_a_latency_give_the_end(tracer: Tracer) -> None:
    started = datetime(2026, 3, 15, 14, 23, 1, tzinfo=UTC)
    span = tracer.start("x").record(started_at=started, latency_ms=500)
    assert span.ended_ns - span.started_ns == 500_000_000
    assert span.started_ns == 1_773_584_581_000_000_000


def test_a_span_without_times_starts_and_ends_now_and_has_no_latency(tracer: Tracer) -> None:
    before = time.time_ns()
    span = tracer.start("x").record()
    assert before <= span.ended_ns <= time.time_ns()
    assert (span.started_ns, span.latency_ns) == (span.ended_ns, 0)


def test_values_that_cannot_be_used_are_left_out_and_named(tracer: Tracer) -> None:
    span = tracer.start("x").record(
        cost_usd=float("nan"),
        latency_ms=float("inf"),
        started_at=datetime(1, 1, 1, tzinfo=UTC),
        attributes={"raw": b"\x00", "mean": float("nan"), "when": timedelta(1), "kept": {1, 2}, 5: "five"},  # type: ignore[dict-item]
    )
    assert span.cost_nusd is None
    assert span.attributes == {"kept": [1, 2], "5": "five"}
    assert sorted(note.split(":")[0] for note in span.adjusted) == [
        "attributes.mean",
        "attributes.raw",
        "attributes.when",
        "cost_usd",
        "latency_ms",
        "started_at",
    ]


def test_an_unknown_field_is_an_error_that_names_it_and_the_known_ones(tracer: Tracer) -> None:
    with pytest.raises(TypeError, match=r"unknown field 'tokens' of a span; the fields are .*prompt_tokens"):
        tracer.start("x").record(tokens=5)  # type: ignore[call-arg]


def test_fields_of_a_trace_are_those_of_its_spans_unless_they_have_their_own(tracer: Tracer) -> None:
    trace = tracer.start("x", session_id="s-1", user_id="u-1", caller="cart", attributes={"shop": "de", "step": 1})
    first = trace.record(attributes={"step": 2})
    second = trace.record(Span(name="own", session_id="s-2"), user_id="u-2")
    assert (first.session_id, first.user_id, first.caller) == ("s-1", "u-1", "cart")
    assert first.attributes == {"shop": "de", "step": 2}
    assert (second.name, second.session_id, second.user_id) == ("own", "s-2", "u-2")


def test_open_spans_nest_by_context_and_measure_their_time(tracer: Tracer, buffer: BufferTransport) -> None:
    with tracer.trace("answer") as trace:
        assert current() is trace
        with trace.span("plan") as outer:
            assert current() is outer
            with outer.span("search", kind="tool") as inner:
                inner.first_token()
            recorded = trace.record(model="gpt-4o", prompt_tokens=1)
        assert current() is trace
    assert current() is None
    search, call, plan = buffer.spans
    assert (search.parent_span_id, call.parent_span_id, plan.parent_span_id) == (outer.span_id, outer.span_id, None)
    assert call == recorded
    assert search.kind == "tool"
    assert plan.kind == "custom"
    assert 0 < search.ttft_ns <= search.latency_ns == search.ended_ns - search.started_ns
    assert {span.trace_id for span in buffer.spans} == {trace.id}


def test_an_open_span_with_a_model_is_a_call_and_its_usage_may_be_missing(
    tracer: Tracer, buffer: BufferTransport
) -> None:
    with tracer.span("chat", model="gpt-4o"):
        pass
    with tracer.span("chat", model="gpt-4o") as span:
        span.set(prompt_tokens=7)
    missing, known = buffer.spans
    assert (missing.kind, missing.usage_state) == ("llm", "missing")
    assert (known.kind, known.usage_state, known.prompt_tokens) == ("llm", "", 7)
    for made in buffer.spans:
        check_span(made)


def test_an_exception_in_a_block_is_recorded_once_and_raised_again(tracer: Tracer, buffer: BufferTransport) -> None:
    error = ValueError("no such city")
    with pytest.raises(ValueError, match="no such city") as caught, tracer.trace("answer") as trace, trace.span("plan"):
        raise error
    assert caught.value is error
    (span,) = buffer.spans
    assert (span.status, span.error) == ("error", "ValueError: no such city")
    assert "test_traces.py" in span.error_stack


def test_an_exception_outside_of_open_spans_is_recorded_by_the_trace(tracer: Tracer, buffer: BufferTransport) -> None:
    class ReadTimeout(Exception):
        pass

    with pytest.raises(ReadTimeout), tracer.trace("answer"):
        raise ReadTimeout
    (span,) = buffer.spans
    assert (span.name, span.kind, span.status, span.error) == ("answer", "custom", "timeout", "ReadTimeout")


def test_a_cancelled_call_has_not_failed(tracer: Tracer, buffer: BufferTransport) -> None:
    async def run() -> None:
        async with tracer.span("slow"):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(run())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (span,) = buffer.spans
    assert (span.status, span.attributes) == ("ok", {"stream_end": "cancelled"})


def test_tasks_inherit_the_context_and_do_not_mix_it(tracer: Tracer, buffer: BufferTransport) -> None:
    async def answer(number: int) -> None:
        async with tracer.trace(f"answer {number}") as trace:
            await asyncio.sleep(0)
            async with tracer.span("step") as outer:
                await asyncio.sleep(0.001 * (number % 3))
                await asyncio.gather(*(asyncio.create_task(step(trace.id, outer.span_id)) for _ in range(3)))

    async def step(trace_id: str, parent: str) -> None:
        await asyncio.sleep(0)
        async with tracer.span("inner") as span:
            assert span.trace_id == trace_id
            span.set(attributes={"expected": parent})

    async def main() -> None:
        await asyncio.gather(*(answer(number) for number in range(20)))

    asyncio.run(main())
    inner = [span for span in buffer.spans if span.name == "inner"]
    assert len(inner) == 60
    assert all(span.parent_span_id == span.attributes["expected"] for span in inner)


def test_a_thread_enters_a_trace_by_activating_it(tracer: Tracer, buffer: BufferTransport) -> None:
    with tracer.trace("answer") as trace:

        def work() -> None:
            assert current() is None
            with trace.activate(), tracer.span("in the thread"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [(span.name, span.trace_id) for span in buffer.spans] == [("in the thread", trace.id)]


def test_a_span_without_a_trace_is_a_trace_of_its_own_that_ends_with_it(
    tracer: Tracer, buffer: BufferTransport
) -> None:
    span = tracer.span("alone")
    assert len(buffer) == 0
    assert span.end() is span.end()
    assert [made.trace_id for made in buffer.spans] == [span.trace_id]


def test_a_transport_that_fails_does_not_stop_the_program(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(BufferTransport):
        def send(self, spans: object) -> None:
            raise OSError("disk")

    tracer = Tracer(Broken())
    for _ in range(3):
        with tracer.span("x"):
            pass
    assert [record.getMessage() for record in caplog.records] == [
        "tracer : the transport Broken failed on 1 spans: OSError: disk"
    ]


def test_a_tracer_is_pickled_as_its_arguments(tmp_path: Path) -> None:
    tracer = pickle.loads(pickle.dumps(Tracer("noop:", capture="messages", prices={"m": {"prompt_per_1m": 1}})))
    assert (tracer.capture, tracer.prices) == ("messages", {"m": {"prompt_per_1m": 1}})
    with tracer.span("x") as span:
        assert pickle.loads(pickle.dumps(span.end())) == span.end()


def test_a_score_without_an_api_is_an_error_that_names_both_ways_to_say_where_it_is(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENTRACE_API_URL", raising=False)
    with pytest.raises(ConfigError, match="neither api_url nor TOKENTRACE_API_URL"):
        tracer.score(0.5, trace_id="t")
