"""OTLP in protobuf, decoded by the messages of ``opentelemetry-proto``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tokentrace.dialect.otlp.model import MAX_ITEMS, OtlpEvent, OtlpLog, OtlpSpan
from tokentrace.errors import Rejected


def holds_ids(body: bytes) -> bool:
    """
    Return True if a span of an ``ExportTraceServiceRequest`` has both ids.

    Raises:
        Rejected: *body* is not such a message.
    """
    parts = _parse(ExportTraceServiceRequest, body).resource_spans
    spans = (span for part in parts for group in part.scope_spans for span in group.spans)
    return any(_id(span.trace_id, 16) and _id(span.span_id, 8) for span in spans)


def check_logs(body: bytes) -> None:
    """
    Check that *body* is an ``ExportLogsServiceRequest``.

    Raises:
        Rejected: It is none.
    """
    _parse(ExportLogsServiceRequest, body)


def count_points(body: bytes) -> int:
    """
    Return the number of data points of an ``ExportMetricsServiceRequest``.

    Raises:
        Rejected: *body* is not such a message.
    """
    parts = _parse(ExportMetricsServiceRequest, body).resource_metrics
    metrics = (metric for part in parts for group in part.scope_metrics for metric in group.metrics)
    return sum(len(getattr(metric, kind).data_points) for metric in metrics if (kind := metric.WhichOneof("data")))


def decode_traces(body: bytes) -> list[OtlpSpan]:
    """
    Return the spans of an ``ExportTraceServiceRequest``.

    Raises:
        Rejected: *body* is not such a message.
    """
    request = _parse(ExportTraceServiceRequest, body)
    return [
        _span(span, group.scope.name, group.scope.version, resource)
        for part in request.resource_spans
        for resource in [_attributes(part.resource.attributes)]
        for group in part.scope_spans
        for span in group.spans
    ]


def decode_logs(body: bytes) -> list[OtlpLog]:
    """
    Return the records of an ``ExportLogsServiceRequest``.

    Raises:
        Rejected: *body* is not such a message.
    """
    request = _parse(ExportLogsServiceRequest, body)
    return [
        _log(record, group.scope.name, resource)
        for part in request.resource_logs
        for resource in [_attributes(part.resource.attributes)]
        for group in part.scope_logs
        for record in group.log_records
    ]


def _parse(kind: type[Any], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as exc:
        raise Rejected(f"body: not an {kind.__name__} in protobuf: {exc}") from exc


def _span(span: Any, scope: str, version: str, resource: dict[str, Any]) -> OtlpSpan:
    return OtlpSpan(
        trace_id=_id(span.trace_id, 16),
        span_id=_id(span.span_id, 8),
        parent_span_id=_id(span.parent_span_id, 8),
        name=span.name,
        kind=span.kind if 0 <= span.kind <= 5 else 0,
        started_ns=_instant(span.start_time_unix_nano),
        ended_ns=_instant(span.end_time_unix_nano),
        attributes=_attributes(span.attributes),
        events=tuple(
            OtlpEvent(event.name, _instant(event.time_unix_nano), _attributes(event.attributes))
            for event in islice(span.events, MAX_ITEMS)
        ),
        status=span.status.code if 0 <= span.status.code <= 2 else 0,
        message=span.status.message,
        scope=scope,
        scope_version=version,
        resource=resource,
    )


def _log(record: Any, scope: str, resource: dict[str, Any]) -> OtlpLog:
    return OtlpLog(
        trace_id=_id(record.trace_id, 16),
        span_id=_id(record.span_id, 8),
        event=record.event_name,
        time_ns=_instant(record.time_unix_nano) or _instant(record.observed_time_unix_nano),
        attributes=_attributes(record.attributes),
        body=_value(record.body),
        scope=scope,
        resource=resource,
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: value for pair in islice(pairs, MAX_ITEMS) if (value := _value(pair.value)) is not None}


def _value(given: Any) -> Any:
    """Return the value; None if there is none."""
    which = given.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [value for item in islice(given.array_value.values, MAX_ITEMS) if (value := _value(item)) is not None]
    if which == "kvlist_value":
        return _attributes(given.kvlist_value.values)
    value = getattr(given, which)
    return None if which == "double_value" and not math.isfinite(value) else value


def _instant(value: int) -> int:
    return value if value < 2**63 else 0


def _id(value: bytes, size: int) -> str:
    return value.hex() if len(value) == size and any(value) else ""
