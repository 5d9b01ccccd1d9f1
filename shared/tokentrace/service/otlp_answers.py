"""
OTLP over HTTP: its paths, its media types, and the form of its answers, which every service and the door use.

The protobuf messages of the answers have one or two fields, and are encoded here, so that a service that only forwards
requests or refuses them does not load the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import Scope

Signal = Literal["traces", "logs", "metrics"]
Encoding = Literal["protobuf", "json"]

#: Path -> signal. The SDK of Langfuse appends the last path to its base URL.
OTLP_PATHS: Mapping[str, Signal] = {
    "/v1/traces": "traces",
    "/v1/logs": "logs",
    "/v1/metrics": "metrics",
    "/api/public/otel/v1/traces": "traces",
}
MEDIA: Mapping[Encoding, str] = {"protobuf": "application/x-protobuf", "json": "application/json"}
_ENCODINGS: Mapping[str, Encoding] = {media: encoding for encoding, media in MEDIA.items()}
#: HTTP status -> code of ``google.rpc.Status``; any other refusal is INVALID_ARGUMENT.
_CODES = {401: 16, 403: 7, 404: 5, 405: 12, 413: 8, 429: 8, 500: 14, 503: 14}
_INVALID_ARGUMENT = 3
#: The exporters give up after ten seconds, so a longer wait would lose the spans.
RETRY_AFTER_S = 1
#: Field of ``partialSuccess`` that counts what was not stored, by signal.
_REJECTED = {"traces": "rejectedSpans", "logs": "rejectedLogRecords", "metrics": "rejectedDataPoints"}


class RpcStatus(msgspec.Struct, forbid_unknown_fields=True):
    """
    The body of an error of OTLP, ``google.rpc.Status``.

    Attributes:
        code: The code of gRPC, such as 3 for INVALID_ARGUMENT and 14 for UNAVAILABLE.
        message: What is wrong and why.
    """

    code: int
    message: str


class PartialSuccess(msgspec.Struct, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """
    What of an OTLP request was not stored, and never will be; the client must not send it again.

    Attributes:
        rejected_spans, rejected_log_records, rejected_data_points: How many, as text.
        error_message: Why.
    """

    rejected_spans: str | UnsetType = UNSET
    rejected_log_records: str | UnsetType = UNSET
    rejected_data_points: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET


class ExportAnswer(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The answer to an OTLP request, ``{}`` if everything is stored."""

    partial_success: PartialSuccess | UnsetType = UNSET


def encoding_of(content_type: str) -> Encoding | None:
    """Return the encoding that *content_type* names, whose parameters are ignored; None = it is not one of OTLP."""
    return _ENCODINGS.get(content_type.partition(";")[0].strip().lower())


def encode_answer(encoding: Encoding, signal: Signal, rejected: int = 0, message: str = "") -> bytes:
    """
    Encode the answer to a request that was accepted.

    Args:
        rejected: Number of spans, log records or data points that are not stored.
        message: Why; "" = everything is stored.
    """
    if encoding == "json":
        if not (rejected or message):
            return b"{}"
        shown = {_REJECTED[signal]: str(rejected)} if rejected else {}
        return msgspec.json.encode({"partialSuccess": {**shown, "errorMessage": message}})
    if not (rejected or message):
        return b""
    return _text(1, _number(1, rejected) + _text(2, message.encode()))


def encode_status(encoding: Encoding, code: int, message: str) -> bytes:
    """Encode a ``google.rpc.Status`` with a *code* of gRPC."""
    if encoding == "json":
        return msgspec.json.encode(RpcStatus(code, message))
    return _number(1, code) + _text(2, message.encode(errors="replace"))


def encode_retry(code: int, message: str, retry_after_s: int) -> bytes:
    """Encode a ``google.rpc.Status`` in protobuf that says after how many seconds to try again."""
    delay = _text(1, _number(1, retry_after_s))
    info = _text(1, b"type.googleapis.com/google.rpc.RetryInfo") + _text(2, delay)
    return encode_status("protobuf", code, message) + _text(3, info)


def code_of(status: int) -> int:
    """Return the code of gRPC that belongs to the HTTP *status* of an error."""
    return _CODES.get(status, _INVALID_ARGUMENT)


def otlp_failure(scope: Scope, message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """
    Return the error response to a request at one of ``OTLP_PATHS``, in the encoding of the request, else in JSON.

    Exporters drop what is answered with a 429 or a 500, so our own trouble is a 503, to be tried again after a second.
    """
    sent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"), "")
    encoding = encoding_of(sent) or "json"
    shown = dict(headers or {})
    if status in (429, 500, 503):
        status, shown["Retry-After"] = 503, str(RETRY_AFTER_S)
    body = encode_status(encoding, code_of(status), message)
    return Response(body, status, shown, media_type=MEDIA[encoding])


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value) if value else b""


def _text(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data if data else b""


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
