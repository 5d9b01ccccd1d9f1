"""Finds the chat messages that were sent for a span."""

from __future__ import annotations

from tokentrace.records import ChatMessage
from tokentrace_api.reads.sessions import message_of
from tokentrace_api.store import MESSAGES, Store

#: The most messages of one span that are shown.
MOST_MESSAGES = 1000


def messages_of_span(store: Store, trace_id: str, span_id: str, now_ns: int) -> list[ChatMessage]:
    """Return the first ``MOST_MESSAGES`` messages of a span, oldest first."""
    # A message of an unknown trace names its span only.
    rows = store.query(
        f"SELECT {', '.join(MESSAGES)} FROM {{messages}} WHERE span_id = ? AND trace_id IN (?, '') "
        f"ORDER BY created_ns, arrived_ns, message_id LIMIT {MOST_MESSAGES}",
        [span_id, trace_id],
        now_ns,
    )
    return [message_of(row) for row in rows]
