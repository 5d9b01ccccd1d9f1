"""A span for each call of one method of any object, such as a client of a provider that is not known otherwise."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import msgspec

from tokentrace.client.tracing import Tracer
from tokentrace.client.track.faults import safely
from tokentrace.client.track.observed import Observer, Started, observe
from tokentrace.errors import shorten

T = TypeVar("T")
#: How much of a result is kept, characters of its JSON.
_PREVIEW = 200


class SpanService(Protocol):
    """The methods of ``TraceClient`` and ``LocalTraceService`` that are needed here."""

    @property
    def start_span(self) -> Callable[..., Started]:
        """Starts a span."""
        ...

    @property
    def end_span(self) -> Callable[..., object]:
        """Ends a span."""
        ...


def tracked(
    target: T,
    method: str,
    trace_context: object = None,
    trace_service: SpanService | None = None,
    *,
    tracer: Tracer | None = None,
) -> T:
    """
    Return *target* with one method of which each call makes a span.

    The span is called ``LLM <model>``, is of kind ``llm`` and has no token counts through a service. The request is the
    first argument, or the keyword arguments; its model, temperature and limit of tokens are kept, and the first 200
    characters of the result's JSON. *target* itself is not changed. Without a trace context and a tracer, calls are
    passed on as they are.

    Args:
        target: The object.
        method: The name of the method, a function or a coroutine function.
        trace_context: The span of the request: a ``TraceContext``, a ``Trace`` or an ``OpenSpan``; None = none.
        trace_service: A ``TraceClient`` or a ``LocalTraceService``; not needed with a ``Trace`` or an ``OpenSpan``.
        tracer: Makes spans without a trace context, below what is current.

    Returns:
        An object with all attributes of *target*; it is no instance of its class.

    Raises:
        TypeError: *target* has no such method.
    """
    if not callable(getattr(target, method, None)):
        raise TypeError(f"{shorten(method)}: {type(target).__name__} has no method of this name")
    return cast(T, _Tracked(target, method, trace_context, trace_service, tracer))


class _Tracked:
    def __init__(
        self, target: Any, method: str, context: object, service: SpanService | None, tracer: Tracer | None
    ) -> None:
        self.__target, self.__method, self.__context = target, method, context
        self.__service, self.__tracer = service, tracer

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__target, name)
        return self.__watched(value) if name == self.__method else value

    def __watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            observer = safely(self.__begin, args, kwargs)
            if observer is None:
                return method(*args, **kwargs)
            try:
                result = method(*args, **kwargs)
            except BaseException as exc:
                observer.fail(exc)
                raise
            if inspect.isawaitable(result):
                return _finish(observer, result)
            observer.end(result, safely(_told, result) or {})
            return result

        @functools.wraps(method)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await call(*args, **kwargs)

        return call_async if inspect.iscoroutinefunction(method) else call

    def __begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Observer | None:
        request = args[0] if args and not isinstance(args[0], str) else kwargs.get("request", kwargs)
        model = _value(request, "model")
        return observe(
            f"LLM {model or 'unknown'}",
            {
                "method": self.__method,
                "model": model,
                "temperature": _value(request, "temperature"),
                "maxTokens": _value(request, "maxTokens", "max_tokens"),
            },
            self.__context,
            tracer=self.__tracer,
            start_span=self.__service.start_span if self.__service is not None else None,
            end_span=self.__service.end_span if self.__service is not None else None,
            model=str(model or ""),
        )


async def _finish(observer: Observer, result: Awaitable[Any]) -> Any:
    try:
        value = await result
    except BaseException as exc:
        observer.fail(exc)
        raise
    observer.end(value, safely(_told, value) or {})
    return value


def _told(result: object) -> dict[str, Any]:
    if hasattr(result, "model_dump_json"):
        text = result.model_dump_json()
    else:
        text = msgspec.json.encode(result, enc_hook=str).decode()
    return {"metadata": {"resultPreview": text[:_PREVIEW]}}


def _value(request: object, *names: str) -> Any:
    for name in names:
        value = request.get(name) if isinstance(request, Mapping) else getattr(request, name, None)
        if value is not None:
            return value
    return None
