"""Sessions in memory: what happened in them, and the answers about them. Without a clock, files and locks."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from tokentrace.client.sessions.kept import Entry, Kept
from tokentrace.client.sessions.words import Json, StartedSpan
from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import EndInput, MessageInput, Place, Session, SpanInput
from tokentrace.errors import Rejected, shorten
from tokentrace.records import SessionEnd, Span, Started
from tokentrace.redact import Redactor
from tokentrace.units import MS, ns_to_ms, nusd_to_usd

DEFAULT_LIMIT = 20


class Memory:
    """
    The newest sessions.

    Args:
        redactor: Removes secrets from everything before it is kept.
        price: Returns a span with its cost.
        max_sessions: With more sessions, the one that was inserted first goes, with its spans and messages.
    """

    def __init__(self, redactor: Redactor, price: Callable[[Span], Span], max_sessions: int) -> None:
        self._redactor, self._price, self._max = redactor, price, max_sessions
        self.sessions: dict[str, Kept] = {}
        self._session_of: dict[str, Kept] = {}
        self._next_number = 0

    def session(self, session_id: str) -> Kept:
        """
        Return a session.

        Raises:
            Rejected: It is unknown; ``status`` is 404.
        """
        kept = self.sessions.get(session_id)
        if kept is None:
            raise Rejected(f"Session {shorten(session_id)} not found", status=404)
        return kept

    def session_of(self, span_id: str) -> Kept | None:
        """Return the session of a span; None = the span is unknown."""
        return self._session_of.get(span_id)

    def take(self, spans: Sequence[SpanInput], now_ns: int) -> list[StartedSpan]:
        """
        Start or end *spans*; those that have an end and were not started before are stored as they are.

        Raises:
            Rejected: A value is invalid, and nothing is stored.
        """
        ids = [span.trace_id or str(uuid.uuid4()) for span in spans]
        places = costkatana.place(
            list(zip(ids, spans, strict=True)), self._known(ids, spans), lambda _: str(uuid.uuid4())
        )
        entries: list[Entry] = []
        for span, span_id, where in zip(spans, ids, places, strict=True):
            known = self._entry(span_id)
            started = known.started if known else _whole_ms(costkatana.start_of(span, span_id, where, now_ns))
            ended = self._finish(started, span, now_ns, known) if costkatana.has_ended(span) else None
            entries.append(Entry(started, ended, _early(started, span, now_ns)))
        for span, entry in zip(spans, entries, strict=True):
            self._keep(span, entry)
        return [StartedSpan(entry.started.span_id, entry.started.session_id or "") for entry in entries]

    def _known(self, ids: Sequence[str], spans: Sequence[SpanInput]) -> dict[str, Place]:
        wanted = {*ids, *(span.parent_id for span in spans if span.parent_id)}
        entries = [entry for entry in map(self._entry, wanted) if entry is not None]
        return {
            entry.started.span_id: Place(entry.started.trace_id, entry.started.session_id or "") for entry in entries
        }

    def _entry(self, span_id: str) -> Entry | None:
        kept = self._session_of.get(span_id)
        return kept.entries[span_id] if kept else None

    def _keep(self, span: SpanInput, entry: Entry) -> None:
        known = self._entry(entry.started.span_id)
        if known is not None:
            if known.span is not None:
                self._merge(known, span)
            elif entry.span is not None:
                known.span = entry.span
            return
        self._insert(Entry(self._redactor.started(entry.started), entry.span, entry.early))

    def adopt(self, kept: Kept) -> None:
        """Insert a session of the files."""
        self.sessions[kept.session_id] = kept
        self._session_of |= dict.fromkeys(kept.entries, kept)
        self._next_number = max([self._next_number, *(entry.number + 1 for entry in kept.entries.values())])

    def _insert(self, entry: Entry) -> None:
        session_id, span_id = entry.started.session_id or "", entry.started.span_id
        kept = self.sessions.get(session_id)
        if kept is None:
            kept = self.sessions[session_id] = Kept(session_id)
        kept.entries[span_id] = entry
        entry.number, self._next_number = self._next_number, self._next_number + 1
        self._session_of[span_id] = kept
        while len(self.sessions) > self._max:
            self._forget(next(iter(self.sessions)))

    def _forget(self, session_id: str) -> None:
        for span_id in self.sessions.pop(session_id).entries:
            del self._session_of[span_id]

    def _finish(self, started: Started, end: EndInput, now_ns: int, known: Entry | None) -> Span:
        span = costkatana.end_of(started, end, now_ns, known.early if known else None)
        ended_ns = span.ended_ns // MS * MS
        span = replace(span, ended_ns=ended_ns, latency_ns=ended_ns - span.started_ns)
        return self._redactor.span(self._price(span))

    def end(self, span_id: str, end: EndInput, now_ns: int) -> None:
        """
        End a span. The first end counts; later ones add their metadata.

        Raises:
            Rejected: The span is unknown (``status`` is 404), or a value is invalid.
        """
        entry = self._entry(span_id)
        if entry is None:
            raise Rejected(f"Trace {shorten(span_id)} not found", status=404)
        if entry.span is None:
            entry.span = self._finish(entry.started, end, now_ns, entry)
        else:
            self._merge(entry, end)

    def _merge(self, entry: Entry, end: EndInput) -> None:
        if entry.span is not None and end.metadata:
            metadata = self._redactor.mapping(end.metadata)
            entry.span = replace(entry.span, attributes={**entry.span.attributes, **metadata})

    def add(self, span: Span) -> str:
        """Keep a finished span, or leave the one with its id as it is, and return the id of its session."""
        session_id = span.session_id or span.trace_id
        known = self._entry(span.span_id)
        if known is not None and known.span is not None:
            return known.started.session_id or ""
        started_ns, ended_ns = span.started_ns // MS * MS, span.ended_ns // MS * MS
        whole = replace(
            span, session_id=session_id, started_ns=started_ns, ended_ns=ended_ns, latency_ns=ended_ns - started_ns
        )
        kept = self._redactor.span(self._price(whole))
        if known is not None:
            known.span = kept
            return known.started.session_id or ""
        started = Started(
            trace_id=kept.trace_id,
            span_id=kept.span_id,
            parent_span_id=kept.parent_span_id,
            session_id=session_id,
            user_id=kept.user_id,
            name=kept.name,
            kind=kept.kind,
            started_ns=started_ns,
            caller=kept.caller,
        )
        self._insert(Entry(started, kept))
        return session_id

    def message(self, message: MessageInput, now_ns: int) -> None:
        """
        Keep a message without its secrets.

        Raises:
            Rejected: The session is unknown; ``status`` is 404.
        """
        kept = self.session(message.session_id)
        entry = self._entry(message.trace_id or "")
        trace_id = entry.started.trace_id if entry else ""
        record = costkatana.message_of(message, str(uuid.uuid4()), trace_id, now_ns)
        record = replace(record, created_ns=record.created_ns // MS * MS)
        kept.add_message(self._redactor.message(record))

    def end_session(self, session_id: str, error: str, now_ns: int) -> None:
        """
        End a session; the first end counts.

        Raises:
            Rejected: The session is unknown; ``status`` is 404.
        """
        kept = self.session(session_id)
        if kept.end is None:
            end = SessionEnd(session_id=session_id, ended_ns=now_ns // MS * MS, error=error[:4096])
            kept.end = self._redactor.session_end(end)

    def graph(self, session_id: str) -> Json:
        """Return the graph of a session; that of an unknown session is empty."""
        kept = self.sessions.get(session_id)
        return kept.graph() if kept else {"nodes": [], "edges": []}

    def listed(
        self, since_ns: int | None, until_ns: int | None, user_id: str | None, label: str | None, page: int, limit: int
    ) -> Json:
        """Return a page of sessions with their messages, newest start first."""
        matching = [
            (kept, sums)
            for kept, sums in self._between(since_ns, until_ns)
            if (user_id is None or (sums.user_id or "") == user_id) and (not label or label in (sums.label or ""))
        ]
        matching.sort(key=lambda pair: (-pair[1].started_ns, pair[1].session_id))
        pages = math.ceil(len(matching) / limit)
        return {
            "sessions": [kept.details() for kept, _ in matching[(page - 1) * limit : page * limit]],
            "total": len(matching),
            "page": page,
            "limit": limit,
            "pages": pages,
            "totalPages": pages,
        }

    def summary(self, since_ns: int | None, until_ns: int | None) -> Json:
        """Return totals over the sessions that started between two instants."""
        sums = [sums for _, sums in self._between(since_ns, until_ns)]
        counts = {status: sum(one.status == status for one in sums) for status in ("active", "completed", "error")}
        ended = [max(one.ended_ns - one.started_ns, 0) for one in sums if one.ended_ns is not None]
        mean_ms = ns_to_ms(sum(ended) / len(ended)) if ended else 0
        unpriced = sum(one.unpriced for one in sums)
        known = sum(one.priced for one in sums) > 0 or not unpriced
        return {
            "totalSessions": len(sums),
            "activeSessions": counts["active"],
            "completedSessions": counts["completed"],
            "errorSessions": counts["error"],
            "totalCost": nusd_to_usd(sum(one.cost_nusd or 0 for one in sums)) if known else None,
            "totalTokens": {
                "input": sum(one.prompt_tokens for one in sums),
                "output": sum(one.completion_tokens for one in sums),
            },
            "unpricedSpanCount": unpriced,
            "partlyPricedSpanCount": sum(one.partly_priced for one in sums),
            "avgDuration": mean_ms,
            "averageDuration": mean_ms,
            "endedSessions": len(ended),
            "errorRate": counts["error"] / len(sums) if sums else 0,
        }

    def _between(self, since_ns: int | None, until_ns: int | None) -> Iterable[tuple[Kept, Session]]:
        for kept in self.sessions.values():
            started_ns = kept.started_ns
            if (since_ns is None or since_ns <= started_ns) and (until_ns is None or started_ns <= until_ns):
                yield kept, kept.sums()


def _early(started: Started, span: SpanInput, now_ns: int) -> Span | None:
    stated = span.model or span.ai_model or span.tokens or span.error or span.cost_usd is not None
    return costkatana.end_of(started, span, now_ns) if stated and not costkatana.has_ended(span) else None


def _whole_ms(started: Started) -> Started:
    """Return *started* with whole milliseconds, so that a file holds exactly what memory holds."""
    return replace(started, started_ns=started.started_ns // MS * MS)
