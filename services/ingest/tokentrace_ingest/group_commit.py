"""
Group commit: batches that arrive together share one message of ``TT_SPANS``, and so one fsync of the broker.

``GroupCommit.commit`` returns when the broker has acknowledged all messages that hold the caller's batches.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tokentrace.bus import HEADROOM_BYTES, Bus, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.records import Batch, encode_batch, join_encoded, shard_of

_GROUP_BYTES = 1024 * 1024
_GROUP_BATCHES = 1024
#: Limit of unacknowledged messages of one subject. A higher limit makes groups smaller, a lower one makes them wait.
_MAX_IN_FLIGHT = 4


class _Lane:
    """The batches that wait to be published to one subject, and the tasks that publish its messages."""

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus, self._subject = bus, subject
        self._waiting: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()

    def add(self, encoded: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((encoded, future))
        if len(self._in_flight) < _MAX_IN_FLIGHT:
            self._start()
        return future

    def _start(self) -> None:
        task = asyncio.get_running_loop().create_task(self._send())
        self._in_flight.add(task)
        task.add_done_callback(self._on_sent)

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            task.result()
        if self._waiting:
            self._start()

    async def _send(self) -> None:
        # Give other tasks one turn of the event loop, so that their batches join this group.
        await asyncio.sleep(0)
        group = self._next_group()
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

    def _next_group(self) -> list[tuple[bytes, asyncio.Future[None]]]:
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
    Publishes clean batches to the subjects of their shards.

    Args:
        shards: Shard count.
    """

    def __init__(self, bus: Bus, shards: int) -> None:
        self._bus, self._shards = bus, shards
        self._lanes: dict[str, _Lane] = {}

    async def commit(self, project: str, parts: list[Batch], *, order_key: str = "") -> None:
        """
        Publish *parts* and return once the broker has acknowledged all of them.

        Args:
            order_key: Batches with the same key go to the same shard. If each is committed after the one before was
                acknowledged, readers fold them in that order. "" = the id of the batch decides the shard.

        Raises:
            Unavailable: Not every part was acknowledged. Some may be stored; a retry is safe, because readers drop
                batches that they have folded.
            Rejected: A part is too large for one message of the broker; nothing was published.
        """
        encoded = [(self._subject(project, part, order_key), encode_batch(part)) for part in parts]
        limit = self._bus.max_payload - HEADROOM_BYTES
        for _, data in encoded:
            if len(data) > limit:
                raise Rejected(
                    f"batch: {len(data)} bytes after cleaning, at most {limit} fit into a message", status=413
                )
        futures = [self._lane(subject).add(data) for subject, data in encoded]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _subject(self, project: str, batch: Batch, order_key: str) -> str:
        return subjects.spans(project, shard_of(Batch(id=order_key) if order_key else batch, self._shards))

    def _lane(self, subject: str) -> _Lane:
        lane = self._lanes.get(subject)
        if lane is None:
            lane = self._lanes[subject] = _Lane(self._bus, subject)
        return lane
