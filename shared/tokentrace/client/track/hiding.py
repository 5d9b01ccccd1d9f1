"""
Leaving out the usage that the application did not ask for: it sees the stream that it would see without tracking.

The option ``include_usage`` of a chat stream adds a frame that has usage and no choice, and an empty usage to all other
frames. A fault here ends the leaving out; nothing else is lost.
"""

from __future__ import annotations

import re

from tokentrace.client.track.decoding import Decoder, Encoder
from tokentrace.client.track.faults import safely
from tokentrace.client.track.frames import EventFrames

# In a text of an answer the quotes are escaped, so these are keys.
_EMPTY = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')
_STATED = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def hidden(frame: bytes) -> bytes:
    """Return what the application gets of *frame*."""
    if _STATED.search(frame) and _NO_CHOICE.search(frame):
        return b""
    return _EMPTY.sub(b"", frame, count=1)


class Hider:
    """
    Leaves out usage, piece by piece. Its methods never raise.

    Args:
        encoding: Value of ``Content-Encoding``, one of ``decoding.KNOWN``.
    """

    def __init__(self, encoding: str) -> None:
        self._is_encoded = encoding not in ("", "identity")
        self._decoder, self._encoder, self._frames = Decoder(encoding), Encoder(encoding), EventFrames()
        self._is_off = False
        # What was received and not handed on, and the newest piece decoded.
        self._held = b""
        self._plain: bytes | None = None

    def kept(self, data: bytes) -> bytes:
        """Return what the application gets of *data*, the next piece of the body."""
        if not self._is_off:
            kept = safely(self._kept, data)
            if kept is not None:
                return kept
            self._is_off = True
            held, self._held = self._held, b""
            return self._through(held, data, self._plain)
        return self._through(b"", data, None)

    def _kept(self, data: bytes) -> bytes:
        self._plain = None
        self._plain = self._decoder.decode(data)
        kept = self._encoder.encode(b"".join([hidden(frame) for frame in self._frames.feed(self._plain)]))
        self._held = self._frames.held
        return kept

    def _through(self, held: bytes, data: bytes, plain: bytes | None) -> bytes:
        """Return *held* and *data* as they came, in an encoding that may have begun; *plain* is *data* decoded."""
        if not self._is_encoded:
            return held + data
        again = safely(self._again, held, data, plain)
        return data if again is None else again

    def _again(self, held: bytes, data: bytes, plain: bytes | None) -> bytes:
        return self._encoder.encode(held + (self._decoder.decode(data) if plain is None else plain))

    def rest(self) -> bytes:
        """Return what the application gets after the last piece."""
        rest = safely(self._rest)
        return (b"" if self._is_encoded else self._held) if rest is None else rest

    def _rest(self) -> bytes:
        last = b"" if self._is_off else hidden(self._frames.finish())
        return self._encoder.encode(last) + self._encoder.finish()
