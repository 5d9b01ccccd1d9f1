"""Requests of OTLP as messages: JSON and protobuf give the same, and what has another form is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.otlp_fixtures import fixtures
from tokentrace.dialect.otlp.messages import read_request
from tokentrace.errors import Rejected


def test_json_and_protobuf_of_every_captured_request_are_the_same_message() -> None:
    for fixture in fixtures():
        # The protobuf was made by Google's library.
        assert read_request("traces", "json", fixture.body) == read_request("traces", "protobuf", fixture.protobuf())


def traces(**span: Any) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "kept", **span}]}]}]}).encode()


def span_of(body: bytes) -> Any:
    (part,) = read_request("traces", "json", body).resource_spans
    return part.scope_spans[0].spans[0]


def test_links_state_and_flags_are_kept() -> None:
    link = {"traceId": "0A" * 16, "spanId": "0b" * 8, "traceState": "a=b"}
    span = span_of(traces(links=[link], traceState="x=y", flags=257, droppedAttributesCount="3"))
    assert (span.links[0].trace_id, span.links[0].span_id, span.links[0].trace_state) == (
        b"\x0a" * 16,
        b"\x0b" * 8,
        "a=b",
    )
    assert (span.trace_state, span.flags, span.dropped_attributes_count) == ("x=y", 257, 3)


@pytest.mark.parametrize(
    ("value", "which", "wanted"),
    [
        ({"intValue": "12"}, "int_value", 12),
        ({"intValue": 12.0}, "int_value", 12),
        ({"intValue": "1.5"}, None, None),
        ({"intValue": str(2**63)}, None, None),
        ({"intValue": True}, None, None),
        ({"doubleValue": "Infinity"}, "double_value", float("inf")),
        ({"doubleValue": None}, None, None),
        ({"doubleValue": "x"}, None, None),
        ({"doubleValue": 10**400}, None, None),
        ({"boolValue": "true"}, None, None),
        ({"stringValue": 5}, None, None),
        ({"bytesValue": "AAE="}, "bytes_value", b"\x00\x01"),
        ({"bytesValue": "?"}, None, None),
        ({"unheardOf": 1}, None, None),
    ],
    ids=str,
)
def test_a_value_that_is_not_of_its_type_is_left_out(value: Any, which: str | None, wanted: Any) -> None:
    (pair,) = span_of(traces(attributes=[{"key": "a", "value": value}])).attributes
    assert pair.value.WhichOneof("value") == which
    assert which is None or getattr(pair.value, which) == wanted


def test_names_of_enums_and_their_numbers_mean_the_same() -> None:
    assert (
        span_of(traces(kind="SPAN_KIND_CLIENT")).kind == span_of(traces(kind=3)).kind == span_of(traces(kind="3")).kind
    )
    assert span_of(traces(status={"code": "STATUS_CODE_ERROR"})).status.code == 2
    assert span_of(traces(kind="SPAN_KIND_UNHEARD_OF")).kind == 0


def test_what_is_nested_too_deep_for_a_receiver_is_left_out() -> None:
    value: Any = {"stringValue": "deep"}
    for _ in range(150):
        value = {"arrayValue": {"values": [value]}}
    request = read_request("traces", "json", traces(attributes=[{"key": "a", "value": value}]))
    again = type(request).FromString(request.SerializeToString())
    assert again == request
    assert b"deep" not in request.SerializeToString()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected, match=r"^body: "):
        read_request("traces", "json", body)


def test_bytes_that_are_no_protobuf_are_refused() -> None:
    with pytest.raises(Rejected, match=r"^body: not an OTLP request in protobuf"):
        read_request("logs", "protobuf", b"\x0a\xff")


def test_metrics_and_logs_are_read_too() -> None:
    point = {"asInt": "7", "attributes": [{"key": "k", "value": {"stringValue": "v"}}]}
    metric = {"name": "n", "sum": {"dataPoints": [point], "isMonotonic": True}}
    metrics = read_request(
        "metrics", "json", json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}).encode()
    )
    (read,) = metrics.resource_metrics[0].scope_metrics[0].metrics
    assert (read.name, read.sum.is_monotonic, read.sum.data_points[0].as_int) == ("n", True, 7)
    record = {"body": {"stringValue": "b"}, "eventName": "e", "spanId": "01" * 8}
    logs = read_request(
        "logs", "json", json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
    )
    (line,) = logs.resource_logs[0].scope_logs[0].log_records
    assert (line.body.string_value, line.event_name, line.span_id) == ("b", "e", b"\x01" * 8)
