"""OTLP in services of their own: forwarded by the api, port 4318, gRPC, a reader that is behind, no broker."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit import otlp
from kit.json_spans import fresh
from kit.otlp import ENCODINGS, LANGFUSE, LOGS, METRICS, PATHS, TRACES
from kit.pipeline import Pipeline, SeparateServices, free_port, http

TOKEN = "sk-tokentrace"


class Services(SeparateServices):
    """Separate services, whose api forwards to ingest, which also listens on the addresses of OTLP."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        addresses = {
            "TOKENTRACE_OTLP_HTTP_ADDR": f":{self.http_port}",
            "TOKENTRACE_OTLP_GRPC_ADDR": f"127.0.0.1:{self.grpc_port}",
        }
        super().__init__(directory, env={**addresses, **env})
        self.env["TOKENTRACE_INGEST_URL"] = f"http://127.0.0.1:{self.ports['ingest']}"

    def channel(self) -> grpc.Channel:
        """Return a channel to the address for gRPC."""
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")

    def calls(self, service: str) -> int:
        """Return how many calls of *service* are counted."""
        return int(self.get(f"/metrics?window=1h&caller={service}").json()["span_count"])

    def until_counted(self, service: str, calls: int) -> None:
        """Wait until exactly *calls* calls of *service* are counted."""
        self.until(lambda: self.calls(service) >= calls, f"{calls} calls of {service}")
        last = fresh("last")
        assert otlp.post(self, otlp.traces([otlp.call()], last)).status == 200
        self.until(lambda: self.calls(last) == 1, "the last call")
        assert self.calls(service) == calls


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    running = Services(tmp_path_factory.mktemp("otlp"))
    running.start()
    yield running
    assert running.stop() == 0


def spans_of_sdk(service: str, count: int) -> list[ReadableSpan]:
    """Return *count* calls to a model as OpenTelemetry's SDK makes them."""
    made = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(made))
    tracer = provider.get_tracer("test")
    for _ in range(count):
        with tracer.start_as_current_span("chat gpt-4o") as span:
            span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.response.model": "gpt-4o",
                    "gen_ai.usage.input_tokens": 512,
                    "gen_ai.usage.output_tokens": 128,
                }
            )
    provider.shutdown()
    return list(made.get_finished_spans())


def exporter(url: str, **options: Any) -> tuple[OTLPSpanExporter, list[tuple[int, str]]]:
    """Return an exporter to *url*, and the list of (status, Retry-After) of its answers."""
    answers: list[tuple[int, str]] = []
    session = requests.Session()
    session.trust_env = False
    session.hooks["response"].append(
        lambda answer, **_: answers.append((answer.status_code, answer.headers.get("retry-after", "")))
    )
    return OTLPSpanExporter(endpoint=url, session=session, **options), answers


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", [TRACES, LANGFUSE])
def test_the_api_forwards_requests_and_answers(services: Services, encoding: str, path: str) -> None:
    service = fresh("shop")
    otlp.assert_stored(otlp.post(services, otlp.traces([otlp.call()], service), encoding, path), encoding, path)
    services.until_counted(service, 1)
    otlp.refused(otlp.post(services, b"\xff" if encoding == "protobuf" else b"{", encoding, path), encoding, 400, 3)
    otlp.refused(otlp.post(services, b"", encoding, path, {"Host": "a.example"}), encoding, 403, 7)
    assert otlp.post(services, b"", encoding, path, {"Content-Type": "text/plain"}).status == 415
    rejected = otlp.post(services, otlp.metrics(2), encoding, METRICS)
    assert otlp.partial_success(rejected, encoding, METRICS) == (2, "metrics are not stored")


def test_the_address_for_http_has_the_routes_of_otlp_and_no_others(services: Services) -> None:
    url, service = f"http://127.0.0.1:{services.http_port}", fresh("shop")
    for path in PATHS:
        headers = {"Content-Type": otlp.TYPES["protobuf"]}
        assert http("POST", url + path, b"", headers).status == 200, path
        assert http("GET", url + path).status == 405, path
        assert http("POST", url + path, b"", {**headers, "Host": "a.example"}).status == 403, path
    for path in ("/spans", "/metrics", "/healthz", "/openapi.json", "/docs", "/"):
        assert http("GET", url + path).status == 404, path
        assert http("POST", url + path, b"{}", {"Content-Type": "application/json"}).status == 404, path
    export, answers = exporter(url + TRACES, compression=Compression.Gzip)
    assert export.export(spans_of_sdk(service, 3)) == SpanExportResult.SUCCESS
    assert answers == [(200, "")]
    services.until_counted(service, 3)


def test_requests_over_grpc_are_stored(services: Services) -> None:
    service, span = fresh("shop"), otlp.call()
    request = trace_pb.ExportTraceServiceRequest.FromString(otlp.encoded(otlp.traces([span], service), "protobuf"))
    with services.channel() as channel:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            answer = TraceServiceStub(channel).Export(request, compression=compression)  # type: ignore[no-untyped-call]
            assert answer == trace_pb.ExportTraceServiceResponse()
        records = otlp.encoded(otlp.logs([otlp.evaluation(span, "relevance", 0.9)]), "protobuf", LOGS)
        logged = LogsServiceStub(channel).Export(logs_pb.ExportLogsServiceRequest.FromString(records))  # type: ignore[no-untyped-call]
        assert logged == logs_pb.ExportLogsServiceResponse()
        points = metrics_pb.ExportMetricsServiceRequest.FromString(otlp.encoded(otlp.metrics(2), "protobuf", METRICS))
        measured = MetricsServiceStub(channel).Export(points).partial_success  # type: ignore[no-untyped-call]
        assert (measured.rejected_data_points, measured.error_message) == (2, "metrics are not stored")
    services.until_counted(service, 1)


def refusal(channel: grpc.Channel, body: bytes, service: str = "trace.v1.TraceService", **options: Any) -> grpc.Call:
    """Send *body* to the method ``Export`` of *service*, which must refuse it."""
    export = channel.unary_unary(f"/opentelemetry.proto.collector.{service}/Export")
    with pytest.raises(grpc.RpcError) as raised:
        export(body, **options)
    assert isinstance(raised.value, grpc.Call)
    return raised.value


def test_errors_over_grpc_have_the_codes_of_otlp(services: Services) -> None:
    with services.channel() as channel:
        assert refusal(channel, b"\xff").code() == grpc.StatusCode.INVALID_ARGUMENT
        without_ids = otlp.encoded(otlp.traces([{"name": "x"}]), "protobuf")
        assert "another signal" in (refusal(channel, without_ids).details() or "")
        assert refusal(channel, b"", "profiles.v1.ProfilesService").code() == grpc.StatusCode.UNIMPLEMENTED
    with services.channel() as channel:
        large = b"\x00" * (64 * 1024 * 1024 + 1)
        assert refusal(channel, large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        packed = refusal(channel, large, compression=grpc.Compression.Gzip)
        assert packed.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_token_is_needed_over_grpc_too(tmp_path: Path) -> None:
    services = Services(tmp_path, TOKENTRACE_AUTH_TOKEN=TOKEN)
    services.broker.start()
    services.start_one("ingest")
    url = f"http://127.0.0.1:{services.ports['ingest']}/readyz"
    services.until(lambda: http("GET", url).status == 200, "ingest")
    try:
        with services.channel() as channel:
            assert refusal(channel, b"").code() == grpc.StatusCode.UNAUTHENTICATED
            wrong = refusal(channel, b"", metadata=[("authorization", "Bearer x")])
            assert wrong.code() == grpc.StatusCode.UNAUTHENTICATED
            export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
            assert export(b"", metadata=[("authorization", f"Bearer {TOKEN}")]) == b""
    finally:
        assert services.stop() == 0


def test_an_exporter_waits_while_a_reader_is_behind_and_loses_nothing(tmp_path: Path) -> None:
    services = Services(tmp_path, TOKENTRACE_SPANS_MAX_BYTES="8000000")
    services.start()
    try:
        assert otlp.post(services, otlp.traces([otlp.call()])).status == 200
        own = f"http://127.0.0.1:{services.ports['ingest']}/internal/metrics"
        services.until(lambda: b'reader="reader.aggregator.0"' in http("GET", own).body, "a known reader")
        services.running["aggregator"].send_signal(signal.SIGSTOP)
        text = {f"text.{n}": f"{n} " * 4000 for n in range(10)}
        sent = 0

        def is_blocked() -> bool:
            nonlocal sent
            answer = otlp.post(services, otlp.traces([otlp.call(attrs=text) for _ in range(2)], "filler"), "json")
            sent += 2 * (answer.status == 200)
            if answer.status == 200:
                return False
            assert answer.headers["retry-after"] == "1"
            return "is behind by" in otlp.refused(answer, "json", 503, 14)

        services.until(is_blocked, "blocked")
        with services.channel() as channel:
            call = refusal(channel, otlp.encoded(otlp.traces([otlp.call()]), "protobuf"))
            assert call.code() == grpc.StatusCode.UNAVAILABLE
            details = dict(call.trailing_metadata() or ())["grpc-status-details-bin"]
            info = RetryInfo()
            assert Status.FromString(details).details[0].Unpack(info)
            assert info.retry_delay.seconds == 1
        service = fresh("shop")
        export, answers = exporter(f"{services.url}{TRACES}", timeout=60)
        with ThreadPoolExecutor(1) as pool:
            exporting = pool.submit(export.export, spans_of_sdk(service, 5))
            services.until(lambda: len(answers) >= 2, "the exporter tries again")
            services.running["aggregator"].send_signal(signal.SIGCONT)
            assert exporting.result() == SpanExportResult.SUCCESS
        assert set(answers[:-1]) == {(503, "1")}
        assert answers[-1] == (200, "")
        services.until_counted(service, 5)
        assert services.calls("filler") == sent
    finally:
        services.running["aggregator"].send_signal(signal.SIGCONT)
        assert services.stop() == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_without_a_broker_the_answer_is_503_and_nothing_acknowledged_is_lost(tmp_path: Path, encoding: str) -> None:
    services = Services(tmp_path)
    services.start()
    try:
        before, between = fresh("before"), fresh("between")
        otlp.assert_stored(otlp.post(services, otlp.traces([otlp.call()], before), encoding), encoding)
        services.broker.kill()
        body = otlp.encoded(otlp.traces([otlp.call(), otlp.call()], between), encoding)
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            answer = otlp.post(services, body, encoding)
            assert answer.headers["retry-after"] == "1"
            otlp.refused(answer, encoding, 503, 14)
        services.broker.start()
        services.until(lambda: otlp.post(services, body, encoding).status == 200, "stored")
        services.until_counted(between, 2)
        assert services.calls(before) == 1
    finally:
        assert services.stop() == 0


@pytest.mark.parametrize("variable", ["TOKENTRACE_OTLP_HTTP_ADDR", "TOKENTRACE_OTLP_GRPC_ADDR"])
def test_an_address_in_use_is_an_error_that_names_it(tmp_path: Path, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        serving = Pipeline(tmp_path, env={variable: address})
        serving.start(wait=False)
        assert serving.process is not None
        assert serving.process.wait(60) == 1
    assert f"cannot listen on {address}" in serving.log.read_text()


def test_serve_listens_on_both_addresses_and_says_so(tmp_path: Path) -> None:
    http_port, grpc_port, service = free_port(), free_port(), fresh("shop")
    serving = Pipeline(
        tmp_path,
        env={"TOKENTRACE_OTLP_HTTP_ADDR": f":{http_port}", "TOKENTRACE_OTLP_GRPC_ADDR": f"127.0.0.1:{grpc_port}"},
    )
    serving.start()
    try:
        body = otlp.encoded(otlp.traces([otlp.call()], service), "protobuf")
        answer = http("POST", f"http://127.0.0.1:{http_port}{TRACES}", body, {"Content-Type": otlp.TYPES["protobuf"]})
        assert answer.status == 200
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            assert channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body) == b""
        serving.until(lambda: serving.get(f"/metrics?caller={service}").json()["span_count"] == 1, "counted")
    finally:
        assert serving.stop() == 0
    said = f"OTLP over HTTP at http://127.0.0.1:{http_port} and over gRPC at 127.0.0.1:{grpc_port}"
    assert said in serving.log.read_text()
