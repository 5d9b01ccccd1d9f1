"""Structs that several routes answer with, and structs that describe the JSON that dialects render."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tokentrace.records import CostSource, Kind, Role, UsageState

Natural = Annotated[int, Meta(ge=0)]
#: RFC 3339 in UTC with milliseconds.
InstantText = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-03-15T14:23:01.441Z"])]
Milliseconds = float
SpanStatus = Literal["ok", "error", "timeout", "pending", "abandoned"]

SPAN_EXAMPLE: dict[str, Any] = {
    "trace_id": "t1",
    "span_id": "s1",
    "parent_span_id": None,
    "name": "answer question",
    "kind": "llm",
    "model": "gpt-4o",
    "provider": "openai",
    "prompt_tokens": 512,
    "comp_tokens": 128,
    "total_tokens": 640,
    "cost_usd": 0.00256,
    "latency_ms": 820,
    "status": "ok",
    "started_at": "2026-03-15T14:23:01.441Z",
    "ended_at": "2026-03-15T14:23:02.261Z",
    "caller": "checkout",
    "cost_model": "openai:gpt-4o@genai-prices-0.2.3",
    "cost_source": "priced",
    "attributes": {"request_id": "abc123"},
}
MIST_EXAMPLE: dict[str, Any] = {
    "trace_id": "t1",
    "span_id": "s1",
    "operation": "answer question",
    "start_ns": 1773584581441000000,
    "end_ns": 1773584582261000000,
    "status": "ok",
    "attrs": {"model": "gpt-4o", "tokens_in": 512, "tokens_out": 128, "cost_usd": 0.00256},
}


class StoredSpan(msgspec.Struct, kw_only=True):
    """
    A span as the store shows it; empty optional fields are left out.

    Attributes:
        trace_id: Left out if the answer is a trace.
        cost_usd: US dollars; null if the span could not be priced, absent while it is open.
        cost_reason: Why the cost is unknown or lacks a part, or why a cost of 0 is right.
        unpriced_reason: The same word, unless it says why a cost of 0 is right.
        usage: Amounts of priced units other than the tokens above; seconds may be fractions.
        usage_state: What is known about the usage; left out if the counts are complete.
        service_tier: The same as in pricing_context.
        depth: Number of its ancestors in the answer; only if the answer is a trace.
        latency_ms, ttft_ms: Milliseconds, rounded to whole ones.
        adjusted: What ingest or the reporter cut or corrected, such as `error: cut, 204800 bytes`.
        latency_ns, ttft_ns: The same in nanoseconds; only if they are not whole milliseconds.
        later_versions: How often the same call was told again, as this span or as another one with its response id;
            repetitions that say nothing new, and all but the first 19 as the same span, are only counted in
            `/health` (`calls`).
        counted: false if this is not the first telling of its call; no sum includes the span.
        conflicting: true if its cost or its tokens differ from those of the telling that counts.
    """

    span_id: str
    parent_span_id: str | None
    name: str
    kind: Kind
    status: SpanStatus
    started_at: InstantText
    ended_at: InstantText | None
    trace_id: str | UnsetType = UNSET
    depth: Natural | UnsetType = UNSET
    model: str | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    prompt_tokens: Natural | UnsetType = UNSET
    comp_tokens: Natural | UnsetType = UNSET
    total_tokens: Natural | UnsetType = UNSET
    cost_usd: float | UnsetType | None = UNSET
    latency_ms: Natural | UnsetType = UNSET
    latency_ns: Natural | UnsetType = UNSET
    caller: str | UnsetType = UNSET
    cost_model: str | UnsetType = UNSET
    cost_source: CostSource | UnsetType = UNSET
    cost_reason: str | UnsetType = UNSET
    unpriced_reason: str | UnsetType = UNSET
    ttft_ms: Natural | UnsetType = UNSET
    ttft_ns: Natural | UnsetType = UNSET
    error: str | UnsetType = UNSET
    error_stack: str | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    cache_read_tokens: Natural | UnsetType = UNSET
    cache_write_tokens: Natural | UnsetType = UNSET
    cache_write_1h_tokens: Natural | UnsetType = UNSET
    reasoning_tokens: Natural | UnsetType = UNSET
    usage: dict[str, Annotated[float, Meta(ge=0)]] | UnsetType = UNSET
    usage_state: UsageState | UnsetType = UNSET
    pricing_context: dict[str, str] | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    response_id: str | UnsetType = UNSET
    scope: str | UnsetType = UNSET
    adjusted: list[str] | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    later_versions: Natural | UnsetType = UNSET
    counted: bool | UnsetType = UNSET
    conflicting: bool | UnsetType = UNSET


class SumsOfSpans(msgspec.Struct, kw_only=True):
    """
    Sums over the spans that have ended, each call once; cost and tokens are without those of roll-up kinds.

    Attributes:
        total_cost_usd: US dollars, without unknown costs; null = no cost is known and at least one is unknown.
        unpriced_span_count: Number of spans whose cost is unknown; if it is over 0, the cost is a lower bound.
        partly_priced_span_count: Number of spans of which only a part is priced; likewise.
    """

    total_cost_usd: float | None
    total_tokens: Natural
    span_count: Natural
    unpriced_span_count: Natural
    partly_priced_span_count: Natural


class MistSpan(msgspec.Struct, kw_only=True):
    """A span in MIST's form; ``end_ns`` is 0 while the span is open."""

    trace_id: str
    span_id: str
    operation: str
    start_ns: int
    end_ns: int
    status: str
    parent_id: str | UnsetType = UNSET
    attrs: dict[str, Any] | UnsetType = UNSET


class Message(msgspec.Struct, kw_only=True, rename="camel"):
    """
    A message of a session.

    Attributes:
        trace_id: Id of the span that the message belongs to, which Cost Katana calls a trace.
        trace: The trace of that span; absent if it is not known.
        content: The original text if the configuration keeps it, otherwise the redacted text.
        content_preview: The first 500 characters of the redacted text.
    """

    message_id: str
    session_id: str
    trace_id: str
    role: Role
    content: str
    is_redacted: bool
    metadata: dict[str, Any]
    created_at: InstantText
    timestamp: InstantText
    content_preview: str
    full_content_stored: bool
    redacted_content: str | UnsetType = UNSET
    trace: str | UnsetType = msgspec.field(default=UNSET, name="trace_id")


class Incomplete(msgspec.Struct, kw_only=True):
    """
    The fields that say that some shards did not answer, or that one is behind; absent if all is counted.

    Attributes:
        missing_shards: Numbers of the shards whose spans are not counted.
        behind_s: Spans of about the last so many seconds are not counted yet, because they arrive faster than they are
            counted. Absent below one second.
    """

    incomplete: bool | UnsetType = UNSET
    missing_shards: list[int] | UnsetType = UNSET
    behind_s: float | UnsetType = UNSET
