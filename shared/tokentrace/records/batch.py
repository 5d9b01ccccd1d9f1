"""Batches: spans and other records that are published together, with an id by which readers recognise repetitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import astuple

from tokentrace.bad_data import UNREADABLE, reading
from tokentrace.errors import Rejected, cut_quoted, quoted
from tokentrace.records.cut import fit_texts, joined
from tokentrace.records.lenient import relax
from tokentrace.records.session import Annotation, ChatMessage, Score, SessionEnd, Started, Tombstone
from tokentrace.records.span import SPAN_FIELDS, Instant, Name, Span
from tokentrace.records.told import Count, RefusalNotice, ReporterStats

#: The HTTP content type of batches in the form of ``encode_batches``, which a reporter posts.
BATCH_TYPE = "application/vnd.tokentrace.batches+msgpack"


class RefusedSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A span that its reporter did not send, because it is not valid.

    Attributes:
        index: Its place among the spans that the batch was made of, from 0.
        reason: What is wrong with it; names the field.
        span: The span without secrets; None if it cannot be decoded or redacted.
        size_bytes: Its size when encoded; 0 if it could not be encoded.
        sha256: Hash of the encoded span, hexadecimal; "" if it could not be encoded.
    """

    index: Count = 0
    reason: Annotated[str, Meta(max_length=1024)] = ""
    span: Span | None = None
    size_bytes: Count = 0
    sha256: Annotated[str, Meta(max_length=64)] = ""


class Batch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    Spans and other records that are folded together or not at all.

    Attributes:
        id: The id of the reporter, ``<project>.<source>.<128 random bits>``, or else the id of this batch alone.
        sequence: The number of the batch within its reporter, from 1; 0 if the id alone identifies the batch.
        part: The index of this part, from 0, of a batch that ingest had to split.
        arrived_ns: When the pipeline received the batch, Unix nanoseconds; 0 = not received yet.
        source: The name of the reporter, which becomes the caller of spans that name none.
        reporter: The counters of the reporter when it made this batch; None for a batch that no reporter sent.
        layout: 0 = the id of the batch decided its shard; 1 = the identity of each span did, and *part* is the number
            of the run of spans times the shard count plus the shard.
        identities: The identities of the spans in order, as ``tokentrace.dedup`` encodes them; b"" = not computed yet.
        refused: Spans that the reporter did not send because they are not valid. Ingest makes dead letters of them.
    """

    id: Annotated[str, Meta(min_length=1, max_length=400)]
    sequence: Count = 0
    part: Annotated[int, Meta(ge=0, le=2**20)] = 0
    arrived_ns: Instant = 0
    source: Name = ""
    spans: list[Span] = []
    reporter: ReporterStats | None = None
    started: list[Started] = []
    scores: list[Score] = []
    messages: list[ChatMessage] = []
    session_ends: list[SessionEnd] = []
    tombstones: list[Tombstone] = []
    annotations: list[Annotation] = []
    layout: Annotated[int, Meta(ge=0, le=2**15)] = 0
    identities: bytes = b""
    refused: list[RefusedSpan] = []


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A batch whose records are not decoded yet, so that each can be decoded separately."""

    id: Annotated[str, Meta(min_length=1, max_length=400)]
    sequence: Count = 0
    part: Annotated[int, Meta(ge=0, le=2**20)] = 0
    arrived_ns: Instant = 0
    source: Name = ""
    spans: list[msgspec.Raw] = []
    reporter: ReporterStats | None = None
    started: list[msgspec.Raw] = []
    scores: list[msgspec.Raw] = []
    messages: list[msgspec.Raw] = []
    session_ends: list[msgspec.Raw] = []
    tombstones: list[msgspec.Raw] = []
    annotations: list[msgspec.Raw] = []
    layout: Annotated[int, Meta(ge=0, le=2**15)] = 0
    identities: bytes = b""
    refused: list[msgspec.Raw] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Batch])
_envelopes = msgspec.msgpack.Decoder(list[_Envelope])
#: Field of a batch -> the type of the records in it.
_RECORDS: dict[str, type[msgspec.Struct]] = {
    "spans": Span,
    "started": Started,
    "scores": Score,
    "messages": ChatMessage,
    "session_ends": SessionEnd,
    "tombstones": Tombstone,
    "annotations": Annotation,
    "refused": RefusedSpan,
}
_span_decoder = msgspec.msgpack.Decoder(Span)
_EMPTY_SPAN = Span()
_notices = msgspec.json.Decoder(RefusalNotice)
_decoders: dict[str, Callable[[msgspec.Raw], Any]] = {
    field: msgspec.msgpack.Decoder(kind).decode for field, kind in _RECORDS.items()
}


def encode_batches(batches: Sequence[Batch]) -> bytes:
    """Encode *batches* as one NATS message, a msgpack array."""
    return _encoder.encode(batches)


def decode_batches(payload: bytes) -> list[Batch]:
    """
    Decode the batches of one NATS message.

    Raises:
        Rejected: *payload* is not msgpack or not batches, or a value is out of bounds.
    """
    with reading("batch"):
        return _decoder.decode(payload)


def read_span(data: bytes | msgspec.Raw) -> Span:
    """
    Decode a span; what is merely long or written in another way than ours is cut, or taken as what it means.

    Raises:
        One of ``UNREADABLE``: *data* is no span, or a value is out of bounds.
    """
    try:
        return _span_decoder.decode(data)
    except UNREADABLE:
        values = msgspec.msgpack.decode(data)
        if not isinstance(values, list):
            raise
        missing = astuple(_EMPTY_SPAN)[len(values) :]
        fields = dict(zip(SPAN_FIELDS, [*relax(values, Span), *missing], strict=False))
        notes: list[str] = []
        fields |= fit_texts(fields, notes)
        if notes and not fields["adjusted"]:
            fields["adjusted"] = joined((), notes)
        return msgspec.convert(list(fields.values()), Span)


def salvage_batches(payload: bytes) -> list[tuple[Batch, list[tuple[int, bytes, str]]]]:
    """
    Decode the valid records of a message that ``decode_batches`` rejects; spans are decoded by ``read_span``.

    Returns:
        For each batch: the batch with its valid records, and (index, bytes, reason) for each invalid record. The
        reason begins with the field and index of the record, such as ``scores[2]``, unless the record is a span.

    Raises:
        Rejected: The message is not batches, or a field of a batch other than its records is invalid.
    """
    with reading("batch"):
        envelopes = _envelopes.decode(payload)
    return [_salvage(envelope) for envelope in envelopes]


def _salvage(envelope: _Envelope) -> tuple[Batch, list[tuple[int, bytes, str]]]:
    kept: dict[str, Any] = {name: getattr(envelope, name) for name in envelope.__struct_fields__}
    bad: list[tuple[int, bytes, str]] = []
    for field, decode in {**_decoders, "spans": read_span}.items():
        good: list[Any] = []
        for index, raw in enumerate(kept[field]):
            try:
                good.append(decode(raw))
            except UNREADABLE as exc:
                reason = name_fields(str(exc), _RECORDS[field].__struct_fields__)
                bad.append((index, bytes(raw), reason if field == "spans" else f"{field}[{index}]: {reason}"))
        kept[field] = good
    return Batch(**kept), bad


def encode_notice(notice: RefusalNotice) -> bytes:
    """Encode *notice* as JSON."""
    return msgspec.json.encode(notice)


def decode_notice(payload: bytes) -> RefusalNotice:
    """
    Decode what ``encode_notice`` encoded.

    Raises:
        Rejected: *payload* is no such notice.
    """
    with reading("refusals"):
        return _notices.decode(payload)


def name_fields(message: str, fields: Sequence[str] = SPAN_FIELDS) -> str:
    """
    Replace the position in an error of a msgspec decoder by a field name: ``$[13]`` of a span is ``prompt_tokens``.

    Args:
        message: The error text.
        fields: The field names of the record, in order.

    Returns:
        ``<field>: <error>`` with each quoted value cut to 40 characters; without a field if the text names no position.
    """
    start = message.rfind("`$[")
    if start < 0:
        return cut_quoted(message)
    digits = message[start + 3 :].partition("]")[0]
    if not (digits.isascii() and digits.isdigit()) or int(digits) >= len(fields):
        return cut_quoted(message)
    return f"{fields[int(digits)]}: {cut_quoted(message[:start].removesuffix(' - at '))}"


def join_encoded(batches: Sequence[bytes]) -> bytes:
    """Join batches that ``encode_batch`` encoded into one NATS message that ``decode_batches`` reads."""
    return _encoder.encode([msgspec.Raw(batch) for batch in batches])


def encode_batch(batch: Batch) -> bytes:
    """Encode one batch for ``join_encoded``."""
    return _encoder.encode(batch)


def shard_of(batch: Batch, shards: int) -> int:
    """
    Return the shard of *batch*, from 0 to *shards* - 1.

    The batches of a reporter are spread over the shards in turn. The shard of any other batch is a hash of its id, so
    that a repetition reaches the reader that has folded the first one.
    """
    if shards == 1:
        return 0
    if batch.sequence:
        return batch.sequence % shards
    return int.from_bytes(hashlib.sha256(batch.id.encode()).digest()[:4], "big") % shards


def check_batch_id(text: str) -> str:
    """
    Return *text* if it is a valid batch id: 1-400 printable ASCII characters, which are safe in headers and logs.

    Raises:
        Rejected: *text* is not a valid batch id.
    """
    if not (text and len(text) <= 400 and text.isascii() and text.isprintable()):
        raise Rejected(f"batch id: {quoted(text)} is not 1-400 printable ASCII characters")
    return text


def split_spans(spans: Sequence[Span], size: int) -> Iterable[Sequence[Span]]:
    """Cut *spans* into runs of *size* by index, so that the same spans are always cut in the same way."""
    return (spans[start : start + size] for start in range(0, len(spans), size))
