"""The decorator that makes a span of each call of a function."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from tokentrace.client.tracing import context
from tokentrace.client.tracing.open_span import OpenSpan
from tokentrace.records import Kind

F = TypeVar("F", bound=Callable[..., Any])


class Opens(Protocol):
    """What opens the spans: a tracer."""

    def span(self, name: str, /, *, kind: Kind) -> OpenSpan:
        """Open a span below the current one."""
        ...


def decorate(tracer: Callable[[], Opens], fn: F | None, name: str | None, kind: Kind) -> Any:
    """
    Return *fn* so that each call is a span, or a decorator if *fn* is None.

    Args:
        tracer: Returns the tracer, at each call.
        name: The name of the spans; None = the qualified name of the function.
    """
    if fn is None:
        return lambda inner: decorate(tracer, inner, name, kind)
    title = name or str(getattr(fn, "__qualname__", type(fn).__name__))

    def opened() -> OpenSpan:
        return tracer().span(title, kind=kind)

    if inspect.isasyncgenfunction(fn):
        return _async_generator(fn, opened)
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with opened():
                return await fn(*args, **kwargs)

        return call_async
    if inspect.isgeneratorfunction(fn):
        return _generator(fn, opened)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with opened():
            return fn(*args, **kwargs)

    return call


def _generator(fn: Callable[..., Any], opened: Callable[[], OpenSpan]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def generate(*args: Any, **kwargs: Any) -> Any:
        # The span is the current one only while the generator runs, not while its caller handles an item.
        span, inner, sent = opened(), fn(*args, **kwargs), None
        thrown: BaseException | None = None
        try:
            while True:
                before = context.enter(span)
                try:
                    item = inner.send(sent) if thrown is None else inner.throw(thrown)
                except StopIteration as stop:
                    return stop.value
                finally:
                    context.leave(before)
                thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    span.set(attributes={"stream_end": "closed"})
                    before = context.enter(span)
                    try:
                        inner.close()
                    finally:
                        context.leave(before)
                    raise
                except BaseException as exc:  # noqa: BLE001 - handed on to the generator
                    sent, thrown = None, exc
        except Exception as exc:
            span.fail(exc)
            raise
        finally:
            span.end()

    return generate


def _async_generator(fn: Callable[..., Any], opened: Callable[[], OpenSpan]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def generate(*args: Any, **kwargs: Any) -> Any:
        span, inner, sent = opened(), fn(*args, **kwargs), None
        thrown: BaseException | None = None
        try:
            while True:
                before = context.enter(span)
                try:
                    item = await (inner.asend(sent) if thrown is None else inner.athrow(thrown))
                except StopAsyncIteration:
                    return
                finally:
                    context.leave(before)
                thrown = None
                try:
                    sent = yield item
                except GeneratorExit:
                    span.set(attributes={"stream_end": "closed"})
                    before = context.enter(span)
                    try:
                        await inner.aclose()
                    finally:
                        context.leave(before)
                    raise
                except BaseException as exc:  # noqa: BLE001 - handed on to the generator
                    sent, thrown = None, exc
        except Exception as exc:
            span.fail(exc)
            raise
        except asyncio.CancelledError:
            span.set(attributes={"stream_end": "cancelled"})
            raise
        finally:
            span.end()

    return generate
