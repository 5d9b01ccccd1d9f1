"""Stores the messages of the log in order. While the disk refuses writes, writing is retried and reading pauses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tokentrace.bus import Bus, Message, subjects
from tokentrace.errors import Unavailable
from tokentrace.records import Span, Tombstone, decode_batches
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace_api.store import Item, Store, StoreDamaged

log = logging.getLogger("tokentrace.api.store")

#: Least time between the beginnings of two calls that store messages, seconds, and about the most bytes of one call.
_FLUSH_S = 0.1
_FLUSH_BYTES = 8 * 1024 * 1024
#: Reading pauses while more than this number of bytes has been read from the log and not stored.
_AHEAD_BYTES = 64 * 1024 * 1024
_PRUNE_EVERY_S = 60.0
_CHECK_EVERY_S = 1.0
T = TypeVar("T")


class StoreWriter:
    """
    Opens the store and fills it from the log. One thread writes to the store, and four threads run queries.

    If a file of the open store is found to be damaged, the store is closed and opened again, and the log is read again
    from the positions saved in the store.

    Args:
        open_store: Opens the store; called in the writing thread, and repeated while it raises ``Unavailable``.
        on_stored: Called with the new spans after they were stored.

    Attributes:
        problem: Why the store cannot be opened or written now; "" = no problem.
        lost: (shard, first sequence, last sequence) of messages that the log discarded before they were read; the last
            20 such ranges.
        stored: Number of spans stored since the start.
    """

    def __init__(
        self, bus: Bus, shards: int, open_store: Callable[[], Store], on_stored: Callable[[list[Span]], Awaitable[None]]
    ) -> None:
        self._bus, self._shards, self._open_store, self._on_stored = bus, shards, open_store, on_stored
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="store-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._store: Store | None = None
        self.problem = ""
        self.lost: list[tuple[int, int, int]] = []
        self.stored = 0
        self._damaged: list[str] = []
        self._start_reading()

    def _start_reading(self) -> None:
        #: Messages that wait, each with the ``time.monotonic`` at which it was read.
        self._queue: asyncio.Queue[tuple[float, Item]] = asyncio.Queue()
        self._oldest_s: float | None = None
        self._queued = [0] * self._shards
        self._ahead_bytes = 0
        self._room = asyncio.Event()
        self._pending = [0] * self._shards
        self._targets: list[int | None] = [None] * self._shards

    @property
    def store(self) -> Store:
        """The open store; raises ``Unavailable`` while it is not open."""
        if self._store is None:
            raise Unavailable("span store: not open yet")
        return self._store

    async def run(self) -> None:
        """Store messages until cancelled; messages that are not stored by then are read at the next start."""
        try:
            while True:
                store = await self._until_accepted(self._open_store)
                try:
                    await self._fill(store)
                except* StoreDamaged as exc:
                    log.error("%s; the store is opened again and the log is read from its positions", exc.exceptions[0])
                    self._damaged += store.damaged
                finally:
                    self._store = None
                    self._start_reading()
                    await self._in_writer(store.close)
        finally:
            self._readers.shutdown()
            self._writer.shutdown()

    async def _fill(self, store: Store) -> None:
        deletions_applied = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_deletions(store, deletions_applied))
            # All deletions are applied first; otherwise deleted spans would be shown for a moment.
            await deletions_applied.wait()
            self._store = store
            for shard in range(self._shards):
                tasks.create_task(self._follow(store, shard))
            tasks.create_task(self._write(store))
            tasks.create_task(self._prune(store))
            tasks.create_task(self._check(store))

    async def _in_writer(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def read(self, work: Callable[[Store], T]) -> T:
        """
        Return what *work* returns for the store, called in a reading thread.

        Raises:
            Unavailable: The store is not open, or *work* could not read it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, self.store)

    async def _until_accepted(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, called in the writing thread and repeated while it raises ``Unavailable``."""
        pause = 0.1
        while True:
            try:
                done = await self._in_writer(work)
            except Unavailable as exc:
                if not self.problem:
                    log.error("%s", exc)
                self.problem = str(exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                self.problem = ""
                return done

    async def _follow_deletions(self, store: Store, applied: asyncio.Event) -> None:
        """Apply all deletions from the start of the log on; set *applied* once the log has been read to the end."""
        async with Follower(
            self._bus,
            subjects.SPANS,
            [subjects.ALL_TOMBSTONES],
            None,
            reader="api.deletions",
            on_caught_up=applied.set,
        ) as chunks:
            async for chunk in chunks:
                tombstones = [tombstone for message in chunk.messages for tombstone in self._tombstones_in(message)]
                if tombstones:
                    await until_available(partial(self._in_writer, partial(store.apply_deletions, tombstones)))

    def _tombstones_in(self, message: Message) -> list[Tombstone]:
        with self._bus.set_aside.guard(subjects.SPANS, f"message {message.sequence}"):
            return [tombstone for batch in decode_batches(message.payload) for tombstone in batch.tombstones]
        return []

    async def apply_deletions(self, tombstones: list[Tombstone]) -> None:
        """
        Apply *tombstones* to the store.

        Raises:
            Unavailable: The store is not open or is damaged, or the disk refused.
        """
        try:
            await self._in_writer(partial(self.store.apply_deletions, tombstones))
        except StoreDamaged as exc:
            raise Unavailable(str(exc)) from exc

    async def _follow(self, store: Store, shard: int) -> None:
        position, filters = store.position(shard), [subjects.shard_spans(shard)]
        async with Follower(
            self._bus, subjects.SPANS, filters, position, reader=f"api.{shard}", needs_every_message=True
        ) as chunks:
            async for chunk in chunks:
                if chunk.missing is not None:
                    self.lost = [*self.lost, (shard, *chunk.missing)][-20:]
                for message in chunk.messages:
                    while self._ahead_bytes > _AHEAD_BYTES:
                        self._room.clear()
                        await self._room.wait()
                    self._ahead_bytes += len(message.payload)
                    self._queue.put_nowait((time.monotonic(), Item(shard, chunk.created_ns, message)))
                    self._queued[shard] = message.sequence
                self._pending[shard] = chunk.pending
                if chunk.pending == 0 and self._targets[shard] is None:
                    self._targets[shard] = self._queued[shard]

    async def _write(self, store: Store) -> None:
        pause_s = 0.0
        while True:
            self._oldest_s, first = await self._queue.get()
            # A message after a pause is stored at once; while many arrive, they are stored in groups.
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            items = [first]
            size = len(first.message.payload)
            while not self._queue.empty() and size < _FLUSH_BYTES:
                items.append(self._queue.get_nowait()[1])
                size += len(items[-1].message.payload)
            spans = await self._until_accepted(partial(store.append, items))
            took_s = time.monotonic() - began
            # Larger groups cost less, so a writer that takes long waits longer.
            pause_s = max(_FLUSH_S - took_s, took_s / 2)
            self._oldest_s = None
            self._ahead_bytes -= size
            self._room.set()
            self.stored += len(spans)
            await self._on_stored(spans)

    async def _prune(self, store: Store) -> None:
        while True:
            try:
                await self._in_writer(partial(store.prune, self._bus.clock.now_ns()))
            except Unavailable as exc:
                log.info("%s", exc)
            await asyncio.sleep(_PRUNE_EVERY_S)

    async def _check(self, store: Store) -> None:
        """Every second, read completely the files that a query could not read meanwhile."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            await self._in_writer(store.check_suspects)

    def holds(self, shard: int, sequence: int) -> bool:
        """Return True if the store holds message *sequence* of *shard* or a later message of that shard."""
        position = None if self._store is None else self._store.position(shard)
        return position is not None and position.sequence >= sequence

    def caught_up(self, shard: int) -> bool:
        """Return True once the store holds all messages that *shard* had when it was first read to the end."""
        target = self._targets[shard]
        return target is not None and (target == 0 or self.holds(shard, target))

    @property
    def damaged(self) -> list[str]:
        """Names of files that were found damaged since the start, each with the type of the error."""
        return self._damaged if self._store is None else [*self._damaged, *self._store.damaged]

    @property
    def queue_depth(self) -> int:
        """Number of messages in the log that wait to be stored, without those being written now."""
        return self._queue.qsize() + sum(self._pending)

    @property
    def behind_s(self) -> float:
        """How long the oldest message that was read from the log has waited to be stored, seconds; 0 = none waits."""
        return 0.0 if self._oldest_s is None else max(time.monotonic() - self._oldest_s, 0.0)

    @property
    def is_open(self) -> bool:
        """True if the store is open."""
        return self._store is not None
