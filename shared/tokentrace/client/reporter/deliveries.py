"""The batches of a reporter between its queue and the pipeline: prepared, sent until they are accepted, and counted."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from tokentrace.client import native
from tokentrace.client.reporter.destination import Answer, Carrier
from tokentrace.client.reporter.notices import Notices
from tokentrace.client.reporter.outgoing import Outgoing
from tokentrace.client.reporter.span_queue import SpanQueue, TakenBatch
from tokentrace.client.spool import Spool
from tokentrace.errors import Unavailable, shorten
from tokentrace.records import RefusalNotice, SpanError
from tokentrace.redact import Redactor, pausing

log = logging.getLogger("tokentrace.reporter")

#: The first and the longest pauses between attempts, seconds; each pause is twice the one before.
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0
#: A batch that was not accepted for this time goes to the spool, seconds.
SPOOL_AFTER_S = 1.0
#: The accepted batches of which ingest may still say that spans are invalid.
_MAX_REMEMBERED = 4096
#: While spans are prepared, the sender sleeps for so long after holding the interpreter for so long, seconds.
_HOLD_S = 0.0003
_REST_S = 0.00002


class Deliveries:
    """
    Sends batches and counts what became of their spans. All methods run in the sender's thread.

    Args:
        id: The id of the reporter's batches.
        source: The name of the program, which each batch contains.
        queue: Counts the spans.
        redactor: Removes secrets from each span before it is sent.
        notices: What is logged.

    Attributes:
        id: As given.
        in_flight: Batches that were taken from the queue and are neither accepted nor refused, by number; they are
            sent again after a fault.
        accepted_at: When spans were last accepted, or began to wait; monotonic seconds.
        trouble: Why spans are not accepted, "" = unknown.
    """

    def __init__(self, id: str, source: str, queue: SpanQueue, redactor: Redactor, notices: Notices) -> None:
        self.id, self._source, self._queue, self._redactor, self._notices = id, source, queue, redactor, notices
        self.in_flight: dict[int, TakenBatch | Outgoing] = {}
        self.accepted_at = 0.0
        self.trouble = ""
        #: Number of an accepted batch -> its valid spans, until ingest says that some of them are not valid.
        self._valid: dict[int, int] = {}
        #: Notices about batches whose acceptance is not known yet.
        self._early: dict[int, RefusalNotice] = {}
        self._rested_at = 0.0
        #: Keeps batches that are not accepted; None = they wait in memory.
        self.spool: Spool | None = None

    def fault(self, what: str, error: Exception) -> None:
        """Log a defect."""
        self._notices.fault(what, error)

    async def send(self, carrier: Carrier, taken: TakenBatch | Outgoing) -> None:
        """Send the valid spans of a batch, again and under the same id, until the batch is accepted or refused."""
        try:
            batch = taken if isinstance(taken, Outgoing) else self._outgoing(taken)
            self.in_flight[batch.sequence] = batch
            await self._send_until_accepted(carrier, batch)
        except Exception as exc:  # noqa: BLE001 - a defect: the next batches must go on
            self._notices.fault("a batch was not sent and its spans are lost", exc)
            if self.in_flight.pop(taken.sequence, None) is not None:
                self._queue.finish(failed=taken.size)

    def _outgoing(self, taken: TakenBatch) -> Outgoing:
        pause, refused = self._let_others_run, self._notices.refused
        with pausing(pause):
            return Outgoing(self.id, self._source, taken, self._redactor, refused, pause)

    def _let_others_run(self) -> None:
        """Sleep for a moment if this thread has held the interpreter for long and the queue has room meanwhile."""
        if time.perf_counter() - self._rested_at >= _HOLD_S and not self._queue.crowded:
            native.sleep(_REST_S)
            self._rested_at = time.perf_counter()

    async def _send_until_accepted(self, carrier: Carrier, batch: Outgoing) -> None:
        pause = _FIRST_PAUSE_S
        # While older batches are on disk and the server is away, those on disk are tried, and new ones join them.
        waits = 0.0 if self.trouble and self.spool is not None and not self.spool.is_empty else SPOOL_AFTER_S
        until = time.monotonic() + waits if self.spool is not None else math.inf
        while True:
            try:
                left = until - time.monotonic()
                async with asyncio.timeout(left if 0 < left < math.inf else None if left > 0 else 0):
                    answer = await carrier.send(batch.payload, f"{self.id}:{batch.sequence}", batch.sequence)
            except (Unavailable, TimeoutError) as exc:
                self.trouble = str(exc) or self.trouble or "no answer"
                log.debug("batch %d was not accepted: %s", batch.sequence, self.trouble)
                if time.monotonic() >= until:
                    if self.keep(batch):
                        return
                    until = math.inf
                await asyncio.sleep(min(pause, max(until - time.monotonic(), 0.0)))
                pause = min(pause * 2, _MAX_PAUSE_S)
            except Exception as exc:  # noqa: BLE001 - refused, or a defect: sending it again would not help
                self._notices.failed(batch.valid, str(exc))
                self._finish(batch, failed=batch.valid, rejected=batch.rejected)
                self._queue.restore_unreported(batch.stats)
                return
            else:
                self._accepted(batch, answer)
                return

    def keep(self, taken: TakenBatch | Outgoing) -> bool:
        """Write a batch to the spool; return False if it stays in memory."""
        if self.spool is None:
            return False
        batch = taken if isinstance(taken, Outgoing) else self._outgoing(taken)
        self.in_flight[batch.sequence] = batch
        kept, dropped = self.spool.append(batch.sequence, batch.payload, batch.valid)
        self._queue.settle_spooled(dropped=dropped)
        if kept:
            del self.in_flight[batch.sequence]
            self._queue.finish(spooled=batch.valid, rejected=batch.rejected, truncated=batch.truncated)
        return kept

    def keep_rest(self) -> None:
        """Write all that waits to the spool, as far as there is one that can be written."""
        for batch in list(self.in_flight.values()):
            if not self.keep(batch):
                return
        while self.spool is not None and self._queue.has_waiting:
            if not self.keep(self._queue.take_batch()):
                return

    def _finish(
        self, batch: Outgoing, *, acked: int = 0, failed: int = 0, rejected: int = 0, truncated: int = 0
    ) -> None:
        del self.in_flight[batch.sequence]
        self._queue.finish(acked=acked, failed=failed, rejected=rejected, truncated=truncated)

    def _accepted(self, batch: Outgoing, answer: Answer) -> None:
        self.accepted_at, self.trouble = time.monotonic(), ""
        notice = self._early.pop(batch.sequence, None)
        if notice is not None:
            answer = Answer(notice.rejected, notice.errors)
        there = min(answer.rejected, batch.valid)
        if there:
            self._say_refused(there, answer.errors)
        else:
            self._valid[batch.sequence] = batch.valid
            if len(self._valid) > _MAX_REMEMBERED:
                del self._valid[next(iter(self._valid))]
        self._finish(
            batch, acked=batch.valid - there, rejected=batch.rejected + there, truncated=max(batch.truncated - there, 0)
        )
        self._notices.accepted(self._queue.depth)

    def noticed(self, notice: RefusalNotice) -> None:
        """Count the spans that ingest found invalid after their batch was accepted; a notice may come twice."""
        if notice.id != self.id:
            return
        if notice.sequence in self.in_flight:
            self._early[notice.sequence] = notice
            return
        refused = min(notice.rejected, self._valid.pop(notice.sequence, 0))
        if refused:
            self._queue.reject_acked(refused)
            self._say_refused(refused, notice.errors)

    def _say_refused(self, count: int, errors: Sequence[SpanError]) -> None:
        """Log the reasons in *errors*, which are the first of *count*."""
        for error in errors[:count]:
            self._notices.refused(shorten(error.error, 300))
        if count > len(errors):
            self._notices.refused("ingest names no reason", count - len(errors))
