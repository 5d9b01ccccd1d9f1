"""Decodes an OTLP payload whose form is not known: JSON or protobuf, compressed or not, traces, logs or metrics."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tokentrace.dialect.otlp import OtlpLog, OtlpSpan, json_wire, protobuf_wire
from tokentrace.errors import Rejected, quoted
from tokentrace.records import BOM
from tokentrace.service.body import inflate
from tokentrace.service.otlp_answers import Encoding, Signal

#: Limit for a payload before and after decompression, bytes; that of ingest.
MAX_BYTES = 64 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
#: Signal -> the path that it is posted to.
PATHS: Mapping[Signal, str] = {"traces": "/v1/traces", "logs": "/v1/logs", "metrics": "/v1/metrics"}
_KEYS: Mapping[str, Signal] = {"resourceSpans": "traces", "resourceLogs": "logs", "resourceMetrics": "metrics"}
#: Names in JSON that is something else -> what it is.
_OTHERS: Mapping[str, str] = {
    "resource_spans": "JSON with the names of protobuf, and OTLP writes resourceSpans",
    "resource_logs": "JSON with the names of protobuf, and OTLP writes resourceLogs",
    "scopeSpans": "an inner part of OTLP, which belongs into resourceSpans",
    "spans": "a list of spans, which OTLP has within resourceSpans and scopeSpans",
    "traceId": "a single span, which OTLP has within resourceSpans, scopeSpans and spans",
    "trace_id": "a span in the form of POST /spans, and no OTLP",
    "data": "another form, such as that of Jaeger, and no OTLP",
}


class Payload(NamedTuple):
    """
    A decoded OTLP request.

    Attributes:
        is_gzip: Whether it was compressed.
        points: Number of metrics.
    """

    signal: Signal
    encoding: Encoding
    is_gzip: bool
    spans: Sequence[OtlpSpan] = ()
    logs: Sequence[OtlpLog] = ()
    points: int = 0


def decode_payload(data: bytes, path: str = "") -> Payload:
    """
    Decode an OTLP request; JSON may also be one request on each line, as the collector's file exporter writes it.

    Args:
        path: Where it was posted, such as ``/v1/traces``; "" = it is from a file, and any signal is right.

    Raises:
        Rejected: It is no OTLP request, or one of another signal than that of *path*; the text says what it is.
    """
    is_gzip = data.startswith(_GZIP_MAGIC)
    if is_gzip:
        data = _gunzipped(data)
    body = data.removeprefix(BOM).lstrip()
    wanted = next((signal for signal, ending in PATHS.items() if path.endswith(ending)), None)
    if body[:1] in (b"{", b"["):
        payload = _of_json(body, is_gzip=is_gzip)
    elif not data:
        payload = Payload(wanted or "traces", "protobuf", is_gzip)
    else:
        payload = _of_protobuf(data, wanted, is_gzip=is_gzip)
    if wanted is not None and payload.signal != wanted:
        raise Rejected(f"body: is an export of {payload.signal}, which belongs to {PATHS[payload.signal]}")
    return payload


def _gunzipped(data: bytes) -> bytes:
    try:
        return inflate(data, MAX_BYTES)
    except Rejected as exc:
        if exc.status == 413:
            raise Rejected(f"body: is over {MAX_BYTES} bytes after decompression") from exc
        fault = exc.__cause__
        what = "ends in the middle" if fault is None else f"cannot be decompressed: {fault}"
        raise Rejected(f"body: begins like gzip, but {what}") from exc


# -- JSON


def _of_json(body: bytes, *, is_gzip: bool) -> Payload:
    requests = list(_requests(body))
    signals = {_signal_of(value) for _, value in requests}
    if len(signals) > 1:
        raise Rejected(f"body: holds {' and '.join(sorted(signals))}; give one of them at a time")
    [signal] = signals
    payload = Payload(signal, "json", is_gzip)
    if signal == "metrics":
        return payload._replace(points=sum(_count_points(value) for _, value in requests))
    if signal == "logs":
        return payload._replace(logs=[log for raw, _ in requests for log in json_wire.decode_logs(raw)])
    spans = [span for raw, _ in requests for span in json_wire.decode_traces(raw)]
    if spans and not any(span.trace_id and span.span_id for span in spans):
        raise Rejected(_why_no_ids(value for _, value in requests))
    return payload._replace(spans=spans)


def _requests(body: bytes) -> Iterator[tuple[bytes, Any]]:
    """Yield (JSON, the same decoded) of each request in *body*, which is one request or has one on each line."""
    try:
        yield body, _decoded(body)
        return
    except _BROKEN as exc:
        reason = _in_words(exc)
    for number, line in enumerate([line for line in body.splitlines() if line.strip()], 1):
        try:
            value = _decoded(line)
        except _BROKEN as exc:
            where = f"line {number}: {_in_words(exc)}" if number > 1 else reason
            raise Rejected(f"body: is not valid JSON: {where}") from exc
        yield line, value


_decoded = msgspec.json.decode
_BROKEN = (msgspec.DecodeError, RecursionError, UnicodeError)


def _in_words(exc: Exception) -> str:
    return "it is nested too deep" if isinstance(exc, RecursionError) else str(exc)


def _signal_of(value: Any) -> Signal:
    if not isinstance(value, dict):
        raise Rejected(f"body: is a JSON {'array' if isinstance(value, list) else 'value'}, and OTLP is an object")
    for key, signal in _KEYS.items():
        if key in value:
            return signal
    if not value:
        return "traces"
    other = next((what for key, what in _OTHERS.items() if key in value), None)
    raise Rejected(f"body: is {other}" if other else f"body: is JSON without resourceSpans: {quoted(', '.join(value))}")


def _why_no_ids(values: Iterator[Any]) -> str:
    ids = [text for value in values for text in _found(value, "traceId")]
    if any(_is_base64_id(text) for text in ids):
        return (
            "body: traceId is base64, as protobuf's own conversion to JSON writes it, and OTLP wants hexadecimal digits"
        )
    shown = f", such as {quoted(str(ids[0]))}" if ids else ""
    return f"body: no span has a traceId of 32 and a spanId of 16 hexadecimal digits{shown}"


def _found(value: Any, key: str) -> Iterator[Any]:
    """Yield each value of *key* anywhere in *value*."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from _found(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _found(inner, key)


def _is_base64_id(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(base64.b64decode(text, validate=True)) == 16
    except binascii.Error:
        return False


def _count_points(value: Mapping[str, Any]) -> int:
    return sum(len(metrics) for metrics in _found(value, "metrics") if isinstance(metrics, list))


# -- protobuf


def _of_protobuf(body: bytes, wanted: Signal | None, *, is_gzip: bool) -> Payload:
    _refuse_text(body)
    payload = Payload("traces", "protobuf", is_gzip)
    try:
        spans = protobuf_wire.decode_traces(body)
        reason = "no span has a trace id of 16 bytes and a span id of 8 bytes" if spans else "it holds no spans"
    except Rejected as exc:
        spans, reason = [], str(exc)
    if any(span.trace_id and span.span_id for span in spans):
        return payload._replace(spans=spans)
    # The three signals have the same outer fields, so a request of one of them often decodes as another one.
    logs = _logs(body)
    if any(log.time_ns for log in logs):
        return payload._replace(signal="logs", logs=logs)
    if points := _metrics(body):
        return payload._replace(signal="metrics", points=points)
    if wanted == "logs" and logs:
        return payload._replace(signal="logs", logs=logs)
    raise Rejected(f"body: is not an OTLP request in protobuf: {reason.removeprefix('body: ')}")


def _refuse_text(body: bytes) -> None:
    """Raise ``Rejected`` if *body* is text: the parts of a protobuf message have control characters between them."""
    try:
        text = body[:4096].decode("utf-8", "ignore" if len(body) > 4096 else "strict")
    except UnicodeDecodeError:
        return
    if all(letter.isprintable() or letter in "\t\r\n\f" for letter in text) and not body.startswith(b"\n"):
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        raise Rejected(f"body: is text and no OTLP: {quoted(first)}")


def _logs(body: bytes) -> list[OtlpLog]:
    try:
        return protobuf_wire.decode_logs(body)
    except Rejected:
        return []


def _metrics(body: bytes) -> int:
    """Return the number of metrics in *body*; 0 if it holds none."""
    try:
        request = ExportMetricsServiceRequest.FromString(body)
    except DecodeError:
        return 0
    scopes = [scope for part in request.resource_metrics for scope in part.scope_metrics]
    return sum(bool(metric.name and metric.WhichOneof("data")) for scope in scopes for metric in scope.metrics)
