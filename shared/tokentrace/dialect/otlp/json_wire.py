"""OTLP in JSON: ids are hexadecimal, 64-bit integers are strings or numbers, and unknown fields are ignored."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.bad_data import reading
from tokentrace.dialect.otlp.model import MAX_ITEMS, OtlpEvent, OtlpLog, OtlpSpan

_HEX = re.compile(r"[0-9a-fA-F]*")
_DIGITS = re.compile(r"[+-]?[0-9]{1,19}")
_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")


class _Value(msgspec.Struct, rename="camel"):
    string_value: Any = UNSET
    bool_value: Any = UNSET
    int_value: Any = UNSET
    double_value: Any = UNSET
    array_value: _Array | UnsetType | None = UNSET
    kvlist_value: _Pairs | UnsetType | None = UNSET
    bytes_value: Any = UNSET


class _Array(msgspec.Struct):
    values: list[_Value | None] | None = None


class _Pair(msgspec.Struct):
    key: str = ""
    value: _Value | None = None


class _Pairs(msgspec.Struct):
    values: list[_Pair] | None = None


class _Resource(msgspec.Struct):
    attributes: list[_Pair] | None = None


class _Scope(msgspec.Struct):
    name: str | None = None
    version: str | None = None


class _Status(msgspec.Struct):
    code: Any = 0
    message: str | None = None


class _Event(msgspec.Struct, rename="camel"):
    name: str | None = None
    time_unix_nano: Any = 0
    attributes: list[_Pair] | None = None


class _Span(msgspec.Struct, rename="camel"):
    trace_id: Any = ""
    span_id: Any = ""
    parent_span_id: Any = ""
    name: str | None = None
    kind: Any = 0
    start_time_unix_nano: Any = 0
    end_time_unix_nano: Any = 0
    attributes: list[_Pair] | None = None
    events: list[_Event] | None = None
    status: _Status | None = None


class _Log(msgspec.Struct, rename="camel"):
    trace_id: Any = ""
    span_id: Any = ""
    event_name: str | None = None
    time_unix_nano: Any = 0
    observed_time_unix_nano: Any = 0
    attributes: list[_Pair] | None = None
    body: _Value | None = None


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[_Span] | None = None


class _ScopeLogs(msgspec.Struct, rename="camel"):
    scope: _Scope | None = None
    log_records: list[_Log] | None = None


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _ResourceLogs(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] | None = None


class _Traces(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


class _Logs(msgspec.Struct, rename="camel"):
    resource_logs: list[_ResourceLogs] | None = None


class _Points(msgspec.Struct, rename="camel"):
    data_points: list[msgspec.Raw] | None = None


class _Metric(msgspec.Struct, rename="camel"):
    gauge: _Points | None = None
    sum: _Points | None = None
    histogram: _Points | None = None
    exponential_histogram: _Points | None = None
    summary: _Points | None = None


class _ScopeMetrics(msgspec.Struct):
    metrics: list[_Metric] | None = None


class _ResourceMetrics(msgspec.Struct, rename="camel"):
    scope_metrics: list[_ScopeMetrics] | None = None


class _Metrics(msgspec.Struct, rename="camel"):
    resource_metrics: list[_ResourceMetrics] | None = None


_traces = msgspec.json.Decoder(_Traces)
_logs = msgspec.json.Decoder(_Logs)
_metrics = msgspec.json.Decoder(_Metrics)


def holds_ids(body: bytes) -> bool:
    """
    Return True if a span of an ``ExportTraceServiceRequest`` has both ids.

    Raises:
        Rejected: *body* is not such a request; the text names the place.
    """
    with reading("body"):
        parts = _traces.decode(body).resource_spans or ()
    spans = (span for part in parts for group in part.scope_spans or () for span in group.spans or ())
    return any(_id(span.trace_id, 32) and _id(span.span_id, 16) for span in spans)


def check_logs(body: bytes) -> None:
    """
    Check that *body* is an ``ExportLogsServiceRequest``.

    Raises:
        Rejected: It is none; the text names the place.
    """
    with reading("body"):
        _logs.decode(body)


def count_points(body: bytes) -> int:
    """
    Return the number of data points of an ``ExportMetricsServiceRequest``.

    Raises:
        Rejected: *body* is not such a request; the text names the place.
    """
    with reading("body"):
        parts = _metrics.decode(body).resource_metrics or ()
    metrics = [metric for part in parts for group in part.scope_metrics or () for metric in group.metrics or ()]
    held = [
        points.data_points or ()
        for metric in metrics
        for points in (metric.gauge, metric.sum, metric.histogram, metric.exponential_histogram, metric.summary)
        if points is not None
    ]
    return sum(map(len, held))


def decode_traces(body: bytes) -> list[OtlpSpan]:
    """
    Return the spans of an ``ExportTraceServiceRequest`` in JSON.

    Raises:
        Rejected: *body* is not such a request; the text names the place.
    """
    with reading("body"):
        request = _traces.decode(body)
        return [
            _span(span, group.scope, resource)
            for part in request.resource_spans or ()
            for resource in [_attributes(part.resource.attributes if part.resource else None)]
            for group in part.scope_spans or ()
            for span in group.spans or ()
        ]


def decode_logs(body: bytes) -> list[OtlpLog]:
    """
    Return the records of an ``ExportLogsServiceRequest`` in JSON.

    Raises:
        Rejected: *body* is not such a request; the text names the place.
    """
    with reading("body"):
        request = _logs.decode(body)
        return [
            _log(record, group.scope, resource)
            for part in request.resource_logs or ()
            for resource in [_attributes(part.resource.attributes if part.resource else None)]
            for group in part.scope_logs or ()
            for record in group.log_records or ()
        ]


def _span(span: _Span, scope: _Scope | None, resource: dict[str, Any]) -> OtlpSpan:
    status = span.status or _Status()
    return OtlpSpan(
        trace_id=_id(span.trace_id, 32),
        span_id=_id(span.span_id, 16),
        parent_span_id=_id(span.parent_span_id, 16),
        name=span.name or "",
        kind=_enum(span.kind, "SPAN_KIND_", _KINDS),
        started_ns=_instant(span.start_time_unix_nano),
        ended_ns=_instant(span.end_time_unix_nano),
        attributes=_attributes(span.attributes),
        events=tuple(
            OtlpEvent(event.name or "", _instant(event.time_unix_nano), _attributes(event.attributes))
            for event in islice(span.events or (), MAX_ITEMS)
        ),
        status=_enum(status.code, "STATUS_CODE_", _STATUSES),
        message=status.message or "",
        scope=(scope.name if scope else "") or "",
        scope_version=(scope.version if scope else "") or "",
        resource=resource,
    )


def _log(record: _Log, scope: _Scope | None, resource: dict[str, Any]) -> OtlpLog:
    return OtlpLog(
        trace_id=_id(record.trace_id, 32),
        span_id=_id(record.span_id, 16),
        event=record.event_name or "",
        time_ns=_instant(record.time_unix_nano) or _instant(record.observed_time_unix_nano),
        attributes=_attributes(record.attributes),
        body=_value(record.body),
        scope=(scope.name if scope else "") or "",
        resource=resource,
    )


def _attributes(pairs: Iterable[_Pair] | None) -> dict[str, Any]:
    return {pair.key: value for pair in islice(pairs or (), MAX_ITEMS) if (value := _value(pair.value)) is not None}


def _value(given: _Value | None) -> Any:
    """Return the value; None if there is none: JavaScript writes NaN as ``{"doubleValue": null}``."""
    if given is None:
        return None
    if isinstance(given.string_value, str):
        return given.string_value
    if isinstance(given.bool_value, bool):
        return given.bool_value
    if given.int_value is not UNSET:
        return _integer(given.int_value)
    if given.double_value is not UNSET:
        return _double(given.double_value)
    if isinstance(given.array_value, _Array):
        return [
            value for item in islice(given.array_value.values or (), MAX_ITEMS) if (value := _value(item)) is not None
        ]
    if isinstance(given.kvlist_value, _Pairs):
        return _attributes(given.kvlist_value.values)
    if isinstance(given.bytes_value, str):
        try:
            return base64.b64decode(given.bytes_value, validate=True)
        except (binascii.Error, ValueError):
            return None
    return None


def _integer(value: object) -> int | float | None:
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else None
    if isinstance(value, bool):
        return None
    return value if isinstance(value, int) else _double(value)


def _double(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _instant(value: object) -> int:
    number = _integer(value)
    return int(number) if number is not None and 0 < number < 2**63 else 0


def _enum(value: object, prefix: str, names: tuple[str, ...]) -> int:
    """Return the number of an enum that is given as a number, as digits or by its name; 0 if it is none of them."""
    if isinstance(value, str) and value.removeprefix(prefix) in names:
        return names.index(value.removeprefix(prefix))
    number = _integer(value)
    return int(number) if number is not None and 0 <= number < len(names) else 0


def _id(value: object, digits: int) -> str:
    if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value) or not value.strip("0"):
        return ""
    return value.lower()
