"""
Group commit: batches that arrive together share one message of ``TT_SPANS``, and so one fsync.

A caller waits until the broker has acknowledged the message that carries its batch.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tokentrace.bus import HEADROOM_BYTES, Bus, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.records import Batch, encode_batch, join_encoded, shard_of

_GROUP_BYTES = 1024 * 1024
_GROUP_BATCHES = 1024
#: Messages of one lane under way at once: enough to hide the round trip, few enough for groups to form.
_UNDER_WAY = 4


class _Lane:
    """The queue of one subject."""

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus, self._subject = bus, subject
        self._waiting: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    def add(self, encoded: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((encoded, future))
        if len(self._under_way) < _UNDER_WAY:
            self._start()
        return future

    def _start(self) -> None:
        task = asyncio.get_running_loop().create_task(self._send())
        self._under_way.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.result()
        if self._waiting:
            self._start()

    async def _send(self) -> None:
        # One turn of the loop lets the requests that are being read join.
        await asyncio.sleep(0)
        group = self._take()
        if not group:
            return
        try:
            await self._bus.publish(self._subject, join_encoded([encoded for encoded, _ in group]))
        except TokentraceError as exc:
            for _, future in group:
                if not future.done():
                    future.set_exception(exc)
            return
        for _, future in group:
            if not future.done():
                future.set_result(None)

    def _take(self) -> list[tuple[bytes, asyncio.Future[None]]]:
        group: list[tuple[bytes, asyncio.Future[None]]] = []
        size = 0
        while self._waiting and len(group) < _GROUP_BATCHES:
            size += len(self._waiting[0][0])
            if group and size > min(_GROUP_BYTES, self._bus.max_payload - HEADROOM_BYTES):
                break
            group.append(self._waiting.popleft())
        return group


class GroupCommit:
    """
    Publishes clean batches to their shards.

    Args:
        shards: How many there are.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards
        self._lanes: dict[str, _Lane] = {}

    async def commit(self, project: str, parts: list[Batch], *, beside: str = "") -> None:
        """
        Store *parts* and return once every one is acknowledged.

        Args:
            beside: What is committed with the same words here shares a shard, and is read in this order.

        Raises:
            Unavailable: The broker did not acknowledge all; some may be stored, and readers know them by id.
            Rejected: Larger than the broker takes.
        """
        encoded = [(self._subject(project, part, beside), encode_batch(part)) for part in parts]
        room = self._bus.max_payload - HEADROOM_BYTES
        for _, data in encoded:
            if len(data) > room:
                raise Rejected(f"batch: {len(data)} bytes after cleaning, the broker takes {room}", status=413)
        futures = [self._lane(subject).add(data) for subject, data in encoded]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _subject(self, project: str, batch: Batch, beside: str) -> str:
        return subjects.spans(project, shard_of(Batch(id=beside) if beside else batch, self._shards))

    def _lane(self, subject: str) -> _Lane:
        lane = self._lanes.get(subject)
        if lane is None:
            lane = self._lanes[subject] = _Lane(self._bus, subject)
        return lane
