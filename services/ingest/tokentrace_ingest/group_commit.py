"""
Group commit: batches that arrive together share one message of ``TT_SPANS``, and so one fsync of the broker.

``GroupCommit.commit`` returns when the broker has acknowledged all messages that hold the caller's batches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

from tokentrace.bus import HEADROOM_BYTES, Bus, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.records import Batch, encode_batch, join_encoded, shard_of
from tokentrace_ingest.placement import Placed, place

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
        take: Called with the number of bytes that are about to be published; raises ``Unavailable`` if the log has no
            room for them.

    Attributes:
        by_call_from_ns: Batches that arrived at this instant or later are placed by the identity of their calls, Unix
            nanoseconds; None = no batch is.
    """

    def __init__(
        self,
        bus: Bus,
        shards: int,
        by_call_from_ns: int | None = 0,
        take: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._bus, self._shards, self._take = bus, shards, take
        self.by_call_from_ns = by_call_from_ns
        self._lanes: dict[str, _Lane] = {}

    async def commit(
        self, project: str, parts: list[Batch], *, made: Collection[str] = (), order_key: str = ""
    ) -> None:
        """
        Publish *parts* and return once the broker has acknowledged all of them.

        Args:
            made: Ids of the spans to which ingest gave all ids, as in ``placement.place``.
            order_key: In layout 0, batches with the same key go to the same shard. If each is committed after the one
                before was acknowledged, readers fold them in that order. "" = the id of the batch decides the shard.

        Raises:
            Unavailable: Not every part was acknowledged, or the log has no room. Some may be stored; a retry is safe,
                because readers know what they have folded.
            Rejected: A part is too large for one message of the broker; nothing was published.
        """
        await self.publish(self.encode(project, parts, made=made, order_key=order_key))

    @property
    def limit(self) -> int:
        """Limit of an encoded batch, bytes."""
        return self._bus.max_payload - HEADROOM_BYTES

    def encode(
        self, project: str, parts: list[Batch], *, made: Collection[str] = (), order_key: str = ""
    ) -> list[tuple[str, bytes]]:
        """
        Return (subject, encoded batch) of *parts* for ``publish``; the arguments are those of ``commit``.

        Raises:
            Rejected: A part is too large for one message of the broker.
        """
        encoded = [
            (subjects.spans(project, shard), encode_batch(batch))
            for part in parts
            for shard, batch in self._place(project, part, made, order_key)
        ]
        limit = self.limit
        for _, data in encoded:
            if len(data) > limit:
                raise Rejected(
                    f"batch: {len(data)} bytes after cleaning, at most {limit} fit into a message", status=413
                )
        return encoded

    async def publish(self, encoded: Sequence[tuple[str, bytes]]) -> None:
        """Publish what ``encode`` returned, and return or raise as ``commit``."""
        self._take(sum(len(data) for _, data in encoded))
        futures = [self._lane(subject).add(data) for subject, data in encoded]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _place(self, project: str, part: Batch, made: Collection[str], order_key: str) -> list[Placed]:
        by_call = self.by_call_from_ns is not None and part.arrived_ns >= self.by_call_from_ns
        placed = place(part, project, self._shards, by_call=by_call, made=made)
        if order_key and not by_call:
            shard = shard_of(Batch(id=order_key), self._shards)
            return [Placed(shard, batch) for _, batch in placed]
        return placed

    def _lane(self, subject: str) -> _Lane:
        lane = self._lanes.get(subject)
        if lane is None:
            lane = self._lanes[subject] = _Lane(self._bus, subject)
        return lane
