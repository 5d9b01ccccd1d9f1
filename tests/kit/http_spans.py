"""Spans that are sent over HTTP, in the documented form and in the form of MIST, until they are counted and stored."""

from __future__ import annotations

import json
import re
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from kit.json_spans import fresh
from kit.pipeline import Answer, Pipeline
from kit.sessions import instant

#: An id that ingest has made: 32 hexadecimal digits or a UUID of version 4.
MADE_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def ago(**duration: float) -> str:
    """Return the time that was *duration* ago, given as for ``timedelta``, in the documented form."""
    return instant(datetime.now(UTC) - timedelta(**duration))


def assert_accepted(answer: Answer, count: int = 1) -> None:
    """Check that *answer* says that *count* spans were accepted."""
    assert answer.status == 202, answer.body
    assert answer.json() == {"accepted": count}


def settle(pipeline: Pipeline, caller: str) -> None:
    """Wait until all spans sent so far are counted and stored, by sending a last span of *caller*, of kind custom."""
    last = fresh("last")
    assert_accepted(pipeline.post("/spans", {"caller": caller, "name": last, "kind": "custom"}))
    path = f"/metrics?window=30d&kind=all&caller={caller}&name={last}"
    pipeline.until(lambda: pipeline.get(path).json()["span_count"] == 1, "counted")
    pipeline.until(lambda: pipeline.get(f"/traces?name={last}").json()["total"] == 1, "stored")


def counted_calls(pipeline: Pipeline, caller: str) -> int:
    """Return how many LLM calls of *caller* are in the metrics."""
    return int(pipeline.get(f"/metrics?window=30d&caller={caller}").json()["span_count"])


def settled_calls(pipeline: Pipeline, caller: str) -> int:
    """Wait as ``settle`` does and return how many LLM calls of *caller* are in the metrics."""
    settle(pipeline, caller)
    return counted_calls(pipeline, caller)


def await_trace(pipeline: Pipeline, trace_id: str, spans: int = 1) -> Any:
    """Wait until the trace has *spans* spans, and return it."""
    path = f"/traces/{quote(trace_id, safe='')}"
    pipeline.until(lambda: pipeline.get(path).json()["span_count"] == spans, f"{trace_id} stored")
    return pipeline.get(path).json()


def mist_message(payload: bytes | dict[str, Any], **fields: Any) -> bytes:
    """Return a MIST message with *payload*; bytes are put into it unchanged."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {"version": "1", "id": uuid.uuid4().hex, "source": "infermux", "type": "trace.span", "timestamp_ns": 1}
    return json.dumps({**head, **fields}).encode()[:-1] + b', "payload": ' + raw + b"}"


def mist_span(**fields: Any) -> dict[str, Any]:
    """Return a span of 50 ms in the form of MIST, with new ids."""
    start_ns = time.time_ns() - 10**9
    return {
        "trace_id": uuid.uuid4().hex,
        "span_id": uuid.uuid4().hex,
        "operation": "infer",
        "start_ns": start_ns,
        "end_ns": start_ns + 50_000_000,
        "status": "ok",
        **fields,
    }
