"""
The HTTP operations of ingest, described once: ingest answers them, and an api in a process of its own forwards them.

The types of bodies here are only for the document; the dialects decode the bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Path as PathName
from msgspec import UNSET, Meta, UnsetType
from pydantic import ConfigDict, Field, WithJsonSchema
from starlette.requests import Request

from tokentrace.dialect.costkatana import EndInput, MessageInput, SpanInput
from tokentrace.dialect.docs import DocsSpan
from tokentrace.dialect.mist import MistMessage, TraceSpan
from tokentrace.errors import Rejected, quoted
from tokentrace.records import BATCH_TYPE, Role, SpanError
from tokentrace.service.contract import Answer, Content, Header, Params, operation, parsed

SpanId = Annotated[
    str, PathName(description="The id of the span, which the answer to its start calls `traceId`.", examples=["call"])
]


#: Limit for the errors in the answer to a reporter; all of them are counted.
MAX_ERRORS = 100


class Accepted(msgspec.Struct, forbid_unknown_fields=True):
    """
    How many spans are on disk.

    Attributes:
        rejected: Only with `partial` and for a reporter's batches: the spans that became dead letters, or their number.
        errors: Only for a reporter's batches: the first 100 of these spans.
    """

    accepted: Annotated[int, Meta(ge=0)]
    rejected: Annotated[int, Meta(ge=0)] | list[SpanError] | UnsetType = UNSET
    errors: list[SpanError] | UnsetType = UNSET


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", ""):
        raise Rejected(f"{quoted(text)} is neither true nor false")
    return text.lower() in ("true", "1", "")


class SendParams(Params):
    """The query parameters of ``POST /spans``; others are ignored."""

    model_config = ConfigDict(extra="ignore")
    partial: Annotated[bool, parsed(_true_or_false), WithJsonSchema({"type": "boolean"})] = Field(
        False, description="Store the valid spans of a request although others are not valid.", examples=[True]
    )


def wants_partial(request: Request) -> bool:
    """
    Return True if the valid spans of *request* are to be stored although others are not valid.

    Raises:
        Rejected: The parameter ``partial`` is neither true nor false.
    """
    if "handling=lenient" in request.headers.get("prefer", "").replace(" ", "").lower():
        return True
    return bool(request.scope["query_string"]) and SendParams.read(request).partial


class MistEnvelope(MistMessage, kw_only=True):
    """A MIST message of type ``trace.span``; ``checksum`` is the CRC-32 of the payload's bytes, 0 = not checked."""

    type: Literal["trace.span"]
    payload: TraceSpan  # type: ignore[assignment]


class SpansInput(msgspec.Struct):
    """The body of ``POST /api/traces/ingest`` as the SDK sends it."""

    spans: list[SpanInput]


class SpanStarted(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The id of the span, which is part of the path to which its end is posted, and the id of its session."""

    trace_id: str
    session_id: str


class SpanEnded(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The id of the span that has ended, and the status in the request, or ok without one."""

    trace_id: str
    status: Literal["ok", "error", "timeout"]


class SpansIngested(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """How many spans were accepted, and the ids of the first span and its session."""

    accepted: Annotated[int, Meta(ge=0)]
    trace_id: str | UnsetType = UNSET
    session_id: str | UnsetType | None = UNSET


class MessageRecorded(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """
    The message as it was recorded.

    Attributes:
        is_redacted: True if something was removed from the text.
    """

    message_id: str
    session_id: str
    trace_id: str
    role: Role
    is_redacted: bool
    created_at: str


SPAN_EXAMPLE: dict[str, Any] = {
    "name": "answer question",
    "model": "gpt-4o",
    "provider": "openai",
    "caller": "checkout",
    "prompt_tokens": 512,
    "comp_tokens": 128,
    "latency_ms": 820,
    "status": "ok",
    "started_at": "2026-03-15T14:23:01.441Z",
    "ended_at": "2026-03-15T14:23:02.261Z",
    "attributes": {"request_id": "abc123", "user_id": "u-7", "eval.score": 0.92},
}
_MIST_EXAMPLE: dict[str, Any] = {
    "version": "1",
    "id": "7f9c2ba4e88f827d",
    "source": "infermux",
    "type": "trace.span",
    "timestamp_ns": 1773584581441000000,
    "payload": {
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "operation": "infermux.infer",
        "start_ns": 1773584581441000000,
        "end_ns": 1773584582261000000,
        "status": "ok",
        "attrs": {"model": "gpt-4o", "tokens_in": 512, "tokens_out": 128},
    },
    "checksum": 0,
}
_START_EXAMPLE = {"name": "chat", "type": "agent", "sessionId": "s1", "traceId": "root"}
_END_EXAMPLE = {"status": "ok", "model": "gpt-4o", "tokens": {"input": 512, "output": 128}}
_INGEST_EXAMPLE = {
    "name": "answer",
    "type": "llm",
    "sessionId": "s1",
    "startedAt": "2026-03-15T14:23:01.441Z",
    "endedAt": "2026-03-15T14:23:02.261Z",
    "aiModel": "gpt-4o",
    "tokens": {"input": 512, "output": 128},
}

IDEMPOTENCY_KEY = Header(
    "Idempotency-Key",
    "Makes a retry safe: a second request with the same key and body within 24 hours adds nothing.",
    "order-4711-attempt",
    max_length=256,
)
_ENCODING = Header(
    "Content-Encoding", "`gzip` if the body is compressed; the limits hold before and after decompression.", "gzip"
)
_PREFER = Header("Prefer", "`handling=lenient` does what `partial=true` does.", "handling=lenient")
_SESSION = Header("X-Session-Id", "Session of spans that name none.", "s1", max_length=256)
_CALLER = Header("X-Service-Name", "Caller of spans that name none.", "checkout")
_WRONG = {
    400: "span 0: model: required when kind is llm and status is ok",
    413: "batch: 1001 spans, at most 1000 are taken in one request",
    415: "Content-Encoding: 'br' is not supported, only gzip is",
    422: "Idempotency-Key: was used with another body within the last 24 hours",
    503: "the broker is away",
}

Batches = Annotated[
    str,
    Meta(
        description="Span batches as `tokentrace.Reporter` encodes them: MessagePack.",
        extra_json_schema={"contentMediaType": BATCH_TYPE},
    ),
]

POST_SPANS = operation(
    "postSpans",
    "Send spans",
    """
    The body is one span or an array of spans in JSON, optionally compressed with gzip. 202 means that the broker has
    the spans on disk. If one span is invalid, the whole request is refused, unless `partial=true` or the header
    `Prefer: handling=lenient` asks to store the others: then the invalid ones become dead letters, and `rejected` lists
    them. Missing ids, instants and totals are filled in, costs are computed if `cost_usd` is absent, and secrets are
    removed before anything is stored. What is merely too long is cut, and `adjusted` of the stored span says so.

    `tokentrace.Reporter` posts its batches here too; an invalid span of a batch becomes a dead letter.
    """,
    Answer(
        Accepted,
        "The spans are on disk.",
        {"accepted": 1},
        status=202,
        headers={"Preference-Applied": "`handling=lenient` if invalid spans did not refuse the request."},
    ),
    body=[
        Content((DocsSpan, list[DocsSpan]), {"one": SPAN_EXAMPLE, "several": [SPAN_EXAMPLE]}),
        Content(Batches, {}, media=BATCH_TYPE),
    ],
    errors=_WRONG,
    headers=[IDEMPOTENCY_KEY, _ENCODING, _PREFER],
)
POST_MIST = operation(
    "postMist",
    "Send one MIST span",
    """
    The body is one MIST message of type `trace.span`, as Go tools post it. No token is needed unless
    `mist.require_auth` is set, because these tools cannot send one.
    """,
    Answer(None, "The span is on disk.", status=202),
    body=[Content(MistEnvelope, {"span": _MIST_EXAMPLE})],
    errors={**_WRONG, 400: "expected type trace.span, got health.ping", 413: "span 0: over 524288 bytes"},
    headers=[IDEMPOTENCY_KEY, _ENCODING],
)
START_SPAN = operation(
    "startSpan",
    "Start a span",
    "The span is `pending` until its end is posted, and `abandoned` after a day.",
    Answer(
        SpanStarted,
        "The span is open.",
        {"traceId": "root", "sessionId": "s1"},
        headers={"X-Trace-Id": "The same as `traceId`.", "X-Session-Id": "The same as `sessionId`."},
    ),
    body=[
        Content(SpanInput, {"root": _START_EXAMPLE, "child": {**_START_EXAMPLE, "traceId": "call", "parentId": "root"}})
    ],
    errors={
        **_WRONG,
        400: "name: is required",
        409: "traceId: 'root' is that of another span",
        413: "span: 600000 bytes, at most 524288 are taken",
    },
    headers=[IDEMPOTENCY_KEY, _ENCODING, _SESSION, _CALLER],
)
END_SPAN = operation(
    "endSpan",
    "End a span",
    "The first end counts; a later one only adds its metadata. The body may be empty.",
    Answer(SpanEnded, "The span has ended.", {"traceId": "call", "status": "ok"}),
    body=[Content(EndInput, {"ok": _END_EXAMPLE, "error": {"status": "error", "error": {"message": "rate limited"}}})],
    body_required=False,
    errors={
        400: "status: an end is ok, error or timeout, not pending",
        404: "Trace call not found",
        413: "body: over 8388608 bytes, which is the limit after decompression",
        415: _WRONG[415],
        503: _WRONG[503],
    },
    headers=[_ENCODING],
)
INGEST_SPANS = operation(
    "ingestSpans",
    "Send whole spans",
    """
    The body is one span, an array, or `{"spans": [...]}`. A span with `endedAt`, or with the status `ok`, `error` or
    `timeout`, is stored as finished; any other span stays open until its end is posted.
    """,
    Answer(SpansIngested, "The spans are on disk.", {"accepted": 1, "traceId": "call", "sessionId": "s1"}),
    body=[
        Content(
            (SpansInput, list[SpanInput], SpanInput),
            {"several": {"spans": [_INGEST_EXAMPLE]}, "array": [_INGEST_EXAMPLE], "one": _INGEST_EXAMPLE},
        )
    ],
    errors={
        **_WRONG,
        400: "span 0: name: is required",
        404: "Trace call not found",
        409: "traceId: 'call' is that of another span",
    },
    headers=[IDEMPOTENCY_KEY, _ENCODING, _SESSION, _CALLER],
)
RECORD_MESSAGE = operation(
    "recordMessage",
    "Record a message",
    "The body is a message of a conversation. Secrets are removed from its text; with `redaction.store_raw_content` "
    "the original text is stored too.",
    Answer(
        MessageRecorded,
        "The message is on disk.",
        {
            "messageId": "7d6c0a4e-7c1c-4b59-9d0e-0a4bb3a1c6f1",
            "sessionId": "s1",
            "traceId": "call",
            "role": "user",
            "isRedacted": True,
            "createdAt": "2026-03-15T14:23:01.441Z",
        },
    ),
    body=[
        Content(MessageInput, {"message": {"sessionId": "s1", "traceId": "call", "role": "user", "content": "hello"}})
    ],
    errors={**_WRONG, 400: "sessionId: is required", 413: "content: 300000 bytes, at most 262144 are taken"},
    headers=[IDEMPOTENCY_KEY, _ENCODING],
)
#: Path -> operation of each Cost Katana route, in the order in which they are matched.
COSTKATANA = {
    "/api/traces/start": START_SPAN,
    "/api/traces/ingest": INGEST_SPANS,
    "/api/traces/messages": RECORD_MESSAGE,
    "/api/traces/{trace_id:path}/end": END_SPAN,
}
