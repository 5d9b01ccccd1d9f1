"""The decorator ``traced``: functions of every kind keep their behaviour, and each call is a span."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Iterator

import pytest

from tokentrace import BufferTransport, Tracer, current


@pytest.fixture
def buffer() -> BufferTransport:
    return BufferTransport()


@pytest.fixture
def tracer(buffer: BufferTransport) -> Tracer:
    return Tracer(buffer)


def test_a_function_keeps_its_signature_and_each_call_is_a_span(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced(name="add", kind="tool")
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    assert add(1) == 3
    assert str(inspect.signature(add)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert add.__doc__ == "Add."
    assert [(span.name, span.kind, span.status) for span in buffer.spans] == [("add", "tool", "ok")]


def test_a_nested_call_is_below_its_caller(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced
    def inner() -> None:
        pass

    @tracer.traced
    def outer() -> None:
        inner()

    outer()
    below, above = buffer.spans
    assert below.parent_span_id == above.span_id
    assert below.trace_id == above.trace_id
    assert above.name.endswith("outer")


def test_an_exception_of_a_function_is_its_own_object(tracer: Tracer, buffer: BufferTransport) -> None:
    error = KeyError("x")

    @tracer.traced
    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        fail()
    assert caught.value is error
    assert [span.status for span in buffer.spans] == ["error"]


async def test_a_coroutine_function_stays_one(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced
    async def work() -> int:
        await asyncio.sleep(0)
        return 5

    assert inspect.iscoroutinefunction(work)
    assert await work() == 5
    assert len(buffer) == 1


def test_a_generator_passes_values_exceptions_and_its_result_on(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced
    def echo() -> Iterator[str]:
        got = yield "first"
        try:
            yield f"got {got}"
        except ValueError as exc:
            yield f"caught {exc}"
        return "result"  # type: ignore[return-value]

    assert inspect.isgeneratorfunction(echo)
    made = echo()
    assert next(made) == "first"
    assert current() is None
    assert made.send("x") == "got x"
    assert made.throw(ValueError("y")) == "caught y"
    with pytest.raises(StopIteration) as stop:
        next(made)
    assert stop.value.value == "result"
    assert [span.status for span in buffer.spans] == ["ok"]


def test_a_generator_that_is_left_early_ends_its_span_and_runs_its_cleanup(
    tracer: Tracer, buffer: BufferTransport
) -> None:
    cleaned = []

    @tracer.traced
    def count() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            cleaned.append(1)

    for number in count():
        if number == 2:
            break
    gc.collect()
    assert cleaned == [1]
    assert [span.attributes for span in buffer.spans] == [{"stream_end": "closed"}]


async def test_an_asynchronous_generator_stays_one(tracer: Tracer, buffer: BufferTransport) -> None:
    @tracer.traced
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            assert current() is not None
            await asyncio.sleep(0)
            yield number

    assert inspect.isasyncgenfunction(count)
    seen = []
    async for number in count(3):
        assert current() is None
        seen.append(number)
    assert seen == [0, 1, 2]
    assert len(buffer) == 1
    stream = count(3)
    async for _ in stream:
        break
    await stream.aclose()
    assert [span.attributes for span in buffer.spans] == [{}, {"stream_end": "closed"}]
