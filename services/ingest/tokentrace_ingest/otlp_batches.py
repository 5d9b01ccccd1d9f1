"""Pure parts of ``otlp``: the slices of a large request, and the batches that the records of a slice make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tokentrace.dialect.otlp import OtlpLog, OtlpSpan, map_logs, map_spans
from tokentrace.dialect.otlp.fold import Price
from tokentrace.dialect.otlp.pieces import Piece
from tokentrace.records import MAX_NAME, Annotation, Batch, Span, encode_batch

SOURCE = "otlp"
#: Limits of a slice. The spans of a trace should be in one, and collectors send up to 8192 spans at a time.
_SLICE_RECORDS, _SLICE_BYTES = 8192, 16 * 1024 * 1024
#: Limit for the spans of a batch; cleaning would split a larger one.
_BATCH_SPANS = 256
#: A record of more bytes is not decoded; the texts of a million tokens take less.
MAX_RECORD_BYTES = 8 * 1024 * 1024
TOO_LARGE = f"over {MAX_RECORD_BYTES} bytes"


class Refused(NamedTuple):
    """A record of a request that is not stored: its place, the reason, and what is known of it."""

    place: int
    reason: str
    span: Span


class Made(NamedTuple):
    """
    What a slice became.

    Attributes:
        batches: Batches, and the place in the request of each of their spans.
        refused: The spans that are in no batch, although they should be.
        duplicates: Number of the calls that are told a second time.
        ignored: Number of log records that say nothing about a call.
    """

    batches: list[tuple[Batch, list[int]]]
    refused: list[Refused]
    duplicates: int = 0
    ignored: int = 0


class Ids(NamedTuple):
    """
    The ids of the batches of a request, which depend on its bytes alone.

    Attributes:
        request: The id of the first batch.
        used: Number of batches that earlier slices have made.
    """

    request: str
    used: int

    def of(self, number: int) -> str:
        """Return the id of the batch *number* of this slice, from 0."""
        place = self.used + number
        return f"{self.request}.{place}" if place else self.request


def slices(parts: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces that are mapped together."""
    waiting: list[Piece] = []
    records = size = 0
    for piece in parts:
        if waiting and (records + len(piece.places) > _SLICE_RECORDS or size + piece.size > _SLICE_BYTES):
            yield waiting
            waiting, records, size = [], 0, 0
        waiting.append(piece)
        records += len(piece.places)
        size += piece.size
    if waiting:
        yield waiting


def make_spans(spans: Sequence[OtlpSpan], places: Sequence[int], ids: Ids, most_bytes: int, price: Price) -> Made:
    """
    Return the batches of *spans*.

    Args:
        places: The place of each span in the request.
        most_bytes: Limit for the spans of a batch, bytes.
    """
    mapped = map_spans(spans, price)
    refused = [Refused(places[at], reason, _known(spans[at])) for at, reason in mapped.bad]
    runs: list[tuple[list[Span], list[int]]] = []
    size = most_bytes
    for place, reading in zip(places, mapped.readings, strict=True):
        if reading.span is None:
            continue
        span_bytes = len(encode_batch(Batch(id="size", spans=[reading.span])))
        if size + span_bytes > most_bytes or len(runs[-1][0]) == _BATCH_SPANS:
            runs.append(([], []))
            size = 0
        runs[-1][0].append(reading.span)
        runs[-1][1].append(place)
        size += span_bytes
    batches = [(Batch(id=ids.of(number), spans=run), at) for number, (run, at) in enumerate(runs)]
    return Made(batches, refused, duplicates=mapped.saved["calls"])


def make_annotations(logs: Sequence[OtlpLog], ids: Ids, most_bytes: int) -> Made:
    """Return the batches of *logs*; the arguments are those of ``make_spans``."""
    mapped = map_logs(logs)
    runs: list[list[Annotation]] = []
    size = most_bytes
    for annotation in mapped.annotations:
        annotation_bytes = len(encode_batch(Batch(id="size", annotations=[annotation])))
        if size + annotation_bytes > most_bytes:
            runs.append([])
            size = 0
        runs[-1].append(annotation)
        size += annotation_bytes
    batches = [(Batch(id=ids.of(number), annotations=run), list[int]()) for number, run in enumerate(runs)]
    return Made(batches, [], ignored=mapped.ignored)


def _known(span: OtlpSpan) -> Span:
    return Span(trace_id=span.trace_id, span_id=span.span_id, name=span.name[:MAX_NAME], source=SOURCE)
