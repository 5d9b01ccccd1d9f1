"""
litellm: one span for each call that it tells its loggers of, and for each stream that is left early.

litellm calls its loggers in threads and tasks of its own, after the call. What is current when a call starts is kept
from the moment at which litellm is about to send it. Where it sends through the SDK of OpenAI and that is tracked too,
``is_calling`` lets the seam pass the call on, so that it is not counted twice.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from types import ModuleType
from typing import Any

from tokentrace.client.tracing import Parent, SpanFields, Tracer, current, is_suppressed
from tokentrace.client.track.call import Call, StreamEnd
from tokentrace.client.track.classes import unwatch_class, watch_class
from tokentrace.client.track.faults import guarded, safely
from tokentrace.client.track.litellm_streams import STREAMS, Stream
from tokentrace.client.track.seam import skips
from tokentrace.errors import ConfigError
from tokentrace.records import Kind

#: litellm's word for a call, without the ``a`` of the asynchronous one -> name and kind of the span.
_OPERATIONS: dict[str, tuple[str, Kind]] = {
    "completion": ("chat.completions", "llm"),
    "completion_with_retries": ("chat.completions", "llm"),
    "text_completion": ("completions", "llm"),
    "responses": ("responses", "llm"),
    "anthropic_messages": ("messages", "llm"),
    "generate_content": ("generate_content", "llm"),
    "generate_content_stream": ("generate_content", "llm"),
    "embedding": ("embeddings", "embedding"),
    "image_generation": ("images.generations", "llm"),
    "image_edit": ("images.edits", "llm"),
    "transcription": ("audio.transcriptions", "llm"),
}
#: litellm's name of a provider -> ours, where they differ.
_PROVIDERS = {
    "gemini": "google",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "azure_ai": "azure",
    "text-completion-openai": "openai",
}
#: Limit for the calls that are remembered; litellm never says that it gave one up.
_MAX_CALLS = 10_000
#: Lists of litellm in which it keeps its loggers.
_LISTS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "_async_input_callback",
    "_async_success_callback",
    "_async_failure_callback",
)


class _Start:
    """What was known when a call was about to be sent."""

    def __init__(self) -> None:
        self.parent: Parent | None = current()
        self.suppressed = is_suppressed()


class _Calls:
    """
    The calls of litellm in this process.

    Args:
        tracer: Where spans go; None = the default tracer.
    """

    def __init__(self, tracer: Tracer | None) -> None:
        self.tracer = tracer
        self._lock = threading.RLock()
        self._starts: dict[str, _Start] = {}
        self._streams: dict[str, Stream] = {}
        self._told: dict[tuple[str, object], None] = {}

    @guarded
    def about_to_send(self, kwargs: Mapping[str, Any]) -> None:
        """Remember what is current. A call that is sent again keeps what was current at first."""
        with self._lock:
            self._starts.setdefault(_id_of(kwargs), _Start())
            _limit(self._starts)

    def opened(self, stream: Stream) -> Stream:
        """Take note of a new stream; return the one that stands for its call."""
        with self._lock:
            known = self._streams.get(stream.id)
            if known is not None and known.logging_id == stream.logging_id:
                return known
            self._streams[stream.id] = stream
            _limit(self._streams)
            return stream

    def left(self, stream: Stream, how: StreamEnd) -> None:
        """Make the span of a stream that is not read to its end."""
        call = self._begin(stream.details, stream.details.get("start_time"))
        if call is None:
            return
        usage = stream.usage()
        answer = {"object": "chat.completion", "usage": usage} if usage is not None else None
        fields = _times(stream.details, stream.details.get("start_time"), stream.read_at or datetime.now())
        fields["usage_state"] = "" if stream.complete and usage is not None else "partial"
        call.leave(how, answer, **fields)

    @guarded
    def ended(self, kwargs: Mapping[str, Any], response: object, start: object, end: object) -> None:
        """Make the span of a call that litellm tells of."""
        with self._lock:
            stream = self._streams.pop(_id_of(kwargs), None)
            if stream is not None:
                stream.ended = True
        call = self._begin(kwargs, start)
        if call is None:
            return
        fields = _times(kwargs, start, end)
        error = kwargs.get("exception")
        if isinstance(error, BaseException) and response is None:
            partial = kwargs.get("combined_usage_object")
            if partial is not None:
                fields["usage_state"] = "partial" if stream is not None and stream.usage() is not None else "estimated"
            answer = {"object": "chat.completion", "usage": partial} if partial is not None else None
            call.fail(error, answer, **fields)
        elif kwargs.get("cache_hit"):
            call.set(usage_state="none", attributes={"cache_hit": True})
            call.end(**fields)
        else:
            fields.update(_cache_writes(response))
            if stream is not None and stream.usage() is None:
                fields["usage_state"] = "estimated"
            call.end(response, **fields)

    def _begin(self, details: Mapping[str, Any], start: object) -> Call | None:
        """Open the span of a call, once; None = it is told already, suppressed or of no kind that is tracked."""
        word = str(details.get("call_type") or "")
        operation = _OPERATIONS.get(word) or _OPERATIONS.get(word.removeprefix("a"))
        key = (_id_of(details), start)
        with self._lock:
            begun = self._starts.pop(key[0], None)
            if operation is None or key in self._told or (begun is not None and begun.suppressed):
                return None
            self._told[key] = None
            _limit(self._told)
        model, provider = str(details.get("model") or ""), str(details.get("custom_llm_provider") or "")
        return Call.begin(
            self.tracer,
            operation[0],
            parent=begun.parent if begun is not None else None,
            kind=operation[1],
            model=model,
            provider=_PROVIDERS.get(provider, provider),
            scope="tokentrace.litellm",
            attributes={"request_model": model},
        )


def _id_of(kwargs: Mapping[str, Any]) -> str:
    return str(kwargs.get("litellm_call_id") or "")


def _limit(kept: dict[Any, Any]) -> None:
    while len(kept) > _MAX_CALLS:
        del kept[next(iter(kept))]


def _times(details: Mapping[str, Any], start: object, end: object) -> SpanFields:
    """Return when a call started, how long it took and, for a stream, when its first token came."""
    fields = SpanFields()
    if not isinstance(start, datetime) or not isinstance(end, datetime):
        return fields
    fields["started_at"], fields["ended_at"] = start, end
    fields["latency_ms"] = max((end - start).total_seconds() * 1000, 0)
    first = details.get("completion_start_time")
    if details.get("stream") and isinstance(first, datetime):
        fields["ttft_ms"] = max((first - start).total_seconds() * 1000, 0)
    return fields


def _cache_writes(response: object) -> SpanFields:
    """Return the tokens written to a cache, which litellm adds to the form of OpenAI; the prompt includes them."""
    written = getattr(getattr(response, "usage", None), "cache_creation_input_tokens", None)
    return SpanFields(cache_write_tokens=written) if isinstance(written, int) and written > 0 else SpanFields()


_calls: _Calls | None = None
_logger: Any = None


def is_calling() -> bool:
    """Return True if litellm is tracked and is calling the code that asks."""
    if _calls is None:
        return False
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("litellm."):
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None at the end of the stack
    return False


def accepts(target: object) -> bool:
    """Return True if *target* is litellm, the module or its name."""
    return (target.__name__ if isinstance(target, ModuleType) else target) == "litellm"


def watch(target: Any, tracer: Tracer | None) -> None:
    """
    Track all calls of litellm.

    Args:
        target: The module or its name.
        tracer: Where spans go; None = the default tracer.

    Raises:
        ConfigError: litellm is not installed.
    """
    global _calls, _logger
    if _calls is not None:
        _calls.tracer = tracer
        return
    try:
        library = import_module("litellm")
        base = import_module("litellm.integrations.custom_logger").CustomLogger
    except ImportError as exc:
        raise ConfigError(f"instrument: the package litellm is not installed: {exc}") from exc
    _calls = _Calls(tracer)
    # One for the life of the process: litellm copies it into several lists, and takes another one for a duplicate.
    _logger = _logger or _logger_of(base)
    if _logger not in library.callbacks:
        library.callbacks.append(_logger)
    wrapper = library.CustomStreamWrapper
    watch_class(wrapper, {name: wrap for name, wrap in STREAMS.items() if name in wrapper.__dict__}, _calls)
    skips.append(is_calling)
    # Calls of a program that ends at once are told at exit, which must be before spans are sent for the last time.
    worker = getattr(sys.modules.get("litellm.litellm_core_utils.logging_worker"), "GLOBAL_LOGGING_WORKER", None)
    flush = getattr(worker, "_flush_on_exit", None)
    if flush is not None:
        atexit.register(safely, flush)


def unwatch(target: Any) -> None:
    """Stop tracking litellm."""
    global _calls
    if _calls is None:
        return
    library = import_module("litellm")
    for name in _LISTS:
        callbacks = getattr(library, name, None)
        if isinstance(callbacks, list):
            callbacks[:] = [callback for callback in callbacks if callback is not _logger]
    unwatch_class(library.CustomStreamWrapper, STREAMS)
    skips.remove(is_calling)
    _calls = None


def _told(kwargs: Any, response: Any, start: Any, end: Any) -> None:
    if _calls is not None:
        _calls.ended(kwargs, response, start, end)


def _logger_of(base: type) -> Any:
    """Return a logger; litellm passes the arguments by these names."""

    class TokentraceLogger(base):  # type: ignore[misc]  # the class is known at run time only
        def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
            if _calls is not None:
                _calls.about_to_send(kwargs)

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _told(kwargs, response_obj, start_time, end_time)

        def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _told(kwargs, response_obj, start_time, end_time)

        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _told(kwargs, response_obj, start_time, end_time)

        async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _told(kwargs, response_obj, start_time, end_time)

    return TokentraceLogger()
