"""
Cleaning of batches: validates records, fills in what is missing, removes secrets, prices spans, splits large batches.

Every value that is filled in is a function of the message, so a message that is delivered twice gives the same records.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.bus import Message
from tokentrace.dialect import docs
from tokentrace.dialect.attributes import score_of, session_of, user_of
from tokentrace.errors import Rejected
from tokentrace.pricing import Pricer
from tokentrace.records import (
    BOM,
    FUTURE_NS,
    MAX_INSTANT_NS,
    MAX_LATENCY_NS,
    MAX_NAME,
    Batch,
    Span,
    as_stated,
    check_batch_id,
    check_span,
    decode_batches,
    fit_span,
    salvage_batches,
    settle_usage,
    split_spans,
)
from tokentrace.redact import RedactionCounts, Redactor
from tokentrace_ingest import other_records
from tokentrace_ingest.dead_letters import DeadLetter, DeadLetterWriter

#: A large batch is split after every 64 raw spans, by index: splitting by size could split a retry differently.
RUN = 64
_MAX_UNSPLIT_SPANS = 256
_MAX_UNSPLIT_BYTES = 512 * 1024
#: How the reason of a bad record begins that is not a span.
_OF_LIST = re.compile(r"[a-z_]+\[\d+\]: ")


class Cleaned(NamedTuple):
    """
    The result of cleaning a batch.

    Attributes:
        parts: Batches to publish. Together they hold all good records.
        dead_letters: One for each bad record, for each span that a reporter refused, and for each list that senders may
            not fill.
        spans: Number of good spans.
        redactions: Number of removed secrets by kind.
        made: Ids of the spans that came without a trace id and without a span id.
    """

    parts: list[Batch]
    dead_letters: list[DeadLetter]
    spans: int
    redactions: RedactionCounts
    made: Collection[str] = ()


class Cleaner:
    """
    Turns input into records that may be stored.

    Args:
        redactor: Removes secrets from every record before it is priced or stored.
        pricer: Computes the cost of every span.
    """

    def __init__(self, redactor: Redactor, pricer: Pricer) -> None:
        self._redactor, self._pricer = redactor, pricer
        self.dead_letters = DeadLetterWriter(redactor)

    def clean(
        self,
        batch: Batch,
        arrived_ns: int,
        size_bytes: int = 0,
        *,
        checked: bool = False,
        places: Sequence[int] | None = None,
    ) -> Cleaned:
        """
        Clean *batch*; a bad record becomes a dead letter, and the other records stay.

        All input goes through this method, from ``TT_RAW`` and from every HTTP route.

        Args:
            arrived_ns: Unix nanoseconds: stream time of the raw message, or when the request was read. A redelivered
                message has the same time.
            size_bytes: Size of the raw message or request body. Over 512 KiB or 256 spans, the batch is split.
            checked: True = a dialect has already called ``check_span`` on the spans.
            places: The place of each span in what was sent; None = all that was sent are in *batch*.
        """
        key = f"{batch.id}:{batch.sequence}"
        whole = len(batch.spans) <= _MAX_UNSPLIT_SPANS and size_bytes <= _MAX_UNSPLIT_BYTES
        parts: list[Batch] = []
        dead_letters: list[DeadLetter] = []
        redactions: RedactionCounts = {}
        source = self._redactor.text(batch.source, redactions)[:MAX_NAME]
        good = 0
        made: set[str] = set()
        runs: Sequence[Sequence[Span]] = [batch.spans] if whole else list(split_spans(batch.spans, RUN))
        for part, run in enumerate(runs or [[]]):
            spans = []
            for offset, span in enumerate(run):
                index = part * RUN + offset if places is None else places[part * RUN + offset]
                try:
                    finished = self.finish(span, key, index, arrived_ns, source, checked=checked, redactions=redactions)
                    spans.append(finished)
                    if not span.trace_id and not span.span_id:
                        made.add(finished.span_id)
                except Rejected as exc:
                    dead_letters.append(self.dead_letters.span(key, index, str(exc), span, redactions, source))
            good += len(spans)
            if part == 0:
                others = self._other_records(batch, key, arrived_ns, source, dead_letters, redactions)
                cleaned = replace(
                    batch, part=0, arrived_ns=arrived_ns, source=source, spans=spans, refused=[], **others
                )
                parts.append(cleaned)
            elif spans:
                parts.append(Batch(id=batch.id, sequence=batch.sequence, part=part, arrived_ns=arrived_ns, spans=spans))
        dead_letters += [self.dead_letters.refused(key, refused, redactions, source) for refused in batch.refused]
        return Cleaned(parts, dead_letters, good, redactions, made)

    def _other_records(
        self,
        batch: Batch,
        key: str,
        arrived_ns: int,
        source: str,
        dead_letters: list[DeadLetter],
        redactions: RedactionCounts,
    ) -> dict[str, list[Any]]:
        """Return the cleaned lists of *batch* but ``spans``; append the dead letters of bad or forbidden records."""
        kept: dict[str, list[Any]] = {}
        for field, kind in other_records.KINDS.items():
            records: list[Any] = getattr(batch, field)
            good: list[Any] = []
            for index, record in enumerate(records):
                try:
                    good.append(other_records.finish(record, kind, self._redactor, arrived_ns, source, redactions))
                except Rejected as exc:
                    reason = str(exc)
                    dead_letters.append(
                        self.dead_letters.other_record(key, index, reason, record, kind, redactions, source)
                    )
            if records:
                kept[field] = good
        for field in other_records.FORBIDDEN:
            if records := getattr(batch, field):
                reason = f"{field}: only the api may write these records"
                encoded = msgspec.msgpack.encode(records)
                dead_letters.append(self.dead_letters.unread(key, 0, reason, encoded, kind=field, source=source))
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
        redactions: RedactionCounts | None = None,
    ) -> Span:
        """
        Return *span* as it is stored: with ids, times and its cost if known, and without secrets.

        Args:
            key: Id and sequence of the batch. Missing ids are a hash of *key* and *index*.
            index: Position of the span in the raw batch.
            arrived_ns: Unix nanoseconds; the end of a span that has neither start nor end.
            source: Fills in a missing caller.
            checked: True = a dialect has already called ``check_span``.
            redactions: Counts of removed secrets by kind, to which those of *span* are added.

        Raises:
            Rejected: A field is invalid; the text names it.
        """
        if not checked:
            span = fit_span(settle_usage(_as_stated(span)))
            check_span(span)
        trace_id, span_id = span.trace_id, span.span_id
        if not trace_id or not span_id:
            digest = hashlib.sha256(f"{key}:{index}".encode()).hexdigest()
            trace_id, span_id = trace_id or digest[:32], span_id or digest[32:]
        started, ended, latency = span.started_ns, span.ended_ns, span.latency_ns
        if not latency and 0 < started < ended <= started + MAX_LATENCY_NS:
            latency = ended - started
        if not ended:
            ended = started + span.latency_ns if started else arrived_ns
        if not started:
            started = ended - span.latency_ns
        span = self._redactor.span(span, redactions)
        if ended > MAX_INSTANT_NS:
            raise Rejected("ended_at: not between the years 2000 and 2100")
        quote = self._pricer.quote(span, ended if ended <= arrived_ns + FUTURE_NS else arrived_ns)
        return replace(
            span,
            trace_id=trace_id,
            span_id=span_id,
            started_ns=started,
            ended_ns=ended,
            latency_ns=latency,
            arrived_ns=arrived_ns,
            caller=span.caller or source,
            total_tokens=span.total_tokens or span.prompt_tokens + span.completion_tokens,
            score=score_of(span.attributes) if span.attributes and span.score is None else span.score,
            source=span.source or "reporter",
            cost_nusd=quote.cost_nusd,
            cost_source=quote.source,
            cost_model=quote.model,
            unpriced_reason=quote.reason,
        )

    def read(self, message: Message, created_ns: int) -> tuple[list[Batch], list[DeadLetter]]:
        """
        Decode a raw message: msgpack of a reporter, or JSON of any other NATS client.

        Args:
            created_ns: When the raw stream was created, Unix nanoseconds; part of the batch id of a JSON message
                without ``Nats-Msg-Id``.

        Returns:
            (Batches, dead letters of what cannot be decoded and of invalid JSON spans).
        """
        payload = message.payload
        if is_json(payload):
            return self._read_json(message, created_ns)
        try:
            return self.read_batches(payload)
        except Rejected as exc:
            return [], [self.dead_letters.undecoded(message, str(exc))]

    def read_batches(self, payload: bytes) -> tuple[list[Batch], list[DeadLetter]]:
        """
        Decode a reporter's batches; a record that cannot be decoded becomes a dead letter, and the others stay.

        Returns:
            (Batches, dead letters).

        Raises:
            Rejected: The payload is not batches, or a field of a batch other than its records is invalid.
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
        dead_letters = []
        for batch, bad in salvaged:
            key, source = f"{batch.id}:{batch.sequence}", self._redactor.text(batch.source)[:MAX_NAME]
            for index, raw, reason in bad:
                kind = reason.partition("[")[0] if _OF_LIST.match(reason) else "span"
                dead_letters.append(self.dead_letters.unread(key, index, reason, raw, kind=kind, source=source))
        return [batch for batch, _ in salvaged], dead_letters

    def _read_json(self, message: Message, created_ns: int) -> tuple[list[Batch], list[DeadLetter]]:
        message_id = message.headers.get("Nats-Msg-Id", "")
        if message_id:
            # With the content, because a publisher that numbers its messages anew after a restart uses ids again.
            digest = hashlib.sha256(b"%d %s" % (len(message_id), message_id.encode() + message.payload)).hexdigest()
            key = f"nats.{digest}"
        else:
            key = f"nats.{created_ns}.{message.sequence}"
        try:
            spans, bad = docs.decode_each(message.payload, source="nats")
        except Rejected as exc:
            return [], [self.dead_letters.undecoded(message, str(exc))]
        dead_letters = [self.dead_letters.unread(key, span.place, span.error, span.data) for span in bad]
        return [Batch(id=key, spans=spans)] if spans or not bad else [], dead_letters


def _as_stated(span: Span) -> Span:
    """Return the span of a reporter with its user and session, and without what only ingest may state."""
    span = as_stated(span)
    changed: dict[str, Any] = {}
    if span.source:
        changed["source"] = ""
    if span.attributes:
        if not span.user_id and (user := user_of(span.attributes)):
            changed["user_id"] = user
        if not span.session_id and (session := session_of(span.attributes)):
            changed["session_id"] = session
    return replace(span, **changed) if changed else span


def is_json(payload: bytes) -> bool:
    """Return True if *payload* begins like a JSON object or array; the msgpack of a reporter never does."""
    return payload[:1].isspace() or payload[:1] in (b"{", b"[") or payload.startswith(BOM)
