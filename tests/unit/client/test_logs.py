"""Trace ids in log lines, and the trace ids of OpenTelemetry in traces."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry import trace as otel

from kit.environment import plain_environment
from tokentrace import BufferTransport, Tracer
from tokentrace.logs import TraceIds, trace_ids


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """Return a logger and the text that its handler writes, ids first."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(trace_id)s|%(span_id)s|%(session_id)s|%(message)s"))
    handler.addFilter(TraceIds())
    logger = logging.getLogger("test_logs")
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, text
    logger.removeHandler(handler)


def test_a_line_has_the_ids_of_the_innermost_span_of_its_thread(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, text = lines
    tracer = Tracer(BufferTransport())
    logger.warning("before")
    with tracer.trace("answer", session_id="s-1") as trace:
        logger.warning("in trace")
        with trace.span("call") as span:
            logger.warning("in span")
            thread = threading.Thread(target=logger.warning, args=("elsewhere",))
            thread.start()
            thread.join()
            logger.warning("own", extra={"trace_id": "given"})
    logger.warning("after")
    assert text.getvalue().splitlines() == [
        "|||before",
        f"{trace.id}||s-1|in trace",
        f"{trace.id}|{span.span_id}|s-1|in span",
        "|||elsewhere",
        f"given|{span.span_id}|s-1|own",
        "|||after",
    ]


def test_an_event_of_structlog_has_the_ids_that_are_known() -> None:
    text = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(text), processors=[trace_ids, structlog.processors.JSONRenderer(sort_keys=True)]
    )
    tracer = Tracer(BufferTransport())
    logger.info("before")
    with tracer.trace("answer") as trace, trace.span("call") as span:
        logger.info("in span")
        logger.info("own", span_id="given")
    assert [json.loads(line) for line in text.getvalue().splitlines()] == [
        {"event": "before"},
        {"event": "in span", "trace_id": trace.id, "span_id": span.span_id},
        {"event": "own", "trace_id": trace.id, "span_id": "given"},
    ]


def otel_span(trace_id: int, span_id: int) -> otel.NonRecordingSpan:
    return otel.NonRecordingSpan(otel.SpanContext(trace_id, span_id, is_remote=False))


def test_a_new_trace_takes_the_id_of_the_current_span_of_opentelemetry() -> None:
    buffer = BufferTransport()
    tracer = Tracer(buffer)
    with otel.use_span(otel_span(0xABC, 0xDEF)):
        with tracer.trace("answer", attributes={"a": 1}) as trace:
            trace.record(model="m")
        assert trace.id == f"{0xABC:032x}"
        # What names a trace keeps it.
        assert tracer.start("other", trace_id="own").id == "own"
        assert (
            tracer.start("child", parent=tracer.extract({"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})).id == "1" * 32
        )
        with tracer.span("alone") as alone:
            assert alone.trace_id == trace.id
    with otel.use_span(otel_span(0, 0)):
        assert tracer.start("invalid").id not in (trace.id, "0" * 32)
    assert tracer.start("outside").id != trace.id
    span = buffer.spans[0]
    assert span.attributes == {"a": 1, "otel.span_id": f"{0xDEF:016x}"}


def test_opentelemetry_is_not_loaded_by_a_trace() -> None:
    program = """
import sys
from tokentrace import Tracer
import tokentrace.logs
with Tracer("noop://").trace("answer") as trace:
    assert len(trace.id) == 32
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
class Other: pass
sys.modules["opentelemetry.trace"] = Other()
assert len(Tracer("noop://").start("answer").id) == 32
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=plain_environment())
