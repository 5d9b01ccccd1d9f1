"""Rendering of records for Cost Katana's clients: in the form of the SDK, with the backend's names in addition."""

from __future__ import annotations

from typing import Any

from tokentrace.dialect.costkatana.inputs import RESOURCE_IDS, TOOL
from tokentrace.records import ChatMessage, Span, Started
from tokentrace.units import ns_to_ms, nusd_to_usd, render_instant

#: Maximum length of a message's preview, characters.
_PREVIEW = 500


def render_node(span: Span, depth: int) -> dict[str, Any]:
    """
    Return a finished span as a ``TraceNode`` of the SDK, with the backend's label, start, end and aiModel in addition.

    parentId, error, model, aiModel, tool and resourceIds are left out if the span has none. costUSD is null for an
    unpriced span.

    Args:
        depth: Number of ancestors; 0 for a root.
    """
    node = _head(span.span_id, span.parent_span_id, span.session_id, span.name, span.kind, span.status, depth)
    if span.error or span.error_stack:
        node["error"] = {"message": span.error, **({"stack": span.error_stack} if span.error_stack else {})}
    if span.model:
        node["model"] = node["aiModel"] = span.model
    started, ended = render_instant(span.started_ns), render_instant(span.ended_ns)
    return {
        **node,
        "tokens": _tokens(span),
        "costUSD": None if span.cost_nusd is None else nusd_to_usd(span.cost_nusd),
        **_attributes(span.attributes),
        "startedAt": started,
        "endedAt": ended,
        "duration": ns_to_ms(span.latency_ns),
        "start": started,
        "end": ended,
    }


def _tokens(span: Span) -> dict[str, int]:
    """Return the amounts of *span*: input and output, and those of its other amounts that are not 0."""
    parts = {
        "cacheRead": span.cache_read_tokens,
        "cacheWrite": span.cache_write_tokens,
        "cacheWrite1h": span.cache_write_1h_tokens,
        "reasoning": span.reasoning_tokens,
        "total": 0 if span.total_tokens == span.prompt_tokens + span.completion_tokens else span.total_tokens,
    }
    shown = {name: amount for name, amount in parts.items() if amount}
    return {"input": span.prompt_tokens, "output": span.completion_tokens, **shown}


def render_open(started: Started, depth: int, status: str) -> dict[str, Any]:
    """
    Return an open span in the form of ``render_node``: endedAt, end, duration and costUSD are null.

    Args:
        depth: Number of ancestors; 0 for a root.
        status: pending or abandoned.
    """
    at = render_instant(started.started_ns)
    return {
        **_head(
            started.span_id,
            started.parent_span_id,
            started.session_id,
            started.name,
            started.kind,
            status,
            depth,
        ),
        "tokens": {"input": 0, "output": 0},
        "costUSD": None,
        **_attributes(started.metadata),
        "startedAt": at,
        "endedAt": None,
        "duration": None,
        "start": at,
        "end": None,
    }


def _head(
    span_id: str, parent_id: str | None, session_id: str | None, name: str, kind: str, status: str, depth: int
) -> dict[str, Any]:
    return {
        "id": span_id,
        **({"parentId": parent_id} if parent_id else {}),
        "sessionId": session_id or "",
        "name": name,
        "label": name,
        "type": kind,
        "status": status,
        "depth": depth,
    }


def _attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Split attributes into ``tool``, ``resourceIds`` and ``metadata``; values of an unexpected type stay metadata."""
    metadata = dict(attributes)
    shown: dict[str, Any] = {}
    if isinstance(metadata.get(TOOL), str):
        shown["tool"] = metadata.pop(TOOL)
    if isinstance(metadata.get(RESOURCE_IDS), list):
        shown["resourceIds"] = metadata.pop(RESOURCE_IDS)
    return {**shown, "metadata": metadata}


def render_message(message: ChatMessage) -> dict[str, Any]:
    """
    Return a message with the fields of the SDK and of the backend.

    ``content`` is the original text if the configuration keeps it, otherwise the redacted text. ``contentPreview`` is
    always redacted. ``fullContentStored`` is true if the received text fits into a preview and its content is kept.
    """
    at = render_instant(message.created_ns)
    return {
        "messageId": message.message_id,
        "sessionId": message.session_id,
        "traceId": message.span_id,
        "role": message.role,
        "content": message.raw or message.content,
        **({"redactedContent": message.content} if message.redacted else {}),
        "isRedacted": message.redacted,
        "metadata": message.metadata,
        "createdAt": at,
        "timestamp": at,
        "contentPreview": message.content[:_PREVIEW],
        "fullContentStored": message.length <= _PREVIEW and (bool(message.content) or not message.length),
    }
