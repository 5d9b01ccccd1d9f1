"""
Spans that start in one request and end in another; the two requests may reach different replicas.

An entry in the bucket ``tt_open_spans`` keeps the start of a span for a day, without secrets. An end is written to the
entry by compare-and-set, together with the batch that is to be published, and the batch is published afterwards. So of
two simultaneous ends one comes first, and the other is handled as a later end. After a crash between the two steps the
next end publishes the same batch again, and readers drop it if they have already folded a batch with its id.

The bucket also keeps *places*: the trace and the session of a span that is not open, claimed by the first request that
names the span as a parent, or that sends the span itself when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import reading
from tokentrace.bus import HEADROOM_BYTES, Bus, Entry, subjects
from tokentrace.dialect.costkatana import EndInput, Place, check_metadata, end_of
from tokentrace.errors import Conflict, Rejected, Unavailable, quoted, shorten
from tokentrace.records import MAX_SPAN_BYTES, Annotation, Batch, Span, Started, encode_batch
from tokentrace_ingest.cleaning import Cleaned, Cleaner
from tokentrace_ingest.group_commit import GroupCommit

log = logging.getLogger("tokentrace.ingest")

#: Limit of concurrent look-ups of one request.
_LOOKUPS = 32


class OpenSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    The entry of a span in the bucket.

    Attributes:
        started: The start, without secrets. Its metadata is removed when the span ends.
        early: A span with the model, tokens, cost and error that the start already gave; None = it gave none of them.
        attributes: Attributes of the finished span and of later ends; None = the span has not ended.
        merges: Number of later ends that added attributes.
        journal: Batches that are perhaps not published yet, in order: the finished span, then later annotations.
    """

    started: Started
    early: Span | None = None
    attributes: dict[str, Any] | None = None
    merges: int = 0
    journal: list[Batch] = []

    @property
    def place(self) -> Place:
        """The trace and the session of the span, which its children inherit."""
        return Place(self.started.trace_id, self.started.session_id or "")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(OpenSpan)
_places = msgspec.msgpack.Decoder(Place)


class OpenSpans:
    """
    Starts and ends spans.

    Args:
        cleaner: Removes secrets before anything is written to the bucket or the log.
        project: The project whose log the spans go to.
        count: Called once for each start and each end that is stored.
        send_on: Called with the batches of an end before it is answered; raises ``Unavailable`` to have it repeated.
    """

    def __init__(
        self,
        bus: Bus,
        cleaner: Cleaner,
        group_commit: GroupCommit,
        project: str,
        count: Callable[[Cleaned], None],
        send_on: Callable[[Sequence[Batch]], Awaitable[None]],
    ) -> None:
        self._bus, self._cleaner, self._group_commit, self._project = bus, cleaner, group_commit, project
        self._count, self._send_on = count, send_on
        self._bucket = bus.kv(subjects.OPEN_SPANS)

    async def find(self, span_ids: Collection[str]) -> dict[str, OpenSpan]:
        """Return span id -> entry, for those of *span_ids* with a readable entry; entries are kept for a day."""
        look_ups = asyncio.Semaphore(_LOOKUPS)

        async def look_up(span_id: str) -> Entry | None:
            async with look_ups:
                return await self._bucket.get(subjects.open_span_key(span_id))

        ids = list(dict.fromkeys(span_ids))
        entries = await asyncio.gather(*map(look_up, ids))
        entry_of = {}
        for span_id, entry in zip(ids, entries, strict=True):
            opened = self._decode(span_id, entry)
            if opened is not None:
                entry_of[span_id] = opened
        return entry_of

    def _decode(self, span_id: str, entry: Entry | None) -> OpenSpan | None:
        """Return the entry of a span; None if there is none or it cannot be decoded, which is recorded."""
        if entry is None:
            return None
        which = f"key {subjects.open_span_key(span_id)} revision {entry.revision}"
        with self._bus.set_aside.guard(subjects.OPEN_SPANS, which), reading("open span"):
            opened = _decoder.decode(entry.value)
            if opened.started.span_id != span_id:
                raise ValueError("the entry is under the key of another span")
            return opened
        return None

    async def places_of(self, span_ids: Collection[str]) -> dict[str, Place]:
        """Return span id -> place, for those of *span_ids* whose place was claimed in the last day."""
        look_ups = asyncio.Semaphore(_LOOKUPS)

        async def look_up(span_id: str) -> Place | None:
            async with look_ups:
                return self._decode_place(span_id, await self._bucket.get(subjects.place_key(span_id)))

        ids = list(dict.fromkeys(span_ids))
        found = await asyncio.gather(*map(look_up, ids))
        return {span_id: place for span_id, place in zip(ids, found, strict=True) if place is not None}

    async def claim(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """
        Claim the places of spans, so that relatives that are sent later are put into the same trace.

        Returns:
            Span id -> the place that was claimed before, for those of *places* of which another one was.

        Raises:
            Unavailable: A place may or may not be claimed; try again.
        """
        room = asyncio.Semaphore(_LOOKUPS)

        async def claim(span_id: str, place: Place) -> Place:
            key = subjects.place_key(span_id)
            async with room:
                try:
                    await self._bucket.create(key, _encoder.encode(place))
                except Conflict:
                    return self._decode_place(span_id, await self._bucket.get(key)) or place
            return place

        claimed = await asyncio.gather(*(claim(span_id, place) for span_id, place in places.items()))
        pairs = zip(places.items(), claimed, strict=True)
        return {span_id: held for (span_id, place), held in pairs if held.trace_id != place.trace_id}

    def _decode_place(self, span_id: str, entry: Entry | None) -> Place | None:
        if entry is None:
            return None
        which = f"key {subjects.place_key(span_id)} revision {entry.revision}"
        with self._bus.set_aside.guard(subjects.OPEN_SPANS, which), reading("place of a span"):
            return _places.decode(entry.value)
        return None

    async def start(self, started: Started, early: Span | None = None) -> OpenSpan:
        """
        Open a span; return once its start is stored. A repeated start opens no second span.

        Args:
            early: A span with the model, tokens, cost and error that the start gives; None = it gives none of them.

        Raises:
            Rejected: 409 if another span has this id, 413 if the start is too large, 400 if a field is invalid.
            Unavailable: The start may or may not be stored; try again.
        """
        cleaned = self._clean(Batch(id=f"costkatana.{started.span_id}.start", started=[started]), started.arrived_ns)
        batch = cleaned.parts[0]
        started = batch.started[0]
        opened = OpenSpan(started=started, early=self._clean_early(early))
        try:
            await self._bucket.create(subjects.open_span_key(started.span_id), self._encode(opened))
            self._count(cleaned)
        except Conflict:
            opened = (await self.find([started.span_id])).get(started.span_id, opened)
            if _identity(opened.started) != _identity(started):
                raise Rejected(f"traceId: {quoted(started.span_id)} is the id of another span", status=409) from None
            batch = replace(batch, arrived_ns=opened.started.arrived_ns, started=[opened.started])
        if opened.attributes is None:
            await self._group_commit.commit(self._project, [batch], order_key=_order_key(opened))
        return opened

    async def end(self, span_id: str, end: EndInput, arrived_ns: int) -> None:
        """
        End a span, or add metadata to one that has ended; return once the change is stored.

        Args:
            arrived_ns: Unix nanoseconds; the end of the span if *end* names none.

        Raises:
            Rejected: 404 if there is no readable entry of the span, because it was not started within the last day;
                400 if a field of *end* is invalid; 413 if the end is too large.
            Unavailable: The end may or may not be stored; try again.
        """
        key = subjects.open_span_key(span_id)
        while True:
            entry = await self._bucket.get(key)
            before = self._decode(span_id, entry)
            if entry is None or before is None:
                raise Rejected(f"Trace {shorten(span_id)} not found", status=404)
            cleaned = self._clean_end(before, end, arrived_ns)
            if cleaned is None:
                await self._publish(key, before, entry.revision)
                return
            after = _ended(before, cleaned.parts[0])
            try:
                revision = await self._bucket.update(key, self._encode(after), entry.revision)
            except Conflict:
                continue
            self._count(cleaned)
            await self._publish(key, after, revision)
            return

    def check_end(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> None:
        """
        Check *end* without writing anything.

        Raises:
            Rejected: 400 if a field is invalid, 413 if *end* is too large.
        """
        self._clean_end(opened, end, arrived_ns)

    def _clean_early(self, early: Span | None) -> Span | None:
        if early is None:
            return None
        clean = self._clean(Batch(id="early", spans=[early]), early.ended_ns).parts[0].spans[0]
        # Keep the reported cost. The span is priced at its end, when its tokens are known.
        return replace(clean, cost_nusd=early.cost_nusd, attributes={})

    def _clean_end(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> Cleaned | None:
        """Return a clean batch with the finished span, or with the metadata that *end* changes; None = no change."""
        started, known = opened.started, opened.attributes
        if known is None:
            span = end_of(started, end, arrived_ns, opened.early)
            return self._clean(Batch(id=f"costkatana.{span.span_id}.end", spans=[span]), arrived_ns)
        annotation = Annotation(trace_id=started.trace_id, span_id=started.span_id, attributes=end.metadata or {})
        batch = Batch(id=f"costkatana.{started.span_id}.merge.{opened.merges + 1}", annotations=[annotation])
        cleaned = self._clean(batch, arrived_ns)
        (clean,) = cleaned.parts[0].annotations
        new = {
            key: value
            for key, value in clean.attributes.items()
            # Compare the encodings, because 1 == 1.0 == True in Python.
            if key not in known or _encoder.encode(known[key]) != _encoder.encode(value)
        }
        if not new:
            return None
        check_metadata({**known, **new})
        return cleaned._replace(parts=[replace(cleaned.parts[0], annotations=[replace(clean, attributes=new)])])

    def _clean(self, batch: Batch, arrived_ns: int) -> Cleaned:
        cleaned = self._cleaner.clean(batch, arrived_ns, checked=True)
        if cleaned.dead_letters:
            raise Rejected(cleaned.dead_letters[0].reason)
        size = len(encode_batch(cleaned.parts[0]))
        if size > MAX_SPAN_BYTES:
            raise Rejected(f"span: {size} bytes, at most {MAX_SPAN_BYTES} are accepted", status=413)
        return cleaned

    async def _publish(self, key: str, opened: OpenSpan, revision: int) -> None:
        """Publish the batches of the journal one after the other, so that every reader folds them in order."""
        if not opened.journal:
            return
        for batch in opened.journal:
            await self._group_commit.commit(self._project, [batch], order_key=_order_key(opened))
        await self._send_on(opened.journal)
        try:
            await self._note_published(key, opened, revision)
        except Unavailable as exc:
            # The batches are stored. The next end publishes them again, and readers drop them by their ids.
            log.debug("open span %s: the journal still holds published batches: %s", key, exc)

    async def _note_published(self, key: str, opened: OpenSpan, revision: int) -> None:
        published = {batch.id for batch in opened.journal}
        while True:
            left = [batch for batch in opened.journal if batch.id not in published]
            if len(left) == len(opened.journal):
                return
            try:
                await self._bucket.update(key, self._encode(replace(opened, journal=left)), revision)
                return
            except Conflict:
                entry = await self._bucket.get(key)
            current = self._decode(opened.started.span_id, entry)
            if entry is None or current is None:
                return
            opened, revision = current, entry.revision

    def _encode(self, opened: OpenSpan) -> bytes:
        data = _encoder.encode(opened)
        limit = self._bus.max_payload - HEADROOM_BYTES
        if len(data) > limit:
            raise Rejected(f"span: {len(data)} bytes with its metadata, at most {limit} fit into an entry", status=413)
        return data


def _ended(before: OpenSpan, batch: Batch) -> OpenSpan:
    """
    Return the entry that follows *before* after a request to end its span.

    Args:
        batch: Holds the finished span if this is the first end, else the annotation with the changed metadata.
    """
    journal = [*before.journal, batch]
    if before.attributes is None:
        # Keep entries small, because the bucket holds those of a day. The finished span repeats the metadata.
        started = replace(before.started, metadata={})
        return replace(before, started=started, early=None, attributes=batch.spans[0].attributes, journal=journal)
    merged = {**before.attributes, **batch.annotations[0].attributes}
    return replace(before, attributes=merged, merges=before.merges + 1, journal=journal)


def _order_key(opened: OpenSpan) -> str:
    """Return the key that sends all batches of a span to one shard, so that readers fold a later end last."""
    return f"costkatana.{opened.started.span_id}"


def _identity(started: Started) -> tuple[str, str, str | None]:
    return started.name, started.kind, started.parent_span_id
