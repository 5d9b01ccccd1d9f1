"""What a target answers to a request that it took: how many of its records it refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tokentrace_ingest.forward.outcome import Partial

_ANSWERS: Mapping[str, type[Message]] = {
    "traces": ExportTraceServiceResponse,
    "logs": ExportLogsServiceResponse,
    "metrics": ExportMetricsServiceResponse,
}
_FIELDS: Mapping[str, tuple[str, str]] = {
    "traces": ("rejected_spans", "rejectedSpans"),
    "logs": ("rejected_log_records", "rejectedLogRecords"),
    "metrics": ("rejected_data_points", "rejectedDataPoints"),
}


def read_partial_success(signal: str, content_type: str, body: bytes) -> Partial:
    """Return what an answer with status 2xx says; nothing if *body* is no answer of OTLP, as that of many proxies."""
    field, json_field = _FIELDS[signal]
    if "json" in content_type:
        try:
            decoded: Any = msgspec.json.decode(body)
            told = decoded.get("partialSuccess") or {}
            count, message = told.get(json_field) or 0, told.get("errorMessage") or ""
            return Partial(max(int(count), 0), str(message))
        except (msgspec.MsgspecError, AttributeError, TypeError, ValueError):
            return Partial()
    answer: Any = _ANSWERS[signal]()
    try:
        answer.ParseFromString(body)
    except DecodeError:
        return Partial()
    return Partial(max(getattr(answer.partial_success, field), 0), answer.partial_success.error_message)
