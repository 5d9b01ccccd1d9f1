"""The record of one finished call, and the checks that a valid one passes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.units import DAY, MINUTE, SCORE_ONE, is_number

Kind = Literal["llm", "embedding", "tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain"]
Status = Literal["ok", "error", "timeout"]
#: How the cost of a span was found; see ``Span.cost_source``.
CostSource = Literal["", "reported", "priced", "overridden", "partly_priced", "unpriced", "zero_ignored", "free"]
#: What is known about the usage of a call; see ``Span.usage_state``.
UsageState = Literal["", "missing", "partial", "estimated", "none"]

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
#: Kinds whose cost is the sum of the calls below them. This cost is shown, but not added to totals a second time.
ROLLUP_KINDS = frozenset({"http", "agent", "workflow", "chain"})
#: Kinds of spans that are a call to a model.
MODEL_KINDS = frozenset({"llm", "embedding"})
_RESPONSE_ID = re.compile(r"[!-'*-;=?-Z\\^-z|~]{1,256}")

#: Why a cost is unknown or lacks a part, as in ``Span.unpriced_reason`` up to the colon; the order is kept on disk.
UNPRICED_REASONS: tuple[str, ...] = (
    "no_usage",
    "partial_usage",
    "estimated_usage",
    "no_split",
    "unclassified_tokens",
    "no_model",
    "unknown_model",
    "local_model",
    "no_token_rate",
    "no_rate",
    "ambiguous_usage",
    "usage_contradicts_itself",
    "unknown_variant",
    "over_bounds",
)
#: Why a cost of 0 is right, as in ``Span.unpriced_reason`` of a span that is known to be free.
FREE_REASONS: tuple[str, ...] = ("cache_hit", "free_model", "local_provider", "no_tokens_used")

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
MAX_CONTEXT = 16
#: Limit for the entries of ``Span.adjusted``.
MAX_ADJUSTED = 32
#: A span whose end is further ahead of its arrival than this counts at its arrival instead; nanoseconds.
FUTURE_NS = 5 * MINUTE

Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Cost = Annotated[int, Meta(ge=0, le=MAX_COST_NUSD)]
Latency = Annotated[int, Meta(ge=0, le=MAX_LATENCY_NS)]
Instant = Annotated[int, Meta(ge=0, le=MAX_INSTANT_NS)]
#: A score in units of 1e-9, from 0 to 1e9.
ScoreValue = Annotated[int, Meta(ge=0, le=SCORE_ONE)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Id = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=MAX_VALUE_BYTES)]


class Span(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    One finished call to a model, a tool or another service.

    Attributes:
        trace_id: The trace that the span belongs to, 1-256 printable ASCII characters; "" = ingest assigns one.
        span_id: Unique within its trace, 1-256 printable ASCII characters; "" = ingest assigns one.
        parent_span_id: The span that made this call; None for a root.
        name: The operation, at most 256 characters.
        kind: What was called: llm, embedding, tool, retrieval, database, custom, http, agent, workflow or chain.
        caller: Calling service or function; "" = unknown.
        model, provider: The vendor's names, such as ``gpt-4o`` and ``openai``; "" = unknown.
        status: ok, error or timeout.
        started_ns, ended_ns: When the call started and ended, Unix nanoseconds; 0 = ingest fills it in.
        latency_ns: Duration of the whole call, nanoseconds; 0 = unknown.
        ttft_ns: Time to the first token of a streamed answer, nanoseconds; 0 = unknown.
        prompt_tokens: Tokens of the whole input, cached tokens included.
        completion_tokens: Tokens of the whole output, reasoning tokens included.
        total_tokens: The sum of prompt and completion tokens, or the only known number.
        cost_nusd: Cost in nano-dollars, 1e-9 US dollars; None = unknown.
        score: The score ``eval.score`` in units of 1e-9, from 0 to 1e9; None = not scored.
        attributes: Further values by key: at most 128 keys of 1-256 bytes, values of at most 32 KiB.
        error: The error message if status is not ok; "" = none.
        arrived_ns: When the pipeline received the span, Unix nanoseconds; 0 = not received yet.
        session_id, user_id: The session and user that the span belongs to; None = unknown.
        cost_source: reported, priced, overridden, partly_priced, unpriced, zero_ignored or free; "" = not decided yet.
        cost_model: The price that was used, such as ``openai:gpt-4o@genai-prices-0.2.3``.
        unpriced_reason: Why cost_nusd is None or lacks a part: one of ``UNPRICED_REASONS`` and, after a colon, the
            units concerned. Or why the call is free, one of ``FREE_REASONS``; "" for any other cost.
        cache_read_tokens, cache_write_tokens: Parts of prompt_tokens; they are not added to it.
        cache_write_1h_tokens: The part of cache_write_tokens that is kept for an hour.
        reasoning_tokens: The part of completion_tokens that was spent on reasoning.
        usage: Amounts of other priced units by name (searches, audio, images), whole numbers >= 0; None = none. A
            fraction of seconds is counted in microseconds, as ``audio_microseconds``; see ``whole_amounts``.
        error_stack: The stack trace; "" = none.
        source: How the span reached the pipeline: reporter, spans, mist, costkatana or nats.
        usage_state: "" = the token counts are complete; missing = the call used tokens, their number is unknown;
            partial = the counts lack a part; estimated = the counts are a guess; none = the call used no tokens.
        pricing_context: What else decides the price, by name, such as ``{"service_tier": "flex"}``; None = unknown.
        response_id: The id that the provider gave the response; "" = unknown.
        scope: The instrumentation that reported the span, such as ``openinference.instrumentation.openai``.
        adjusted: What ``fit_span`` cut or corrected, such as ``error: cut, 204800 bytes``; at most 32 texts.

    Raises:
        TypeError: A field name is unknown. The values are checked later, when the span is decoded.
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
    score: ScoreValue | None = None
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
    usage_state: UsageState = ""
    pricing_context: dict[Name, Name] | None = None
    response_id: Id = ""
    scope: Name = ""
    adjusted: Annotated[tuple[Name, ...], Meta(max_length=MAX_ADJUSTED)] = ()


SPAN_FIELDS: tuple[str, ...] = Span.__struct_fields__
#: Fields that filters, groups and rules read as if they were attributes.
ID_FIELDS = frozenset({"user_id", "session_id"})


def counts_as_cost(kind: str) -> bool:
    """Return True if costs of *kind* are added to totals; that of a roll-up kind is counted in the calls below it."""
    return kind not in ROLLUP_KINDS


def event_time(span: Span) -> int:
    """Return when *span* counts, Unix nanoseconds: its end, or its arrival if the end is over 5 minutes later."""
    return span.ended_ns if span.ended_ns <= span.arrived_ns + FUTURE_NS else span.arrived_ns


def attribute(span: Span, key: str) -> Any:
    """
    Return the attribute *key*, or else the value at the dotted path *key* in nested attributes; None if missing.

    ``user_id`` and ``session_id`` are the fields of those names; an attribute counts only if the field is empty.
    """
    value = getattr(span, key) if key in ID_FIELDS else None
    if value:
        return value
    value = span.attributes.get(key)
    if value is None and "." in key:
        value = span.attributes
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def is_id(text: str) -> bool:
    """Return True if *text* is 1-256 printable ASCII characters, with which no log line can be forged."""
    return 0 < len(text) <= 256 and text.isascii() and text.isprintable()


def is_response_id(text: str) -> bool:
    """Return True if *text* can identify a response: 1-256 printable ASCII characters, no space and no bracket."""
    return _RESPONSE_ID.fullmatch(text) is not None


def check_span(span: Span, *, needs_model: bool = True) -> None:
    """
    Check the rules that the types of the fields of ``Span`` cannot express.

    Args:
        needs_model: False = the span came in a form in which a successful call to a model need not name it.

    Raises:
        Rejected: A field breaks a rule; the text names the field and the rule.
    """
    if span.trace_id and not is_id(span.trace_id):
        raise Rejected(f"trace_id: {quoted(span.trace_id)} is not 1-256 printable ASCII characters")
    if span.span_id and not is_id(span.span_id):
        raise Rejected(f"span_id: {quoted(span.span_id)} is not 1-256 printable ASCII characters")
    if span.parent_span_id is not None and not is_id(span.parent_span_id):
        raise Rejected(f"parent_span_id: {quoted(span.parent_span_id)} is not 1-256 printable ASCII characters")
    counted = span.total_tokens or span.prompt_tokens or span.completion_tokens
    if span.usage and not counted:
        counted = any(span.usage.values())
    if span.kind in MODEL_KINDS and span.status == "ok":
        if needs_model and not span.model:
            raise Rejected(f"model: required when kind is {span.kind} and status is ok")
        if not counted and not span.usage_state:
            raise Rejected(
                "prompt_tokens, comp_tokens or total_tokens: at least one must be over 0 when status is ok, "
                "unless usage_state is given"
            )
    if span.usage_state in ("none", "missing") and counted:
        raise Rejected(f"usage_state: {span.usage_state}, but the span counts tokens or other units")
    if span.pricing_context and len(span.pricing_context) > MAX_CONTEXT:
        raise Rejected(f"pricing_context: {len(span.pricing_context)} keys are more than the limit of {MAX_CONTEXT}")
    if span.started_ns and not MIN_INSTANT_NS <= span.started_ns <= MAX_INSTANT_NS:
        raise Rejected("started_at: the instant is not between the years 2000 and 2100")
    if span.ended_ns and not MIN_INSTANT_NS <= span.ended_ns <= MAX_INSTANT_NS:
        raise Rejected("ended_at: the instant is not between the years 2000 and 2100")
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
    Check the keys, sizes, nesting and numbers of *attributes*.

    Raises:
        Rejected: There are too many attributes, or an attribute breaks a limit or has a reserved key, which the text
            names.
    """
    if len(attributes) > MAX_ATTRIBUTES:
        raise Rejected(f"attributes: {len(attributes)} keys are more than the limit of {MAX_ATTRIBUTES}")
    for key, value in attributes.items():
        _check_key(key)
        if key.startswith("tt."):
            raise Rejected(f"attributes: {quoted(key)}: keys that start with tt. are reserved")
        if key.startswith("eval.") and is_number(value) and not 0 <= value <= 1:
            raise Rejected(f"attributes: {quoted(key)} is {shorten(value)}, but a score must be between 0 and 1")
        if isinstance(value, str):
            # A text in ASCII has as many bytes as characters.
            if len(value) > MAX_VALUE_BYTES or (not value.isascii() and len(_utf8(key, value)) > MAX_VALUE_BYTES):
                raise Rejected(f"attributes: {quoted(key)} is longer than {MAX_VALUE_BYTES} bytes")
        elif isinstance(value, (dict, list)):
            _check_nested(key, value, MAX_DEPTH)
            if len(msgspec.msgpack.encode(value)) > MAX_VALUE_BYTES:
                raise Rejected(f"attributes: {quoted(key)} is longer than {MAX_VALUE_BYTES} bytes")
        else:
            _check_scalar(key, value)


def _utf8(key: str, text: str) -> bytes:
    """Return *text* in UTF-8; Rejected if it has none, such as a Python string from an undecodable file name."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise Rejected(f"attributes: {quoted(key)} contains text that UTF-8 cannot encode") from exc


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise Rejected(f"attributes: key {shorten(key)} is not a string")
    if not key:
        raise Rejected("attributes: a key is empty")
    if len(key) > MAX_KEY_BYTES or (not key.isascii() and len(_utf8(key, key)) > MAX_KEY_BYTES):
        raise Rejected(f"attributes: key {quoted(key)} is longer than {MAX_KEY_BYTES} bytes")


def _check_scalar(key: str, value: object) -> None:
    if isinstance(value, str):
        _utf8(key, value)
        return
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, (int, float)):
        raise Rejected(f"attributes: {quoted(key)} is a {type(value).__name__}, not a string, number or bool")
    if not is_number(value):
        raise Rejected(f"attributes: {quoted(key)} is not a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Rejected(f"attributes: {quoted(key)} does not fit into 64 bits")


def _check_nested(key: str, value: object, depth: int) -> None:
    if depth == 0:
        raise Rejected(f"attributes: {quoted(key)} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for inner, item in value.items():
            if not isinstance(inner, str):
                raise Rejected(f"attributes: {quoted(key)} has a key that is not a string")
            _utf8(key, inner)
            _check_nested(key, item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_nested(key, item, depth - 1)
    else:
        _check_scalar(key, value)
