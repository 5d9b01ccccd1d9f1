"""The queue of a transport that delivers spans as lines of the documented JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokentrace.client.transports.background import Background
from tokentrace.client.transports.counted_queue import Delivered, Limits
from tokentrace.client.transports.notices import Notices
from tokentrace.client.transports.rendering import Line, Renderer, encode
from tokentrace.errors import Rejected
from tokentrace.records import Span
from tokentrace.redact import Redactor, pausing

#: While long texts are redacted, the thread sleeps for so long after holding the interpreter for so long, seconds.
_HOLD_S = 0.0003
_REST_S = 0.00002


class Rendered(NamedTuple):
    """
    A batch without its invalid spans.

    Attributes:
        lines: The valid spans.
        items: What the queue gave for each of them.
        rejected: Number of the others.
    """

    lines: list[Line]
    items: list[tuple[bytes, int]]
    rejected: int

    def truncated(self, count: int) -> int:
        """Return how many of the first *count* spans were cut or corrected."""
        return sum(line.truncated for line in self.lines[:count])


class SpanQueue(Background[bytes]):
    """
    Spans that wait to be delivered.

    Args:
        limits, deliver, notices, name, on_fork, release: As for ``Background``.
        redactor: Removes secrets; None uses the default rules.
    """

    def __init__(
        self,
        limits: Limits,
        deliver: Callable[[list[tuple[bytes, int]]], Delivered[bytes]],
        notices: Notices,
        redactor: Redactor | None,
        *,
        name: str,
        on_fork: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        self._renderer = Renderer(redactor)
        self._rested_at = 0.0
        super().__init__(limits, deliver, notices, name=name, on_fork=on_fork, release=release)

    def put_spans(self, spans: Sequence[Span]) -> None:
        """Queue copies of *spans*; those that cannot be encoded are counted as rejected."""
        for span in spans:
            try:
                data = encode(span)
            except Rejected as exc:
                self.reject(str(exc))
            else:
                self.put(data, len(data))

    def rendered(self, batch: Sequence[tuple[bytes, int]]) -> Rendered:
        """Return the lines of the valid spans in *batch*, and log why the others are not valid."""
        found = Rendered([], [], 0)
        with pausing(self._let_others_run):
            for item in batch:
                self._let_others_run()
                try:
                    line = self._renderer.line(item[0])
                except Rejected as exc:
                    self.notices.rejected(str(exc))
                else:
                    found.lines.append(line)
                    found.items.append(item)
        return found._replace(rejected=len(batch) - len(found.lines))

    def _let_others_run(self) -> None:
        """Sleep for a moment if this thread has held the interpreter for long and the queue has room meanwhile."""
        if time.perf_counter() - self._rested_at >= _HOLD_S and not self.in_a_hurry:
            time.sleep(_REST_S)
            self._rested_at = time.perf_counter()
