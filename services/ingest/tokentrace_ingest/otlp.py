"""
OTLP: requests of OpenTelemetry's exporters, whichever way they came, become batches.

*Large requests.* A collector sends thousands of spans at a time, and a second of work on them must not keep other
requests waiting. So a request that is not small is worked on in a thread, one for all requests: it takes the pieces of
each in turn, and decoding a piece holds Python's lock for some milliseconds. A request is also cut into slices, which
are decoded, mapped and stored one after the other, so that memory holds the objects of one slice only. All pieces are
checked before the first slice is stored, so that a refused request leaves nothing behind.

*Repetitions.* The id of a batch is the hash of the body, and its number in the request. Both depend on the bytes alone,
so a request that is sent again makes the same batches.

*Counting once.* Calls that a request tells twice are found within a slice. What is told twice across slices or requests
is recognised by its response id, as everywhere (``tokentrace.dedup``).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from tokentrace.dialect.otlp import OtlpLog, OtlpSpan
from tokentrace.dialect.otlp.pieces import Limits, Piece, count_points, cut
from tokentrace.errors import Rejected
from tokentrace.pricing import Pricer
from tokentrace.records import FUTURE_NS, Batch, Span, reason_of
from tokentrace.service.body import Room
from tokentrace.service.health import Sample
from tokentrace.service.otlp_answers import Encoding, Signal
from tokentrace_ingest.cleaning import Cleaned, Cleaner
from tokentrace_ingest.dead_letters import DeadLetter
from tokentrace_ingest.forward.tee import Tee
from tokentrace_ingest.otlp_batches import (
    MAX_RECORD_BYTES,
    SOURCE,
    TOO_LARGE,
    Ids,
    Made,
    make_annotations,
    make_spans,
    slices,
)

T = TypeVar("T")

#: A request of at most so many bytes is worked on at once, and a larger one in the thread: some ten spans.
_INLINE_BYTES = 16 * 1024
#: A piece of so many bytes is decoded in some milliseconds.
_PIECE_BYTES = 1024 * 1024
#: Limit of a batch, bytes.
_BATCH_BYTES = 1024 * 1024
_NOT_STORED = "metrics are not stored"
_HELP = {
    "metric_points": "Data points of metrics, which are not stored.",
    "ignored_records": "Log records that say nothing about a call and are not stored.",
    "duplicate_calls": "Spans of accepted OTLP requests that tell a call of the same request again.",
}


class Result(NamedTuple):
    """
    What became of a request.

    Attributes:
        rejected: Number of spans, log records or data points that are not stored, and never will be.
        message: Why; "" = everything is stored.
    """

    rejected: int = 0
    message: str = ""


class Ready(NamedTuple):
    """
    Cleaned batches, encoded.

    Attributes:
        cleaned: The results of cleaning.
        messages: (Subject, encoded batch) of all parts.
        dead_letters: One for each record that is not stored.
    """

    cleaned: Sequence[Cleaned]
    messages: Sequence[tuple[str, bytes]]
    dead_letters: Sequence[DeadLetter]


class Store(Protocol):
    """Stores batches; ``tokentrace_ingest.service.Ingest`` implements it."""

    def check_backpressure(self) -> None:
        """Raise ``Unavailable`` while a reader is too far behind."""
        ...

    def count_refused(self, source: str) -> None:
        """Count a request that was refused."""
        ...

    async def open(self) -> None:
        """Return once batches can be placed; raise ``Unavailable`` while a reader is too far behind."""
        ...

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """Limit of an encoded batch, bytes."""
        ...

    def encode(self, cleaned: Cleaned) -> list[tuple[str, bytes]]:
        """Return (subject, encoded batch) for each part of *cleaned*."""
        ...

    async def store(self, ready: Ready, source: str) -> None:
        """Return once everything is acknowledged; raise ``Unavailable`` if it is not."""
        ...


class OtlpRequests:
    """
    Takes requests of OTLP.

    Args:
        pricer: Prices calls that a request tells twice.
        max_records: Limit for the spans or log records of a request.
        tee: Sends requests on to other backends.

    Attributes:
        max_bytes: Limit for the body of a request before and after decompression.
        room: The memory for the bodies that are read or processed at the same time, twice *max_bytes*.
    """

    def __init__(
        self, store: Store, cleaner: Cleaner, pricer: Pricer, *, max_records: int, max_bytes: int, tee: Tee
    ) -> None:
        self._store, self._cleaner, self._pricer = store, cleaner, pricer
        self._limits = Limits(max_records, _PIECE_BYTES, MAX_RECORD_BYTES)
        self.max_bytes, self._tee = max_bytes, tee
        self.room = Room(2 * max_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="otlp")
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    async def export(self, signal: Signal, encoding: Encoding, body: bytes) -> Result:
        """
        Store a request; return once the broker has acknowledged all of it.

        Args:
            body: The request, decompressed.

        Raises:
            Rejected: The request cannot be decoded, is of another signal or holds too many records; nothing is stored.
            Unavailable: A reader is too far behind, or not everything was acknowledged; send the same request again.
        """
        if signal == "metrics":
            points = await self._do(len(body), lambda: count_points(encoding, body))
            if self._tee.takes(signal) and points:
                await self._tee.request(signal, encoding, body, hashlib.sha256(body).hexdigest())
                return Result()
            self._counts["metric_points"] += points
            return Result(points, _NOT_STORED if points else "")
        await self._store.open()
        pieces, digest = await self._do(
            len(body),
            lambda: (cut(encoding, signal, body, self._limits), hashlib.sha256(body).hexdigest()),
        )
        arrived_ns, ids = self._store.now_ns(), Ids(f"body.{digest}", 0)
        parts = list(slices(pieces.parts))
        if len(parts) > 1:
            await self._check(signal, pieces.parts)
        unread = self._cleaner.dead_letters.unread
        kind = "span" if signal == "traces" else "annotation"
        large = [unread(f"{ids.request}:0", place, TOO_LARGE, data, kind=kind) for place, data in pieces.too_large]
        if large:
            await self._store.store(Ready([], [], large), SOURCE)
        refused = large
        for part in parts:
            made = await self._make(signal, part, ids, arrived_ns, is_whole=len(parts) == 1)
            ids = Ids(ids.request, ids.used + len(made.batches))
            size = sum(piece.size for piece in part)
            refused = [*refused, *await self._keep(made, ids.request, size, arrived_ns)]
            if self._tee.takes(signal):
                for piece in part:
                    await self._tee.request(signal, encoding, piece.encode(), f"{digest}.{piece.places.start}")
        self._reasons.update(reason_of(letter.reason) for letter in refused)
        return Result(len(refused), refused[0].where) if refused else Result()

    def check_backpressure(self) -> None:
        """Raise ``Unavailable`` while a reader is too far behind."""
        self._store.check_backpressure()

    def count_refused(self) -> None:
        """Count a request that was refused."""
        self._store.count_refused(SOURCE)

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics that other ways in do not have."""
        for name, count in sorted(self._counts.items()):
            yield Sample(f"tokentrace_ingest_otlp_{name}_total", _HELP[name], count)
        for reason, count in sorted(self._reasons.items()):
            text = "Records of accepted OTLP requests that became dead letters."
            yield Sample("tokentrace_ingest_otlp_rejected_total", text, count, {"reason": reason})

    async def _do(self, size_bytes: int, work: Callable[[], T]) -> T:
        if size_bytes <= _INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _check(self, signal: Signal, pieces: Sequence[Piece]) -> None:
        """Decode every piece, so that a request that cannot be decoded is refused before a part of it is stored."""
        found = [await self._do(piece.size, piece.check) for piece in pieces]
        if signal == "traces":
            _check_ids(any(found))

    async def _make(self, signal: Signal, pieces: list[Piece], ids: Ids, arrived_ns: int, *, is_whole: bool) -> Made:
        """Decode and map the *pieces* of one slice; *is_whole* = it is the only one of its request."""
        size = sum(piece.size for piece in pieces)
        most_bytes = min(_BATCH_BYTES, self._store.max_message_bytes // 2)
        if signal == "logs":
            logs: list[OtlpLog] = []
            for piece in pieces:
                logs += await self._do(piece.size, piece.logs)
            return await self._do(size, lambda: make_annotations(logs, ids, most_bytes))
        spans: list[OtlpSpan] = []
        for piece in pieces:
            spans += await self._do(piece.size, piece.spans)
        if is_whole:
            _check_ids(any(span.trace_id and span.span_id for span in spans))
        places = [place for piece in pieces for place in piece.places]
        return await self._do(size, lambda: make_spans(spans, places, ids, most_bytes, self._price(arrived_ns)))

    async def _keep(self, made: Made, request_id: str, size_bytes: int, arrived_ns: int) -> list[DeadLetter]:
        """Clean and store what a slice became; return its dead letters."""
        dead_letters = [
            self._cleaner.dead_letters.span(f"{request_id}:0", place, reason, span, {})
            for place, reason, span in made.refused
        ]
        cleaned: list[Cleaned] = []
        messages: list[tuple[str, bytes]] = []
        for batch, places in made.batches:
            result, encoded = await self._do(size_bytes, partial(self._clean, batch, places, arrived_ns))
            cleaned.append(result)
            messages += encoded
            dead_letters += result.dead_letters
        await self._store.store(Ready(cleaned, messages, dead_letters), SOURCE)
        self._counts.update(duplicate_calls=made.duplicates, ignored_records=made.ignored)
        return dead_letters

    def _clean(self, batch: Batch, places: list[int], arrived_ns: int) -> tuple[Cleaned, list[tuple[str, bytes]]]:
        cleaned = self._cleaner.clean(batch, arrived_ns, checked=True, places=places if batch.spans else None)
        return cleaned, self._store.encode(cleaned)

    def _price(self, arrived_ns: int) -> Callable[[Span], int | None]:
        def price(span: Span) -> int | None:
            ended = span.ended_ns or arrived_ns
            return self._pricer.quote(span, ended if ended <= arrived_ns + FUTURE_NS else arrived_ns).cost_nusd

        return price


def _check_ids(found: bool) -> None:
    if not found:
        raise Rejected("body: no span has a trace id and a span id; is it of another signal than traces?")
