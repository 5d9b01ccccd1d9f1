"""Sessions in the form that Cost Katana's clients expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokentrace.dialect.costkatana.render import render_message
from tokentrace.records import ChatMessage
from tokentrace.units import ns_to_ms, nusd_to_usd, render_instant


class Session(NamedTuple):
    """
    A session, with sums over its spans.

    Attributes:
        user_id, label, source: Value of the first span that has one.
        started_ns: Start of the first span, Unix nanoseconds.
        ended_ns: When the session was ended by a request, Unix nanoseconds; None = it was not.
        last_ns: When its last span ended, Unix nanoseconds; None = no span has ended.
        spans: Number of spans, each call once.
        open: Number of spans that have not ended.
        errors: Number of spans that ended with status error or timeout.
        error: Message of the session's end, otherwise of the first span that has one; "" = none.
        cost_nusd: Cost of the spans that are not of a roll-up kind, nano-dollars, without unknown costs; None = no cost
            is known and at least one is unknown.
        prompt_tokens, completion_tokens: Tokens of the spans that are not of a roll-up kind.
        status: error = a span failed or the session ended with an error; otherwise completed = it was ended by a
            request, active = it was not.
        priced, unpriced: Number of spans that are not of a roll-up kind, with known and with unknown cost.
        partly_priced: Number of spans of which only a part is priced; they are among *priced*.
    """

    session_id: str
    user_id: str | None
    label: str | None
    started_ns: int
    ended_ns: int | None
    last_ns: int | None
    spans: int
    open: int
    errors: int
    error: str
    cost_nusd: int | None
    prompt_tokens: int
    completion_tokens: int
    source: str
    status: str
    priced: int
    unpriced: int
    partly_priced: int


def render_session(session: Session, messages: Sequence[ChatMessage], message_count: int) -> dict[str, Any]:
    """Return *session* as ``GET /api/sessions/{id}/details`` describes it; *messages* are some of *message_count*."""
    until_ns = session.ended_ns or session.last_ns or session.started_ns
    duration_ms = ns_to_ms(max(until_ns - session.started_ns, 0))
    cost, unknown = (
        None if session.cost_nusd is None else nusd_to_usd(session.cost_nusd),
        {
            "unpricedSpanCount": session.unpriced,
            "partlyPricedSpanCount": session.partly_priced,
        },
    )
    tokens = {"input": session.prompt_tokens, "output": session.completion_tokens}
    shown: dict[str, Any] = {
        "sessionId": session.session_id,
        "status": session.status,
        "totalSpans": session.spans,
        "openSpans": session.open,
        "totalCostUSD": cost,
        "totalInputTokens": session.prompt_tokens,
        "totalOutputTokens": session.completion_tokens,
        **unknown,
        "startedAt": render_instant(session.started_ns),
        "duration": duration_ms,
        "source": session.source,
        "hasErrors": session.errors > 0 or session.status == "error",
        "errorCount": session.errors,
        "summary": {
            "totalSpans": session.spans,
            "totalDuration": duration_ms,
            "totalCost": cost,
            "totalTokens": tokens,
            **unknown,
        },
        "messages": [render_message(message) for message in messages],
        "messageCount": message_count,
    }
    optional = {"userId": session.user_id, "label": session.label}
    shown |= {name: value for name, value in optional.items() if value}
    if session.ended_ns is not None:
        shown["endedAt"] = render_instant(session.ended_ns)
    if session.error:
        shown["error"] = {"message": session.error}
    return shown
