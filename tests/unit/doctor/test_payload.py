"""Payloads whose form is not known are decoded, and what is no OTLP is named."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from kit.otlp_fixtures import FOLDER, Fixture, fixtures
from tokentrace.dialect.otlp import json_wire
from tokentrace.errors import Rejected
from tokentrace_standalone.doctor.payload import MAX_BYTES, Payload, decode_payload

FIRST = fixtures()[0]
LOGS = sorted(FOLDER.rglob("*.logs.json"))
METRICS: dict[str, Any] = {
    "resourceMetrics": [
        {"scopeMetrics": [{"metrics": [{"name": "tokens", "sum": {"dataPoints": [{"asInt": "3"}]}}, {"name": "b"}]}]}
    ]
}


def logs_in_protobuf(path: Path) -> bytes:
    value = json.loads(path.read_bytes())

    def convert(item: Any) -> Any:
        if isinstance(item, list):
            return [convert(inner) for inner in item]
        if not isinstance(item, dict):
            return item
        ids = {key for key in item if key in ("traceId", "spanId")}
        return {
            key: base64.b64encode(bytes.fromhex(inner)).decode() if key in ids else convert(inner)
            for key, inner in item.items()
        }

    data: bytes = ParseDict(convert(value), ExportLogsServiceRequest(), True).SerializeToString()
    return data


def error_of(data: bytes, path: str = "") -> str:
    with pytest.raises(Rejected) as caught:
        decode_payload(data, path)
    return str(caught.value)


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_every_captured_request_is_recognised_in_each_form(fixture: Fixture) -> None:
    expected = json_wire.decode_traces(fixture.body)
    in_json, in_protobuf = decode_payload(fixture.body), decode_payload(fixture.protobuf())
    assert (in_json.signal, in_json.encoding, in_json.is_gzip, in_json.spans) == ("traces", "json", False, expected)
    assert in_protobuf.signal == "traces"
    if expected:
        assert in_protobuf.encoding == "protobuf"
        assert [span.span_id for span in in_protobuf.spans] == [span.span_id for span in expected]
    for data in (fixture.body, fixture.protobuf()):
        assert decode_payload(gzip.compress(data)) == decode_payload(data)._replace(is_gzip=True)
    assert decode_payload(b"\xef\xbb\xbf \n" + fixture.body) == in_json


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_exports_of_logs_are_recognised(path: Path) -> None:
    in_json, in_protobuf = decode_payload(path.read_bytes()), decode_payload(logs_in_protobuf(path))
    assert (in_json.signal, in_protobuf.signal) == ("logs", "logs")
    assert in_json.logs == in_protobuf.logs != ()
    for data in (path.read_bytes(), logs_in_protobuf(path)):
        assert error_of(data, "/v1/traces") == "body: is an export of logs, which belongs to /v1/logs"
        assert decode_payload(data, "/v1/logs").signal == "logs"


def test_exports_of_metrics_are_recognised() -> None:
    data = ParseDict(METRICS, ExportMetricsServiceRequest()).SerializeToString()
    assert decode_payload(json.dumps(METRICS).encode()) == Payload("metrics", "json", False, points=2)
    # A metric without data is none in protobuf.
    assert decode_payload(data) == Payload("metrics", "protobuf", False, points=1)
    assert error_of(data, "/v1/traces") == "body: is an export of metrics, which belongs to /v1/metrics"


def test_a_request_with_nothing_in_it_is_one_at_every_path() -> None:
    for path, signal in (("/v1/traces", "traces"), ("/v1/logs", "logs"), ("/api/public/otel/v1/traces", "traces")):
        assert decode_payload(b"", path).signal == signal
    assert decode_payload(b"{}", "/v1/traces").spans == []


def test_each_line_of_a_file_of_the_collector_is_a_request() -> None:
    line = json.dumps(json.loads(FIRST.body)).encode()
    assert len(decode_payload(line + b"\n" + line + b"\n").spans) == 2 * len(decode_payload(line).spans)
    assert error_of(line + b"\n{]").startswith("body: is not valid JSON: line 2: ")
    logs = json.dumps(json.loads(LOGS[0].read_bytes())).encode()
    assert error_of(line + b"\n" + logs) == "body: holds logs and traces; give one of them at a time"


def with_base64_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode() if key in ids else with_base64_ids(item)
        for key, item in value.items()
    }


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (json.dumps(with_base64_ids(json.loads(FIRST.body))).encode(), "traceId is base64"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"12"}]}]}]}', "no span has a traceId of 32"),
        (b'{"resource_spans":[]}', "OTLP writes resourceSpans"),
        (b'{"data":[{"spans":[]}]}', "Jaeger"),
        (b'{"trace_id":"t","model":"gpt-4o"}', "POST /spans"),
        (b'{"hello":1}', "JSON without resourceSpans: 'hello'"),
        (b"[1]", "is a JSON array"),
        (b'{"resourceSpans":[', "is not valid JSON"),
        (b'{"a":' * 100_000, "it is nested too deep"),
        (b"<html>\r\n<body>Bad gateway</body></html>", "is text and no OTLP: '<html>'"),
        ("Zoë says hello".encode(), "is text"),
        (b"\x00\x01\x02\xff", "not an OTLP request in protobuf"),
        (FIRST.protobuf()[:-20], "not an OTLP request in protobuf"),
        (b"\x1f\x8b\x08broken", "cannot be decompressed"),
        (gzip.compress(FIRST.body)[:-9], "ends in the middle"),
        (gzip.compress(b"\x00" * (MAX_BYTES + 1), 1), "after decompression"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_otlp_is_named(data: bytes, error: str) -> None:
    assert error in error_of(data)


def is_understood(data: bytes) -> bool:
    """Return True if *data* is decoded, or refused with a text that says what is wrong; any other error fails."""
    try:
        return isinstance(decode_payload(data), Payload)
    except Rejected as exc:
        return str(exc).startswith("body: ")


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    assert is_understood(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_request_is_decoded_or_refused(at: int, byte: int) -> None:
    for body in (FIRST.body, FIRST.protobuf()):
        damaged = bytearray(body)
        damaged[at % len(body)] = byte
        assert is_understood(bytes(damaged))
