"""
The HTTP operations of OTLP, described once: ingest answers them, and an api in a process of its own forwards them.

The types of bodies here are only for the document; ``tokentrace.dialect.otlp`` decodes the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tokentrace.service.contract import Answer, Content, Header, operation
from tokentrace.service.otlp_answers import MEDIA, OTLP_PATHS, ExportAnswer, Signal


class OtlpTraces(msgspec.Struct, rename="camel"):
    """An `ExportTraceServiceRequest` in the JSON of OTLP: ids are hexadecimal, 64-bit integers text or numbers."""

    resource_spans: list[dict[str, Any]] = []


class OtlpLogs(msgspec.Struct, rename="camel"):
    """An `ExportLogsServiceRequest` in the JSON of OTLP."""

    resource_logs: list[dict[str, Any]] = []


class OtlpMetrics(msgspec.Struct, rename="camel"):
    """An `ExportMetricsServiceRequest` in the JSON of OTLP."""

    resource_metrics: list[dict[str, Any]] = []


Protobuf = Annotated[
    str, Meta(description="A message in protobuf.", extra_json_schema={"contentMediaType": MEDIA["protobuf"]})
]

_SPAN = {
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
    "spanId": "00f067aa0ba902b7",
    "name": "chat gpt-4o",
    "kind": 3,
    "startTimeUnixNano": "1773584581441000000",
    "endTimeUnixNano": "1773584582261000000",
    "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.provider.name", "value": {"stringValue": "openai"}},
        {"key": "gen_ai.response.model", "value": {"stringValue": "gpt-4o"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "512"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 128}},
    ],
}
_RECORD = {
    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
    "spanId": "00f067aa0ba902b7",
    "eventName": "gen_ai.evaluation.result",
    "attributes": [
        {"key": "gen_ai.evaluation.name", "value": {"stringValue": "relevance"}},
        {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 0.9}},
    ],
}
_POINT = {"name": "gen_ai.client.token.usage", "sum": {"dataPoints": [{"asInt": "512"}]}}
_EXAMPLES: Mapping[Signal, Any] = {
    "traces": {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "my.instrumentation"}, "spans": [_SPAN]}]}]},
    "logs": {"resourceLogs": [{"scopeLogs": [{"logRecords": [_RECORD]}]}]},
    "metrics": {"resourceMetrics": [{"scopeMetrics": [{"metrics": [_POINT]}]}]},
}
_TYPES: Mapping[Signal, type] = {"traces": OtlpTraces, "logs": OtlpLogs, "metrics": OtlpMetrics}
_ENCODING = Header(
    "Content-Encoding",
    "`gzip` or `deflate` if the body is compressed; the limits hold before and after decompression.",
    "gzip",
)
_ERRORS = {
    400: "body: no span has ids; is this another signal than traces?",
    413: "body: over 67108864 bytes, which is the limit after decompression",
    415: "Content-Type: 'text/plain' is not taken, send application/x-protobuf or application/json",
    503: "the broker is away",
}
_DESCRIPTIONS: Mapping[Signal, str] = {
    "traces": """
    The body is an `ExportTraceServiceRequest` in protobuf or JSON, as OpenTelemetry's exporters and collectors send it.
    200 means that the broker has everything on disk. Spans that can never be stored become dead letters, and
    `partialSuccess` counts them; they must not be sent again. A 503 with `Retry-After` is about the whole request, and
    the same body counts once, however often it is sent. The token may also be the password of basic authentication.
    """,
    "logs": """
    The body is an `ExportLogsServiceRequest`. Records that belong to a span, such as its messages and evaluations, are
    stored with it; all others are counted and dropped.
    """,
    "metrics": """
    The body is an `ExportMetricsServiceRequest`, which is counted and dropped: metrics repeat what spans say.
    """,
}
_PARTIAL: Mapping[Signal, dict[str, str]] = {
    "traces": {"rejectedSpans": "1", "errorMessage": "span 0: ended_at: not between the years 2000 and 2100"},
    "logs": {"rejectedLogRecords": "1", "errorMessage": "annotation 0: attributes: a key is empty"},
    "metrics": {"rejectedDataPoints": "1", "errorMessage": "metrics are not stored"},
}


def _described(path: str, signal: Signal) -> dict[str, Any]:
    is_alias = path != f"/v1/{signal}"
    alias = "The same as `POST /v1/traces`, where the SDK of Langfuse posts." if is_alias else ""
    answered = "Everything that can be stored is on disk." if signal != "metrics" else "The metrics are counted."
    return operation(
        f"post{'Langfuse' if is_alias else 'Otlp'}{signal.capitalize()}",
        f"Send {signal} by OTLP{', as Langfuse does' if is_alias else ''}",
        alias or _DESCRIPTIONS[signal],
        Answer(ExportAnswer, answered, {"partialSuccess": _PARTIAL[signal]}),
        Answer(Protobuf, answered, "", media=MEDIA["protobuf"]),
        body=[
            Content(_TYPES[signal], {signal: _EXAMPLES[signal]}),
            Content(Protobuf, {}, media=MEDIA["protobuf"]),
        ],
        errors=_ERRORS,
        headers=[_ENCODING],
    )


#: Path -> operation of each route of OTLP.
OTLP: Mapping[str, dict[str, Any]] = {path: _described(path, signal) for path, signal in OTLP_PATHS.items()}
