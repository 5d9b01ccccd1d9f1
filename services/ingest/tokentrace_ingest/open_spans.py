"""
Spans that start in one request and end in another, on whichever replica that one arrives.

What is needed to end a span lies in the bucket ``tt_open_spans``, without secrets, for a day. Its end is decided there
by compare-and-set, and written down together with the batch that tells it before that batch is published: so one end
wins, and whoever comes after a crash in between publishes the very same batch, which readers know by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.bus import HEADROOM_BYTES, Bus, Entry, subjects
from tokentrace.dialect.costkatana import EndInput, Place, check_metadata, end_of
from tokentrace.errors import Conflict, Rejected, Unavailable, shorten
from tokentrace.records import Batch, Span
from tokentrace.records.session import Annotation, Started
from tokentrace_ingest.commit import Committer
from tokentrace_ingest.machine import Cleaner

log = logging.getLogger("tokentrace.ingest")

#: Look-ups of one request under way at once.
_LOOKUPS = 32


class OpenSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What the bucket holds of a span.

    Attributes:
        started: Its start, without secrets.
        early: What the start said already of model, tokens, cost and error; None = nothing.
        journal: From its end on, what is to be published, in order: the finished span, then what later ends added.
        published: How many of the journal are known to be.
    """

    started: Started
    early: Span | None = None
    journal: list[Batch] = []
    published: int = 0

    @property
    def place(self) -> Place:
        """What its children inherit."""
        return Place(self.started.trace_id, self.started.session_id or "")

    @property
    def ended(self) -> Span | None:
        """The finished span; None while it is open."""
        return self.journal[0].spans[0] if self.journal else None

    @property
    def attributes(self) -> dict[str, Any]:
        """The finished span's, with what later ends added."""
        merged: dict[str, Any] = {}
        for batch in self.journal:
            for span in batch.spans:
                merged.update(span.attributes)
            for later in batch.annotations:
                merged.update(later.attributes)
        return merged


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(OpenSpan)


class OpenSpans:
    """
    Starts and ends spans.

    Args:
        cleaner: Takes secrets out, before anything is written anywhere.
    """

    def __init__(self, bus: Bus, cleaner: Cleaner, committer: Committer, project: str) -> None:
        self._bus, self._cleaner, self._committer, self._project = bus, cleaner, committer, project
        self._bucket = bus.kv(subjects.OPEN_SPANS)

    async def find(self, span_ids: Collection[str]) -> dict[str, OpenSpan]:
        """Those of *span_ids* that were started within the last day, ended ones too."""
        room = asyncio.Semaphore(_LOOKUPS)

        async def look_up(span_id: str) -> Entry | None:
            async with room:
                return await self._bucket.get(_key(span_id))

        ids = list(dict.fromkeys(span_ids))
        entries = await asyncio.gather(*map(look_up, ids))
        return {
            span_id: _decoder.decode(entry.value)
            for span_id, entry in zip(ids, entries, strict=True)
            if entry is not None
        }

    async def start(self, started: Started, early: Span | None = None) -> OpenSpan:
        """
        Open a span; returns once its start is stored. The same start again is no second one.

        Raises:
            Rejected: 409 for an id that another span has.
            Unavailable: Perhaps not stored; try again.
        """
        batch = Batch(id=f"costkatana.{started.span_id}.start", started=[started])
        started = self._clean(batch, started.arrived_ns).started[0]
        opened = OpenSpan(started=started, early=self._clean_early(early))
        try:
            await self._bucket.create(_key(started.span_id), self._encode(opened))
        except Conflict:
            opened = (await self.find([started.span_id])).get(started.span_id, opened)
            if _identity(opened.started) != _identity(started):
                raise Rejected(f"traceId: {shorten(started.span_id)!r} is that of another span", status=409) from None
        record = opened.started
        again = Batch(id=f"costkatana.{record.span_id}.start", arrived_ns=record.arrived_ns, started=[record])
        await self._committer.commit(self._project, [again])
        return opened

    async def end(self, span_id: str, end: EndInput, arrived_ns: int) -> bool:
        """
        End a span, or merge metadata into one that has ended; returns once that is stored.

        Returns:
            True when this end finished the span.

        Raises:
            Rejected: 404 when nobody started it within a day, 400 names the field.
            Unavailable: Perhaps not stored; try again.
        """
        key = _key(span_id)
        while True:
            entry = await self._bucket.get(key)
            if entry is None:
                raise Rejected(f"Trace {shorten(span_id)} not found", status=404)
            before = _decoder.decode(entry.value)
            batch = self._merge(before, end, arrived_ns) if before.journal else self._finish(before, end, arrived_ns)
            if batch is None:
                await self._publish(key, before, entry.revision)
                return False
            after = replace(before, journal=[*before.journal, batch])
            if not before.journal:
                # The finished span has it all now, and the entry has to fit into one message.
                after = replace(after, started=replace(after.started, metadata={}), early=None)
            try:
                revision = await self._bucket.update(key, self._encode(after), entry.revision)
            except Conflict:
                continue
            await self._publish(key, after, revision)
            return not before.journal

    def check_end(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> None:
        """
        Whether *end* could end it now.

        Raises:
            Rejected: Names the field.
        """
        if opened.journal:
            self._merge(opened, end, arrived_ns)
        else:
            self._finish(opened, end, arrived_ns)

    def _clean_early(self, early: Span | None) -> Span | None:
        if early is None:
            return None
        clean = self._clean(Batch(id="early", spans=[early]), early.ended_ns).spans[0]
        # Not the price we would give it: that is decided at the end, when its tokens are known.
        return replace(clean, cost_nusd=early.cost_nusd, attributes={})

    def _clean(self, batch: Batch, arrived_ns: int) -> Batch:
        cleaned = self._cleaner.clean(batch, arrived_ns, checked=True)
        if cleaned.letters:
            raise Rejected(cleaned.letters[0].reason)
        return cleaned.parts[0]

    def _finish(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> Batch:
        span = end_of(opened.started, end, arrived_ns, opened.early)
        return self._clean(Batch(id=f"costkatana.{span.span_id}.end", spans=[span]), arrived_ns)

    def _merge(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> Batch | None:
        """What *end* says that is new; None = nothing is."""
        started = opened.started
        said = Annotation(trace_id=started.trace_id, span_id=started.span_id, attributes=end.metadata or {})
        batch = Batch(id=f"costkatana.{started.span_id}.merge.{len(opened.journal)}", annotations=[said])
        part = self._clean(batch, arrived_ns)
        known = opened.attributes
        new = {
            key: value
            for key, value in part.annotations[0].attributes.items()
            if key not in known or _encoder.encode(known[key]) != _encoder.encode(value)
        }
        if not new:
            return None
        check_metadata({**known, **new})
        return replace(part, annotations=[replace(said, attributes=new)])

    async def _publish(self, key: str, opened: OpenSpan, revision: int) -> None:
        """Publish what is not known to be published, one after the other, so that readers merge in this order."""
        if opened.published == len(opened.journal):
            return
        for batch in opened.journal[opened.published :]:
            await self._committer.commit(self._project, [batch])
        try:
            await self._note_published(key, opened, revision)
        except Unavailable as exc:
            # It is stored; the next end publishes it once more, and readers know it by its id.
            log.debug("open span %s: %s", key, exc)

    async def _note_published(self, key: str, opened: OpenSpan, revision: int) -> None:
        count = len(opened.journal)
        while True:
            try:
                await self._bucket.update(key, _encoder.encode(replace(opened, published=count)), revision)
                return
            except Conflict:
                entry = await self._bucket.get(key)
            if entry is None:
                return
            opened, revision = _decoder.decode(entry.value), entry.revision
            if opened.published >= count:
                return

    def _encode(self, opened: OpenSpan) -> bytes:
        data = _encoder.encode(opened)
        room = self._bus.max_payload - HEADROOM_BYTES
        if len(data) > room:
            raise Rejected(f"span: {len(data)} bytes with its metadata, at most {room} are kept", status=413)
        return data


def _key(span_id: str) -> str:
    return hashlib.sha256(span_id.encode()).hexdigest()


def _identity(started: Started) -> tuple[str, str, str | None]:
    return started.name, started.kind, started.parent_span_id
