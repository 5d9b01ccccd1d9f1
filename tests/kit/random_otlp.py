"""Requests of OpenTelemetry spans with what emitters might send, and with rubbish; a function of the dice."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

from kit.otlp_fixtures import fixtures
from tokentrace.dialect.otlp import OtlpEvent, OtlpSpan
from tokentrace.dialect.otlp.families import family_of
from tokentrace.dialect.otlp.json_wire import decode_traces
from tokentrace.dialect.otlp.ladders import CUSTOM, NUMBERED

STARTED_NS = 1_767_225_600_000_000_000
SCOPES = (
    "openlit.instrumentation.anthropic",
    "openinference.instrumentation.openai",
    "logfire.openai",
    "pydantic-ai",
    "litellm",
    "com.anthropic.sdk.python",
    "opentelemetry.instrumentation.anthropic",
    "app",
    "",
)
NAMES = ("chat gpt-4o", "raw_gen_ai_request", "claude_code.llm_request", "agent run", "embeddings x", "", "x" * 300)
#: An attribute that decides the family or the kind -> values that it has.
TELLING: dict[str, tuple[str, ...]] = {
    "langfuse.observation.type": ("generation", "embedding", "span"),
    "openinference.span.kind": ("LLM", "EMBEDDING", "CHAIN", "TOOL"),
    "ai.operationId": ("ai.streamText.doStream", "ai.embed.doEmbed", "ai.generateText", "ai.toolCall"),
    "traceloop.span.kind": ("workflow", "tool"),
    "gen_ai.operation.name": ("chat", "embeddings", "execute_tool", "invoke_agent", "fetch_response"),
    "llm.request.type": ("chat", "embedding"),
    "span.type": ("llm_request", "tool"),
    "logfire.span_type": ("span", "log", "pending_span"),
    "gen_ai.provider.name": ("openai", "anthropic", "gcp.gen_ai", "aws.bedrock"),
    "gen_ai.response.id": ("chatcmpl-0123456789abcdef", "chatcmpl-7", "has space"),
}
_OWN_KEYS = ("tt.x", "eval.score", "eval.x", "duplicate_of", "rollup.prompt_tokens", "input", "a" * 300, "", "ключ")
_USAGE = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "promptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "input",
    "output",
    "input_cache_creation_1h",
)
_PARTS = ("cached_tokens", "cache_read", "ephemeral_1h_input_tokens", "reasoning_tokens", "audio_tokens")
_COUNTS = (0, 1, 2**40, 2**40 + 1, 2**63, -1, 2**70)
_FLOATS = (0.0, 0.5, 1.0, 1e-12, 1e300, -1.0, 12.0, float("nan"), float("inf"))
_TEXTS = ("1521", "1e3", "NaN", "", '"stop"', "[", "{", '["a"]', "0.5", "\x00", "ü" * 300, "x" * 40_000, "ü" * 20_000)


def make_otlp(**fields: Any) -> OtlpSpan:
    """Return a successful call of 600 ms without attributes, with some *fields*."""
    usual: dict[str, Any] = {
        "trace_id": f"{1:032x}",
        "span_id": f"{1:016x}",
        "parent_span_id": "",
        "name": "chat gpt-4o",
        "kind": 3,
        "started_ns": STARTED_NS,
        "ended_ns": STARTED_NS + 600_000_000,
        "attributes": {},
        "events": (),
        "status": 0,
        "message": "",
        "scope": "app",
        "scope_version": "",
        "resource": {"service.name": "shop"},
    }
    return OtlpSpan(**{**usual, **fields})


@cache
def known_names() -> tuple[str, ...]:
    """Return every name that a family's table has, and one of each family of names."""
    spans = [make_otlp(scope=scope) for scope in SCOPES]
    spans += [make_otlp(attributes={key: "x"}) for key in TELLING]
    spans.append(make_otlp(name="claude_code.x", attributes={"span.type": "tool"}))
    names = {name for span in spans for name in family_of(span).plans.table if not name.endswith("*")}
    return tuple(sorted(names | {f"{prefix}0.content" for prefix in NUMBERED} | {f"{prefix}plan" for prefix in CUSTOM}))


@cache
def captured() -> tuple[OtlpSpan, ...]:
    """Return the spans of all captured requests."""
    return tuple(span for fixture in fixtures() for span in decode_traces(fixture.body))


def random_request(dice: random.Random) -> list[OtlpSpan]:
    """Return one to four spans, which may be around one another, half of them captured ones with other attributes."""
    resource = dice.choice(({}, {"service.name": "shop", "tt.x": 1, "deployment.environment": "test"}))
    spans = [_random_span(dice, resource) for _ in range(dice.randint(1, 4))]
    if dice.random() < 0.3:
        # Another instrumentation tells the same call.
        scope, span_id = dice.choice(SCOPES), _random_id(dice)
        spans.append(spans[0]._replace(scope=scope, span_id=span_id, parent_span_id=_random_id(dice)))
    return spans


def _random_span(dice: random.Random, resource: dict[str, Any]) -> OtlpSpan:
    base = dice.choice(captured()) if dice.random() < 0.5 else make_otlp(name=dice.choice(NAMES), attributes={})
    attributes = {**base.attributes, **_random_attributes(dice)}
    return base._replace(
        trace_id=dice.choice(("", f"{1:032x}", f"{1:032x}", f"{2:032x}")),
        span_id=_random_id(dice),
        parent_span_id=_random_id(dice),
        started_ns=_random_instant(dice),
        ended_ns=_random_instant(dice),
        attributes=attributes,
        events=tuple(
            OtlpEvent(name, _random_instant(dice), {dice.choice(_EVENT_KEYS): random_value(dice)})
            for name in dice.choices(("exception", "First Token Stream Event"), k=dice.randint(0, 2))
        ),
        status=dice.randint(0, 2),
        message=dice.choice(_TEXTS),
        scope=dice.choice((base.scope, *SCOPES)),
        resource=resource,
    )


_EVENT_KEYS = ("exception.type", "exception.message", "exception.stacktrace", "x")


def _random_id(dice: random.Random) -> str:
    number = dice.randint(0, 5)
    return f"{number:016x}" if number else ""


def _random_instant(dice: random.Random) -> int:
    if dice.random() < 0.2:
        return dice.choice((0, 1, 2**63 - 1, STARTED_NS))
    return STARTED_NS + dice.randint(0, 4_000) * 1_000_000


def _random_attributes(dice: random.Random) -> dict[str, Any]:
    attributes = {_random_key(dice): random_value(dice) for _ in range(dice.randint(0, 14))}
    for key in dice.sample(sorted(TELLING), dice.randint(0, 4)):
        attributes[key] = dice.choice(TELLING[key])
    if dice.random() < 0.03:
        attributes |= {f"custom.{number}": number for number in range(200)}
    return attributes


def _random_key(dice: random.Random) -> str:
    roll = dice.random()
    if roll < 0.7:
        return dice.choice(known_names())
    if roll < 0.8:
        return dice.choice(_OWN_KEYS)
    if roll < 0.9:
        return dice.choice(NUMBERED) + "".join(dice.choices("0.9a", k=dice.randint(0, 6)))
    return "".join(dice.choices("abc._", k=dice.randint(1, 8)))


def random_value(dice: random.Random) -> Any:
    """Return a value of any type that an attribute can have; most are numbers of tokens."""
    roll = dice.random()
    if roll < 0.5:
        return dice.randint(0, 6_000) if dice.random() < 0.8 else dice.choice(_COUNTS)
    if roll < 0.6:
        return dice.choice(_TEXTS)
    if roll < 0.7:
        return dice.choice((*_FLOATS, True, False, b"\x00\xff"))
    if roll < 0.9:
        usage = _random_usage(dice)
        return dice.choice((usage, json.dumps(usage), str(usage), json.dumps({"usage": usage, "id": "r-1"})))
    return _nested(dice, dice.choice((1, 2, 40)))


def _random_usage(dice: random.Random) -> dict[str, Any]:
    return {
        name: {part: random_count(dice) for part in dice.sample(_PARTS, 2)}
        if dice.random() < 0.2
        else random_count(dice)
        for name in dice.sample(_USAGE, dice.randint(0, 6))
    }


def random_count(dice: random.Random) -> int | None:
    """Return a number of tokens, which may be too large, negative or none."""
    return dice.choice((None, *_COUNTS)) if dice.random() < 0.15 else dice.randint(0, 6_000)


def _nested(dice: random.Random, depth: int) -> Any:
    inner: Any = dice.choice((1, "x", b"y", 2**70, float("inf"), None))
    for _ in range(depth):
        inner = [inner, "x"] if dice.random() < 0.5 else {"a": inner, "": 1}
    return inner
