"""
Keeping the order of deliveries current: what all alerters have delivered, and which receivers ask to wait.

A ``Ledger`` reads the events of ``TT_ALERTS`` that the queue still holds, and the delivery records of all alerters.
Before an attempt, ``refresh`` asks the broker for the last record and reads up to it. So no alerter delivers an event
that another one has delivered and recorded, or that is to follow an event without an outcome, even if it has been
suspended meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Chunk, Message, subjects
from tokentrace.records import AlertEvent, DeliveryRecord, Position, decode_delivery, decode_event
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace.units import SECOND, parse_instant
from tokentrace_alerter.delivery.channel import Channel
from tokentrace_alerter.delivery.order import DeliveryOrder, Outcome

#: How often the events that have left the queue are forgotten, seconds.
_FORGET_EVERY_S = 2.0
#: A reader that receives nothing for this long has read what the stream holds: its last message was erased. Seconds.
_HOLE_S = 5.0
#: How long an event waits before its rule is looked up again, which may have changed; seconds.
LOOK_AGAIN_S = 10.0


class Ledger:
    """
    What is known of all deliveries.

    Args:
        durable: The name of the queue's consumer.
        channel_of: Returns the channel of an event; None = it is not delivered.
        rules_read: Returns once the changes of rules that came before this call are known here.

    Attributes:
        order: The order of deliveries.
    """

    def __init__(
        self,
        bus: Bus,
        durable: str,
        channel_of: Callable[[AlertEvent], Channel | None],
        rules_read: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus, self._durable, self._channel_of = bus, durable, channel_of
        self._rules_read = rules_read
        self.order = DeliveryOrder()
        self._events, self._records = _Reading(), _Reading()
        #: Sequence of an event that waits for its turn -> what its turn sets.
        self._waiting: dict[int, asyncio.Future[None]] = {}
        #: Destination -> until when its receiver asks to send nothing, seconds of the monotonic clock.
        self._paused: dict[str, float] = {}

    async def run(self) -> None:
        """Read events and records until cancelled."""
        floor = await until_available(partial(self._bus.done_up_to, subjects.ALERTS, self._durable))
        events = await until_available(partial(self._bus.state, subjects.ALERTS))
        # Taken before the events are read, so that no record about an event that follows is left out.
        records = await until_available(partial(self._bus.state, subjects.DELIVERIES))
        self.order.forget_up_to(floor)
        first: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as tasks:
            after = Position(events.created_ns, floor) if floor else None
            tasks.create_task(self._follow_events(after, first))
            tasks.create_task(self._follow_records(Position(records.created_ns, records.last_sequence), first))
            tasks.create_task(self._forget_often())

    async def _follow_events(self, after: Position | None, first: asyncio.Future[int | None]) -> None:
        reader = Follower(self._bus, subjects.ALERTS, [subjects.ALL_ALERTS], after, reader="alerter.delivery")
        async with reader as chunks:
            async for chunk in chunks:
                if chunk.rewound:
                    self.order.clear()
                if chunk.messages:
                    # Another alerter may have published an event for a rule that has changed since.
                    await self._rules_read()
                for message in chunk.messages:
                    # An event that cannot be decoded is set aside by the alerter, which reads this stream too.
                    with contextlib.suppress(*BAD_DATA):
                        self._add(message, decode_event(message.payload, message.time_ns))
                if not first.done():
                    first.set_result(chunk.messages[0].time_ns if chunk.messages else None)
                self._wake()
                self._events.move(chunk, reader.position)

    def _add(self, message: Message, event: AlertEvent) -> None:
        channel = self._channel_of(event)
        destination = channel.destination if channel is not None and channel.wants(event) else ""
        self.order.add(message.sequence, message.subject, event, message.time_ns, destination)

    async def _follow_records(self, end: Position, first: asyncio.Future[int | None]) -> None:
        """Follow the records from the first event on that the queue holds; if it holds none, from *end* on."""
        first_ns = await first
        after = end
        if first_ns is not None:
            after = await until_available(partial(self._bus.position_at, subjects.DELIVERIES, first_ns))
        # The stream of records may hold only later messages, and would not be read up to a position before them.
        self._records.start(after.sequence)
        reader = Follower(self._bus, subjects.DELIVERIES, [subjects.ALL_DELIVERIES], after, reader="alerter.deliveries")
        async with reader as chunks:
            async for chunk in chunks:
                for message in chunk.messages:
                    # The api sets aside what it cannot decode.
                    with contextlib.suppress(*BAD_DATA):
                        self._note(decode_delivery(message.payload))
                self._wake()
                self._records.move(chunk, reader.position)

    async def _forget_often(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            if len(self.order):
                done = await until_available(partial(self._bus.done_up_to, subjects.ALERTS, self._durable))
                self.order.forget_up_to(done)
                self._wake()

    # -- for the worker

    async def know(self, message: Message, event: AlertEvent) -> None:
        """Return once the events up to that in *message*, which is taken from the queue, have been read."""
        await self._events.reach(message.sequence)
        self._add(message, event)

    async def turn(self, sequence: int) -> None:
        """Return once the event may be delivered or is done, but after ten seconds in any case."""
        if self.order.may_go(sequence):
            return
        future = self._waiting[sequence] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([future], timeout=LOOK_AGAIN_S)
        finally:
            del self._waiting[sequence]

    def wait_s(self, sequence: int, destination: str) -> float:
        """Return for how many seconds the event must wait: for its next attempt, or because its receiver asks to."""
        until = max(self.order.again_s(sequence), self._paused.get(destination, 0.0))
        return until - time.monotonic()

    async def refresh(self) -> None:
        """
        Return once all records that were stored before this call have been read.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        state = await self._bus.state(subjects.DELIVERIES)
        await self._records.reach(state.last_sequence)

    def note(self, record: DeliveryRecord) -> None:
        """Apply a record of this alerter before it is read from the stream."""
        self._note(record)
        self._wake()

    def finish(self, sequence: int, outcome: Outcome) -> None:
        """Give an event an outcome without a record."""
        self.order.finish(sequence, outcome)
        self._wake()

    def _note(self, record: DeliveryRecord) -> None:
        now_ns, now_s = self._bus.clock.now_ns(), time.monotonic()
        self.order.note(record, now_ns, now_s)
        destination = self.order.destination(record.key)
        if record.retry_after_s is not None and destination:
            asked_ns = round(record.retry_after_s * SECOND)
            left_ns = min(max(parse_instant(record.at) + asked_ns - now_ns, 0), asked_ns)
            until = now_s + left_ns / SECOND
            self._paused[destination] = max(until, self._paused.get(destination, 0.0))

    def _wake(self) -> None:
        for instance in self.order.changed:
            # Only the next event, because there may be thousands behind it.
            future = self._waiting.get(self.order.next_open(instance) or 0)
            if future is not None and not future.done():
                future.set_result(None)
        self.order.changed.clear()


class _Reading:
    """How far a stream has been read, and waiting for it."""

    def __init__(self) -> None:
        self._sequence = 0
        self._moved = asyncio.Event()
        self._begun = asyncio.Event()

    def start(self, sequence: int) -> None:
        """Note that reading starts after *sequence*."""
        self._sequence = sequence

    def move(self, chunk: Chunk, before: Position | None) -> None:
        """Note that *chunk*, which was read at the position *before*, has been applied."""
        self._sequence = chunk.after(before).sequence
        self._begun.set()
        self._moved.set()
        self._moved = asyncio.Event()

    async def reach(self, sequence: int) -> None:
        """Return once everything up to *sequence* has been read, or nothing arrives although the stream is read."""
        await self._begun.wait()
        while self._sequence < sequence:
            try:
                async with asyncio.timeout(_HOLE_S):
                    await self._moved.wait()
            except TimeoutError:
                # The messages up to here were erased. A reader learns of them only with the next message.
                self._sequence = max(self._sequence, sequence)
