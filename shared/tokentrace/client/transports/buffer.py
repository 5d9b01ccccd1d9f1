"""The transport that keeps spans in memory, for tests of an application."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from tokentrace.client import lifecycle
from tokentrace.client.reporter import Stats
from tokentrace.client.transports.options import rebuilt
from tokentrace.records import Span


class _Kept:
    """The spans of a transport and their counters."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over, in a forked child: another thread may hold the lock at a fork."""
        # Re-entrant, because a finalizer may end a span in the thread that holds the lock.
        self.lock = threading.RLock()
        self.spans: list[Span] = []
        self.acked = self.dropped = 0
        self.closed = False

    def begin_close(self, timeout: float) -> None:
        """Do nothing: no thread has to end."""

    def finish_close(self) -> None:
        """Do nothing: no span waits."""


class BufferTransport:
    """
    Keeps spans in memory, as they were sent, for tests of an application.

    ``len`` is the number of spans. Nothing is checked, redacted or limited. A forked child starts empty.
    """

    def __init__(self) -> None:
        self._kept = _Kept()
        lifecycle.register(self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), (), {})

    def send(self, spans: Sequence[Span]) -> None:
        """
        Keep *spans*; after ``close``, drop and count them.

        Args:
            spans: Finished calls. Their maps of attributes are copied.
        """
        with self._kept.lock:
            if self._kept.closed:
                self._kept.dropped += len(spans)
                return
            self._kept.acked += len(spans)
            self._kept.spans += [replace(span, attributes=dict(span.attributes)) for span in spans]

    def flush(self, timeout: float | None = 5.0) -> bool:
        """
        Do nothing: spans are kept at once.

        Args:
            timeout: Seconds; ignored.

        Returns:
            True.
        """
        return True

    def close(self, timeout: float = 5.0) -> None:
        """
        Keep no further spans; those that were kept stay readable.

        Args:
            timeout: Seconds; ignored.
        """
        with self._kept.lock:
            self._kept.closed = True

    def stats(self) -> Stats:
        """
        Return the counters of this transport; ``reset`` does not change them.

        Returns:
            Counts of spans since the transport was created, or since the fork in a forked child.
        """
        with self._kept.lock:
            return Stats(
                sent=self._kept.acked, acked=self._kept.acked, dropped=self._kept.dropped, failed=0, queue_depth=0
            )

    @property
    def spans(self) -> list[Span]:
        """The kept spans, oldest first, as a list of its own."""
        with self._kept.lock:
            return list(self._kept.spans)

    @property
    def last(self) -> Span | None:
        """The newest span; None if there is none."""
        with self._kept.lock:
            return self._kept.spans[-1] if self._kept.spans else None

    def find(self, predicate: Callable[[Span], bool]) -> Span | None:
        """
        Return the oldest span for which *predicate* is true.

        Args:
            predicate: Called with one span after the other.

        Returns:
            The span; None if there is none.
        """
        return next(filter(predicate, self.spans), None)

    def reset(self) -> None:
        """Forget the kept spans."""
        with self._kept.lock:
            self._kept.spans.clear()

    def __len__(self) -> int:
        return len(self._kept.spans)

    def __bool__(self) -> bool:
        """Return True: a transport without spans is a transport all the same."""
        return True
