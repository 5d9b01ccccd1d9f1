"""Which spans and sessions are not in the files yet, and the price of a span that names no cost."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from msgspec.structs import replace

from tokentrace.client.sessions.files import Files
from tokentrace.client.sessions.kept import Kept
from tokentrace.client.sessions.memory import Memory
from tokentrace.pricing import Pricer
from tokentrace.records import Span
from tokentrace.redact import Redactor

log = logging.getLogger("tokentrace.client")


class Saving:
    """
    Writes what has changed. An error is logged once until writing works again, and what was not written stays noted.

    Args:
        files: Where to; None = nothing is written.
    """

    def __init__(self, files: Files | None) -> None:
        self._files = files
        self._failing = False
        self._spans: set[str] = set()
        self._sessions: set[str] = set()

    def load(self, redactor: Redactor, limit: int) -> list[Kept]:
        """Return the *limit* sessions of the files that started last, oldest first."""
        return [] if self._files is None else self._files.load(redactor, limit)

    def forget(self) -> None:
        """Forget what is not written, in a forked child: it is the parent's."""
        self._spans, self._sessions = set(), set()

    def span_changed(self, span_id: str) -> None:
        """Take note that the file of a span is not up to date."""
        if self._files is not None and span_id:
            self._spans.add(span_id)

    def session_changed(self, session_id: str) -> None:
        """Take note that the files of a session are not up to date."""
        if self._files is not None:
            self._sessions.add(session_id)

    def write_ended(self, memory: Memory, span_ids: Sequence[str]) -> None:
        """Write those of the spans that have ended."""
        for span_id in span_ids:
            kept = memory.session_of(span_id)
            if kept is not None and kept.entries[span_id].span is not None and not self._write_span(kept, span_id):
                return

    def save(self, memory: Memory, session_id: str | None = None) -> None:
        """Write everything that has changed, in one session or in all."""
        for span_id in sorted(self._spans):
            kept = memory.session_of(span_id)
            if kept is None:
                self._spans.discard(span_id)
            elif session_id in (None, kept.session_id) and not self._write_span(kept, span_id):
                return
        for changed in sorted(self._sessions if session_id is None else self._sessions & {session_id}):
            kept = memory.sessions.get(changed)
            if kept is not None and not self._write_session(kept):
                return
            self._sessions.discard(changed)

    def _write_span(self, kept: Kept, span_id: str) -> bool:
        try:
            if self._files is not None:
                self._files.write_span(kept, span_id)
        except OSError as exc:
            return self._fails(exc)
        self._spans.discard(span_id)
        self._failing = False
        return True

    def _write_session(self, kept: Kept) -> bool:
        try:
            if self._files is not None:
                self._files.write_session(kept)
        except OSError as exc:
            return self._fails(exc)
        self._failing = False
        return True

    def _fails(self, error: OSError) -> bool:
        if not self._failing:
            log.warning("sessions are not written to files: %s", error)
        self._failing = True
        return False


@functools.cache
def _pricer() -> Pricer:
    return Pricer()


def priced(span: Span) -> Span:
    """Return *span* with its cost: the one that it names, else the price of what it used."""
    quote = _pricer().quote(span, span.ended_ns)
    return replace(
        span,
        cost_nusd=quote.cost_nusd,
        cost_source=quote.source,
        cost_model=quote.model,
        unpriced_reason=quote.reason,
    )
