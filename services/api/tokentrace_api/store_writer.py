"""Following the log into the store: what is read is stored in its order, and what the disk refuses waits."""

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

_FLUSH_S = 0.1
_FLUSH_BYTES = 8 * 1024 * 1024
#: What is read ahead of the disk.
_AHEAD_BYTES = 64 * 1024 * 1024
_PRUNE_EVERY_S = 60.0
T = TypeVar("T")


class StoreWriter:
    """
    The store, and the tasks that fill it.

    Args:
        open_store: Called in the thread that writes; Unavailable is tried again.
        hear: Called with the spans that were stored and are new.

    Attributes:
        trouble: Why nothing can be stored now; "" when it can.
        lost: (shard, first, last) of messages that were gone from the stream before they were read.
        stored: Spans stored since start.
    """

    def __init__(
        self, bus: Bus, shards: int, open_store: Callable[[], Store], hear: Callable[[list[Span]], Awaitable[None]]
    ) -> None:
        self._bus, self._shards, self._open_store, self._hear = bus, shards, open_store, hear
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="store-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._store: Store | None = None
        self.trouble = ""
        self.lost: list[tuple[int, int, int]] = []
        self.stored = 0
        self._damaged: list[str] = []
        self._start_reading()

    def _start_reading(self) -> None:
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._queued = [0] * self._shards
        self._ahead_bytes = 0
        self._room = asyncio.Event()
        self._pending = [0] * self._shards
        self._targets: list[int | None] = [None] * self._shards

    @property
    def store(self) -> Store:
        """The open store; Unavailable before it is."""
        if self._store is None:
            raise Unavailable("span store: not open yet")
        return self._store

    async def run(self) -> None:
        """Store spans until cancelled; what is not stored by then is read again at the next start."""
        try:
            while True:
                store = await self._trying(self._open_store)
                try:
                    await self._fill(store)
                except* StoreDamaged as exc:
                    log.error("%s; it is opened again and the log is read on from what is left", exc.exceptions[0])
                    self._damaged += store.damaged
                finally:
                    self._store = None
                    self._start_reading()
                    await self._in_writer(store.close)
        finally:
            self._readers.shutdown()
            self._writer.shutdown()

    async def _fill(self, store: Store) -> None:
        buried = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bury_all(store, buried))
            # What was deleted has to be known before anything is read, or it would be shown again for a while.
            await buried.wait()
            self._store = store
            for shard in range(self._shards):
                tasks.create_task(self._follow(store, shard))
            tasks.create_task(self._write(store))
            tasks.create_task(self._prune(store))

    async def _in_writer(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def read(self, work: Callable[[Store], T]) -> T:
        """*work* on the store in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, self.store)

    async def _trying(self, work: Callable[[], T]) -> T:
        """*work*, by the thread that writes, as often as it takes until the disk does not refuse."""
        pause = 0.1
        while True:
            try:
                done = await self._in_writer(work)
            except Unavailable as exc:
                if not self.trouble:
                    log.error("%s", exc)
                self.trouble = str(exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                self.trouble = ""
                return done

    async def _bury_all(self, store: Store, buried: asyncio.Event) -> None:
        """Hear of deletions, from the beginning of the log on; *buried* is set when those are carried out."""
        async with Follower(
            self._bus,
            subjects.SPANS,
            [subjects.ALL_TOMBSTONES],
            None,
            reader="api.deletions",
            on_caught_up=buried.set,
        ) as chunks:
            async for chunk in chunks:
                stones = [stone for message in chunk.messages for stone in self._tombstones_in(message)]
                if stones:
                    await until_available(partial(self._in_writer, partial(store.bury, stones)))

    def _tombstones_in(self, message: Message) -> list[Tombstone]:
        with self._bus.set_aside.guard(subjects.SPANS, f"message {message.sequence}"):
            return [stone for batch in decode_batches(message.payload) for stone in batch.tombstones]
        return []

    async def bury(self, stones: list[Tombstone]) -> None:
        """Carry out deletions; Unavailable when the disk refuses."""
        try:
            await self._in_writer(partial(self.store.bury, stones))
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
                    self._queue.put_nowait(Item(shard, chunk.created_ns, message))
                    self._queued[shard] = message.sequence
                self._pending[shard] = chunk.pending
                if chunk.pending == 0 and self._targets[shard] is None:
                    self._targets[shard] = self._queued[shard]

    async def _write(self, store: Store) -> None:
        while True:
            items = [await self._queue.get()]
            await asyncio.sleep(_FLUSH_S)
            size = len(items[0].message.payload)
            while not self._queue.empty() and size < _FLUSH_BYTES:
                items.append(self._queue.get_nowait())
                size += len(items[-1].message.payload)
            spans = await self._trying(partial(store.append, items))
            self._ahead_bytes -= size
            self._room.set()
            self.stored += len(spans)
            await self._hear(spans)

    async def _prune(self, store: Store) -> None:
        while True:
            try:
                await self._in_writer(partial(store.prune, time.time_ns()))
            except Unavailable as exc:
                log.info("%s", exc)
            await asyncio.sleep(_PRUNE_EVERY_S)

    def holds(self, shard: int, sequence: int) -> bool:
        """The message *sequence* of *shard*, or one after it, is stored."""
        position = None if self._store is None else self._store.position(shard)
        return position is not None and position.sequence >= sequence

    def caught_up(self, shard: int) -> bool:
        """The store holds what the stream had when it was first read to the end."""
        target = self._targets[shard]
        return target is not None and (target == 0 or self.holds(shard, target))

    @property
    def damaged(self) -> list[str]:
        """Files that could not be read, and why."""
        return self._damaged if self._store is None else [*self._damaged, *self._store.damaged]

    @property
    def queue_depth(self) -> int:
        """Messages read or known of and not yet stored."""
        return self._queue.qsize() + sum(self._pending)

    @property
    def is_open(self) -> bool:
        """The store can be asked."""
        return self._store is not None
