"""Answers of OTLP are the messages that the protobuf library reads."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tokentrace.service.otlp_answers import (
    ExportAnswer,
    Signal,
    encode_answer,
    encode_retry,
    encode_status,
    encoding_of,
)

ANSWERS: dict[Signal, Any] = {
    "traces": ExportTraceServiceResponse,
    "logs": ExportLogsServiceResponse,
    "metrics": ExportMetricsServiceResponse,
}
TEXT = st.text(st.characters(codec="utf-8"), max_size=300)


@given(st.sampled_from(sorted(ANSWERS)), st.integers(0, 2**40), TEXT)
def test_partial_success_is_read_by_the_library(signal: Any, rejected: int, message: str) -> None:
    read = ANSWERS[signal].FromString(encode_answer("protobuf", signal, rejected, message))
    [count] = [value for field, value in read.partial_success.ListFields() if field.name.startswith("rej")] or [0]
    assert (count, read.partial_success.error_message) == (rejected, message)
    assert read.HasField("partial_success") == bool(rejected or message)
    shown = msgspec.json.decode(encode_answer("json", signal, rejected, message), type=ExportAnswer)
    assert bool(shown.partial_success) == bool(rejected or message)


def test_an_answer_without_rejections_is_empty() -> None:
    assert encode_answer("protobuf", "traces") == b""
    assert encode_answer("json", "traces") == b"{}"
    rejected = {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "why"}}
    assert json.loads(encode_answer("json", "traces", 2, "why")) == rejected


@given(st.integers(0, 16), TEXT)
def test_a_status_is_read_by_the_library(code: int, message: str) -> None:
    assert Status.FromString(encode_status("protobuf", code, message)) == Status(code=code, message=message)
    assert json.loads(encode_status("json", code, message)) == {"code": code, "message": message}


def test_the_time_to_wait_is_read_by_the_library() -> None:
    status = Status.FromString(encode_retry(14, "later", 3))
    info = RetryInfo()
    assert status.details[0].Unpack(info)
    assert info == RetryInfo(retry_delay=Duration(seconds=3))


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("application/json", "json"),
        ("Application/JSON; charset=utf-8", "json"),
        ("application/x-protobuf;a=b", "protobuf"),
        ("application/protobuf", None),
        ("text/json", None),
        ("", None),
    ],
)
def test_parameters_and_case_of_a_content_type_do_not_matter(content_type: str, encoding: str | None) -> None:
    assert encoding_of(content_type) == encoding
