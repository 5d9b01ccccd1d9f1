"""
Ingest: cleans what reporters and clients send, and publishes it to the log.

How it works. Reporters publish batches to the work queue ``TT_RAW``; HTTP clients post them to a route. Both go
through one ``Cleaner``, which validates each record, removes secrets, prices spans and splits large batches. The result
goes to the log ``TT_SPANS``, from which all readers build their state.

*Consume loop.* ``_consume_raw`` fetches up to 128 raw messages at a time and processes two fetches concurrently, so
that one is cleaned while the other waits for the broker. A raw message is acknowledged only after the broker has
acknowledged its batches in ``TT_SPANS``. If this process dies in between, the broker delivers the message to another
replica after 5 s. Cleaning is a pure function of the message, so that replica publishes the same batches with the same
ids, and readers drop the duplicates. The response to an HTTP request is also sent after the broker's acknowledgement.

*Group commit.* Batches of many messages and requests for the same shard share one message of ``TT_SPANS``, because
each message costs the broker an fsync (``group_commit``).

*Dead letters.* In what a reporter or NATS client sends, a bad record becomes a dead letter and the other records of
its batch are stored. Its sender is told: in the answer over HTTP, and over NATS on a subject that its reporter serves.
A span that a reporter refused itself comes in ``Batch.refused`` and becomes a dead letter too. A raw message becomes a
dead letter as a whole if its subject is invalid, if it cannot be decoded, if ingest fails on it, or if it was delivered
more than 5 times. A message is acknowledged only after the broker has acknowledged its dead letters. An HTTP request in
another format is rejected as a whole if one of its records is bad, unless it asks to store the others.

*Erasing.* The broker keeps an acknowledged message on disk until every message in the same file is acknowledged. A raw
message that may hold a secret is therefore overwritten before it is acknowledged, with the exceptions in ``_erase``.

*Sending on.* What the log has accepted is also queued for the targets of ``otlp.forward`` before its sender is told.

*Backpressure.* The log discards its oldest messages when it is full, whether or not every reader has read them. So
input waits while a reader is far behind (``backpressure``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from tokentrace.bus import Bus, Delivery, Message, subjects
from tokentrace.config import Settings
from tokentrace.dialect.docs import BadSpan
from tokentrace.errors import Rejected, TokentraceError, Unavailable
from tokentrace.pricing import Pricer
from tokentrace.records import Batch, RefusalNotice, Span, SpanError, encode_notice
from tokentrace.redact import Redactor
from tokentrace.service.health import Health, Sample
from tokentrace.service.ingest_operations import MAX_ERRORS
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace_ingest.backpressure import Backpressure
from tokentrace_ingest.cleaning import Cleaned, Cleaner, is_json
from tokentrace_ingest.dead_letters import DeadLetter
from tokentrace_ingest.forward.forwarder import Forwarder
from tokentrace_ingest.forward.targets import Forwarding
from tokentrace_ingest.forward.tee import Tee
from tokentrace_ingest.group_commit import GroupCommit
from tokentrace_ingest.layout import Layout
from tokentrace_ingest.open_spans import OpenSpans
from tokentrace_ingest.otlp import OtlpRequests, Ready

log = logging.getLogger("tokentrace.ingest")

MAX_DELIVERIES = 5
_FETCH = 128
#: The broker delivers a message again if it is not acknowledged within this many seconds.
ACK_WAIT_S = 5.0
#: Limit of raw messages that are overwritten at the same time.
_MAX_ERASING = 8
#: Seconds of starting tasks after which other tasks get a turn.
_TURN_S = 0.005
#: The label ``way`` repeats ``source`` for one release.
_WAY_DEPRECATED = "The label way is deprecated, use source."
_HELP = {
    "spans": f"Spans accepted. {_WAY_DEPRECATED}",
    "rejected": f"Dead letters, and HTTP requests that were rejected. {_WAY_DEPRECATED}",
    "raw_left": f"Raw messages that may hold a secret and were not overwritten. {_WAY_DEPRECATED}",
}


@dataclass(frozen=True)
class Config:
    """
    The settings that ingest uses.

    Attributes:
        shards: Shard count.
        project: The project that HTTP requests belong to.
        max_batch_size: Limit for the number of spans in one request.
        max_body_bytes: Limit for the body of one request after decompression, bytes.
        spans_path: Path of the route for spans.
        max_otlp_records: Limit for the number of spans or log records in one request of OTLP.
        max_otlp_bytes: Limit for the body of such a request before and after decompression, bytes.
        forwarding: The backends to which what is accepted is sent on.
    """

    shards: int
    project: str
    max_batch_size: int
    max_body_bytes: int
    spans_path: str
    max_otlp_records: int
    max_otlp_bytes: int
    redactor: Redactor
    pricer: Pricer
    forwarding: Forwarding = field(default_factory=Forwarding)

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """Return ingest's part of *settings*."""
        return cls(
            shards=settings.nats.shards,
            project=settings.nats.project,
            max_batch_size=settings.http_server.max_batch_size,
            max_body_bytes=settings.http_server.max_body_bytes,
            spans_path=settings.http_server.ingest_path,
            max_otlp_records=settings.otlp.max_batch_size,
            max_otlp_bytes=settings.otlp.max_body_bytes,
            redactor=settings.redaction.redactor,
            pricer=settings.pricing.pricer(),
            forwarding=Forwarding.of(settings),
        )


class Ingest:
    """The ingest service: it accepts batches from ``TT_RAW`` and from the HTTP routes."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self._cleaner = Cleaner(config.redactor, config.pricer)
        self._backpressure = Backpressure(bus)
        self._group_commit = GroupCommit(bus, config.shards, None, self._backpressure.take)
        self._layout = Layout(bus, self._group_commit)
        self._tee = Tee(bus, config.forwarding.targets, config.redactor)
        self._forwarder = Forwarder(bus, config.forwarding, config.redactor)
        count, send_on = self._count_open_span, self._tee.batches
        self.open_spans = OpenSpans(bus, self._cleaner, self._group_commit, config.project, count, send_on)
        self.otlp = OtlpRequests(
            self,
            self._cleaner,
            config.pricer,
            max_records=config.max_otlp_records,
            max_bytes=config.max_otlp_bytes,
            tee=self._tee,
        )
        self._counts: Counter[tuple[str, str]] = Counter()
        self._redactions: Counter[tuple[str, str]] = Counter()
        self._erasing = asyncio.Semaphore(_MAX_ERASING)

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume raw messages until *stopping* is set, then let those in progress finish for up to ``ACK_WAIT_S``."""
        try:
            await unless_stopped(stopping, until_available(self._layout.read))
        except Stopped:
            return
        async with asyncio.TaskGroup() as tasks:
            consumer = tasks.create_task(self._consume_raw(stopping))
            watcher = tasks.create_task(self._watch_lag())
            tasks.create_task(self._forwarder.run(stopping))
            await stopping.wait()
            watcher.cancel()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(consumer), ACK_WAIT_S)
            consumer.cancel()

    async def accept_batches(self, body: bytes) -> tuple[int, list[SpanError]]:
        """
        Accept the batches that a reporter posted over HTTP.

        Returns:
            (Spans accepted, the spans that became dead letters without those that the reporter had refused itself).

        Raises:
            Rejected: *body* cannot be decoded, or a batch is too large for a message of the log.
            Unavailable: A reader is too far behind, or not everything was acknowledged; try again.
        """
        batches, dead_letters = self._cleaner.read_batches(body)
        cleaned = [await self.accept(batch, "spans", size_bytes=len(body), strict=False) for batch in batches]
        await self._publish_dead_letters(self.config.project, dead_letters, "spans")
        for result in cleaned:
            dead_letters += result.dead_letters
        return sum(result.spans for result in cleaned), _refused_here(dead_letters)

    async def accept_valid(
        self, batch_id: str, spans: Sequence[Span], bad: Sequence[BadSpan], size_bytes: int
    ) -> tuple[int, list[SpanError]]:
        """
        Accept the valid spans of an HTTP request; the others become dead letters.

        Args:
            spans: Valid spans, in the order of the request.
            bad: The other spans of the request.
            size_bytes: Size of the request's body, bytes.

        Returns:
            (Spans accepted, the spans that became dead letters, by their place in the request).

        Raises:
            Rejected, Unavailable: As ``accept``.
        """
        self.check_backpressure()
        await self._layout.known()
        taken = {span.place for span in bad}
        places = [place for place in range(len(spans) + len(bad)) if place not in taken]
        batch = Batch(id=batch_id, spans=list(spans))
        cleaned = self._cleaner.clean(batch, self.now_ns(), size_bytes, checked=True, places=places)
        refused = [SpanError(letter.position, letter.reason) for letter in cleaned.dead_letters]
        dead_letters = [*cleaned.dead_letters]
        for span in bad:
            dead_letters.append(self._cleaner.dead_letters.unread(f"{batch_id}:0", span.place, span.error, span.data))
            refused.append(SpanError(span.place, span.error))
        await self._publish_dead_letters(self.config.project, dead_letters, "spans")
        await self._group_commit.commit(self.config.project, cleaned.parts, made=cleaned.made)
        await self._tee.batches(cleaned.parts)
        self._counts["spans", "spans"] += cleaned.spans
        self._count_redactions(cleaned, "spans")
        return cleaned.spans, sorted(refused, key=lambda error: error.index)

    async def accept(self, batch: Batch, source: str, *, size_bytes: int = 0, strict: bool = True) -> Cleaned:
        """
        Accept one batch of an HTTP request; return once the broker has acknowledged it.

        Args:
            source: Where the batch came from, for the counters: spans, mist or costkatana.
            size_bytes: Size of the request's body, bytes.
            strict: True = a dialect has checked the spans, and one bad record rejects the whole batch. False = the
                spans are checked here, and a bad record becomes a dead letter.

        Raises:
            Rejected: With *strict*, a record is bad; the text names its kind, index and field. Or a part of the batch
                is too large for a message of the log.
            Unavailable: A reader is too far behind, or not everything was acknowledged; try again.
        """
        self.check_backpressure()
        await self._layout.known()
        cleaned = self._cleaner.clean(batch, self.now_ns(), size_bytes, checked=strict)
        if strict and cleaned.dead_letters:
            raise Rejected(cleaned.dead_letters[0].where)
        await self._publish_dead_letters(self.config.project, cleaned.dead_letters, source)
        await self._group_commit.commit(self.config.project, cleaned.parts, made=cleaned.made)
        await self._tee.batches(cleaned.parts)
        self._counts["spans", source] += cleaned.spans
        self._count_redactions(cleaned, source if strict else "reporter")
        return cleaned

    async def open(self) -> None:
        """
        Wait until batches can be placed.

        Raises:
            Unavailable: A reader is too far behind.
        """
        self.check_backpressure()
        await self._layout.known()

    @property
    def max_message_bytes(self) -> int:
        """Limit of an encoded batch, bytes."""
        return self._group_commit.limit

    def encode(self, cleaned: Cleaned) -> list[tuple[str, bytes]]:
        """Return (subject, encoded batch) for each part of *cleaned*; may be called in any thread."""
        return self._group_commit.encode(self.config.project, cleaned.parts, made=cleaned.made)

    async def store(self, ready: Ready, source: str) -> None:
        """
        Store what ``encode`` returned; return once the broker has acknowledged all of it.

        Raises:
            Unavailable: Not everything was acknowledged; send it again.
        """
        self.check_backpressure()
        await self._publish_dead_letters(self.config.project, ready.dead_letters, source)
        await self._group_commit.publish(ready.messages)
        for cleaned in ready.cleaned:
            self._counts["spans", source] += cleaned.spans
            self._count_redactions(cleaned, source)

    def now_ns(self) -> int:
        """Return the broker's time, Unix nanoseconds, at which an HTTP request arrives."""
        return self.bus.clock.now_ns()

    def _count_open_span(self, cleaned: Cleaned) -> None:
        self._counts["spans", "costkatana"] += cleaned.spans
        self._count_redactions(cleaned, "costkatana")

    def _count_redactions(self, cleaned: Cleaned, source: str) -> None:
        for kind, count in cleaned.redactions.items():
            self._redactions[kind, source] += count

    # -- from TT_RAW to TT_SPANS

    async def _consume_raw(self, stopping: asyncio.Event) -> None:
        try:
            state = await unless_stopped(stopping, until_available(lambda: self.bus.state(subjects.RAW)))
        except Stopped:
            return
        created_ns = state.created_ns
        feed = self.bus.consume(subjects.RAW, subjects.INGEST, batch=_FETCH, ack_wait_s=ACK_WAIT_S)
        in_progress: set[asyncio.Task[None]] = set()
        stopped: asyncio.Task[object] = asyncio.create_task(stopping.wait())
        try:
            async with contextlib.aclosing(feed):
                while not stopping.is_set():
                    pull = asyncio.ensure_future(anext(feed))
                    try:
                        await asyncio.wait([pull, stopped], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not pull.done():
                            pull.cancel()
                            await asyncio.wait([pull])
                    if pull.cancelled():
                        break
                    while self._backpressure.blocked and not stopping.is_set():
                        await asyncio.sleep(0.2)
                    in_progress.add(asyncio.create_task(self._process_fetch(pull.result(), created_ns)))
                    # Process two fetches: one is cleaned while the other waits for the broker's acknowledgement.
                    if len(in_progress) > 1:
                        done, in_progress = await asyncio.wait(in_progress, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
            await asyncio.gather(*in_progress)
        finally:
            stopped.cancel()
            for task in in_progress:
                task.cancel()

    async def _process_fetch(self, deliveries: Sequence[Delivery], created_ns: int) -> None:
        turn_ends = time.perf_counter() + _TURN_S
        tasks = []
        for delivery in deliveries:
            tasks.append(asyncio.create_task(self._process_raw(delivery, created_ns)))
            if time.perf_counter() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.perf_counter() + _TURN_S
        await asyncio.gather(*tasks)

    async def _process_raw(self, delivery: Delivery, created_ns: int) -> None:
        """
        Clean, publish and acknowledge one raw message, or turn it into a dead letter.

        Args:
            created_ns: When ``TT_RAW`` was created, Unix nanoseconds.
        """
        message = delivery.message
        try:
            project = subjects.parse_project(message.subject)
            if len(subjects.escape(project)) > subjects.MAX_PROJECT:
                raise Rejected("subject: the project's name is too long")
            if delivery.deliveries > MAX_DELIVERIES:
                raise Rejected(f"delivered {MAX_DELIVERIES} times without success")
        except Rejected as exc:
            await self._discard(delivery, str(exc))
            return
        try:
            if await self._clean_and_commit(project, message, created_ns):
                await self._erase(message)
            await delivery.ack()
        except Unavailable as exc:
            # The broker delivers an unacknowledged message again. Readers drop the batches that they have folded.
            log.info("raw message %d is not acknowledged and will be delivered again: %s", message.sequence, exc)
        except Exception as exc:
            log.exception("raw message %d becomes a dead letter because ingest failed on it", message.sequence)
            await self._discard(delivery, f"ingest failed on it: {type(exc).__name__}")

    async def _clean_and_commit(self, project: str, message: Message, created_ns: int) -> bool:
        """Publish the batches and dead letters of *message*; return True if it must be erased because of secrets."""
        batches, dead_letters = self._cleaner.read(message, created_ns)
        size, checked = len(message.payload), is_json(message.payload)
        results = [self._cleaner.clean(batch, message.time_ns, size, checked=checked) for batch in batches]
        for result in results:
            dead_letters = dead_letters + result.dead_letters
            try:
                await until_available(partial(self._group_commit.commit, project, result.parts, made=result.made))
                self._counts["spans", "nats"] += result.spans
                await until_available(partial(self._tee.batches, result.parts))
            except Rejected as exc:
                dead_letters.append(self._cleaner.dead_letters.undecoded(message, str(exc)))
            self._count_redactions(result, "nats" if checked else "reporter")
        await until_available(partial(self._publish_dead_letters, project, dead_letters, "nats"))
        for batch in batches:
            await self._tell_reporter(project, batch, dead_letters)
        # A bad record may hold a secret that the redactor could not find.
        return self.config.redactor.enabled and (bool(dead_letters) or any(result.redactions for result in results))

    async def _tell_reporter(self, project: str, batch: Batch, dead_letters: Sequence[DeadLetter]) -> None:
        """Tell the reporter of *batch* which of its spans became dead letters; it may have ended meanwhile."""
        key = f"{batch.id}:{batch.sequence}"
        refused = _refused_here([letter for letter in dead_letters if letter.batch == key]) if batch.sequence else []
        if not refused:
            return
        notice = RefusalNotice(id=batch.id, sequence=batch.sequence, rejected=len(refused), errors=refused[:MAX_ERRORS])
        try:
            await self.bus.notify(subjects.refused(project, batch.id), encode_notice(notice))
        except (Unavailable, Rejected) as exc:
            log.debug("the reporter of batch %s was not told of its invalid spans: %s", key, exc)

    async def _discard(self, delivery: Delivery, reason: str) -> None:
        """Publish a dead letter about a raw message and remove the message from the queue; if that fails, it stays."""
        dead_letter = self._cleaner.dead_letters.undecoded(delivery.message, reason)
        try:
            await until_available(partial(self._publish_dead_letters, self.config.project, [dead_letter], "nats"))
            if self.config.redactor.enabled:
                await self._erase(delivery.message)
            await delivery.term(reason)
        except (Unavailable, Rejected) as exc:
            log.info("raw message %d is not removed from the queue: %s", delivery.message.sequence, exc)

    async def _erase(self, message: Message) -> None:
        """
        Overwrite a raw message that may hold a secret; to be called before the message is acknowledged.

        Overwriting keeps the broker busy for some milliseconds, so at most ``_MAX_ERASING`` messages are overwritten at
        the same time. Further messages are only counted as ``raw_left``, as are those that the broker does not erase.
        """
        if self._erasing.locked():
            self._counts["raw_left", "nats"] += 1
            return
        async with self._erasing:
            try:
                await self.bus.erase(subjects.RAW, message.sequence)
            except Unavailable as exc:
                self._counts["raw_left", "nats"] += 1
                log.info("raw message %d may hold a secret and was not overwritten: %s", message.sequence, exc)

    async def _publish_dead_letters(self, project: str, dead_letters: Sequence[DeadLetter], source: str) -> None:
        for dead_letter in dead_letters:
            await self.bus.publish(subjects.rejected(project), dead_letter.body, id=dead_letter.id)
        self._counts["rejected", source] += len(dead_letters)

    # -- backpressure

    async def _watch_lag(self) -> None:
        """Measure how far readers are behind, and follow the agreement with them on how batches are placed."""
        while True:
            try:
                entries = await self.bus.kv(subjects.META).items()
                await self._backpressure.measure(entries)
                await self._layout.agree(entries)
            except TokentraceError as exc:
                log.debug("the lag of the readers was not measured: %s", exc)
            await self._backpressure.wait_for_turn()

    def health(self) -> Health:
        """Return ready if the broker has no problem and input is not blocked; list readers half of the log behind."""
        missing = list(self.bus.problems)
        if blocked := self._backpressure.blocked:
            missing.append(blocked)
        behind = {reader: round(part, 3) for reader, part in self._backpressure.behind.items() if part >= 0.5}
        details: dict[str, object] = {"behind": behind} if behind else {}
        if targets := self._forwarder.states():
            details["forward"] = targets
        if self._layout.waiting_for:
            details["layout_waits_for"] = self._layout.waiting_for
        return Health(missing, details)

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics of this process; the label ``way`` is the deprecated name of ``source``."""
        for (what, source), count in sorted(self._counts.items()):
            labels = {"source": source, "way": source}
            yield Sample(f"tokentrace_ingest_{what}_total", _HELP[what], count, labels)
        help_text = f"Secrets removed from input. {_WAY_DEPRECATED}"
        for (kind, source), count in sorted(self._redactions.items()):
            labels = {"kind": kind, "source": source, "way": source}
            yield Sample("tokentrace_ingest_redactions_total", help_text, count, labels)
        yield from self.otlp.samples()
        yield from self._tee.samples()
        yield from self._forwarder.samples()
        help_text = "What a reader still has to read, as a fraction of the log's size limit."
        for reader, part in self._backpressure.behind.items():
            yield Sample("tokentrace_ingest_reader_behind", help_text, part, {"reader": reader})

    def check_backpressure(self) -> None:
        """
        Refuse input while a reader is too far behind.

        Raises:
            Unavailable: A reader is too far behind; the text names it. Try again after 5 seconds.
        """
        self._backpressure.check()

    def count_refused(self, source: str, spans: int = 1) -> None:
        """Count a request that was rejected as a whole, as *spans* rejected spans."""
        self._counts["rejected", source] += spans


def _refused_here(dead_letters: Sequence[DeadLetter]) -> list[SpanError]:
    """Return the spans among *dead_letters* of which the sender does not know yet that they are not valid."""
    return [
        SpanError(letter.position, letter.reason)
        for letter in dead_letters
        if letter.kind == "span" and not letter.known
    ]
