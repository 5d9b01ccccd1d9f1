"""What a sender does with its spool: it keeps batches while the server is away, and sends them when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tokentrace.client.reporter.deliveries import SPOOL_AFTER_S, Deliveries
from tokentrace.client.reporter.destination import Carrier
from tokentrace.client.reporter.outgoing import count_spans
from tokentrace.client.reporter.span_queue import SpanQueue
from tokentrace.client.spool import MAX_AGE_NS, Fsync, Header, HeldDirectory, Record, Spool, adoptable, read_file
from tokentrace.errors import ConfigError, TokentraceError, Unavailable
from tokentrace.version import __version__

log = logging.getLogger("tokentrace.reporter")

_POLL_S = 0.1
_ADOPT_S = 30.0
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 2.0


class Spooling:
    """
    The tasks of a sender for its spool.

    Args:
        spool: The spool of the reporter.
        queue: Its queue, which counts what becomes of spooled spans.
        deliveries: Prepares and keeps batches.

    Attributes:
        away_since: When the connection was lost or first tried, monotonic seconds; None = there is one.
    """

    def __init__(self, spool: Spool, queue: SpanQueue, deliveries: Deliveries) -> None:
        self._spool, self._queue, self._deliveries = spool, queue, deliveries
        self.away_since: float | None = None
        #: The ids of batches that were accepted, of a file that could not be sent to its end yet.
        self._accepted: set[str] = set()

    async def keep_while_away(self) -> None:
        """Write batches to the disk while there is no connection."""
        while True:
            await asyncio.sleep(_POLL_S)
            if self.away_since is None or time.monotonic() - self.away_since < SPOOL_AFTER_S:
                continue
            try:
                await self._keep_all()
            except Exception as exc:  # noqa: BLE001 - a defect: later batches must be kept
                self._deliveries.fault("batches were not written to the spool", exc)

    async def _keep_all(self) -> None:
        for batch in list(self._deliveries.in_flight.values()):
            if not self._deliveries.keep(batch):
                break
        self._queue.seconds_until_due()  # it notes since when spans wait
        while not self._deliveries.in_flight and self._queue.batch_is_due():
            self._deliveries.keep(self._queue.take_batch())
            await asyncio.sleep(0)

    async def send_files(self, carrier: Carrier) -> None:
        """Send the files of this reporter, and those of dead processes, oldest first and one batch at a time."""
        pause = _FIRST_PAUSE_S
        adopted_at = -_ADOPT_S
        while True:
            try:
                if not self._spool.is_empty:
                    await self._send_own(carrier)
                if time.monotonic() - adopted_at >= _ADOPT_S:
                    for held in adoptable(self._spool.root):
                        await self._send_adopted(carrier, held)
                    adopted_at = time.monotonic()
                pause = _FIRST_PAUSE_S
            except (Unavailable, OSError) as exc:
                self._deliveries.trouble = str(exc)
                pause = min(pause * 2, _MAX_PAUSE_S)
            except Exception as exc:  # noqa: BLE001 - a defect: later files must be sent
                self._deliveries.fault("the spool was not sent", exc)
                pause = _MAX_PAUSE_S
            await asyncio.sleep(pause)

    async def _send_own(self, carrier: Carrier) -> None:
        self._spool.seal()
        for path in self._spool.files():
            await self._send_file(carrier, path)
            self._queue.settle_spooled(dropped=self._spool.remove(path))

    async def _send_adopted(self, carrier: Carrier, held: HeldDirectory) -> None:
        sent = 0
        try:
            for path in held.files():
                sent += await self._send_file(carrier, path)
                path.unlink(missing_ok=True)
            if sent:
                log.info("reporter %s: %d spans of a dead process, in %s, are sent", self._spool.name, sent, held.path)
        finally:
            held.release()

    async def _send_file(self, carrier: Carrier, path: Path) -> int:
        """
        Send the batches of a file that were not accepted yet, and return how many spans of another process they had.

        Raises:
            Unavailable: A batch was not accepted.
        """
        file = read_file(path)
        if file is None:
            log.warning("reporter %s: %s is no spool file, or its head is torn; it is dropped", self._spool.name, path)
            return 0
        if file.is_torn:
            log.warning(
                "reporter %s: the end of the spool file %s is torn; %d batches of it are sent",
                self._spool.name,
                path,
                len(file.records),
            )
        sent = old = 0
        is_own = file.header.reporter_id == self._deliveries.id
        for record in file.records:
            id = f"{file.header.reporter_id}:{record.sequence}"
            spans = count_spans(record.payload)
            if time.time_ns() - record.stored_ns > MAX_AGE_NS:
                old += spans
            elif id in self._accepted or await self._send_record(carrier, file.header, record, id):
                sent += spans
                if not is_own and id not in self._accepted:
                    self._queue.count_adopted(spans)
                self._accepted.add(id)
            if is_own and id in self._accepted:
                self._queue.settle_spooled(acked=self._spool.accepted(record.sequence))
        self._accepted.clear()  # what is accepted of the next file has other ids
        if old:
            log.warning("reporter %s: %d spans in %s are too old and are dropped", self._spool.name, old, path)
        return sent

    async def _send_record(self, carrier: Carrier, header: Header, record: Record, id: str) -> bool:
        """Send a batch under the id and number that it had; return False if it was refused."""
        accepted = True
        try:
            await carrier.send(record.payload, id, record.sequence, header.project)
        except Unavailable:
            raise
        except TokentraceError as exc:
            accepted = False
            log.error("reporter %s: a batch of the spool was refused and its spans are lost: %s", self._spool.name, exc)
            if header.reporter_id == self._deliveries.id:
                self._queue.settle_spooled(failed=self._spool.accepted(record.sequence))
        self._deliveries.accepted_at, self._deliveries.trouble = time.monotonic(), ""
        return accepted

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep batches while away, during the block."""
        task = asyncio.create_task(self.keep_while_away())
        try:
            yield
        finally:
            task.cancel()

    @contextlib.asynccontextmanager
    async def connected(self, carrier: Carrier) -> AsyncIterator[None]:
        """Send the files during the block, in which there is a connection."""
        self.away_since = None
        task = asyncio.create_task(self.send_files(carrier))
        try:
            yield
        finally:
            task.cancel()
            self.away_since = time.monotonic()


def spool_maker(root: Path, max_bytes: int, fsync: Fsync, project: str, source: str) -> Callable[[str], Spool]:
    """
    Return a function from the id of a reporter to its spool.

    Raises:
        ConfigError: *fsync* is unknown.
    """
    if fsync not in ("never", "batch"):
        raise ConfigError(f"reporter: fsync: {fsync!r} is none of never, batch")
    return lambda id: Spool(root, max_bytes, fsync, Header(project, source, id, 0, __version__), source)
