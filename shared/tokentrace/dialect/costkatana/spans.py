"""Cost Katana's inputs as our records (SPEC A.8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tokentrace.dialect.costkatana.inputs import (
    EndInput,
    ErrorInput,
    MessageInput,
    SpanInput,
    attributes_of,
    instant_of,
)
from tokentrace.dialect.docs import score_of
from tokentrace.errors import Rejected
from tokentrace.records import MAX_LATENCY_NS, ChatMessage, Span, Started, check_span
from tokentrace.units import is_number, ms_to_ns, ns_to_ms, usd_to_nusd


class Place(NamedTuple):
    """Where a span belongs: the trace and the session that its children inherit."""

    trace_id: str
    session_id: str


def place(
    spans: Sequence[tuple[str, SpanInput]],
    known: Mapping[str, Place],
    new_session: Callable[[int], str],
    session_id: str = "",
) -> list[Place]:
    """
    Where each of *spans* belongs, parents and children in any order.

    A root's trace has its own span's id. A child inherits trace and session from its parent; when nobody knows the
    parent, it is taken for the root.

    Args:
        spans: (span id, input).
        known: Of spans that came before.
        new_session: Makes a session for the span at an index.
        session_id: For spans that name none; "" = they inherit one.

    Raises:
        Rejected: Names the index of a span whose parents go round in a ring.
    """
    given_of = dict(spans)
    index_of = {span_id: index for index, (span_id, _) in enumerate(spans)}
    places: dict[str, Place] = {}
    for span_id, _ in spans:
        path: list[str] = []
        current = span_id
        while current in given_of and current not in places:
            path.append(current)
            if len(path) > len(spans):
                raise Rejected(f"span {index_of[span_id]}: parentId: its parents go round in a ring")
            current = given_of[current].parent_id or ""
        for current in reversed(path):
            given = given_of[current]
            parent = given.parent_id or ""
            above = places.get(parent) or known.get(parent)
            session = given.session_id or session_id or (above.session_id if above else "")
            trace = above.trace_id if above else parent or current
            places[current] = Place(trace, session or new_session(index_of[current]))
    return [places[span_id] for span_id, _ in spans]


def start_of(given: SpanInput, span_id: str, where: Place, arrived_ns: int, caller: str = "") -> Started:
    """
    The record of a start.

    Args:
        caller: The calling service as the request tells it; the metadata's wins.
    """
    attributes = attributes_of(given)
    return Started(
        trace_id=where.trace_id,
        span_id=span_id,
        parent_span_id=given.parent_id or None,
        session_id=where.session_id,
        user_id=given.user_id or _short(attributes, "userId") or None,
        name=given.name,
        kind=given.type or "custom",
        started_ns=instant_of("startedAt", given.started_at) or arrived_ns,
        metadata=attributes,
        caller=_short(attributes, "caller") or caller[:256],
        arrived_ns=arrived_ns,
    )


def end_of(started: Started, end: EndInput, arrived_ns: int, early: Span | None = None) -> Span:
    """
    The finished span: its start, and what the end says laid over it.

    Args:
        early: What the start said already of model, tokens, cost and error; its other fields are not looked at.

    Raises:
        Rejected: Names the field.
    """
    attributes = {**started.metadata, **attributes_of(end)}
    before = early or Span()
    ended = max(instant_of("endedAt", end.ended_at) or arrived_ns, started.started_ns)
    if ended - started.started_ns > MAX_LATENCY_NS:
        raise Rejected("endedAt: over 30 days after startedAt")
    error, stack = _error(end.error)
    prompt, completion = before.prompt_tokens, before.completion_tokens
    if end.tokens is not None:
        prompt, completion = end.tokens.input, end.tokens.output
    status = end.status or ("error" if error or stack or before.error else "ok")
    span = Span(
        trace_id=started.trace_id,
        span_id=started.span_id,
        parent_span_id=started.parent_span_id,
        name=started.name,
        kind=started.kind,
        caller=_short(attributes, "caller") or started.caller,
        model=end.model or end.ai_model or before.model,
        provider=_short(attributes, "provider"),
        status="ok" if status == "pending" else status,
        started_ns=started.started_ns,
        ended_ns=ended,
        latency_ns=ended - started.started_ns,
        ttft_ns=_ttft(attributes),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cost_nusd=before.cost_nusd if end.cost_usd is None else usd_to_nusd(end.cost_usd),
        score=score_of(attributes),
        attributes=attributes,
        error=error or before.error,
        error_stack=stack or before.error_stack,
        session_id=started.session_id,
        user_id=started.user_id or _short(attributes, "userId") or None,
        source="costkatana",
    )
    try:
        check_span(span)
    except Rejected as exc:
        raise Rejected(str(exc).replace("attributes:", "metadata:", 1)) from exc
    return span


def message_of(given: MessageInput, message_id: str, trace_id: str, arrived_ns: int) -> ChatMessage:
    """
    The record of a message.

    Args:
        message_id: For a message that has none.
        trace_id: Of the span it belongs to; "" = nobody knows.
    """
    return ChatMessage(
        message_id=given.message_id or message_id,
        session_id=given.session_id,
        span_id=given.trace_id or "",
        trace_id=trace_id,
        role=given.role,
        content=given.content,
        created_ns=instant_of("createdAt", given.created_at) or arrived_ns,
        metadata=given.metadata or {},
        length=len(given.content),
    )


def _error(error: ErrorInput | str | None) -> tuple[str, str]:
    if isinstance(error, ErrorInput):
        return error.message, error.stack or ""
    return error or "", ""


def _ttft(attributes: dict[str, Any]) -> int:
    value = attributes.get("ttft_ms")
    return ms_to_ns(value) if is_number(value) and 0 < value <= ns_to_ms(MAX_LATENCY_NS) else 0


def _short(attributes: dict[str, Any], key: str) -> str:
    """A text of the metadata that fits into a field of ours; "" when there is none."""
    value = attributes.get(key)
    return value if isinstance(value, str) and len(value) <= 256 else ""
