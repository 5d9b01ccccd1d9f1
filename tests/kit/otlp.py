"""Requests of OTLP in both encodings, how they are posted, and how the answers are read."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb

from kit.otlp_fixtures import Fixture, with_base64_ids
from kit.pipeline import Answer, Pipeline
from tokentrace.units import MS, SECOND, parse_instant, render_instant

ENCODINGS = ("protobuf", "json")
TYPES = {"protobuf": "application/x-protobuf", "json": "application/json"}
TRACES, LOGS, METRICS = "/v1/traces", "/v1/logs", "/v1/metrics"
LANGFUSE = "/api/public/otel/v1/traces"
PATHS = (TRACES, LOGS, METRICS, LANGFUSE)
_REQUESTS: dict[str, Any] = {
    TRACES: trace_pb.ExportTraceServiceRequest,
    LANGFUSE: trace_pb.ExportTraceServiceRequest,
    LOGS: logs_pb.ExportLogsServiceRequest,
    METRICS: metrics_pb.ExportMetricsServiceRequest,
}
_ANSWERS: dict[str, Any] = {
    TRACES: trace_pb.ExportTraceServiceResponse,
    LANGFUSE: trace_pb.ExportTraceServiceResponse,
    LOGS: logs_pb.ExportLogsServiceResponse,
    METRICS: metrics_pb.ExportMetricsServiceResponse,
}
#: An instant that is the whole value of an attribute; Langfuse puts it inside quotes.
_INSTANT = re.compile(r'("?)(\d{4}-\d\d-\d\dT[0-9:.]+Z)\1')
_RESPONSE_ID = re.compile(r"(chatcmpl-|msg_|resp_|gem-|conv_|call_|toolu_|req_)fix")


def value(given: object) -> dict[str, Any]:
    """Return an ``AnyValue`` of a text, a bool or a number."""
    if isinstance(given, bool):
        return {"boolValue": given}
    if isinstance(given, int):
        return {"intValue": str(given)}
    return {"doubleValue": given} if isinstance(given, float) else {"stringValue": str(given)}


def attributes(given: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the list of attributes that *given* means."""
    return [{"key": key, "value": value(item)} for key, item in given.items()]


def call(*, attrs: Mapping[str, object] | None = None, **fields: Any) -> dict[str, Any]:
    """Return the span of a call to gpt-4o with 512 + 128 tokens, which ended now; it costs 0.00256 dollars."""
    now = time.time_ns()
    told: dict[str, object] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-4o",
        "gen_ai.usage.input_tokens": 512,
        "gen_ai.usage.output_tokens": 128,
        **(attrs or {}),
    }
    return {
        "traceId": uuid.uuid4().hex,
        "spanId": uuid.uuid4().hex[:16],
        "name": "chat gpt-4o",
        "kind": 3,
        "startTimeUnixNano": str(now - SECOND),
        "endTimeUnixNano": str(now),
        "attributes": attributes(told),
        **fields,
    }


def traces(spans: Sequence[Mapping[str, Any]], service: str = "shop") -> dict[str, Any]:
    """Return a request with *spans* of one program."""
    resource = {"attributes": attributes({"service.name": service})}
    return {
        "resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "test"}, "spans": list(spans)}]}]
    }


def logs(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a request with log *records*."""
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}


def evaluation(span: Mapping[str, Any], name: str, score: float) -> dict[str, Any]:
    """Return the log record of an evaluation of *span*."""
    told = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": score}
    ids = {key: span[key] for key in ("traceId", "spanId")}
    return {**ids, "eventName": "gen_ai.evaluation.result", "attributes": attributes(told)}


def metrics(points: int) -> dict[str, Any]:
    """Return a request with a sum of *points* data points."""
    return {
        "resourceMetrics": [
            {"scopeMetrics": [{"metrics": [{"name": "tokens", "sum": {"dataPoints": [{"asInt": "5"}] * points}}]}]}
        ]
    }


def encoded(request: Mapping[str, Any], encoding: str, path: str = TRACES) -> bytes:
    """Return *request*, which is for *path*, in *encoding*."""
    if encoding == "json":
        return json.dumps(request).encode()
    data: bytes = ParseDict(with_base64_ids(request), _REQUESTS[path](), True).SerializeToString()
    return data


def post(
    pipeline: Pipeline,
    body: bytes | Mapping[str, Any],
    encoding: str = "protobuf",
    path: str = TRACES,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Post *body*, which is encoded unless it is bytes."""
    data = body if isinstance(body, bytes) else encoded(body, encoding, path)
    return pipeline.post(path, data, {"Content-Type": TYPES[encoding], **(headers or {})})


def assert_stored(answer: Answer, encoding: str, path: str = TRACES) -> None:
    """Check that *answer* says, in *encoding*, that everything is stored."""
    assert partial_success(answer, encoding, path) == (0, ""), answer.body
    assert answer.body == (b"{}" if encoding == "json" else b"")


def partial_success(answer: Answer, encoding: str, path: str = TRACES) -> tuple[int, str]:
    """Check that *answer* is a 200 in *encoding*; return (number of rejected records, message)."""
    assert answer.status == 200, (answer.status, answer.body)
    assert answer.headers["content-type"] == TYPES[encoding]
    if encoding == "json":
        partial = answer.json().get("partialSuccess", {})
        [count] = [int(number) for key, number in partial.items() if key.startswith("rejected")] or [0]
        return count, partial.get("errorMessage", "")
    message = _ANSWERS[path].FromString(answer.body).partial_success
    [count] = [number for field, number in message.ListFields() if field.name.startswith("rejected")] or [0]
    return int(count), str(message.error_message)


def refused(answer: Answer, encoding: str, status: int, code: int) -> str:
    """Check that *answer* has *status* and a ``google.rpc.Status`` with *code* in *encoding*; return its message."""
    assert answer.status == status, (answer.status, answer.body[:500])
    assert answer.headers["content-type"] == TYPES[encoding]
    if encoding == "json":
        body = answer.json()
        assert list(body) == ["code", "message"], body
        assert body["code"] == code
        text = body["message"]
    else:
        message = Status.FromString(answer.body)
        assert message.code == code
        text = message.message
    assert isinstance(text, str)
    assert 0 < len(text) < 1000
    return text


def unique(fixture: Fixture, number: int, now_ns: int) -> tuple[dict[str, Any], str]:
    """
    Return the request of *fixture* as if it had been made now by a program of its own.

    Args:
        number: Another one for each request; it goes into the ids of traces, spans and responses, which are as long as
            those that providers give out.

    Returns:
        (The request, the name of the program).
    """
    service = f"case-{number}"
    text = fixture.body.decode().replace('"demo-app"', f'"{service}"')
    text = _RESPONSE_ID.sub(lambda found: f"{found[1]}{number:012x}", text)
    for response_id in {span.get("response_id") for span in fixture.expected["spans"].values()}:
        # LiteLLM makes ids of its own.
        if response_id and not _RESPONSE_ID.match(response_id):
            text = text.replace(response_id, f"{response_id[:-12]}{number:012x}")
    request = json.loads(text)
    names = ("endTimeUnixNano", "timeUnixNano", "observedTimeUnixNano")
    ends = [int(item[name]) for item in _dicts(request) for name in names if name in item]
    # An instant in an attribute has whole milliseconds.
    shift = (now_ns - max(ends, default=now_ns)) // MS * MS
    for item in _dicts(request):
        for key, given in item.items():
            if key.endswith("UnixNano"):
                item[key] = str(int(given) + shift)
            elif key == "stringValue" and (found := _INSTANT.fullmatch(given)):
                item[key] = f"{found[1]}{render_instant(parse_instant(found[2]) + shift)}{found[1]}"
            elif key in ("traceId", "spanId", "parentSpanId") and given.strip("0"):
                item[key] = f"{number:06x}{given[6:]}"
    return request, service


def spans_of(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all spans of *request*."""
    groups = (group for part in request.get("resourceSpans", ()) for group in part.get("scopeSpans", ()))
    return [span for group in groups for span in group.get("spans", ())]


def _dicts(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node, *(inner for item in node.values() for inner in _dicts(item))]
    return [inner for item in node for inner in _dicts(item)] if isinstance(node, list) else []
