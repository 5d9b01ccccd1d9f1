"""The frames of a body: server-sent events, or the whole body as one JSON text."""

from __future__ import annotations

import re
from typing import Protocol

_END = re.compile(rb"\n\r?\n|\r\r")
#: A frame that is larger is not looked at.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: A JSON body that is larger is not looked at.
MAX_JSON_BYTES = 1024 * 1024


class Frames(Protocol):
    """
    What cuts a body into frames.

    Attributes:
        held: The beginning of a frame that is not complete.
    """

    held: bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that *data*, the next piece of the body, completes, as they came."""
        ...

    def finish(self) -> bytes:
        """Return what is left at the end of the body, as it came."""
        ...

    def content(self, frame: bytes) -> bytes:
        """Return the JSON text, or the mark, within *frame*; b"" if there is none."""
        ...


class EventFrames:
    """Cuts server-sent events at the blank lines between them."""

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that *data* completes, each with its blank line."""
        # A blank line may be split between two pieces.
        at = max(len(self.held) - 2, 0)
        text = self.held + data
        frames: list[bytes] = []
        start = 0
        if b"\r" not in text:
            # What servers send; several times as fast as the other way.
            while (end := text.find(b"\n\n", at)) >= 0:
                frames.append(text[start : end + 2])
                start = at = end + 2
        else:
            for found in _END.finditer(text, at):
                frames.append(text[start : found.end()])
                start = found.end()
        self.held = text[start:]
        if len(self.held) > MAX_FRAME_BYTES:
            frames.append(self.held)
            self.held = b""
        return frames

    def finish(self) -> bytes:
        """Return an event without its blank line at the end of the body."""
        rest, self.held = self.held, b""
        return rest

    def content(self, frame: bytes) -> bytes:
        """Return the data of an event."""
        line = frame.strip()
        if line.startswith(b"data:") and b"\n" not in line and b"\r" not in line:
            return line[5:].lstrip()
        lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
        return lines[0] if len(lines) == 1 else b"\n".join(lines)


class WholeBody:
    """Takes the whole body as one frame, up to ``MAX_JSON_BYTES``."""

    def __init__(self) -> None:
        self.held = b""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return nothing: the frame ends with the body."""
        self._size += len(data)
        if self._size <= MAX_JSON_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        return []

    def finish(self) -> bytes:
        """Return the body; b"" if it is too large."""
        return b"".join(self._parts)

    def content(self, frame: bytes) -> bytes:
        """Return the body."""
        return frame
