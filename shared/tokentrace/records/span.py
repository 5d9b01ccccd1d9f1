"""The canonical record of one finished call, and what makes it valid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokentrace.errors import Rejected, shorten
from tokentrace.units import DAY, MINUTE, SCORE_ONE, is_number

Kind = Literal["llm", "embedding", "tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain"]
Status = Literal["ok", "error", "timeout"]
#: Where a cost comes from: see ``Span.cost_source``.
CostSource = Literal["", "reported", "priced", "overridden", "partly_priced", "unpriced", "zero_ignored"]

KINDS: tuple[str, ...] = (
    "llm",
    "embedding",
    "tool",
    "retrieval",
    "database",
    "custom",
    "http",
    "agent",
    "workflow",
    "chain",
)
#: Their cost is the sum of what happened below them: shown, never added.
ROLLUP_KINDS = frozenset({"http", "agent", "workflow", "chain"})
_MODEL_KINDS = frozenset({"llm", "embedding"})

MAX_TOKENS = 2**40
MAX_COST_NUSD = 1_000_000 * 1_000_000_000
MAX_LATENCY_NS = 30 * DAY
MIN_INSTANT_NS = 946_684_800_000_000_000  # 2000-01-01T00:00:00Z
MAX_INSTANT_NS = 4_102_444_800_000_000_000  # 2100-01-01T00:00:00Z
MAX_ATTRIBUTES = 128
MAX_KEY_BYTES = 256
MAX_NAME = 256
MAX_VALUE_BYTES = 32 * 1024
MAX_DEPTH = 16
FUTURE_NS = 5 * MINUTE

Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Cost = Annotated[int, Meta(ge=0, le=MAX_COST_NUSD)]
Latency = Annotated[int, Meta(ge=0, le=MAX_LATENCY_NS)]
Instant = Annotated[int, Meta(ge=0, le=MAX_INSTANT_NS)]
Score = Annotated[int, Meta(ge=0, le=SCORE_ONE)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Id = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=MAX_VALUE_BYTES)]


class Span(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    One finished call, as it travels on ``tokentrace.spans.>``.

    Attributes:
        trace_id: The operation it belongs to; 1-256 printable ASCII, "" = let ingest make one.
        span_id: Unique within its trace; "" = let ingest make one.
        parent_span_id: The span it was called from; None for a root.
        name: Operation, at most 256 characters.
        kind: One of ``KINDS``.
        caller: Calling service or function; "" = unknown.
        model, provider: As the vendor names them; "" = unknown.
        status: ok, error or timeout.
        started_ns, ended_ns: Unix nanoseconds, UTC; 0 = let ingest fill it in.
        latency_ns: Wall clock of the whole call; 0 = unset.
        ttft_ns: To the first token, streaming only; 0 = unset.
        prompt_tokens: Whole input, cached tokens included.
        completion_tokens: Whole output, reasoning tokens included.
        total_tokens: prompt + completion, or the only number there was.
        cost_nusd: Price in nano-dollars; None when nobody could price it.
        score: ``eval.score`` in 1e-9, 0 to 1e9; None = not scored.
        attributes: Whatever else the caller knows; keys non-empty.
        error: Message when status is not ok; "" = none.
        arrived_ns: When the pipeline took it in, Unix nanoseconds.
        session_id, user_id: None = unknown.
        cost_source: reported, priced, overridden, partly_priced, unpriced, zero_ignored; "" = not yet decided.
        cost_model: Which price was used, such as ``openai:gpt-4o@genai-prices-0.2.3``.
        unpriced_reason: Why cost_nusd is None or partial; "" = it is complete.
        cache_read_tokens, cache_write_tokens: Parts of prompt_tokens, never added on top.
        cache_write_1h_tokens: Part of cache_write_tokens.
        reasoning_tokens: Part of completion_tokens.
        usage: Priced units without a field of their own (searches, audio, images), whole units >= 0.
        error_stack: Stack trace; "" = none.
        source: Which way in: reporter, spans, mist, costkatana, nats.
    """

    trace_id: Id = ""
    span_id: Id = ""
    parent_span_id: Id | None = None
    name: Name = ""
    kind: Kind = "llm"
    caller: Name = ""
    model: Name = ""
    provider: Name = ""
    status: Status = "ok"
    started_ns: Instant = 0
    ended_ns: Instant = 0
    latency_ns: Latency = 0
    ttft_ns: Latency = 0
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    total_tokens: Annotated[int, Meta(ge=0, le=2 * MAX_TOKENS)] = 0
    cost_nusd: Cost | None = None
    score: Score | None = None
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    error: Text = ""
    arrived_ns: Instant = 0
    session_id: Id | None = None
    user_id: Id | None = None
    cost_source: CostSource = ""
    cost_model: Annotated[str, Meta(max_length=768)] = ""
    unpriced_reason: Name = ""
    cache_read_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    reasoning_tokens: Tokens = 0
    usage: dict[str, Tokens] | None = None
    error_stack: Text = ""
    source: Name = ""


SPAN_FIELDS: tuple[str, ...] = Span.__struct_fields__


def counts_as_cost(kind: str) -> bool:
    """True when money of this kind is added up; a roll-up's cost is the sum of what is counted below it."""
    return kind not in ROLLUP_KINDS


def event_time(span: Span) -> int:
    """When *span* counts, Unix ns: when it ended, or when it arrived if it claims to end over 5 minutes after that."""
    return span.ended_ns if span.ended_ns <= span.arrived_ns + FUTURE_NS else span.arrived_ns


def attribute(span: Span, key: str) -> Any:
    """The attribute called *key*: literally, else *key* as a path with dots into nested ones; None = there is none."""
    found = span.attributes.get(key)
    if found is None and "." in key:
        found = span.attributes
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    return found


def is_id(text: str) -> bool:
    """True for 1-256 printable ASCII characters: nothing that could forge a line of a log."""
    return 0 < len(text) <= 256 and text.isascii() and text.isprintable()


def check_span(span: Span) -> None:
    """
    What the types of ``Span`` cannot say.

    Raises:
        Rejected: Names the field, and what is wrong with it.
    """
    if span.trace_id and not is_id(span.trace_id):
        raise Rejected(f"trace_id: {shorten(span.trace_id)!r} is not 1-256 printable ASCII characters")
    if span.span_id and not is_id(span.span_id):
        raise Rejected(f"span_id: {shorten(span.span_id)!r} is not 1-256 printable ASCII characters")
    if span.parent_span_id is not None and not is_id(span.parent_span_id):
        raise Rejected(f"parent_span_id: {shorten(span.parent_span_id)!r} is not 1-256 printable ASCII characters")
    # A MIST tool or a Cost Katana client may report a call whose tokens it does not know; their servers take it.
    if span.kind in _MODEL_KINDS and span.status == "ok" and span.source not in ("mist", "costkatana"):
        if not span.model:
            raise Rejected(f"model: required when kind is {span.kind} and status is ok")
        if not span.total_tokens and not span.prompt_tokens and not span.completion_tokens and not span.usage:
            raise Rejected("prompt_tokens, comp_tokens or total_tokens: at least one must be over 0 when status is ok")
    if span.started_ns and not MIN_INSTANT_NS <= span.started_ns <= MAX_INSTANT_NS:
        raise Rejected("started_at: not between the years 2000 and 2100")
    if span.ended_ns and not MIN_INSTANT_NS <= span.ended_ns <= MAX_INSTANT_NS:
        raise Rejected("ended_at: not between the years 2000 and 2100")
    if span.cache_read_tokens or span.cache_write_tokens or span.cache_write_1h_tokens or span.reasoning_tokens:
        _check_parts(span)
    if span.prompt_tokens + span.completion_tokens > span.total_tokens > 0:
        raise Rejected(
            f"total_tokens: {span.total_tokens} is less than "
            f"prompt_tokens {span.prompt_tokens} + comp_tokens {span.completion_tokens}"
        )
    if span.attributes:
        check_attributes(span.attributes)


def _check_parts(span: Span) -> None:
    cached = span.cache_read_tokens + span.cache_write_tokens
    if cached > span.prompt_tokens:
        raise Rejected(
            f"cache_read_tokens + cache_write_tokens: {cached} is more than prompt_tokens {span.prompt_tokens}, "
            "which include them"
        )
    if span.cache_write_1h_tokens > span.cache_write_tokens:
        raise Rejected(
            f"cache_write_1h_tokens: {span.cache_write_1h_tokens} is more than "
            f"cache_write_tokens {span.cache_write_tokens}, which include them"
        )
    if span.reasoning_tokens > span.completion_tokens:
        raise Rejected(
            f"reasoning_tokens: {span.reasoning_tokens} is more than comp_tokens {span.completion_tokens}, "
            "which include them"
        )


def check_attributes(attributes: dict[str, Any]) -> None:
    """
    Keys, sizes, depth and numbers of *attributes*.

    Raises:
        Rejected: Names the key.
    """
    if len(attributes) > MAX_ATTRIBUTES:
        raise Rejected(f"attributes: {len(attributes)} keys, at most {MAX_ATTRIBUTES} are kept")
    for key, value in attributes.items():
        _check_key(key)
        if key.startswith("tt."):
            raise Rejected(f"attributes: {shorten(key)!r}: keys that start with tt. are reserved")
        if key.startswith("eval.") and is_number(value) and not 0 <= value <= 1:
            raise Rejected(f"attributes: {shorten(key)!r} is {shorten(value)}, a score lies between 0 and 1")
        if isinstance(value, str):
            if len(value) > MAX_VALUE_BYTES or len(_utf8(key, value)) > MAX_VALUE_BYTES:
                raise Rejected(f"attributes: {shorten(key)!r} is longer than {MAX_VALUE_BYTES} bytes")
        elif isinstance(value, (dict, list)):
            _check_nested(key, value, MAX_DEPTH)
            if len(msgspec.msgpack.encode(value)) > MAX_VALUE_BYTES:
                raise Rejected(f"attributes: {shorten(key)!r} is longer than {MAX_VALUE_BYTES} bytes")
        else:
            _check_scalar(key, value)


def _utf8(key: str, text: str) -> bytes:
    """*text* in UTF-8; Python makes strings that have none, of file names for instance."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise Rejected(f"attributes: {shorten(key)!r} is not text that UTF-8 can carry") from exc


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise Rejected(f"attributes: key {shorten(key)} is not a string")
    if not key:
        raise Rejected("attributes: a key is empty")
    if len(_utf8(key, key)) > MAX_KEY_BYTES:
        raise Rejected(f"attributes: key {shorten(key)!r} is longer than {MAX_KEY_BYTES} bytes")


def _check_scalar(key: str, value: object) -> None:
    if isinstance(value, str):
        _utf8(key, value)
        return
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, (int, float)):
        raise Rejected(f"attributes: {shorten(key)!r} is a {type(value).__name__}, not a string, number or bool")
    if not is_number(value):
        raise Rejected(f"attributes: {shorten(key)!r} is not a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Rejected(f"attributes: {shorten(key)!r} does not fit into 64 bits")


def _check_nested(key: str, value: object, depth: int) -> None:
    if depth == 0:
        raise Rejected(f"attributes: {shorten(key)!r} is nested over {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for inner, item in value.items():
            if not isinstance(inner, str):
                raise Rejected(f"attributes: {shorten(key)!r} has a key that is not a string")
            _utf8(key, inner)
            _check_nested(key, item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_nested(key, item, depth - 1)
    else:
        _check_scalar(key, value)
