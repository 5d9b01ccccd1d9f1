"""The captured OTLP requests in ``tests/data/otlp``, with what their spans mean."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

FOLDER = Path(__file__).parents[1] / "data" / "otlp"
#: Texts that the captured applications sent and got; no other value contains one.
CONTENT = ("How is the weather", "You are brief", "It is sunny", "sunny Paris", "Paris, sunny", "sunny, 21 C")

#: Where a record is nearer to the truth than the span's own numbers: (fixture, span, field) -> the record's value.
BETTER: dict[tuple[str, str, str], Any] = {
    # Langfuse names no provider, and the price list finds the model without one.
    ("langfuse/openai.embeddings", "0000000000000001", "cost_usd"): 1.28e-06,
    # OpenLLMetry counts no reasoning, but its total includes it.
    ("openllmetry-google-genai/gemini.generate", "0000000000000001", "reasoning_tokens"): 640,
    ("openllmetry-google-genai/gemini.stream", "0000000000000001", "reasoning_tokens"): 640,
}
#: What a request for each span cannot tell: that the outer call, which has no response id, is the inner one. The calls
#: that count instead, and their cost in nano-dollars.
UNKNOWN_WRAPPERS = {
    "langfuse+anthropic-sdk/anthropic.manual_generation": (2, 26_025_000),
    "otel-genai+anthropic-sdk/anthropic.error_429": (2, 0),
    "vercel-ai-v7/openai.embeddings": (2, 1_280),
}
#: If the outer span comes first, it counts, and it does not tell which cache writes are kept for an hour.
POORER_OUTSIDE = {
    "otel-genai+anthropic-sdk/anthropic.messages": (1, 12_450_000),
    "otel-genai+anthropic-sdk/anthropic.messages_stream": (1, 12_450_000),
}


class Fixture(NamedTuple):
    """
    A captured request.

    Attributes:
        name: ``<emitter>/<case>``.
        body: The request as OTLP in JSON.
        expected: ``spans`` by id, ``totals``, what the server said (``truth``), and what the emitter does not tell
            (``gaps``).
    """

    name: str
    body: bytes
    expected: dict[str, Any]

    def protobuf(self) -> bytes:
        """Return the request as OTLP in protobuf."""
        message = ParseDict(with_base64_ids(json.loads(self.body)), ExportTraceServiceRequest(), True)
        data: bytes = message.SerializeToString()
        return data


@cache
def fixtures() -> tuple[Fixture, ...]:
    """Return the captured requests that hold spans, by name."""
    paths = sorted(FOLDER.rglob("*.expected.json"))
    return tuple(
        Fixture(
            str(path.relative_to(FOLDER)).removesuffix(".expected.json"),
            (path.parent / path.name.replace(".expected", "")).read_bytes(),
            json.loads(path.read_text()),
        )
        for path in paths
    )


def with_base64_ids(value: Any) -> Any:
    """Return *value* in the JSON form of protobuf: ids in base64, no value that is null."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    converted = {}
    for key, item in value.items():
        if item is None:
            continue
        is_id = key in ("traceId", "spanId", "parentSpanId")
        converted[key] = base64.b64encode(bytes.fromhex(item)).decode() if is_id else with_base64_ids(item)
    return converted


def with_own_ids(fixture: Fixture) -> bytes:
    """Return the body of *fixture* with long response ids that no other fixture has, as providers give out."""
    tail = hashlib.sha256(fixture.name.encode()).hexdigest()[:12].encode()
    return re.sub(rb"fix(\d{4})", lambda found: found[0] + tail, fixture.body)
