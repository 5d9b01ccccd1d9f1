"""Ingest as a service: the hop from ``TT_RAW`` to ``TT_SPANS``, the HTTP ways in, the guard of the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tokentrace.bus import Bus, Delivery, Message, subjects
from tokentrace.config import Settings
from tokentrace.errors import Rejected, TokentraceError, Unavailable
from tokentrace.pricing import Pricer
from tokentrace.records import Batch
from tokentrace.redact import Redactor
from tokentrace.service.health import Health, Sample
from tokentrace.service.reader_positions import read_backlog
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace_ingest.cleaning import Cleaned, Cleaner, is_json
from tokentrace_ingest.dead_letters import DeadLetter
from tokentrace_ingest.group_commit import GroupCommit
from tokentrace_ingest.open_spans import OpenSpans

log = logging.getLogger("tokentrace.ingest")

MAX_DELIVERIES = 5
_FETCH = 128
#: A message whose worker died is given to another one after this long, seconds.
ACK_WAIT_S = 5.0
_GUARD_EVERY_S = 2.0
#: Raw messages overwritten at once.
_ERASING = 8
_STOP_AT = 0.9
_HELP = {
    "spans": "Spans accepted.",
    "rejected": "Spans refused.",
    "raw_left": "Raw messages with secrets that were not overwritten, but left to go with their file.",
}
#: For one release both labels are sent.
_DEPRECATED = "Label way is deprecated: use source."


@dataclass(frozen=True)
class Config:
    """
    What ingest has to know.

    Attributes:
        shards: How many there are.
        project: Which one HTTP requests belong to.
        max_batch_size: Spans in one request.
        max_body_bytes: Of one request, after decompression.
        spans_path: Where spans are posted.
    """

    shards: int
    project: str
    max_batch_size: int
    max_body_bytes: int
    spans_path: str
    redactor: Redactor
    pricer: Pricer

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """Ingest's part of *settings*."""
        return cls(
            shards=settings.nats.shards,
            project=settings.nats.project,
            max_batch_size=settings.http_server.max_batch_size,
            max_body_bytes=settings.http_server.max_body_bytes,
            spans_path=settings.http_server.ingest_path,
            redactor=settings.redaction.redactor,
            pricer=Pricer(settings.pricing.rates, settings.pricing.trust_zero),
        )


class Ingest:
    """Everything that comes in goes through here."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self._cleaner = Cleaner(config.redactor, config.pricer)
        self._committer = GroupCommit(bus, config.shards)
        self.open_spans = OpenSpans(bus, self._cleaner, self._committer, config.project, self._count_open_span)
        self._blocked = ""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._redactions: Counter[tuple[str, str]] = Counter()
        self._erasing = asyncio.Semaphore(_ERASING)
        self._behind: dict[str, float] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume raw batches until *stopping* is set; what is under way is finished."""
        async with asyncio.TaskGroup() as tasks:
            hop = tasks.create_task(self._consume_raw(stopping))
            guard = tasks.create_task(self._watch_lag())
            await stopping.wait()
            guard.cancel()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(hop), ACK_WAIT_S)
            hop.cancel()

    async def accept_batches(self, body: bytes) -> tuple[int, int]:
        """
        Take in what a reporter posted, as the hop does from NATS.

        Returns:
            (Spans accepted, spans that became dead letters).
        """
        batches, letters = self._cleaner.read_batches(body)
        cleaned = [await self.accept(batch, "spans", size_bytes=len(body), strict=False) for batch in batches]
        await self._dead_letter(self.config.project, letters, "spans")
        return sum(one.spans for one in cleaned), len(letters) + sum(len(one.letters) for one in cleaned)

    async def accept(self, batch: Batch, way: str, *, size_bytes: int = 0, strict: bool = True) -> Cleaned:
        """
        Take in one batch of an HTTP request; returns once the broker has acknowledged it.

        Args:
            way: Which way in, for the counters.
            strict: Its spans were checked by a dialect, and a bad one refuses the whole batch; else they are checked
                here, and a bad one becomes a dead letter.

        Raises:
            Rejected: Names the index and the field.
            Unavailable: Nothing was acknowledged; try again.
        """
        self.check_backpressure()
        cleaned = self._cleaner.clean(batch, time.time_ns(), size_bytes, checked=strict)
        if strict and cleaned.letters:
            raise Rejected(cleaned.letters[0].where)
        await self._dead_letter(self.config.project, cleaned.letters, way)
        await self._committer.commit(self.config.project, cleaned.parts)
        self._counts["spans", way] += cleaned.spans
        self._count_redactions(cleaned, way if strict else "reporter")
        return cleaned

    def _count_open_span(self, cleaned: Cleaned) -> None:
        self._counts["spans", "costkatana"] += cleaned.spans
        self._count_redactions(cleaned, "costkatana")

    def _count_redactions(self, cleaned: Cleaned, way: str) -> None:
        for kind, count in cleaned.redactions.items():
            self._redactions[kind, way] += count

    # -- the hop

    async def _consume_raw(self, stopping: asyncio.Event) -> None:
        try:
            state = await unless_stopped(stopping, until_available(lambda: self.bus.state(subjects.RAW)))
        except Stopped:
            return
        created_ns = state.created_ns
        feed = self.bus.consume(subjects.RAW, subjects.INGEST, batch=_FETCH, ack_wait_s=ACK_WAIT_S)
        under_way: set[asyncio.Task[None]] = set()
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
                    while self._blocked and not stopping.is_set():
                        await asyncio.sleep(0.2)
                    under_way.add(asyncio.create_task(self._pass_on(pull.result(), created_ns)))
                    # Two fetches under way: one is cleaned while the other waits for its acknowledgement.
                    if len(under_way) > 1:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
            await asyncio.gather(*under_way)
        finally:
            stopped.cancel()
            for task in under_way:
                task.cancel()

    async def _pass_on(self, deliveries: Sequence[Delivery], created_ns: int) -> None:
        turn = time.perf_counter() + 0.005
        passing = []
        for delivery in deliveries:
            passing.append(asyncio.create_task(self._pass_one(delivery, created_ns)))
            if time.perf_counter() > turn:
                await asyncio.sleep(0)
                turn = time.perf_counter() + 0.005
        await asyncio.gather(*passing)

    async def _pass_one(self, delivery: Delivery, created_ns: int) -> None:
        message = delivery.message
        try:
            project = subjects.parse_project(message.subject)
            if len(subjects.escape(project)) > subjects.MAX_PROJECT:
                raise Rejected("subject: the project's name is too long")
            if delivery.deliveries > MAX_DELIVERIES:
                raise Rejected(f"given out {MAX_DELIVERIES} times without success")
        except Rejected as exc:
            await self._give_up(delivery, str(exc))
            return
        try:
            if await self._clean_and_commit(project, message, created_ns):
                await self._erase(message)
            await delivery.ack()
        except Unavailable as exc:
            # Not acknowledged: it will be given to somebody again, and readers know its batches by id.
            log.info("raw message %d: %s", message.sequence, exc)
        except Exception as exc:
            log.exception("raw message %d", message.sequence)
            await self._give_up(delivery, f"ingest failed on it: {type(exc).__name__}")

    async def _clean_and_commit(self, project: str, message: Message, created_ns: int) -> bool:
        """True when there was a secret in *message*, or may have been: nobody could read all of it."""
        batches, letters = self._cleaner.read(message, created_ns)
        size, checked = len(message.payload), is_json(message.payload)
        cleaned = [self._cleaner.clean(batch, message.time_ns, size, checked=checked) for batch in batches]
        for one in cleaned:
            letters = letters + one.letters
            try:
                await until_available(partial(self._committer.commit, project, one.parts))
                self._counts["spans", "nats"] += one.spans
            except Rejected as exc:
                letters.append(self._cleaner.letters.undecoded(message, str(exc)))
            self._count_redactions(one, "nats" if checked else "reporter")
        await until_available(partial(self._dead_letter, project, letters, "nats"))
        return self.config.redactor.enabled and (bool(letters) or any(one.redactions for one in cleaned))

    async def _give_up(self, delivery: Delivery, reason: str) -> None:
        """Dead-letter a message undecoded and take it off the queue."""
        letter = self._cleaner.letters.undecoded(delivery.message, reason)
        try:
            await until_available(partial(self._dead_letter, self.config.project, [letter], "nats"))
            if self.config.redactor.enabled:
                await self._erase(delivery.message)
            await delivery.term(reason)
        except (Unavailable, Rejected) as exc:
            log.info("raw message %d: %s", delivery.message.sequence, exc)

    async def _erase(self, message: Message) -> None:
        """
        Overwrite a raw message that held a secret, before it is acknowledged.

        What is only acknowledged stays readable in the queue's newest file until all that lies in it is acknowledged.
        Overwriting takes the broker some milliseconds, in which it does little else: of a flood only some are.
        """
        if self._erasing.locked():
            self._counts["raw_left", "nats"] += 1
            return
        async with self._erasing:
            try:
                await self.bus.erase(subjects.RAW, message.sequence)
            except Unavailable as exc:
                self._counts["raw_left", "nats"] += 1
                log.info("raw message %d is not overwritten: %s", message.sequence, exc)

    async def _dead_letter(self, project: str, letters: Sequence[DeadLetter], way: str) -> None:
        for letter in letters:
            await self.bus.publish(subjects.rejected(project), letter.body, id=letter.id)
        self._counts["rejected", way] += len(letters)

    # -- the guard

    async def _watch_lag(self) -> None:
        """Refuse to take more in before the log would lose what somebody has not read."""
        while True:
            await asyncio.sleep(_GUARD_EVERY_S)
            try:
                _, self._behind = await read_backlog(self.bus)
            except TokentraceError as exc:
                log.debug("guard: %s", exc)
                continue
            worst = max(self._behind, key=lambda reader: self._behind[reader], default="")
            if worst and self._behind[worst] >= _STOP_AT:
                part = f"{self._behind[worst]:.0%}"
                self._blocked = f"{worst} is {part} of the log behind; nothing is taken in that it would lose"
                log.error(self._blocked)
            else:
                self._blocked = ""

    def health(self) -> Health:
        """Ready when the broker is there and the log has room."""
        missing = list(self.bus.problems)
        if self._blocked:
            missing.append(self._blocked)
        behind = {reader: round(part, 3) for reader, part in self._behind.items() if part >= 0.5}
        return Health(missing, {"behind": behind} if behind else {})

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        for (what, way), count in sorted(self._counts.items()):
            labels = {"way": way, "source": way}
            yield Sample(f"tokentrace_ingest_{what}_total", f"{_HELP[what]} {_DEPRECATED}", count, labels)
        for (kind, way), count in sorted(self._redactions.items()):
            labels = {"kind": kind, "way": way, "source": way}
            text = f"Secrets removed from what was sent. {_DEPRECATED}"
            yield Sample("tokentrace_ingest_redactions_total", text, count, labels)
        for reader, part in self._behind.items():
            yield Sample(
                "tokentrace_ingest_reader_behind", "Part of the log a reader is behind.", part, {"reader": reader}
            )

    def check_backpressure(self) -> None:
        """
        Whether the log has room for more.

        Raises:
            Unavailable: Somebody is too far behind.
        """
        if self._blocked:
            raise Unavailable(self._blocked, retry_after_s=5)

    def count_refused(self, way: str, spans: int = 1) -> None:
        """Note a request that was refused whole."""
        self._counts["rejected", way] += spans
