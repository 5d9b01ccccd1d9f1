"""Spans like those of a busy service, as input for the benchmarks."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from tokentrace.dedup import identities_of
from tokentrace.records import Batch, Span

MODELS = (("gpt-4o", "openai"), ("gpt-4o-mini", "openai"), ("claude-sonnet-4-5", "anthropic"))
CALLERS = ("checkout", "search", "support")


def make_spans(count: int, *, seed: int = 1, ended_ns: int | None = None, spread_ns: int = 50_000_000) -> list[Span]:
    """Return *count* spans that ended within *spread_ns* before *ended_ns*; None = now."""
    dice = random.Random(seed)
    end = ended_ns or time.time_ns()
    spans = []
    for index in range(count):
        model, provider = dice.choice(MODELS)
        prompt, completion = dice.randrange(20, 6000), dice.randrange(5, 800)
        latency = int(dice.lognormvariate(0.2, 0.6) * 1e9)
        ended = end - spread_ns + spread_ns * index // max(count, 1)
        spans.append(
            Span(
                trace_id=f"{dice.getrandbits(128):032x}",
                span_id=f"{dice.getrandbits(64):016x}",
                name="chat",
                model=model,
                provider=provider,
                caller=dice.choice(CALLERS),
                status="error" if dice.random() < 0.01 else "ok",
                prompt_tokens=prompt,
                completion_tokens=completion,
                total_tokens=prompt + completion,
                latency_ns=latency,
                started_ns=ended - latency,
                ended_ns=ended,
            )
        )
    return spans


def make_otlp(count: int, *, seed: int = 1) -> bytes:
    """Return a request of OTLP, in protobuf, with the calls of ``make_spans`` as OpenTelemetry tells them."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    part = request.resource_spans.add()
    _attributes(part.resource, {"service.name": "checkout", "telemetry.sdk.name": "opentelemetry"})
    scope = part.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.genai.openai"
    for call in make_spans(count, seed=seed):
        span = scope.spans.add(
            trace_id=bytes.fromhex(call.trace_id),
            span_id=bytes.fromhex(call.span_id),
            name=f"chat {call.model}",
            kind=3,
            start_time_unix_nano=call.started_ns,
            end_time_unix_nano=call.ended_ns,
        )
        told: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.model,
            "gen_ai.response.model": call.model,
            "gen_ai.response.id": f"chatcmpl-{call.trace_id[:24]}",
            "gen_ai.response.finish_reasons": "stop",
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": call.prompt_tokens // 2,
            "gen_ai.request.max_tokens": 1024,
            "gen_ai.request.temperature": 1,
            "gen_ai.conversation.id": f"conversation-{call.span_id[:6]}",
            "server.address": "api.openai.com",
            "server.port": 443,
            "user.id": f"user-{call.span_id[:3]}",
            "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"Where is my order?"}]}]',
            "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"text","content":"On its way."}]}]',
        }
        _attributes(span, told)
    return request.SerializeToString()


def _attributes(message: Any, told: Mapping[str, str | int]) -> None:
    for key, value in told.items():
        pair = message.attributes.add(key=key)
        if isinstance(value, str):
            pair.value.string_value = value
        else:
            pair.value.int_value = value


def new_call(template: Span, number: int, now_ns: int) -> Span:
    """Return *template* as a call of its own that ends now; *number* must be new for each call of one template."""
    return replace(
        template,
        trace_id=f"{template.trace_id[:16]}{number:016x}",
        started_ns=now_ns - template.latency_ns,
        ended_ns=now_ns,
    )


def make_batches(count: int, size: int, *, per_second: int = 50_000, priced: bool = True) -> list[Batch]:
    """Return *count* consecutive batches of one reporter, of *size* spans each, with *per_second* ends per second."""
    now = time.time_ns()
    step = size * 10**9 // per_second
    batches = []
    for index in range(count):
        ended = now + index * step
        spans = make_spans(size, seed=index, ended_ns=ended, spread_ns=step)
        if priced:
            spans = [_priced(span, ended) for span in spans]
        identities = identities_of(spans, "default")
        batches.append(
            Batch(id="default.bench.0", sequence=index + 1, spans=spans, arrived_ns=ended, identities=identities)
        )
    return batches


def _priced(span: Span, arrived_ns: int) -> Span:
    return replace(
        span,
        arrived_ns=arrived_ns,
        cost_nusd=span.prompt_tokens * 2500,
        cost_source="priced",
        cost_model="openai:gpt-4o@genai-prices",
        source="reporter",
    )
