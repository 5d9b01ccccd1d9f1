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

from tokentrace.bad_data import UNREADABLE
from tokentrace.bus import Message
from tokentrace.dialect import docs
from tokentrace.errors import Rejected
from tokentrace.pricing import Pricer
from tokentrace.records import (
    FUTURE_NS,
    MAX_INSTANT_NS,
    MAX_NAME,
    Batch,
    Span,
    check_batch_id,
    check_span,
    decode_batches,
    salvage_batches,
    split_spans,
)
from tokentrace.redact import RedactionCounts, Redactor
from tokentrace_ingest import other_records
from tokentrace_ingest.dead_letters import DeadLetter, DeadLetterWriter

#: A batch is split by index in runs of this many raw spans: never by size, so that a retry splits alike.
RUN = 64
_WHOLE_SPANS = 256
_WHOLE_BYTES = 512 * 1024
MAX_SPAN_BYTES = 512 * 1024


class Cleaned(NamedTuple):
    """
    What became of a batch.

    Attributes:
        parts: Batches to publish; together every good span, and what else the batch carried.
        letters: One for each bad record.
        spans: How many good spans.
        redactions: How many secrets of each kind were taken out.
    """

    parts: list[Batch]
    letters: list[DeadLetter]
    spans: int
    redactions: RedactionCounts


class Cleaner:
    """
    Turns what came in into what may be stored.

    Args:
        redactor: Takes secrets out, before anything else sees them.
        pricer: Decides every span's cost.
    """

    def __init__(self, redactor: Redactor, pricer: Pricer) -> None:
        self._redactor, self._pricer = redactor, pricer
        self.letters = DeadLetterWriter(redactor)

    def clean(self, batch: Batch, arrived_ns: int, size_bytes: int = 0, *, checked: bool = False) -> Cleaned:
        """
        Clean *batch*; bad records become dead letters, their neighbours stay.

        Every way in leads through here, and nothing is stored that did not come out of it.

        Args:
            arrived_ns: Stream time of the raw message, or when the request was read; the same on every retry.
            size_bytes: Of the raw message; decides whether it is split.
            checked: Its spans have passed ``check_span`` already, in a dialect.
        """
        key = f"{batch.id}:{batch.sequence}"
        whole = len(batch.spans) <= _WHOLE_SPANS and size_bytes <= _WHOLE_BYTES
        parts: list[Batch] = []
        letters: list[DeadLetter] = []
        found: RedactionCounts = {}
        source = self._redactor.text(batch.source, found)[:MAX_NAME]
        good = 0
        runs: Sequence[Sequence[Span]] = [batch.spans] if whole else list(split_spans(batch.spans, RUN))
        for part, run in enumerate(runs or [[]]):
            spans = []
            for offset, span in enumerate(run):
                index = part * RUN + offset
                try:
                    spans.append(self.finish(span, key, index, arrived_ns, source, checked=checked, found=found))
                except Rejected as exc:
                    letters.append(self.letters.span(key, index, str(exc), span, found))
            good += len(spans)
            if part == 0:
                rare = self._rarer(batch, key, arrived_ns, source, letters, found)
                parts.append(replace(batch, part=0, arrived_ns=arrived_ns, source=source, spans=spans, **rare))
            elif spans:
                parts.append(Batch(id=batch.id, sequence=batch.sequence, part=part, arrived_ns=arrived_ns, spans=spans))
        return Cleaned(parts, letters, good, found)

    def _rarer(
        self, batch: Batch, key: str, arrived_ns: int, source: str, letters: list[DeadLetter], found: RedactionCounts
    ) -> dict[str, list[Any]]:
        """The batch's other lists, clean; their bad records are added to *letters*."""
        kept: dict[str, list[Any]] = {}
        for field, kind in other_records.KINDS.items():
            given: list[Any] = getattr(batch, field)
            good: list[Any] = []
            for index, record in enumerate(given):
                try:
                    good.append(other_records.finish(record, kind, self._redactor, arrived_ns, source, found))
                except Rejected as exc:
                    letters.append(self.letters.rare(key, index, str(exc), record, kind, found))
            if given:
                kept[field] = good
        for field in other_records.FORBIDDEN:
            if given := getattr(batch, field):
                reason = f"{field}: made by the api alone, not taken from outside"
                letters.append(self.letters.unread(key, 0, reason, msgspec.msgpack.encode(given), kind=field))
                kept[field] = []
        return kept

    def finish(
        self,
        span: Span,
        key: str,
        index: int,
        arrived_ns: int,
        source: str = "",
        *,
        checked: bool = False,
        found: RedactionCounts | None = None,
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
        span = self._redactor.span(span, found)
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

    def read(self, message: Message, created_ns: int) -> tuple[list[Batch], list[DeadLetter]]:
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
            return [], [self.letters.undecoded(message, str(exc))]

    def read_batches(self, payload: bytes) -> tuple[list[Batch], list[DeadLetter]]:
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
            self.letters.unread(f"{batch.id}:{batch.sequence}", index, reason, raw)
            for batch, bad in salvaged
            for index, raw, reason in bad
        ]
        return [batch for batch, _ in salvaged], letters

    def _read_json(self, message: Message, created_ns: int) -> tuple[list[Batch], list[DeadLetter]]:
        given = message.headers.get("Nats-Msg-Id", "")
        key = f"nats.{hashlib.sha256(given.encode()).hexdigest()}" if given else f"nats.{created_ns}.{message.sequence}"
        try:
            return [Batch(id=key, spans=docs.decode_spans(message.payload, source="nats"))], []
        except Rejected as exc:
            reason = str(exc)
        try:
            items = msgspec.json.decode(message.payload, type=list[msgspec.Raw])
        except UNREADABLE:
            return [], [self.letters.undecoded(message, reason)]
        spans: list[Span] = []
        letters: list[DeadLetter] = []
        for index, item in enumerate(items):
            try:
                if bytes(item)[:1] != b"{":
                    raise Rejected(f"span {index}: not an object")
                spans += docs.decode_spans(bytes(item), source="nats")
            except Rejected as exc:
                letters.append(self.letters.unread(key, index, str(exc), item))
        return [Batch(id=key, spans=spans)] if spans else [], letters


def is_json(payload: bytes) -> bool:
    """True when a raw message is JSON in the documented span form, not a reporter's msgpack."""
    return payload[:1].isspace() or payload[:1] in (b"{", b"[")
