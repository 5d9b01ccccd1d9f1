"""The transport that prints spans."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from tokentrace.client import lifecycle
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.notices import Notices
from tokentrace.client.transports.options import rebuilt
from tokentrace.client.transports.rendering import Renderer, encode
from tokentrace.errors import Rejected, Unavailable
from tokentrace.records import Span
from tokentrace.redact import Redactor


class _State:
    """The counters and the lock of a transport."""

    def __init__(self) -> None:
        self.notices = Notices("stdout transport")
        self.reset()

    def reset(self) -> None:
        """Start over, in a forked child: another thread may hold the lock at a fork."""
        self.lock = threading.RLock()
        self.acked = self.dropped = self.failed = self.rejected = self.truncated = 0
        self.closed = False
        self.notices.reset()

    def begin_close(self, timeout: float) -> None:
        """Do nothing: no thread has to end."""

    def finish_close(self) -> None:
        """Do nothing: no span waits."""


class StdoutTransport:
    """
    Prints each span on the standard output as one line of JSON, which ``POST /spans`` takes as it is, and waits for it.

    Args:
        pretty: Print a span on several lines, indented by two spaces.
        redactor: Removes secrets before a span is printed; None uses the default rules.
    """

    def __init__(self, pretty: bool = False, *, redactor: Redactor | None = None) -> None:
        self._pretty, self._redactor = pretty, redactor
        self._renderer = Renderer(redactor)
        self._state = _State()
        lifecycle.register(self._state)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), (self._pretty,), {"redactor": self._redactor})

    def send(self, spans: Sequence[Span]) -> None:
        """
        Print *spans*.

        Args:
            spans: Finished calls. Those that are not valid are counted as rejected and logged.

        Raises:
            Unavailable: The standard output is closed or cannot be written to; the spans are counted as failed.
        """
        state = self._state
        if state.closed:
            with state.lock:
                state.dropped += len(spans)
            state.notices.dropping("the transport is closed")
            return
        texts: list[str] = []
        reasons: list[str] = []
        truncated = 0
        for span in spans:
            try:
                line = self._renderer.line(encode(span))
            except Rejected as exc:
                reasons.append(str(exc))
            else:
                texts.append(_text(line.json, self._pretty))
                truncated += line.truncated
        fault: Exception | None = None
        try:
            _print("".join(texts))
        except (OSError, ValueError, RuntimeError, AttributeError) as exc:  # closed, full, None, or interrupted
            fault = exc
        # Not held while something is printed or logged: a finalizer may send a span in a thread that prints or logs.
        with state.lock:
            state.rejected += len(reasons)
            if fault is None:
                state.acked += len(texts)
                state.truncated += truncated
            else:
                state.failed += len(texts)
        for reason in reasons:
            state.notices.rejected(reason)
        if fault is not None:
            why = f"the standard output: {type(fault).__name__}"
            state.notices.failed(why, len(texts))
            raise Unavailable(why) from fault

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Do nothing: spans are printed at once.

        Args:
            timeout: Seconds; ignored.

        Returns:
            True.
        """
        return True

    def close(self, timeout: float = 5.0) -> None:
        """
        Print no further spans; the standard output stays open.

        Args:
            timeout: Seconds; ignored.
        """
        with self._state.lock:
            self._state.closed = True

    def stats(self) -> Stats:
        """
        Return the counters of this transport.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        state = self._state
        with state.lock:
            sent = state.acked + state.failed + state.rejected
            return Stats(sent, state.acked, state.dropped, state.failed, 0, state.rejected, state.truncated)


def _text(line: bytes, pretty: bool) -> str:
    return (msgspec.json.format(line, indent=2) if pretty else line).decode() + "\n"


def _print(text: str) -> None:
    """Print *text* in one piece, in ASCII if the standard output cannot encode it."""
    output = sys.stdout
    encoding = getattr(output, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        # What JSON escapes stands in strings alone, so the indentation stays.
        text = "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in text)
    output.write(text)
    output.flush()
