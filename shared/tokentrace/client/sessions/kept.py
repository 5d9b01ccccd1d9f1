"""A session that is kept in memory: its spans, messages and end, and the answers about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tokentrace.client.sessions.words import Json
from tokentrace.dialect import costkatana
from tokentrace.dialect.costkatana import Session
from tokentrace.records import ChatMessage, SessionEnd, Span, Started, counts_as_cost

_SOURCE = "costkatana"


class Entry:
    """
    A span.

    Attributes:
        started: Its start.
        span: The ended span; None = it has not ended.
        early: What the start says about model, tokens, cost and error; None = nothing.
        number: The order of spans that started in the same millisecond.
    """

    def __init__(self, started: Started, span: Span | None = None, early: Span | None = None, number: int = 0) -> None:
        self.started, self.span, self.early, self.number = started, span, early, number


class Kept:
    """A session: its spans by id, in the order of their starts, its messages, and its end."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.entries: dict[str, Entry] = {}
        self.messages: list[ChatMessage] = []
        #: Span id -> its messages.
        self.messages_of: dict[str, list[ChatMessage]] = {}
        self.end: SessionEnd | None = None

    def add_message(self, message: ChatMessage) -> None:
        """Keep a message."""
        self.messages.append(message)
        self.messages_of.setdefault(message.span_id, []).append(message)

    @property
    def started_ns(self) -> int:
        """When the first span started, Unix nanoseconds."""
        return min((entry.started.started_ns for entry in self.entries.values()), default=0)

    def sums(self) -> Session:
        """Return the session with sums over its spans, computed as the api computes them."""
        entries = self._in_order()
        ended = [entry.span for entry in entries if entry.span is not None]
        summed = [span for span in ended if counts_as_cost(span.kind)]
        costs = [span.cost_nusd for span in summed if span.cost_nusd is not None]
        errors = sum(span.status != "ok" for span in ended)
        own_error = self.end.error if self.end else ""
        failed = errors or own_error
        return Session(
            session_id=self.session_id,
            user_id=_first(_user(entry) for entry in entries),
            label=_first(_label(entry) for entry in entries),
            started_ns=self.started_ns,
            ended_ns=self.end.ended_ns if self.end else None,
            last_ns=max((span.ended_ns for span in ended), default=None),
            spans=len(entries),
            open=len(entries) - len(ended),
            errors=errors,
            error=own_error or _first(span.error for span in ended) or "",
            cost_nusd=sum(costs) if costs or not summed else None,
            prompt_tokens=sum(span.prompt_tokens for span in summed),
            completion_tokens=sum(span.completion_tokens for span in summed),
            source=_SOURCE,
            status="error" if failed else "completed" if self.end else "active",
            priced=len(costs),
            unpriced=len(summed) - len(costs),
            partly_priced=sum(span.cost_source == "partly_priced" for span in summed),
        )

    def details(self, *, messages: bool = True) -> Json:
        """Return the session as ``GET /api/sessions/{id}/details`` describes it."""
        kept = self._by_time() if messages else []
        return costkatana.render_session(self.sums(), kept, len(self.messages))

    def explained(self) -> Json:
        """Return ``details`` with the trace of each message, and with the span and the stack trace of the error."""
        shown, error = self.details(), self.sums().error
        for message, rendered in zip(self._by_time(), shown["messages"], strict=True):
            if message.trace_id:
                rendered["trace_id"] = message.trace_id
        failed = (entry.span for entry in self._in_order() if entry.span is not None and entry.span.error == error)
        span = next(failed, None) if error else None
        if span is not None:
            stack = {"stack": span.error_stack} if span.error_stack else {}
            shown["error"] |= {**stack, "trace_id": span.trace_id, "span_id": span.span_id}
        return shown

    def _by_time(self) -> list[ChatMessage]:
        return sorted(self.messages, key=lambda message: message.created_ns)

    def _in_order(self) -> list[Entry]:
        return sorted(self.entries.values(), key=lambda entry: entry.started.started_ns)

    def node(self, span_id: str) -> Json:
        """Return a span as a node of the graph."""
        entry, depth = self.entries[span_id], self.depth(span_id)
        if entry.span is not None:
            return costkatana.render_node(entry.span, depth)
        return costkatana.render_open(entry.started, depth, "pending")

    def depth(self, span_id: str) -> int:
        """Return the number of known ancestors of a span; ancestors that form a circle count once."""
        seen = {span_id}
        parent = self.entries[span_id].started.parent_span_id
        while parent in self.entries and parent not in seen:
            seen.add(parent)
            parent = self.entries[parent].started.parent_span_id
        return len(seen) - 1

    def graph(self) -> Json:
        """Return the graph: the nodes by start, and an edge to each node that names a parent."""
        nodes = [{"trace_id": entry.started.trace_id, **self.node(entry.started.span_id)} for entry in self._in_order()]
        edges = [{"from": node["parentId"], "to": node["id"]} for node in nodes if "parentId" in node]
        return {"nodes": nodes, "edges": edges}


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _user(entry: Entry) -> str | None:
    return entry.span.user_id if entry.span else entry.started.user_id


def _label(entry: Entry) -> str | None:
    label: Any = (entry.span.attributes if entry.span else entry.started.metadata).get("label")
    return label if label is None or isinstance(label, str) else msgspec.json.encode(label).decode()
