"""A batch: spans in one NATS message, with the identity that lets every reader fold it exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tokentrace.bad_data import UNREADABLE, reading
from tokentrace.errors import Rejected, cut_quoted, shorten
from tokentrace.records.session import Annotation, ChatMessage, Score, SessionEnd, Started, Tombstone
from tokentrace.records.span import SPAN_FIELDS, Instant, Name, Span

#: The content type of ``encode_batches`` over HTTP: what a reporter posts, ids and numbers included.
BATCH_TYPE = "application/vnd.tokentrace.batches+msgpack"

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ReporterStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    A reporter's own account, cumulative since it was made, in spans.

    Attributes:
        sent: Handed to the network at least once.
        acked: Accepted by the pipeline.
        dropped: Thrown away because the queue was full or the program ended.
        failed: Refused for good.
        queue_depth: Waiting now.
        newly_dropped, newly_failed: Of dropped and failed, what no accepted batch has told before: so whoever adds
            these up over batches, in any order and on any number of workers, has the whole.
    """

    sent: Count = 0
    acked: Count = 0
    dropped: Count = 0
    failed: Count = 0
    queue_depth: Count = 0
    newly_dropped: Count = 0
    newly_failed: Count = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    Spans, and rarely other records, that are folded together or not at all.

    Attributes:
        id: ``<project>.<source>.<128 random bits>`` of a reporter, or the id of one HTTP request.
        sequence: A reporter's batch number, from 1; 0 = the id stands alone.
        part: Which piece of a batch that ingest had to split, from 0.
        arrived_ns: When the pipeline took it in, Unix nanoseconds; 0 = not yet.
        source: What the reporter calls itself; fills in a span's missing caller.
        reporter: The reporter's account when it sent this; None for HTTP.
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


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A batch whose records are still bytes, for saving the good ones from the bad."""

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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Batch])
_envelopes = msgspec.msgpack.Decoder(list[_Envelope])
#: Field of a batch -> the records it holds.
_RECORDS: dict[str, type[msgspec.Struct]] = {
    "spans": Span,
    "started": Started,
    "scores": Score,
    "messages": ChatMessage,
    "session_ends": SessionEnd,
    "tombstones": Tombstone,
    "annotations": Annotation,
}
_decoders = {field: msgspec.msgpack.Decoder(kind) for field, kind in _RECORDS.items()}


def encode_batches(batches: Sequence[Batch]) -> bytes:
    """One NATS message that carries *batches*."""
    return _encoder.encode(batches)


def decode_batches(payload: bytes) -> list[Batch]:
    """
    The batches of one NATS message.

    Raises:
        Rejected: Not msgpack, not batches, or a value out of bounds.
    """
    with reading("batch"):
        return _decoder.decode(payload)


def salvage_batches(payload: bytes) -> list[tuple[Batch, list[tuple[int, bytes, str]]]]:
    """
    What can be saved of a message that ``decode_batches`` refuses.

    Returns:
        Per batch: the batch with its good records, and (index, bytes, reason) of each bad one; the reason names the
        list it stands in when that is not ``spans``.

    Raises:
        Rejected: Not even the envelope can be read.
    """
    with reading("batch"):
        envelopes = _envelopes.decode(payload)
    return [_salvage(envelope) for envelope in envelopes]


def _salvage(envelope: _Envelope) -> tuple[Batch, list[tuple[int, bytes, str]]]:
    kept: dict[str, Any] = {name: getattr(envelope, name) for name in envelope.__struct_fields__}
    bad: list[tuple[int, bytes, str]] = []
    for field, decoder in _decoders.items():
        good: list[Any] = []
        for index, raw in enumerate(kept[field]):
            try:
                good.append(decoder.decode(raw))
            except UNREADABLE as exc:
                reason = name_fields(str(exc), _RECORDS[field].__struct_fields__)
                bad.append((index, bytes(raw), reason if field == "spans" else f"{field}[{index}]: {reason}"))
        kept[field] = good
    return Batch(**kept), bad


def name_fields(message: str, fields: Sequence[str] = SPAN_FIELDS) -> str:
    """An array-like record's ``$[13]`` by its name, one of *fields*: ``prompt_tokens`` of a span."""
    start = message.rfind("`$[")
    if start < 0:
        return cut_quoted(message)
    digits = message[start + 3 :].partition("]")[0]
    if not (digits.isascii() and digits.isdigit()) or int(digits) >= len(fields):
        return cut_quoted(message)
    return f"{fields[int(digits)]}: {cut_quoted(message[:start].removesuffix(' - at '))}"


def join_encoded(batches: Sequence[bytes]) -> bytes:
    """One NATS message of batches that are encoded already, each by ``encode_batch``."""
    return _encoder.encode([msgspec.Raw(batch) for batch in batches])


def encode_batch(batch: Batch) -> bytes:
    """One batch for ``join_encoded``."""
    return _encoder.encode(batch)


def shard_of(batch: Batch, shards: int) -> int:
    """A reporter's batches go round the shards in turn; a request's shard is a hash of its id, so repeats meet."""
    if shards == 1:
        return 0
    if batch.sequence:
        return batch.sequence % shards
    return int.from_bytes(hashlib.sha256(batch.id.encode()).digest()[:4], "big") % shards


def check_batch_id(text: str) -> str:
    """
    *text* as a batch id: printable ASCII, so that it can stand in a header and a log.

    Raises:
        Rejected: It is not.
    """
    if not (text and len(text) <= 400 and text.isascii() and text.isprintable()):
        raise Rejected(f"batch id: {shorten(text)!r} is not 1-400 printable ASCII characters")
    return text


def split_spans(spans: Sequence[Span], size: int) -> Iterable[Sequence[Span]]:
    """*spans* cut by index into runs of *size*: the same cut however often it is done."""
    return (spans[start : start + size] for start in range(0, len(spans), size))
