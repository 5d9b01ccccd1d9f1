"""One call as the five ways in tell it: documented JSON over HTTP and NATS, a reporter, MIST and Cost Katana."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from kit.http_spans import assert_accepted, mist_message
from kit.json_spans import fresh
from kit.nats_client import RAW, publish
from kit.pipeline import Pipeline
from tokentrace import Reporter
from tokentrace.records import Span

WAYS = ("spans", "nats", "reporter", "mist", "costkatana")


class Call(NamedTuple):
    """
    A call to a model.

    Attributes:
        model, provider: As the vendor writes them.
        tokens: Prompt, completion, cache read, cache write, cache write 1 h and reasoning tokens.
        usage: Amounts of other units.
        tier: The service tier; "" = none is stated.
    """

    model: str
    provider: str
    tokens: tuple[int, int, int, int, int, int]
    usage: Mapping[str, float]
    tier: str


CALLS = {
    "cached for an hour": Call("claude-sonnet-4-5", "anthropic", (9000, 800, 4000, 3000, 1000, 300), {}, ""),
    "audio": Call(
        "gemini-2.5-flash",
        "google",
        (5000, 900, 2000, 0, 0, 400),
        {"input_audio_tokens": 1500, "input_text_tokens": 3500, "cache_audio_read_tokens": 500}
        | {"cache_text_read_tokens": 1500},
        "",
    ),
    "a tier": Call("gpt-5.4", "openai", (100_000, 10_000, 20_000, 0, 0, 4000), {}, "flex"),
    "a fraction": Call("whisper-large-v3", "groq", (0, 0, 0, 0, 0, 0), {"audio_seconds": 18.47}, ""),
}
_NAMES = (
    "prompt_tokens",
    "comp_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
#: Who calls: a number in one session.
USER, SESSION = 4711, "session-five"


def started_at() -> datetime:
    """Return a time ten minutes ago, in whole milliseconds."""
    now = datetime.now(UTC) - timedelta(minutes=10)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def as_document(call: Call, key: str, at: datetime) -> dict[str, Any]:
    """Return *call* as a documented span; *key* makes its ids, and it lasts 1240 ms from *at*."""
    tokens = {name: amount for name, amount in zip(_NAMES, call.tokens, strict=True) if amount}
    return {
        "trace_id": f"{key}-trace",
        "span_id": f"{key}-span",
        "name": "answer",
        "kind": "llm",
        "model": call.model,
        "provider": call.provider,
        "caller": "five",
        "started_at": at.isoformat(),
        "ended_at": (at + timedelta(milliseconds=1240)).isoformat(),
        "ttft_ms": 87.5,
        "session_id": SESSION,
        "response_id": f"chatcmpl-{key}",
        **tokens,
        **({"usage": call.usage} if call.usage else {}),
        **({"service_tier": call.tier} if call.tier else {}),
        "attributes": {"eval.score": 0.5, "user_id": USER},
    }


def as_span(call: Call, key: str, at: datetime) -> Span:
    """Return *call* as a program reports it."""
    start_ns = _ns(at)
    prompt, completion, read, write, hour, reasoning = call.tokens
    usage: dict[str, Any] = dict(call.usage)
    return Span(
        trace_id=f"{key}-trace",
        span_id=f"{key}-span",
        name="answer",
        model=call.model,
        provider=call.provider,
        caller="five",
        started_ns=start_ns,
        ended_ns=start_ns + 1_240_000_000,
        ttft_ns=87_500_000,
        session_id=SESSION,
        response_id=f"chatcmpl-{key}",
        prompt_tokens=prompt,
        completion_tokens=completion,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=hour,
        reasoning_tokens=reasoning,
        usage=usage or None,
        pricing_context={"service_tier": call.tier} if call.tier else None,
        attributes={"eval.score": 0.5, "user_id": USER},
    )


def as_mist(call: Call, key: str, at: datetime) -> dict[str, Any]:
    """Return *call* as the payload of a MIST message."""
    start_ns = _ns(at)
    prompt, completion, read, write, hour, reasoning = call.tokens
    attrs = {
        "type": "llm",
        "model": call.model,
        "provider": call.provider,
        "caller": "five",
        "tokens_in": prompt,
        "tokens_out": completion,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": hour,
        "reasoning_tokens": reasoning,
        "usage": call.usage,
        "service_tier": call.tier,
        "ttft_ms": 87.5,
        "user_id": USER,
        "session_id": SESSION,
        "response_id": f"chatcmpl-{key}",
        "eval.score": 0.5,
    }
    return {
        "trace_id": f"{key}-trace",
        "span_id": f"{key}-span",
        "operation": "answer",
        "start_ns": start_ns,
        "end_ns": start_ns + 1_240_000_000,
        "status": "ok",
        "attrs": attrs,
    }


def as_katana(call: Call, key: str, at: datetime) -> dict[str, Any]:
    """Return *call* as a span of Cost Katana's ingest; its trace has the id of the span."""
    prompt, completion, read, write, hour, reasoning = call.tokens
    return {
        "traceId": f"{key}-span",
        "name": "answer",
        "type": "llm",
        "sessionId": SESSION,
        "status": "ok",
        "aiModel": call.model,
        "startedAt": at.isoformat(),
        "endedAt": (at + timedelta(milliseconds=1240)).isoformat(),
        "tokens": {
            "input": prompt,
            "output": completion,
            "cached": read,
            "cacheWrite": write,
            "cacheWrite1h": hour,
            "reasoning": reasoning,
        },
        "metadata": {
            "provider": call.provider,
            "caller": "five",
            "userId": USER,
            "usage": call.usage,
            "serviceTier": call.tier,
            "responseId": f"chatcmpl-{key}",
            "ttft_ms": 87.5,
            "eval.score": 0.5,
        },
    }


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1000) * 1_000_000


def tell(pipeline: Pipeline, call: Call) -> dict[str, tuple[str, str]]:
    """Tell *call* in each way; return way -> (trace id, span id)."""
    at, keys = started_at(), {way: fresh(way) for way in WAYS}
    assert_accepted(pipeline.post("/spans", as_document(call, keys["spans"], at)))
    publish(pipeline, (RAW, json.dumps(as_document(call, keys["nats"], at)).encode()))
    reporter = Reporter("five", pipeline.nats_url)
    reporter.report(as_span(call, keys["reporter"], at))
    reporter.close()
    assert reporter.stats().acked == 1
    answer = pipeline.post("/mist", mist_message(as_mist(call, keys["mist"], at)))
    assert answer.status == 202, answer.body
    answer = pipeline.post("/api/traces/ingest", as_katana(call, keys["costkatana"], at))
    assert answer.status == 200, answer.body
    ids = {way: (f"{key}-trace", f"{key}-span") for way, key in keys.items()}
    return {**ids, "costkatana": (f"{keys['costkatana']}-span", f"{keys['costkatana']}-span")}
