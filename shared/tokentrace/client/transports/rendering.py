"""
From a span to its line: the documented JSON, which ``POST /spans`` takes as it is.

``encode`` runs in the thread that reports the span and copies it. ``Renderer`` runs in the background: the span is cut
if it is merely long, checked by the rules of ingest, redacted and rendered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import UNREADABLE
from tokentrace.client.reporter.encoding import encoded
from tokentrace.client.reporter.span_queue import Unencodable
from tokentrace.dialect.docs import render_span
from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    Span,
    check_span,
    fit_span,
    name_fields,
    read_span,
    settle_usage,
)
from tokentrace.redact import Redactor
from tokentrace.units import SCORE_ONE

_decoder = msgspec.msgpack.Decoder(Span)
_json = msgspec.json.Encoder()
#: Limit for a reason, characters.
_MAX_REASON = 300


class Line(NamedTuple):
    """
    A span in the documented JSON.

    Attributes:
        json: One JSON object without a line break.
        truncated: True = a value of the span was cut or corrected.
    """

    json: bytes
    truncated: bool


def encode(span: Span) -> bytes:
    """
    Return *span* in MessagePack, with an end if it has no time at all.

    Raises:
        Rejected: A value cannot be encoded.
    """
    data = encoded(span)
    if isinstance(data, Unencodable):
        raise Rejected(data.reason)
    return data


class Renderer:
    """
    Renders spans.

    Args:
        redactor: Removes secrets; None uses the default rules.
    """

    def __init__(self, redactor: Redactor | None) -> None:
        self._redactor = redactor or Redactor()

    def line(self, data: bytes) -> Line:
        """
        Return the line of a span that ``encode`` returned.

        Raises:
            Rejected: The span is not valid; the text names the field and contains no secret.
        """
        try:
            span = _read(data)
            settled = settle_usage(span)
            check_span(settled)
            clean = self._redactor.span(replace(span, total_tokens=settled.total_tokens))
            shown = render_span(replace(clean, attributes=_flat(clean.attributes)))
            return Line(_json.encode(shown), bool(clean.adjusted))
        except Rejected as exc:
            reason = str(exc)
        except UNREADABLE as exc:
            reason = name_fields(str(exc)) or type(exc).__name__
        except Exception as exc:
            raise Rejected(f"the transport failed on it: {type(exc).__name__}") from exc
        raise Rejected(shorten(self._redactor.text(reason), _MAX_REASON))


def _read(data: bytes) -> Span:
    """Return the span with what its JSON lacks otherwise: its score as an attribute, its start, a precise latency."""
    try:
        span = _decoder.decode(data)
    except UNREADABLE:
        span = read_span(data)
    fields: dict[str, Any] = {}
    if span.score is not None:
        fields["attributes"] = {**span.attributes, "eval.score": span.score / SCORE_ONE}
    if not span.started_ns:
        fields["started_ns"] = max(span.ended_ns - span.latency_ns, 0)
    if not span.latency_ns and 0 < span.started_ns < span.ended_ns:
        fields["latency_ns"] = span.ended_ns - span.started_ns  # instants are shown in milliseconds
    return fit_span(replace(span, **fields) if fields else span)


def _flat(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return *attributes* in the forms that the documented JSON has: no None, and maps and lists as JSON texts."""
    return {
        key: _json.encode(value).decode() if isinstance(value, (dict, list)) else value
        for key, value in attributes.items()
        if value is not None
    }
