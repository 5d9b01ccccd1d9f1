"""
Gemini through google-genai: one span for each request to the API.

``generate_content`` makes several requests when it calls functions or continues a long answer, and returns the usage of
the last one only. So the methods that are watched are the four of ``BaseApiClient`` through which every request goes,
and the body that they return is the JSON of the API. The interactions API has a client of its own, see
``google_interactions``.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tokentrace.client.tracing import Tracer, current
from tokentrace.client.track.call import Call
from tokentrace.client.track.classes import Wrapper, unwatch_class, unwatch_object, watch_class, watch_object
from tokentrace.client.track.faults import guarded
from tokentrace.client.track.google_answers import Stream, end
from tokentrace.client.track.google_interactions import BASES, RESOURCES
from tokentrace.errors import ConfigError
from tokentrace.records import Kind

#: ``models/gemini-2.5-pro:generateContent`` and the like; the rest of the API is not tracked.
_PATH = re.compile(r"([^/:?]+):(\w+)(?:$|[?/])")
#: Operation of the API -> name and kind of the span.
_OPERATIONS: dict[str, tuple[str, Kind]] = {
    "generateContent": ("generate_content", "llm"),
    "streamGenerateContent": ("generate_content", "llm"),
    "embedContent": ("embed_content", "embedding"),
    "batchEmbedContents": ("embed_content", "embedding"),
    "predict": ("embed_content", "embedding"),
}


_CLIENTS = ("google.genai.client.Client", "google.genai.client.AsyncClient")
_NAMES = ("google", "google.genai")
_API_CLIENT, _GENERATED = "google.genai._api_client", "google.genai._gaos.basesdk"


def accepts(target: object) -> bool:
    """Return True if *target* is a client of google-genai, the module, or its name."""
    if isinstance(target, str | ModuleType):
        return (target if isinstance(target, str) else target.__name__) in _NAMES
    return any(f"{cls.__module__}.{cls.__qualname__}" in _CLIENTS for cls in type(target).__mro__)


def watch(target: Any, tracer: Tracer | None) -> None:
    """
    Track one client with everything that shares its connection, or all clients.

    Args:
        target: A ``google.genai.Client`` or its ``aio``; a name or the module stands for all clients.
        tracer: Where spans go; None = the default tracer.

    Raises:
        ConfigError: google-genai is not installed.
    """
    if isinstance(target, str | ModuleType):
        try:
            api_client = import_module(_API_CLIENT)
        except ImportError as exc:
            raise ConfigError(f"instrument: the package google-genai is not installed: {exc}") from exc
        watch_class(api_client.BaseApiClient, _REQUESTS, tracer)
        # Early versions have no interactions.
        if find_spec(_GENERATED.rpartition(".")[0]) is not None:
            generated = import_module(_GENERATED)
            for name, wrappers in BASES.items():
                watch_class(getattr(generated, name), wrappers, tracer)
        return
    for part in _parts(target):
        watch_object(part._api_client, _REQUESTS, tracer)
        watch_object(part, {name: wrap for name, wrap in RESOURCES.items() if hasattr(type(part), name)}, tracer)


def unwatch(target: Any) -> None:
    """Stop tracking *target*."""
    if isinstance(target, str | ModuleType):
        if _API_CLIENT in sys.modules:
            unwatch_class(sys.modules[_API_CLIENT].BaseApiClient, _REQUESTS)
        if _GENERATED in sys.modules:
            for name, wrappers in BASES.items():
                unwatch_class(getattr(sys.modules[_GENERATED], name), wrappers)
        return
    for part in _parts(target):
        unwatch_object(part._api_client)
        unwatch_object(part)
        unwatch_object(vars(part).get("_interactions"))


def _parts(client: Any) -> list[Any]:
    """Return *client* and its ``aio``, which share a connection."""
    return [part for part in (client, getattr(client, "_aio", None)) if part is not None]


@guarded
def _begin(tracer: Tracer | None, parent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Open a span if the path is that of a model; None = this request is not tracked."""
    found = _PATH.search(kwargs["path"] if "path" in kwargs else args[1])
    if found is None or found[2] not in _OPERATIONS:
        return None
    model, operation = found.groups()
    name, kind = _OPERATIONS[operation]
    if operation == "predict" and "embedding" not in model:
        return None  # Imagen and others, which count no tokens
    return Call.begin(
        tracer,
        name,
        parent=parent,
        kind=kind,
        provider="google",
        model=model,
        scope="tokentrace.google",
        attributes={"request_model": model},
    )


@guarded
def _fail(call: Call, error: BaseException) -> None:
    call.fail(error)


def _request(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(tracer_of(self), None, args, kwargs)
        if call is None:
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as exc:
            _fail(call, exc)
            raise
        end(call, result)
        return result

    return request


def _async_request(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    async def async_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(tracer_of(self), None, args, kwargs)
        if call is None:
            return await original(self, *args, **kwargs)
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as exc:
            _fail(call, exc)
            raise
        end(call, result)
        return result

    return async_request


def _request_streamed(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def request_streamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A generator, as the original: the request is made when the first chunk is asked for.
        opened: list[Stream] = []
        chunks = _chunks(opened, original(self, *args, **kwargs), (tracer_of(self), current(), args, kwargs))
        weakref.finalize(chunks, _leave, opened)
        return chunks

    return request_streamed


def _chunks(opened: list[Stream], chunks: Iterator[Any], begin: tuple[Any, ...]) -> Iterator[Any]:
    call = _begin(*begin)
    if call is None:
        yield from chunks
        return
    stream = Stream(call)
    opened.append(stream)
    try:
        for chunk in chunks:
            stream.see(chunk)
            yield chunk
    except GeneratorExit:
        stream.leave()
        raise
    except BaseException as exc:
        stream.fail(exc)
        raise
    stream.end()


def _async_request_streamed(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    async def async_request_streamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(tracer_of(self), None, args, kwargs)
        if call is None:
            return await original(self, *args, **kwargs)
        try:
            chunks = await original(self, *args, **kwargs)
        except BaseException as exc:
            _fail(call, exc)
            raise
        stream = Stream(call)
        watched = _async_chunks(stream, chunks)
        # A generator whose event loop is gone is never closed.
        weakref.finalize(watched, _leave, [stream])
        return watched

    return async_request_streamed


async def _async_chunks(stream: Stream, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for chunk in chunks:
            stream.see(chunk)
            yield chunk
    except GeneratorExit:
        stream.leave()
        raise
    except BaseException as exc:
        stream.fail(exc)
        raise
    stream.end()


def _leave(opened: list[Stream]) -> None:
    for stream in opened:
        stream.leave()


_REQUESTS: dict[str, Wrapper] = {
    "request": _request,
    "request_streamed": _request_streamed,
    "async_request": _async_request,
    "async_request_streamed": _async_request_streamed,
}
