"""
The mapping of one span: kind, model, tokens, time to the first token, status, cost, content, identity.

Each step is a function of the view of the span. What a family of emitters does in its own way is in ``Family``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.dialect.otlp import attributes, values
from tokentrace.dialect.otlp.families import family_of
from tokentrace.dialect.otlp.family import KindRule
from tokentrace.dialect.otlp.finish_words import finish_word
from tokentrace.dialect.otlp.model import OtlpSpan
from tokentrace.dialect.otlp.outcome import Outcome, outcome_of
from tokentrace.dialect.otlp.providers import provider_at, provider_of
from tokentrace.dialect.otlp.tokens import Tokens, fields_of, tokens_of, without_parts
from tokentrace.dialect.otlp.ttft import Ttft, ttft_of
from tokentrace.dialect.otlp.view import View, keep
from tokentrace.errors import Rejected
from tokentrace.records import (
    MAX_COST_NUSD,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MAX_NAME,
    MIN_INSTANT_NS,
    MODEL_KINDS,
    Span,
    UsageState,
    check_span,
    fit_span,
    is_response_id,
    settle_usage,
)
from tokentrace.units import SECOND, scaled, usd_to_nusd

Price = Callable[[Span], int | None]
#: Beginnings of names of resource attributes that say nothing about a call.
_MACHINE = ("telemetry.", "process.", "host.", "os.", "container.", "k8s.", "cloud.", "service.instance")


class Reading(NamedTuple):
    """
    What the mapping made of one span, and why.

    Attributes:
        dialect: The family of emitters: semconv, openinference, openllmetry, vercel, langfuse, logfire, litellm,
            claude_code; tokentrace = the record of a pipeline that sent it on; other = nothing says that the span
            belongs to a call to a model.
        kind_rule: What told the kind; "" = nothing did.
        kind: The kind before calls are counted once; pending = the span only says that a call began, and is dropped.
        token_rule: How the input was read: inclusive, exclusive, or native and the place of the provider's usage
            object; "" = no tokens.
        token_notes: What was doubtful about the tokens.
        ttft_source: What told the time to the first token; "" = unknown.
        finish_reason, requested_model: As in the attributes; "" = unknown, or the requested model answered.
        duplicate_of: The id of the span that tells the same call and is counted; "" = this one counts.
        why_duplicate: Why it is the same call; "" = it is none.
        ignored: Names of the attributes that the record does not hold.
        span: The record; None = there is none.
    """

    dialect: str
    kind_rule: str
    kind: str
    token_rule: str = ""
    token_notes: tuple[str, ...] = ()
    ttft_source: str = ""
    finish_reason: str = ""
    requested_model: str = ""
    duplicate_of: str = ""
    why_duplicate: str = ""
    ignored: tuple[str, ...] = ()
    span: Span | None = None


class Program(NamedTuple):
    """
    What is the same for all spans of a program in a request.

    Attributes:
        caller: The name of the service; "" = unknown.
        attributes: What else a record says about the program.
    """

    caller: str
    attributes: Mapping[str, Any]


def program_of(resource: Mapping[str, Any]) -> Program:
    """Return what the records of a program's spans have in common."""
    caller = values.text(resource.get("service.name")) or ""
    kept: dict[str, Any] = {}
    for key, value in resource.items():
        if key != "service.name" and not key.startswith(_MACHINE):
            keep(key, value, kept)
    return Program("" if caller.startswith("unknown_service") else caller, kept)


def read_span(span: OtlpSpan, program: Program, price: Price) -> Reading:
    """
    Map one span.

    Args:
        price: Returns the cost of a span in nano-dollars, None if it cannot be priced. It decides whether the cost
            that OpenLIT reports is needed.
    """
    family = family_of(span)
    view = View(span, family.plans)
    if view.get("logfire_type") == "pending_span":
        return Reading(family.name, "logfire.span_type", "pending")
    rule = family.kind(view)
    family.inside(view, rule.kind)
    view.add("model", rule.model, "name")
    outcome = outcome_of(view)
    provider = _provider_of(view)
    objects = list(family.objects(view))
    tokens = tokens_of(view, rule.kind, provider, objects, excludes_cached=family.excludes_cached(view, provider))
    record, ttft = _record(view, rule, provider, outcome)
    facts = _facts(view, rule, outcome, ttft)
    record, tokens = _with_tokens(record, view, tokens, facts)
    fields = _cost(record, view, facts, price)
    notes: list[str] = []
    free = {**program.attributes, **view.free} if program.attributes else view.free
    fields["attributes"] = attributes.merged(facts, free, _content(view, rule), notes)
    fields["caller"] = program.caller
    if notes:
        fields["adjusted"] = tuple(notes)
    return Reading(
        dialect=family.name if rule.is_known else "other",
        kind_rule=rule.rule,
        kind=rule.kind,
        token_rule=tokens.rule,
        token_notes=tokens.notes,
        ttft_source=ttft.source,
        finish_reason=facts.get("finish_reason", ""),
        requested_model=facts.get("requested_model", ""),
        ignored=view.ignored,
        span=fit_span(replace(record, **fields)),
    )


def _provider_of(view: View) -> str:
    named = provider_of(view.get("provider") or "")
    if named == "openai" or not named:
        # Libraries for OpenAI call compatible hosts too.
        for slot in ("host", "api_base"):
            if (address := view.get(slot)) and (at := provider_at(address)):
                return at
    return named


def _record(view: View, rule: KindRule, provider: str, outcome: Outcome) -> tuple[Span, Ttft]:
    """Return the record without tokens, cost and attributes."""
    span, get = view.span, view.get
    started, ended = _instant(span.started_ns), _instant(span.ended_ns)
    latency = ended - started if 0 < started <= ended else 0
    if (seconds := get("seconds")) and get("logfire_type") == "log" and not latency and ended:
        # The second half of a streamed call is an instant, and says how long the call took.
        latency = scaled(seconds, SECOND) if 0 < seconds * SECOND <= MAX_LATENCY_NS else 0
        started = max(ended - latency, MIN_INSTANT_NS)
    if latency > MAX_LATENCY_NS:
        latency = 0
    ttft = ttft_of(view, latency)
    record = Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id or None,
        name=_name_of(view),
        kind=rule.kind,
        model=get("model") or "",
        provider=provider,
        status=outcome.status,
        started_ns=started,
        ended_ns=ended,
        latency_ns=latency,
        source="otlp",
        scope=span.scope,
    )
    fields: dict[str, Any] = {}
    if ttft.ns:
        fields["ttft_ns"] = ttft.ns
    if outcome.status != "ok":
        fields["error"] = outcome.error
        fields["error_stack"] = outcome.stack
    elif rule.kind in MODEL_KINDS and (response_id := get("response_id")) and is_response_id(response_id):
        fields["response_id"] = response_id
    if session := get("session"):
        fields["session_id"] = session
    if user := get("user"):
        fields["user_id"] = user
    if tier := get("service_tier"):
        fields["pricing_context"] = {"service_tier": tier[:MAX_NAME]}
    return replace(record, **fields) if fields else record, ttft


def _name_of(view: View) -> str:
    span = view.span
    if span.scope.startswith("logfire."):
        # The name is a template.
        return " ".join(filter(None, (view.get("operation"), view.get("model")))) or span.name
    return span.name


def _facts(view: View, rule: KindRule, outcome: Outcome, ttft: Ttft) -> dict[str, Any]:
    """Return the own keys of a record that are no content."""
    get = view.get
    facts: dict[str, Any] = {}
    if (finish := get("finish")) and rule.kind != "agent":
        facts["finish_reason"] = finish_word(finish)[:MAX_NAME]
    if (requested := get("requested_model")) and requested != get("model"):
        facts["requested_model"] = requested
    if ttft.source:
        facts["ttft.source"] = ttft.source
    if tool := get("tool"):
        facts["tool.name"] = tool
    elif rule.kind == "tool":
        facts["tool.name"] = view.span.name
    if call_id := get("tool_call_id"):
        facts["tool.call.id"] = call_id
    if found := get("tags"):
        facts["tags"] = found
    if outcome.error_type and "error.type" not in view.free:
        facts["error.type"] = outcome.error_type
    return facts


def _with_tokens(record: Span, view: View, tokens: Tokens, facts: dict[str, Any]) -> tuple[Span, Tokens]:
    """
    Return (*record* with its tokens, the tokens that it has).

    They are fields if the span is a call, else *facts*, because they repeat those of the calls below.
    """
    if record.kind not in MODEL_KINDS:
        prompt, completion = view.get("rollup_input"), view.get("rollup_output")
        if tokens.is_used or prompt or completion:
            facts["rollup.prompt_tokens"] = tokens.prompt or prompt or 0
            facts["rollup.completion_tokens"] = tokens.completion or completion or 0
        return record, tokens
    is_ok = record.status == "ok"
    state = tokens.state if is_ok or tokens.is_used else ""
    if is_ok and (state == "partial" or facts.get("finish_reason") == "error"):
        facts["incomplete"] = True
    if not tokens.is_used:
        return replace(record, usage_state=state) if state else record, tokens
    counted, tokens = _settled(record, tokens, state)
    facts["tokens.rule"] = tokens.rule
    if tokens.notes:
        facts["tokens.note"] = "; ".join(tokens.notes)
    return counted, tokens


def _settled(record: Span, tokens: Tokens, state: UsageState) -> tuple[Span, Tokens]:
    """Return (*record* with *tokens*, the same tokens); without their parts if these contradict each other."""
    counted = replace(record, usage_state=state, **fields_of(tokens))
    try:
        settled = settle_usage(counted)
        if settled is not counted or not tokens.fits:
            check_span(settled, needs_model=False)
    except Rejected:
        tokens = without_parts(tokens)
        return settle_usage(replace(counted, **fields_of(tokens))), tokens
    return settled, tokens


def _cost(record: Span, view: View, facts: dict[str, Any], price: Price) -> dict[str, Any]:
    """
    Return the fields of the cost that the emitter reports.

    A cost over 0 counts. A 0 means that the emitter does not know the price, but for an answer from a cache.
    """
    is_call = record.kind in MODEL_KINDS
    if is_call and view.get("cache_hit"):
        return {"cost_nusd": 0, "cost_source": "reported", "unpriced_reason": "cache_hit"}
    reported = view.get("cost")
    if not _is_cost(reported):
        reported = view.get("weak_cost")
        if not _is_cost(reported):
            return {}
        is_call = is_call and price(record) is None
    if not is_call:
        facts["cost.reported_usd"] = reported
        return {}
    nusd = usd_to_nusd(reported)
    # Less than half a nano-dollar is not the 0 of an emitter without prices.
    return {"cost_nusd": nusd} if nusd else {"cost_nusd": 0, "cost_source": "reported"}


def _is_cost(usd: Any) -> bool:
    return usd is not None and 0 < usd <= MAX_COST_NUSD / 1_000_000_000


def _content(view: View, rule: KindRule) -> dict[str, Any]:
    """Return the own keys with what was sent and what was answered."""
    get = view.get
    content: dict[str, Any] = {}
    if rule.kind == "tool":
        pairs = (("tool.arguments", "arguments"), ("tool.result", "result"))
    else:
        pairs = (("input", "input"), ("output", "output"))
    for key, slot in (*pairs, *_CONTENT):
        if (text := get(slot)) is not None:
            content[key] = text
    return content


_CONTENT = (
    ("instructions", "instructions"),
    ("tool.definitions", "definitions"),
    ("prompt.template", "template"),
    ("prompt.variables", "template_variables"),
    ("raw.content", "raw"),
)


def _instant(ns: int) -> int:
    return ns if MIN_INSTANT_NS <= ns <= MAX_INSTANT_NS else 0
