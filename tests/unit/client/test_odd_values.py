"""Values and exceptions of any kind: nothing is raised in the application, and no span is lost by one of them."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tokentrace import BufferTransport, Span, Trace, Tracer, current
from tokentrace.client.reporter.encoding import encoded
from tokentrace.records import check_span, fit_span, read_span, settle_usage


class Unprintable:
    """An object that fails at its own text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


class Unreadable(dict[str, object]):
    """A mapping that fails when it is read."""

    def items(self) -> Any:
        raise LookupError("not now")

    keys = __iter__ = items


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Endless(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override] # that is what is odd
        raise RuntimeError("no cause")


@pytest.fixture
def buffer() -> BufferTransport:
    return BufferTransport()


@pytest.fixture
def tracer(buffer: BufferTransport) -> Tracer:
    return Tracer(buffer, source="shop")


def _fail_twice(trace: Trace) -> None:
    try:
        with trace.span("call"):
            raise ValueError("first")
    except ValueError:
        pass
    raise ValueError("second")


FIELDS = (
    *("name", "kind", "model", "provider", "caller", "status", "error", "error_stack", "session_id", "user_id"),
    *("response_id", "scope", "span_id", "parent_span_id", "prompt_tokens", "total_tokens", "latency_ms", "ttft_ms"),
    *("cost_usd", "score", "usage", "usage_state", "pricing_context", "started_at", "attributes"),
)
VALUES: tuple[Any, ...] = (
    *(Unprintable(), b"x", float("nan"), 10**400, -1, "\ud800", {"a": Unprintable()}, {Unprintable(): 1}, [1], True),
    *("x" * 100_000, object, Unreadable(a=1), {"a": 10**30}, {"a": b"x"}),
)


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_of_any_type_raises_nothing_and_loses_no_span(
    field: str, tracer: Tracer, buffer: BufferTransport
) -> None:
    for value in VALUES:
        with tracer.trace("answer") as trace:
            if field == "name":
                trace.span(value).end()
            else:
                trace.span("call", **{field: value}).end()
            trace.record(**{field: value})
    assert len(buffer) == 2 * len(VALUES)
    for span in buffer.spans:
        data = encoded(span)
        assert isinstance(data, bytes), data
        # As the reporter checks it before it is sent; a model may be missing only where it was what could not be used.
        check_span(settle_usage(fit_span(read_span(data))), needs_model=field != "kind")
    assert all(span.adjusted for span in buffer.spans if field == "latency_ms" and span.latency_ns == 0)


def test_ids_that_are_numbers_or_uuids_become_texts(tracer: Tracer) -> None:
    user = UUID("0e1dba96-7a2c-4f43-9d0c-6f6ae4d1f2a3")
    with tracer.trace("answer", session_id=7, user_id=user) as trace:  # type: ignore[arg-type] # often given
        span = trace.span("call", caller=12).end()  # type: ignore[arg-type] # often given
        other = trace.record(session_id=8)  # type: ignore[arg-type] # often given
    assert (span.session_id, span.user_id, span.caller) == ("7", str(user), "12")
    assert (other.session_id, other.adjusted) == ("8", ())


def test_a_recorded_step_without_a_model_is_of_kind_custom_and_a_call_without_tokens_says_so(tracer: Tracer) -> None:
    trace = tracer.start("answer")
    step, call, failed = trace.record(name="step"), trace.record(model="m"), trace.record(model="m", status="error")
    assert [(span.kind, span.usage_state) for span in (step, call, failed)] == [
        ("custom", ""),
        ("llm", "missing"),
        ("llm", ""),
    ]
    for span in (step, call, failed):
        check_span(span)
    whole = Span(kind="llm", status="error")
    assert trace.record(whole).kind == "llm"


@pytest.mark.parametrize("error", [Silent("x"), Endless("x")])
def test_an_exception_that_fails_at_its_own_text_reaches_the_application_unchanged(
    error: Exception, tracer: Tracer, buffer: BufferTransport
) -> None:
    with pytest.raises(type(error)) as raised, tracer.trace("answer") as trace, trace.span("call"):
        raise error
    assert raised.value is error
    (span,) = buffer.spans
    assert (span.status, span.error.partition(":")[0]) == ("error", type(error).__name__)


def test_an_exception_is_recorded_even_if_another_one_of_its_kind_was_handled_before(
    tracer: Tracer, buffer: BufferTransport
) -> None:
    # The second exception often gets the place in memory, and so the identity, of the first one.
    for _ in range(20):
        buffer.reset()
        with pytest.raises(ValueError, match="second"), tracer.trace("answer") as trace:
            _fail_twice(trace)
        assert [span.error for span in buffer.spans] == ["ValueError: first", "ValueError: second"]


@pytest.mark.parametrize("in_group", [False, True])
def test_exceptions_of_tasks_that_fail_together_are_recorded_once_each(
    in_group: bool, tracer: Tracer, buffer: BufferTransport
) -> None:
    async def step(name: str) -> None:
        with tracer.span(name):
            await asyncio.sleep(0)
            raise ValueError(name)

    async def main() -> None:
        async with tracer.trace("answer"):
            if in_group:
                async with asyncio.TaskGroup() as group:
                    for name in "ab":
                        group.create_task(step(name))
            else:
                await asyncio.gather(step("a"), step("b"))

    with pytest.raises((ValueError, ExceptionGroup)):
        asyncio.run(main())
    assert [span.error for span in buffer.spans] == ["ValueError: a", "ValueError: b"]


def test_what_a_generator_does_while_it_is_closed_is_below_its_span(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced(name="items")
    def items() -> Any:
        try:
            yield 1
        finally:
            tracer.span("clean up").end()

    with tracer.trace("answer"):
        reading = items()
        next(reading)
        reading.close()
        assert current() is not None
    inner, outer = buffer.spans
    assert (outer.name, inner.parent_span_id) == ("items", outer.span_id)


def test_attributes_of_ten_megabytes_are_kept_until_the_transport_cuts_them(tracer: Tracer) -> None:
    span = tracer.start("answer").record(attributes={"text": "x" * 10_000_000})
    fitted = fit_span(msgspec.msgpack.decode(msgspec.msgpack.encode(span), type=Span))
    assert len(fitted.attributes["text"]) <= 32 * 1024


@pytest.mark.parametrize("field", ["cost_usd", "score"])
@pytest.mark.parametrize(
    "value", ["0.5", Decimal("1e300000"), Decimal("1e-300000"), Decimal("sNaN"), 10**5000, True], ids=range(6)
)
def test_a_cost_that_is_no_usual_number_is_left_out_without_being_computed(
    field: str, value: Any, tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A text times 1e9 takes gigabytes, and a Decimal of 300,000 digits takes seconds.
    monkeypatch.setattr(
        f"tokentrace.client.field_values.{'usd_to_nusd' if field == 'cost_usd' else 'score_to_int'}", int
    )
    span = tracer.start("x").record(**{field: value})
    assert (span.cost_nusd, span.score) == (None, None)
    assert [note.partition(":")[0] for note in span.adjusted] == [field]
