"""
The streams of litellm, of which its logger learns nothing where the application stops reading.

litellm tells its loggers of a stream when it has been read to its end. It says neither that one was left nor whether
the counts that it tells were sent by the provider or guessed by a tokenizer. So the class of its streams is watched:
the chunks tell whether a usage came, and a stream that is closed, cancelled or dropped before its end is told from
here.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from tokentrace.client.track.call import StreamEnd
from tokentrace.client.track.classes import Wrapper
from tokentrace.client.track.faults import guarded, safely


class Listener(Protocol):
    """Follows streams, and makes the spans of those that end early."""

    def opened(self, stream: Stream) -> Stream:
        """Take note of a new stream; return the one that stands for its call."""
        ...

    def left(self, stream: Stream, how: StreamEnd) -> None:
        """Make the span of a stream that is not read to its end."""
        ...


#: What is kept of what litellm knows of a call. Not all of it: that may hold the stream, which would never be dropped.
_KEPT = ("litellm_call_id", "call_type", "model", "custom_llm_provider", "start_time")


class Stream:
    """
    One stream of litellm, which several wrappers may share.

    Attributes:
        id: litellm's id of the call.
        logging_id: Identity of litellm's own object for the call, by which wrappers of one call are known.
        details: A part of what litellm tells its loggers of the call.
        chunks: The chunks so far.
        ended: True = its end was told, or litellm tells it.
        complete: True = the provider has sent everything.
        read_at: When the newest chunk came; None = none came. A stream that is dropped is collected at any later time.
    """

    def __init__(self, wrapper: Any) -> None:
        known = wrapper.logging_obj.model_call_details
        self.logging_id = id(wrapper.logging_obj)
        self.details: dict[str, Any] = {name: known[name] for name in _KEPT if name in known} | {"stream": True}
        self.id = str(self.details.get("litellm_call_id") or "")
        self.chunks: Sequence[Any] = wrapper.chunks
        self.ended = self.complete = False
        self.read_at: datetime | None = None
        self._reading = 0
        self._wrappers = 0
        self._listener: Listener | None = None

    def usage(self) -> Any:
        """Return the last usage that a chunk has; None = none, so that what litellm tells is a guess."""
        return next((found for chunk in reversed(self.chunks) if (found := _usage_of(chunk)) is not None), None)

    @guarded
    def watch(self, wrapper: Any, listener: Listener) -> None:
        """Wait for the end of *wrapper*."""
        self._listener = listener
        self._wrappers += 1
        vars(wrapper)["_tokentrace_stream"] = self
        weakref.finalize(wrapper, self._dropped)

    def begin(self) -> None:
        """Say that litellm itself works at the next chunk: what it closes meanwhile, it tells."""
        self._reading += 1

    @guarded
    def finish(self, wrapper: Any, error: BaseException | None) -> None:
        """Say that the work at the next chunk is done; *error* is what it raised."""
        self._reading -= 1
        self.read_at = datetime.now()
        state = vars(wrapper)
        first = getattr(wrapper.logging_obj, "completion_start_time", None)
        if first is not None:
            self.details["completion_start_time"] = first
        self.complete = self.complete or bool(state.get("sent_last_chunk"))
        if state.get("sent_stream_usage"):
            self.ended = True
        if isinstance(error, asyncio.CancelledError):
            self.leave("cancelled")
        elif isinstance(error, Exception):
            # The end of the stream, or a failure; litellm tells both.
            self.ended = True

    @guarded
    def leave(self, how: StreamEnd) -> None:
        """Say that the application reads no further."""
        if not self.ended and not self._reading and self._listener is not None:
            self.ended = True
            self._listener.left(self, how)

    def _dropped(self) -> None:
        self._wrappers -= 1
        if not self._wrappers:
            self.leave("closed")


def _usage_of(chunk: Any) -> Any:
    # Not what litellm keeps beside the chunk: at the end it puts its guess there.
    usage = getattr(chunk, "usage", None)
    counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return usage if any(counts) else None


def _stream_of(wrapper: Any) -> Stream | None:
    found: Stream | None = vars(wrapper).get("_tokentrace_stream")
    return found


def _init(original: Callable[..., Any], listener_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        safely(_open, self, listener_of(self))

    return init


def _open(wrapper: Any, listener: Listener) -> None:
    listener.opened(Stream(wrapper)).watch(wrapper, listener)


def _next(original: Callable[..., Any], listener_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def next_chunk(self: Any) -> Any:
        stream = _stream_of(self)
        if stream is None:
            return original(self)
        stream.begin()
        error: BaseException | None = None
        try:
            return original(self)
        except BaseException as exc:
            error = exc
            raise
        finally:
            stream.finish(self, error)

    return next_chunk


def _anext(original: Callable[..., Any], listener_of: Callable[[Any], Any]) -> Callable[..., Any]:
    async def next_chunk(self: Any) -> Any:
        stream = _stream_of(self)
        if stream is None:
            return await original(self)
        stream.begin()
        error: BaseException | None = None
        try:
            return await original(self)
        except BaseException as exc:
            error = exc
            raise
        finally:
            stream.finish(self, error)

    return next_chunk


def _close(original: Callable[..., Any], listener_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        stream = _stream_of(self)
        if stream is not None:
            stream.leave("closed")
        return original(self, *args, **kwargs)

    return close


#: What is watched of litellm's ``CustomStreamWrapper``; early versions have no ``close``.
STREAMS: dict[str, Wrapper] = {
    "__init__": _init,
    "__next__": _next,
    "__anext__": _anext,
    "close": _close,
    "aclose": _close,
}
