"""The part of ``LocalTraceService`` that takes the spans of a tracer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokentrace.client.sessions.local_reads import LocalReads
from tokentrace.client.sessions.memory import Memory
from tokentrace.client.sessions.saving import Saving
from tokentrace.errors import Rejected
from tokentrace.records import Span, check_span, fit_span

if TYPE_CHECKING:
    from tokentrace.client.reporter import Stats

log = logging.getLogger("tokentrace.client")


class LocalTransport(LocalReads):
    """
    Takes spans, as every transport does: ``Tracer(LocalTraceService())`` keeps its spans in sessions.

    Args:
        memory: The sessions.
        saving: What is not in the files yet.
        writes_ends: True = a span is written to its file at once.
    """

    def __init__(self, memory: Memory, saving: Saving, writes_ends: bool) -> None:
        super().__init__(memory)
        self._saving, self._writes_ends = saving, writes_ends
        self._acked = self._rejected = 0

    def _save_at_intervals(self) -> None:
        """Start the thread that saves, if there is to be one and it does not run yet."""

    def send(self, spans: Sequence[Span]) -> None:
        """
        Keep the finished spans of a tracer; one without a session belongs to a session with the id of its trace.

        A span that is not valid is logged and counted as rejected, and a span that is known is left as it is.

        Args:
            spans: Finished calls.
        """
        with self._lock:
            for span in spans:
                try:
                    fitting = fit_span(span)
                    check_span(fitting, needs_model=False)
                except Rejected as exc:
                    self._rejected += 1
                    log.warning("a span is not valid and is not kept: %s", exc)
                    continue
                self._acked += 1
                self._saving.session_changed(self._memory.add(fitting))
                self._saving.span_changed(span.span_id)
                if self._writes_ends:
                    self._saving.write_ended(self._memory, [span.span_id])
            self._save_at_intervals()

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
        Write what is not in the files yet, if there are files. The sessions stay readable.

        Args:
            timeout: Seconds; ignored.
        """
        with self._lock:
            self._saving.save(self._memory)

    def stats(self) -> Stats:
        """
        Return the counters of the spans that ``send`` has taken.

        Returns:
            Counts of spans since the service was created, or since the fork in a forked child.
        """
        from tokentrace.client.reporter import Stats

        with self._lock:
            return Stats(
                sent=self._acked, acked=self._acked, dropped=0, failed=0, queue_depth=0, rejected=self._rejected
            )
