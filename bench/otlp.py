"""OTLP: decoding and mapping beside the bare decoding of protobuf, and posted requests beside those of ``/spans``."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.load import generate, ingest, otlp_post, post, request_rate
from bench.process import fsync_note, resident_mib
from bench.row import Budget, Measured, Plan, Runner
from bench.spans import make_otlp
from tokentrace.dialect.otlp import map_spans
from tokentrace.dialect.otlp.pieces import Limits, cut

#: The number of spans at which Python's batch processor sends.
_SPANS = 512
_CONNECTIONS = 4
_TURNS = 7
_PHASE_S = 4.0
_LIMITS = Limits(65_536, 1024 * 1024, 1024 * 1024)

PROTOBUF = Plan("decode and map a span of protobuf", "s", "bare decode of protobuf in turn", Budget("<=", 90.0))
JSON = Plan("decode and map a span of JSON", "s", "json.loads in turn", Budget("<=", 8.0))
POSTED = Plan(
    f"POST /v1/traces, {_SPANS} spans a request, 200 after PubAck",
    "spans/s",
    f"POST /spans, {_SPANS} a request, in turn",
    Budget(">=", 0.07),
)
MEMORY = Plan("memory of ingest while it takes such requests", "MiB", "memory after half the time", Budget("<=", 1.10))
PLANS = (PROTOBUF, JSON, POSTED, MEMORY)


def run(runner: Runner) -> None:
    """Measure decoding with mapping, requests and memory."""
    body = make_otlp(_SPANS)
    runner.row(PROTOBUF, lambda: _mapped("protobuf", body, ExportTraceServiceRequest.FromString))
    runner.row(JSON, lambda: _mapped("json", _json(body), json.loads))
    runner.row(POSTED, _posted)
    runner.row(MEMORY, _memory)


def _json(body: bytes) -> bytes:
    """Return the request *body* in the JSON of OTLP, in which ids are hexadecimal."""
    request = ExportTraceServiceRequest.FromString(body)
    told = MessageToDict(request)
    spans = [span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
    shown = [span for part in told["resourceSpans"] for scope in part["scopeSpans"] for span in scope["spans"]]
    for span, as_json in zip(spans, shown, strict=True):
        as_json |= {"traceId": span.trace_id.hex(), "spanId": span.span_id.hex()}
    return json.dumps(told).encode()


def _mapped(encoding: Any, body: bytes, decode: Callable[[bytes], object]) -> Measured:
    def ours() -> None:
        pieces = cut(encoding, "traces", body, _LIMITS)
        assert len(map_spans([span for piece in pieces.parts for span in piece.spans()], lambda _: 1).spans) == _SPANS

    times: list[tuple[float, float]] = []
    for _ in range(_TURNS):
        began = time.perf_counter()
        decode(body)
        between = time.perf_counter()
        ours()
        times.append((between - began, time.perf_counter() - between))
    bare, mapped = (min(pair[which] for pair in times) / _SPANS for which in (0, 1))
    return Measured(mapped, bare, f"{len(body) // _SPANS:,} bytes a span, 17 attributes")


def _posted() -> Measured:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        note = fsync_note(directory)
        as_otlp, as_documented = otlp_post(directory, _SPANS), post(directory, _SPANS)
        ours, plain = [], []
        for turn in range(2):
            plain.append(request_rate(directory / f"plain{turn}", as_documented, _CONNECTIONS, bare=False))
            ours.append(request_rate(directory / f"ours{turn}", as_otlp, _CONNECTIONS, bare=False))
    shown = f"{_CONNECTIONS} connections, {max(ours):.1f} requests/s of {len(make_otlp(_SPANS)) // 1024} KiB, {note}"
    return Measured(max(ours) * _SPANS, max(plain) * _SPANS, shown)


def _memory() -> Measured:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        request = otlp_post(directory, _SPANS)
        with ingest(directory / "data") as (port, process):
            after, rates = [], []
            for _ in range(3):
                rates.append(generate(port, _CONNECTIONS, _PHASE_S, request))
                after.append(resident_mib(process.pid))
    return Measured(after[2], after[1], f"{sum(rates) * _PHASE_S * _SPANS:,.0f} spans in {3 * _PHASE_S:.0f} s")
