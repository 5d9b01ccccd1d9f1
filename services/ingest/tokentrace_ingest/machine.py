"""
What ingest does to a batch, pure: validate, complete, redact, price, split.

Everything filled in is a function of the message, so a redelivery makes the same record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.dialect import docs
from tokentrace.errors import Rejected, shorten
from tokentrace.machine import Message
from tokentrace.pricing import Pricer
from tokentrace.records import Batch, Span, check_span, decode_batches
from tokentrace.records.batch import check_batch_id, salvage_batches, split_spans
from tokentrace.records.span import (
    FUTURE_NS,
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_INSTANT_NS,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
)
from tokentrace.redact import Redactor
from tokentrace.units import is_number

#: A batch is split by index in runs of this many raw spans: never by size, so that a retry splits alike.
RUN = 64
_WHOLE_SPANS = 256
_WHOLE_BYTES = 512 * 1024
MAX_SPAN_BYTES = 512 * 1024
MAX_LETTER_BYTES = 64 * 1024
_EMPTY: tuple[Any, ...] = ("", 0, None, {})


class Letter(NamedTuple):
    """
    A dead letter.

    Attributes:
        id: The same for the same bad record, so that it is stored once.
        body: JSON: the redacted record if it could be read, else its size and SHA-256, and the reason.
        position: Index of the bad record in its batch.
        reason: What is wrong with it.
    """

    id: str
    body: bytes
    position: int
    reason: str


class Cleaned(NamedTuple):
    """
    What became of a batch.

    Attributes:
        parts: Batches to publish; together every good span, and what else the batch carried.
        letters: One for each bad span.
        spans: How many good ones.
    """

    parts: list[Batch]
    letters: list[Letter]
    spans: int


class Cleaner:
    """
    Turns what came in into what may be stored.

    Args:
        redactor: Takes secrets out, before anything else sees them.
        pricer: Decides every span's cost.
    """

    def __init__(self, redactor: Redactor, pricer: Pricer) -> None:
        self._redactor, self._pricer = redactor, pricer

    def clean(self, batch: Batch, arrived_ns: int, size_bytes: int = 0, *, checked: bool = False) -> Cleaned:
        """
        Clean *batch*; bad spans become dead letters, their neighbours stay.

        Args:
            arrived_ns: Stream time of the raw message, or when the request was read; the same on every retry.
            size_bytes: Of the raw message; decides whether it is split.
            checked: Its spans have passed ``check_span`` already, in a dialect.
        """
        key = f"{batch.id}:{batch.sequence}"
        whole = len(batch.spans) <= _WHOLE_SPANS and size_bytes <= _WHOLE_BYTES
        parts: list[Batch] = []
        letters: list[Letter] = []
        good = 0
        runs: Sequence[Sequence[Span]] = [batch.spans] if whole else list(split_spans(batch.spans, RUN))
        for part, run in enumerate(runs or [[]]):
            spans = []
            for offset, span in enumerate(run):
                index = part * RUN + offset
                try:
                    spans.append(self.finish(span, key, index, arrived_ns, batch.source, checked=checked))
                except Rejected as exc:
                    letters.append(self.letter(key, index, str(exc), span))
            good += len(spans)
            if part == 0:
                parts.append(replace(batch, part=0, arrived_ns=arrived_ns, spans=spans))
            elif spans:
                parts.append(Batch(id=batch.id, sequence=batch.sequence, part=part, arrived_ns=arrived_ns, spans=spans))
        return Cleaned(parts, letters, good)

    def finish(
        self, span: Span, key: str, index: int, arrived_ns: int, source: str = "", *, checked: bool = False
    ) -> Span:
        """
        *span* as it is stored.

        Raises:
            Rejected: Names the field.
        """
        if not checked:
            if span.source:
                span = replace(span, source="")  # which way in it took is ours to say
            check_span(span)
        trace_id, span_id = span.trace_id, span.span_id
        if not trace_id or not span_id:
            digest = hashlib.sha256(f"{key}:{index}".encode()).hexdigest()
            trace_id, span_id = trace_id or digest[:32], span_id or digest[32:]
        started, ended = span.started_ns, span.ended_ns
        if not ended:
            ended = started + span.latency_ns if started else arrived_ns
        if not started:
            started = ended - span.latency_ns
        clean = self._redactor.span(span)
        if clean is not span:
            # What stands in for a secret may be longer than it, and a text over its bound could not be read again.
            error, stack = clean.error[:MAX_VALUE_BYTES], clean.error_stack[:MAX_VALUE_BYTES]
            span = replace(clean, error=error, error_stack=stack)
        if ended > MAX_INSTANT_NS:
            raise Rejected("ended_at: not between the years 2000 and 2100")
        quote = self._pricer.quote(span, ended if ended <= arrived_ns + FUTURE_NS else arrived_ns)
        return replace(
            span,
            trace_id=trace_id,
            span_id=span_id,
            started_ns=started,
            ended_ns=ended,
            arrived_ns=arrived_ns,
            caller=span.caller or source,
            total_tokens=span.total_tokens or span.prompt_tokens + span.completion_tokens,
            score=docs.score_of(span.attributes) if span.attributes and span.score is None else span.score,
            source=span.source or "reporter",
            cost_nusd=quote.cost_nusd,
            cost_source=quote.source,
            cost_model=quote.model,
            unpriced_reason=quote.reason,
        )

    def letter(self, key: str, index: int, reason: str, span: Span) -> Letter:
        """The dead letter of a span that was read and is not valid."""
        try:
            record = msgspec.to_builtins(self._redactor.span(replace(span, attributes=_readable(span.attributes))))
            shown = dict(zip(span.__struct_fields__, record, strict=True))
            found: dict[str, Any] = {"span": {key: value for key, value in shown.items() if value not in _EMPTY}}
            if len(msgspec.json.encode(found)) > MAX_LETTER_BYTES:
                found = _fingerprint(msgspec.json.encode(found))
        except (TypeError, ValueError, RecursionError):
            found = {"span": {"trace_id": shorten(span.trace_id), "span_id": shorten(span.span_id)}}
        return _letter(key, index, {"reason": reason, **found})

    def read(self, message: Message, created_ns: int) -> tuple[list[Batch], list[Letter]]:
        """
        The batches of a raw message: msgpack of a reporter, or JSON of anybody.

        Args:
            created_ns: Of the raw stream, part of the id of a message that has none.
        """
        payload = message.payload
        if is_json(payload):
            return self._read_json(message, created_ns)
        try:
            return self.read_batches(payload)
        except Rejected as exc:
            return [], [undecoded(message, str(exc))]

    def read_batches(self, payload: bytes) -> tuple[list[Batch], list[Letter]]:
        """
        A reporter's batches; spans that are out of bounds become dead letters, their neighbours stay.

        Raises:
            Rejected: Nothing can be read.
        """
        try:
            batches = decode_batches(payload)
            for batch in batches:
                check_batch_id(batch.id)
            return batches, []
        except Rejected as exc:
            reason = str(exc)
        try:
            salvaged = salvage_batches(payload)
            for batch, _ in salvaged:
                check_batch_id(batch.id)
        except Rejected:
            raise Rejected(reason) from None
        letters = [
            _letter(f"{batch.id}:{batch.sequence}", index, {"reason": reason, **_fingerprint(raw)})
            for batch, bad in salvaged
            for index, raw, reason in bad
        ]
        return [batch for batch, _ in salvaged], letters

    def _read_json(self, message: Message, created_ns: int) -> tuple[list[Batch], list[Letter]]:
        given = message.headers.get("Nats-Msg-Id", "")
        key = f"nats.{hashlib.sha256(given.encode()).hexdigest()}" if given else f"nats.{created_ns}.{message.sequence}"
        try:
            return [Batch(id=key, spans=docs.decode_spans(message.payload, source="nats"))], []
        except Rejected as exc:
            reason = str(exc)
        try:
            items = msgspec.json.decode(message.payload, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return [], [undecoded(message, reason)]
        spans: list[Span] = []
        letters: list[Letter] = []
        for index, item in enumerate(items):
            try:
                if bytes(item)[:1] != b"{":
                    raise Rejected(f"span {index}: not an object")
                spans += docs.decode_spans(bytes(item), source="nats")
            except Rejected as exc:
                letters.append(_letter(key, index, {"reason": str(exc), **_fingerprint(item)}))
        return [Batch(id=key, spans=spans)] if spans else [], letters


def is_json(payload: bytes) -> bool:
    """True when a raw message is JSON in the documented span form, not a reporter's msgpack."""
    return payload[:1].isspace() or payload[:1] in (b"{", b"[")


def _readable(value: Any, depth: int = 0) -> Any:
    """*value* as far as JSON can show it: the reason a span is bad may be in here."""
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ATTRIBUTES] if depth < MAX_DEPTH else []
        return {shorten(key, MAX_KEY_BYTES): _readable(item, depth + 1) for key, item in items}
    if isinstance(value, list):
        return [_readable(item, depth + 1) for item in value[:MAX_ATTRIBUTES]] if depth < MAX_DEPTH else []
    if value is None or isinstance(value, (str, bool)):
        return value
    return value if is_number(value) and abs(value) < 2**63 else type(value).__name__


def _fingerprint(data: bytes | msgspec.Raw) -> dict[str, Any]:
    return {"size_bytes": len(bytes(data)), "sha256": hashlib.sha256(bytes(data)).hexdigest()}


def _letter(key: str, index: int, body: dict[str, Any]) -> Letter:
    content = msgspec.json.encode({"batch": key, "index": index, **body}, order="deterministic")
    return Letter(hashlib.sha256(content).hexdigest(), content, index, body["reason"])


def undecoded(message: Message, reason: str) -> Letter:
    """The dead letter of a raw message that could not be read at all."""
    return _letter(f"{message.subject}@{message.time_ns}", 0, {"reason": reason, **_fingerprint(message.payload)})
