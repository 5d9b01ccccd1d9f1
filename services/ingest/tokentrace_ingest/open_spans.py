"""
Spans that start in one request and end in another, on whichever replica that one arrives.

What is needed to end a span lies in the bucket ``tt_open_spans``, without secrets, for a day. Its end is decided there
by compare-and-set, and written down together with the batch that tells it before that batch is published: so one end
wins, and whoever comes after a crash in between publishes the very same batch, which readers know by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import reading
from tokentrace.bus import HEADROOM_BYTES, Bus, Entry, subjects
from tokentrace.dialect.costkatana import EndInput, Place, check_metadata, end_of
from tokentrace.errors import Conflict, Rejected, Unavailable, shorten
from tokentrace.records import Annotation, Batch, Span, Started, encode_batch
from tokentrace_ingest.cleaning import MAX_SPAN_BYTES, Cleaned, Cleaner
from tokentrace_ingest.group_commit import GroupCommit

log = logging.getLogger("tokentrace.ingest")

#: Look-ups of one request under way at once.
_LOOKUPS = 32


class OpenSpan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What the bucket holds of a span.

    Attributes:
        started: Its start, without secrets; without its metadata once it has ended.
        early: What the start said already of model, tokens, cost and error; None = nothing.
        attributes: Of the finished span, with what later ends added; None = it has not ended.
        merges: How many later ends added something.
        journal: What is not known to be published, in order: the finished span, then what later ends added.
    """

    started: Started
    early: Span | None = None
    attributes: dict[str, Any] | None = None
    merges: int = 0
    journal: list[Batch] = []

    @property
    def place(self) -> Place:
        """What its children inherit."""
        return Place(self.started.trace_id, self.started.session_id or "")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(OpenSpan)


class OpenSpans:
    """
    Starts and ends spans.

    Args:
        cleaner: Takes secrets out, before anything is written anywhere.
        count: Is told what was cleaned, once for what is stored once.
    """

    def __init__(
        self, bus: Bus, cleaner: Cleaner, committer: GroupCommit, project: str, count: Callable[[Cleaned], None]
    ) -> None:
        self._bus, self._cleaner, self._committer, self._project = bus, cleaner, committer, project
        self._count = count
        self._bucket = bus.kv(subjects.OPEN_SPANS)

    async def find(self, span_ids: Collection[str]) -> dict[str, OpenSpan]:
        """Those of *span_ids* that were started within the last day, ended ones too."""
        room = asyncio.Semaphore(_LOOKUPS)

        async def look_up(span_id: str) -> Entry | None:
            async with room:
                return await self._bucket.get(subjects.open_span_key(span_id))

        ids = list(dict.fromkeys(span_ids))
        entries = await asyncio.gather(*map(look_up, ids))
        found = {}
        for span_id, entry in zip(ids, entries, strict=True):
            opened = self._decode(span_id, entry)
            if opened is not None:
                found[span_id] = opened
        return found

    def _decode(self, span_id: str, entry: Entry | None) -> OpenSpan | None:
        """None: there is no entry, or it cannot be read, and so nothing is known of that span."""
        if entry is None:
            return None
        which = f"key {subjects.open_span_key(span_id)} revision {entry.revision}"
        with self._bus.set_aside.guard(subjects.OPEN_SPANS, which), reading("open span"):
            opened = _decoder.decode(entry.value)
            if opened.started.span_id != span_id:
                raise ValueError("stands under the key of another span")
            return opened
        return None

    async def start(self, started: Started, early: Span | None = None) -> OpenSpan:
        """
        Open a span; returns once its start is stored. The same start again is no second one.

        Raises:
            Rejected: 409 for an id that another span has, 413 too large.
            Unavailable: Perhaps not stored; try again.
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
                raise Rejected(f"traceId: {shorten(started.span_id)!r} is that of another span", status=409) from None
            batch = replace(batch, arrived_ns=opened.started.arrived_ns, started=[opened.started])
        if opened.attributes is None:
            await self._committer.commit(self._project, [batch], beside=_shard_key(opened))
        return opened

    async def end(self, span_id: str, end: EndInput, arrived_ns: int) -> None:
        """
        End a span, or merge metadata into one that has ended; returns once that is stored.

        Raises:
            Rejected: 404 when nobody started it within a day, 400 names the field, 413 too large.
            Unavailable: Perhaps not stored; try again.
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
        Whether *end* could end it now.

        Raises:
            Rejected: Names the field.
        """
        self._clean_end(opened, end, arrived_ns)

    def _clean_early(self, early: Span | None) -> Span | None:
        if early is None:
            return None
        clean = self._clean(Batch(id="early", spans=[early]), early.ended_ns).parts[0].spans[0]
        # Not the price we would give it: that is decided at the end, when its tokens are known.
        return replace(clean, cost_nusd=early.cost_nusd, attributes={})

    def _clean_end(self, opened: OpenSpan, end: EndInput, arrived_ns: int) -> Cleaned | None:
        """The batch that tells of *end*: the finished span, or what is new of its metadata; None = nothing is."""
        started, known = opened.started, opened.attributes
        if known is None:
            span = end_of(started, end, arrived_ns, opened.early)
            return self._clean(Batch(id=f"costkatana.{span.span_id}.end", spans=[span]), arrived_ns)
        said = Annotation(trace_id=started.trace_id, span_id=started.span_id, attributes=end.metadata or {})
        batch = Batch(id=f"costkatana.{started.span_id}.merge.{opened.merges + 1}", annotations=[said])
        cleaned = self._clean(batch, arrived_ns)
        (clean,) = cleaned.parts[0].annotations
        new = {
            key: value
            for key, value in clean.attributes.items()
            # As bytes, for to Python 1, 1.0 and True are equal.
            if key not in known or _encoder.encode(known[key]) != _encoder.encode(value)
        }
        if not new:
            return None
        check_metadata({**known, **new})
        return cleaned._replace(parts=[replace(cleaned.parts[0], annotations=[replace(clean, attributes=new)])])

    def _clean(self, batch: Batch, arrived_ns: int) -> Cleaned:
        cleaned = self._cleaner.clean(batch, arrived_ns, checked=True)
        if cleaned.letters:
            raise Rejected(cleaned.letters[0].reason)
        size = len(encode_batch(cleaned.parts[0]))
        if size > MAX_SPAN_BYTES:
            raise Rejected(f"span: {size} bytes, at most {MAX_SPAN_BYTES} are taken", status=413)
        return cleaned

    async def _publish(self, key: str, opened: OpenSpan, revision: int) -> None:
        """Publish the journal, one after the other, so that every reader merges in this order."""
        if not opened.journal:
            return
        for batch in opened.journal:
            await self._committer.commit(self._project, [batch], beside=_shard_key(opened))
        try:
            await self._note_published(key, opened, revision)
        except Unavailable as exc:
            # It is stored; the next end publishes it once more, and readers know it by its id.
            log.debug("open span %s: %s", key, exc)

    async def _note_published(self, key: str, opened: OpenSpan, revision: int) -> None:
        done = {batch.id for batch in opened.journal}
        while True:
            left = [batch for batch in opened.journal if batch.id not in done]
            if len(left) == len(opened.journal):
                return
            try:
                await self._bucket.update(key, self._encode(replace(opened, journal=left)), revision)
                return
            except Conflict:
                entry = await self._bucket.get(key)
            now = self._decode(opened.started.span_id, entry)
            if entry is None or now is None:
                return
            opened, revision = now, entry.revision

    def _encode(self, opened: OpenSpan) -> bytes:
        data = _encoder.encode(opened)
        room = self._bus.max_payload - HEADROOM_BYTES
        if len(data) > room:
            raise Rejected(f"span: {len(data)} bytes with its metadata, at most {room} are kept", status=413)
        return data


def _ended(before: OpenSpan, batch: Batch) -> OpenSpan:
    """*before* with one more end that *batch* tells of."""
    journal = [*before.journal, batch]
    if before.attributes is None:
        # The start's metadata is in the finished span now; an entry has to be small, for a day's spans lie there.
        started = replace(before.started, metadata={})
        return replace(before, started=started, early=None, attributes=batch.spans[0].attributes, journal=journal)
    merged = {**before.attributes, **batch.annotations[0].attributes}
    return replace(before, attributes=merged, merges=before.merges + 1, journal=journal)


def _shard_key(opened: OpenSpan) -> str:
    """All that is told of a span shares a shard: of two ends that say different things the later is read last."""
    return f"costkatana.{opened.started.span_id}"


def _identity(started: Started) -> tuple[str, str, str | None]:
    return started.name, started.kind, started.parent_span_id
