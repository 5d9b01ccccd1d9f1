"""
The observer of a response's body: it hands the bytes on as they come and looks at them meanwhile.

How it works. ``observe`` replaces ``response.stream``, which httpx documents, by a stream of the same kind. The stream
is of the base class that the response's own library expects, ``httpx`` or ``httpx2``: another one is refused. Each
piece is decoded into a copy, cut into frames, and the frames are shown to a ``Reader``. The call ends at the first of:
read to the end, closed, failed, cancelled, dropped without being read.

Where the seam asked for usage that the application did not ask for, ``hiding`` leaves out what came for it. Only then
do other bytes travel than came.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache, partial
from typing import Any

from tokentrace.client.track.aws_frames import AWS_STREAM, AwsFrames
from tokentrace.client.track.call import Call
from tokentrace.client.track.decoding import KNOWN, Decoder
from tokentrace.client.track.faults import safely
from tokentrace.client.track.frames import EventFrames, Frames, WholeBody
from tokentrace.client.track.hiding import Hider
from tokentrace.client.track.reader import JsonReader, Reader
from tokentrace.records import UsageState

EVENTS = "text/event-stream"
#: Media type -> what cuts a body of this type into frames; others are one JSON text.
FRAMES: dict[str, Callable[[], Frames]] = {EVENTS: EventFrames, AWS_STREAM: AwsFrames}


class Watch:
    """
    What is known of one body.

    Args:
        call: The call, which ends with the body.
        reader: What looks at the frames.
        frames: What cuts the body into frames.
        encoding: Value of ``Content-Encoding``; the body is not looked at if it is none of ``decoding.KNOWN``.
    """

    def __init__(self, call: Call, reader: Reader, frames: Frames, encoding: str) -> None:
        self._call, self._reader, self._frames = call, reader, frames
        self._is_blind = encoding not in KNOWN
        self._decoder = Decoder("" if self._is_blind else encoding)
        self._is_over = False
        self._last_ns = time.perf_counter_ns()
        reader.keeps_text = call.captures
        call.finish = partial(_finish, weakref.ref(self))

    def look(self, data: bytes) -> None:
        """Look at *data*, the next piece of the body."""
        self._last_ns = time.perf_counter_ns()
        if self._is_blind:
            return
        # What cannot be decoded once is not looked at again.
        self._is_blind = True
        plain = self._decoder.decode(data)
        frames = self._frames.feed(plain)
        self._is_blind = False
        for frame in frames:
            # A frame that is not understood is left aside; the next one may be.
            safely(self._read, frame)

    def _read(self, frame: bytes) -> None:
        content = self._frames.content(frame)
        if not content:
            return
        had_token = self._reader.first_token
        self._reader.frame(content)
        if self._reader.first_token and not had_token:
            self._call.first_token()

    def last(self) -> None:
        """Look at what is left at the end of the body."""
        if not self._is_blind:
            self._read(self._frames.finish())

    def over(self, how: str, error: BaseException | None = None) -> None:
        """
        End the call; a second time does nothing.

        Args:
            how: read, closed, failed or dropped.
            error: What ended the reading.
        """
        if self._is_over:
            return
        self._is_over = True
        safely(self._finish, how, error)
        # Ends the call if the line above failed.
        safely(self._call.end)

    def _finish(self, how: str, error: BaseException | None) -> None:
        reader, call = self._reader, self._call
        response = safely(reader.response) or None
        state: UsageState = "" if reader.has_final_usage() else "partial"
        if reader.error:
            attributes = {"error_type": reader.error_type} if reader.error_type else {}
            call.end(response, status="error", error=reader.error, attributes=attributes, usage_state=state)
        elif isinstance(error, Exception):
            call.fail(error, response, usage_state=state)
        elif error is not None:
            call.leave("cancelled", response, usage_state=state)
        elif reader.complete:
            call.end(response, messages=reader.output() if call.captures else None, usage_state=state)
        else:
            # A stream that is dropped is collected at any later time.
            ended_ns = self._last_ns if how == "dropped" else None
            call.leave("cut" if how == "read" else "closed", response, ended_ns=ended_ns, usage_state=state)


def _finish(watch: weakref.ref[Watch]) -> None:
    """End the call of a body that is still being read, at the end of the tracer."""
    if (found := watch()) is not None:
        found.over("closed")


class _Stream:
    """
    What the streams of both kinds have in common.

    Args:
        inner: The stream of the SDK's library.
        hider: What leaves out the usage that the application did not ask for; None = nothing is left out.

    Attributes:
        watch: What looks at the body; None = nothing.
    """

    def __init__(self, inner: Any, hider: Hider | None) -> None:
        self._inner, self._hider = inner, hider
        self.watch: Watch | None = None

    def _kept(self, data: bytes) -> bytes:
        """Return what the application gets of *data*."""
        if self.watch is not None:
            safely(self.watch.look, data)
        return data if self._hider is None else self._hider.kept(data)

    def _rest(self) -> bytes:
        """Return what the application gets after the last piece."""
        if self.watch is not None:
            safely(self.watch.last)
        return b"" if self._hider is None else self._hider.rest()

    def _over(self, how: str, error: BaseException | None = None) -> None:
        if self.watch is not None:
            safely(self.watch.over, how, error)

    def __getattr__(self, name: str) -> Any:
        # ``elapsed``, and what other libraries attach to a stream. Missing while the object is made or unmade.
        if name in ("_inner", "_hider", "watch"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __del__(self) -> None:
        if "watch" in self.__dict__:
            self._over("dropped")


class _SyncStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._inner:
                kept = self._kept(data)
                if kept:
                    yield kept
            rest = self._rest()
            if rest:
                yield rest
        except GeneratorExit:
            self._over("closed")
            raise
        except BaseException as exc:
            self._over("failed", exc)
            raise
        self._over("read")

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._over("closed")


class _AsyncStream(_Stream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        inner = self._inner.__aiter__()
        try:
            async for data in inner:
                kept = self._kept(data)
                if kept:
                    yield kept
            rest = self._rest()
            if rest:
                yield rest
        except GeneratorExit:
            self._over("closed")
            raise
        except BaseException as exc:
            self._over("failed", exc)
            raise
        finally:
            # As httpx does with the generator that this one stands for.
            if hasattr(inner, "aclose"):
                await inner.aclose()
        self._over("read")

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._over("closed")


@cache
def _class_of(base: type, own: type) -> type:
    """Return the class of a stream that the library of *base* accepts."""
    return type("ObservedStream", (own, base), {})


def is_unread(response: Any) -> bool:
    """Return True if the body of *response*, one of httpx, has not been read."""
    return not response.is_closed and not response.is_stream_consumed


def observe(response: Any, call: Call, reader: Callable[[], Reader], *, hides_usage: bool = False) -> bool:
    """
    End *call* when the body of *response* ends.

    Args:
        response: A response of httpx or httpx2 whose body has not been read.
        call: The call.
        reader: Makes what looks at the frames of an event stream. Another body is read as one JSON object.
        hides_usage: Whether what came for the option ``include_usage`` is left out.

    Returns:
        False if the response has no stream of a known kind; then nothing is changed.
    """
    bases = {kind.__name__: kind for kind in type(response.stream).__mro__}
    own = _AsyncStream if "AsyncByteStream" in bases else _SyncStream
    base = bases.get("AsyncByteStream" if own is _AsyncStream else "SyncByteStream")
    if base is None:
        return False
    encoding = str(response.headers.get("content-encoding", "")).strip().lower()
    media_type = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
    hides = hides_usage and media_type == EVENTS and encoding in KNOWN
    stream = _class_of(base, own)(response.stream, Hider(encoding) if hides else None)
    response.stream = stream
    # Last, so that a fault of what looks at the body does not show the application what it did not ask for.
    make = FRAMES.get(media_type)
    stream.watch = Watch(call, reader(), make(), encoding) if make else Watch(call, JsonReader(), WholeBody(), encoding)
    return True
