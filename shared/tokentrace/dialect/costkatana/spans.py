"""The conversion of Cost Katana's inputs into records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.dialect.attributes import counts_of, score_of, session_of, stated_fields, user_of
from tokentrace.dialect.costkatana.inputs import (
    EndInput,
    ErrorInput,
    MessageInput,
    SpanInput,
    attributes_of,
    instant_of,
)
from tokentrace.errors import Rejected
from tokentrace.records import (
    MAX_LATENCY_NS,
    MAX_NAME,
    ChatMessage,
    Span,
    Started,
    check_span,
    cut_text,
    fit_span,
    settle_usage,
)
from tokentrace.units import is_number, ms_to_ns, ns_to_ms, usd_to_nusd


class Place(NamedTuple):
    """The trace and the session of a span, which its children inherit."""

    trace_id: str
    session_id: str


def place(
    spans: Sequence[tuple[str, SpanInput]],
    known: Mapping[str, Place],
    new_session: Callable[[int], str],
    session_id: str = "",
) -> list[Place]:
    """
    Return the place of each of *spans*; parents and children may be in any order.

    The trace id of a root is its span id. A child inherits the trace of its parent, and its session if neither the
    child nor *session_id* names one. If the parent is not known, the parent's id becomes the trace id.

    Args:
        spans: (Span id, input) of each span.
        known: Span id -> place, for spans that were started before.
        new_session: Takes an index of *spans* and returns a session id for that span.
        session_id: Session of spans that name none; "" = they inherit their parent's session.

    Raises:
        Rejected: The parents of a span form a cycle; the text names the index of the span.
    """
    input_of = dict(spans)
    index_of = {span_id: index for index, (span_id, _) in enumerate(spans)}
    places: dict[str, Place] = {}
    for span_id, _ in spans:
        path: list[str] = []
        current = span_id
        while current in input_of and current not in places:
            path.append(current)
            if len(path) > len(spans):
                raise Rejected(f"span {index_of[span_id]}: parentId: the parents form a cycle")
            current = input_of[current].parent_id or ""
        for current in reversed(path):
            span = input_of[current]
            parent = span.parent_id or ""
            above = places.get(parent) or known.get(parent)
            named = span.session_id or session_of(span.metadata or {})
            before = known.get(current) or above
            session = named or session_id or (before.session_id if before else "")
            trace = before.trace_id if before else parent or current
            places[current] = Place(trace, session or new_session(index_of[current]))
    return [places[span_id] for span_id, _ in spans]


def start_of(span: SpanInput, span_id: str, where: Place, arrived_ns: int, caller: str = "") -> Started:
    """
    Return the record of a start.

    Args:
        where: Trace and session of the span.
        arrived_ns: Arrival of the request, Unix nanoseconds; the start of the span if the input names none.
        caller: The calling service according to the request; a caller in the metadata takes precedence.
    """
    attributes = attributes_of(span)
    return Started(
        trace_id=where.trace_id,
        span_id=span_id,
        parent_span_id=span.parent_id or None,
        session_id=where.session_id,
        user_id=span.user_id or user_of(attributes),
        name=span.name if len(span.name) <= MAX_NAME else cut_text(span.name, MAX_NAME),
        kind=span.type or "custom",
        started_ns=instant_of("startedAt", span.started_at) or arrived_ns,
        metadata=attributes,
        caller=_short(attributes, "caller") or caller[:256],
        arrived_ns=arrived_ns,
    )


def end_of(started: Started, end: EndInput, arrived_ns: int, early: Span | None = None) -> Span:
    """
    Return the finished span: *started*, completed and overridden by *end*.

    Args:
        arrived_ns: Arrival of the request, Unix nanoseconds; the end of the span if *end* names none.
        early: A span with the model, tokens, cost and error that the start already gave; its other fields are ignored.

    Raises:
        Rejected: The span takes over 30 days or is invalid; the text names the field.
    """
    attributes = {**started.metadata, **attributes_of(end)}
    before = early or Span()
    stated_end = instant_of("endedAt", end.ended_at)
    ended = max(stated_end or arrived_ns, started.started_ns)
    if ended - started.started_ns > MAX_LATENCY_NS:
        raise Rejected("endedAt: over 30 days after startedAt")
    error, stack = _error(end.error)
    counts = counts_of(attributes, [] if end.tokens is None else [end.tokens.amounts()])
    if end.tokens is None and not any(counts.values()):
        counts = {name: getattr(before, name) for name in _COUNTS}
    cost = before.cost_nusd if end.cost_usd is None else usd_to_nusd(end.cost_usd)
    stated = stated_fields(attributes, started.kind, counts)
    if (end.cost_usd and not cost) or (end.cost_usd is None and before.cost_source == "reported"):
        stated["cost_source"] = "reported"  # less than half a nano-dollar, not the 0 of a client without prices
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
        cost_nusd=cost,
        score=score_of(attributes),
        attributes=attributes,
        error=error or before.error,
        error_stack=stack or before.error_stack,
        session_id=started.session_id,
        user_id=started.user_id or user_of(attributes),
        source="costkatana",
        adjusted=("ended_at: before started_at, computed",) if 0 < stated_end < started.started_ns else (),
    )
    try:
        span = fit_span(settle_usage(replace(span, **{**counts, **stated})))
        check_span(span, needs_model=False)
    except Rejected as exc:
        raise Rejected(str(exc).replace("attributes:", "metadata:", 1)) from exc
    return span


#: The fields that an end which counts nothing takes from the start.
_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "usage",
)


def message_of(message: MessageInput, message_id: str, trace_id: str, arrived_ns: int) -> ChatMessage:
    """
    Return the record of a message.

    Args:
        message_id: The id of the record if *message* has none.
        trace_id: Trace of the span that the message belongs to; "" = not known.
        arrived_ns: Arrival of the request, Unix nanoseconds; when the message was written if *message* has no time.
    """
    return ChatMessage(
        message_id=message.message_id or message_id,
        session_id=message.session_id,
        span_id=message.trace_id or "",
        trace_id=trace_id,
        role=message.role,
        content=message.content,
        created_ns=instant_of("createdAt", message.created_at) or arrived_ns,
        metadata=message.metadata or {},
        length=len(message.content),
    )


def _error(error: ErrorInput | str | None) -> tuple[str, str]:
    if isinstance(error, ErrorInput):
        return error.message, error.stack or ""
    return error or "", ""


def _ttft(attributes: dict[str, Any]) -> int:
    value = attributes.get("ttft_ms")
    return ms_to_ns(value) if is_number(value) and 0 < value <= ns_to_ms(MAX_LATENCY_NS) else 0


def _short(attributes: dict[str, Any], key: str) -> str:
    """Return the text under *key* if it has at most 256 characters, as a field of a record may, otherwise ""."""
    value = attributes.get(key)
    return value if isinstance(value, str) and len(value) <= 256 else ""
