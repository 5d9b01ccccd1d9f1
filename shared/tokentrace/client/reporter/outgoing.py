"""Batches that a reporter sends: every span is cut, checked and redacted, and the invalid ones are set apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from tokentrace.bad_data import UNREADABLE
from tokentrace.client.reporter.span_queue import TakenBatch, Unencodable
from tokentrace.errors import Rejected, shorten
from tokentrace.records import (
    RefusedSpan,
    ReporterStats,
    Span,
    check_span,
    fit_span,
    name_fields,
    read_span,
    settle_usage,
)
from tokentrace.redact import Redactor, clean_refused

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Span)
#: Limit for the reason why a span is refused, characters.
_MAX_REASON = 300
#: An invalid span travels with its content, without secrets, up to this size; ingest shows no larger one.
_MAX_SHOWN_BYTES = 64 * 1024


class _BatchHead(msgspec.Struct, array_like=True):
    """The first fields of ``records.Batch``, up to its spans."""

    id: str
    sequence: int
    part: int
    arrived_ns: int
    source: str
    spans: list[msgspec.Raw]


class _RawBatch(_BatchHead, array_like=True):
    """A batch with spans that are already encoded."""

    reporter: ReporterStats


class _RawBatchWithRefused(_RawBatch, array_like=True):
    """All fields of ``records.Batch``, for a batch that tells of invalid spans."""

    started: list[None]
    scores: list[None]
    messages: list[None]
    session_ends: list[None]
    tombstones: list[None]
    annotations: list[None]
    layout: int
    identities: bytes
    refused: list[RefusedSpan]


_head_decoder = msgspec.msgpack.Decoder(list[_BatchHead])


def count_spans(payload: bytes) -> int:
    """Return how many valid spans the batches in *payload* have; 0 if it cannot be read."""
    try:
        return sum(len(batch.spans) for batch in _head_decoder.decode(payload))
    except UNREADABLE:
        return 0


class Outgoing:
    """
    A batch, ready to be sent, as often as needed, with the same bytes.

    Args:
        id, source: Those of the reporter.
        batch: The spans as they were reported.
        redactor: Removes secrets from each span.
        on_refused: Called with the reason for each span that is not valid.
        pause: Called before each span, so that the sender can let other threads run.

    Attributes:
        sequence: The number of the batch.
        stats: The counters of the reporter that the batch contains.
        valid, rejected, truncated: Number of valid spans, of the others, and of valid spans that were cut or corrected.
        payload: The batch in the form that ``records.decode_batches`` reads.
    """

    def __init__(
        self,
        id: str,
        source: str,
        batch: TakenBatch,
        redactor: Redactor,
        on_refused: Callable[[str], None],
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.sequence, self.stats = batch.sequence, batch.stats
        self.truncated = 0
        valid: list[msgspec.Raw] = []
        refused: list[RefusedSpan] = []
        for index, span in enumerate(batch.spans):
            pause()
            ready = self._prepare(span, index, redactor)
            if isinstance(ready, RefusedSpan):
                refused.append(ready)
                on_refused(ready.reason)
            else:
                valid.append(ready)
        self.valid, self.rejected = len(valid), len(refused)
        fields = (id, batch.sequence, 0, 0, source, valid, batch.stats)
        raw = _RawBatchWithRefused(*fields, [], [], [], [], [], [], 0, b"", refused) if refused else _RawBatch(*fields)
        self.payload = _encoder.encode([raw])

    @property
    def size(self) -> int:
        """Number of spans, valid or not."""
        return self.valid + self.rejected

    def _prepare(self, encoded: bytes | Unencodable, index: int, redactor: Redactor) -> msgspec.Raw | RefusedSpan:
        """Return the span cut, checked and without secrets, or the reason why it is refused."""
        if isinstance(encoded, Unencodable):
            return RefusedSpan(index=index, reason=encoded.reason)
        span: Span | None = None
        try:
            try:
                span = decoded = _decoder.decode(encoded)
            except UNREADABLE:
                span, decoded = read_span(encoded), None
            fitted = fit_span(span)
            check_span(settle_usage(fitted))
            clean = redactor.span(fitted)
            if clean.adjusted:
                self.truncated += 1
            return msgspec.Raw(encoded if clean is decoded else _encoder.encode(clean))
        except Rejected as exc:
            reason = str(exc)
        except UNREADABLE as exc:
            reason = name_fields(str(exc)) or type(exc).__name__
        except Exception as exc:  # noqa: BLE001 - a redactor of the application, which may fail on this span alone
            return RefusedSpan(index=index, reason=f"the reporter failed on it: {type(exc).__name__}")
        return _refused(index, reason, encoded, span, redactor)


def _refused(index: int, reason: str, encoded: bytes, span: Span | None, redactor: Redactor) -> RefusedSpan:
    """Return what the pipeline is told of an invalid span; without its content if that cannot be redacted."""
    shown = None if span is None else clean_refused(span, redactor)
    try:
        if shown is not None and len(_encoder.encode(shown)) > _MAX_SHOWN_BYTES:
            shown = None
    except UNREADABLE:
        shown = None
    return RefusedSpan(
        index=index,
        reason=shorten(redactor.text(reason), _MAX_REASON),
        span=shown,
        size_bytes=len(encoded),
        sha256=hashlib.sha256(encoded).hexdigest(),
    )
