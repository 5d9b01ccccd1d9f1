"""
How often each rule has fired, and the outcome of its deliveries; and pages of the events themselves.

Both are counted from the streams of events and delivery records. The counts are saved in a bucket, so that they outlive
the messages of those streams. The events are read from the stream, newest first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from tokentrace.bus import Bus, Message, subjects
from tokentrace.records import MAX_AHEAD_NS, AlertEvent, DeliveryRecord, Position, decode_delivery, decode_event
from tokentrace.service.follow import Follower
from tokentrace.units import parse_instant
from tokentrace_api.delivery_outcomes import DeliveryOutcomes, Run, Told, run_of
from tokentrace_api.newest_first import Page, read_page
from tokentrace_api.saved_counts import SavedCounts

_KEY = "alert_counts"
_KEEP_RECORDS = 200
#: How long a page waits for delivery records that are stored and not read here yet, seconds.
_READ_WITHIN_S = 2.0


#: What became of the delivery of an event: none = the rule did not ask for one; pending = nothing was tried yet;
#: unknown = the records of that time are not kept any more.
Outcome = Literal["none", "pending", "retry", "delivered", "dead", "expired", "unknown"]


class StoredEvent(NamedTuple):
    """
    An event of the stream, and what became of its delivery.

    Attributes:
        told: What the delivery records say; None = there are none.
    """

    event: AlertEvent
    outcome: Outcome
    told: Told | None


class _Saved(msgspec.Struct):
    position: Position | None = None
    firings: dict[str, int] = {}
    deliveries_position: Position | None = None
    delivery_failed: dict[str, int] = {}


def user_in(group: Mapping[str, str], users: Container[str]) -> str | None:
    """Return the one of *users* that *group*, the instance of an event or delivery record, is about; None = none."""
    named = (value for key, value in group.items() if key.removeprefix("attr.") == "user_id" and value in users)
    return next(named, None)


class AlertHistory:
    """Counts of firings and failed deliveries, the last delivery records of each rule, and pages of events."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._counts = SavedCounts(bus, _KEY, _Saved(), msgspec.json.Decoder(_Saved).decode, "counts of alerts")
        self._records: dict[str, deque[DeliveryRecord]] = {}
        self._outcomes = DeliveryOutcomes()
        #: Sequence up to which the delivery records have been read.
        self._read = 0
        self._new_records = asyncio.Event()
        self._behind = {subjects.ALERTS, subjects.DELIVERIES}

    @property
    def caught_up(self) -> bool:
        """True once both streams have been read to the end."""
        return not self._behind

    @property
    def firings(self) -> dict[str, int]:
        """Rule -> number of times it fired."""
        return dict(sorted(self._counts.state.firings.items()))

    @property
    def delivery_failed(self) -> dict[str, int]:
        """Rule -> number of its events whose delivery ended as ``dead``; 0 for the other rules that have fired."""
        names = sorted({*self._counts.state.firings, *self._counts.state.delivery_failed})
        return {name: self._counts.state.delivery_failed.get(name, 0) for name in names}

    def deliveries(self, rule: str) -> list[DeliveryRecord]:
        """Return the last delivery records of *rule*, newest first, at most 200."""
        return list(reversed(self._records.get(rule, ())))

    def last_delivery(self, rule: str) -> Run | None:
        """Return what became of the newest events of *rule* that were delivered or tried; None = none was."""
        return run_of(self._records.get(rule, ()))

    def forget(self, users: Container[str]) -> None:
        """Drop the delivery records about *users*; the counts of rules stay."""
        for records in self._records.values():
            kept = [record for record in records if user_in(record.group, users) is None]
            if len(kept) < len(records):
                records.clear()
                records.extend(kept)
        self._outcomes.forget(lambda record: user_in(record.group, users) is not None)

    async def page(
        self,
        *,
        limit: int,
        cursor: str = "",
        rule: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        accept: Callable[[StoredEvent], bool] = lambda stored: True,
    ) -> Page[StoredEvent]:
        """
        Return up to *limit* events, newest first; fewer although there are more if 10,000 others are between them.

        Args:
            cursor: ``Page.next`` of the page before; "" = begin with the newest event.
            rule: Only events of this rule; None = of any.
            since_ns: Only events about this instant or later, Unix nanoseconds; None = any.
            until_ns: Only events about this instant or earlier, Unix nanoseconds; None = any.
            accept: Whether an event is listed.

        Raises:
            Rejected: *cursor* is not the cursor of a page of this stream.
            Unavailable: The broker cannot be reached.
        """

        # The record of an attempt is stored before its event leaves the queue, so it is read before it is looked up.
        done = await self._bus.done_up_to(subjects.ALERTS, subjects.DELIVERY)
        await self._read_records()

        def parse(message: Message) -> StoredEvent | None:
            with self._bus.set_aside.guard(subjects.ALERTS, f"message {message.sequence}"):
                event = decode_event(message.payload, message.time_ns)
                at_ns = parse_instant(event.fired_at)
                if rule not in (None, event.alert):
                    return None
                if (since_ns is not None and at_ns < since_ns) or (until_ns is not None and at_ns > until_ns):
                    return None
                stored = self._with_outcome(message.sequence, event, done)
                return stored if accept(stored) else None
            return None

        return await read_page(
            self._bus,
            subjects.ALERTS,
            subjects.ALL_ALERTS,
            parse,
            reader="api.alert_page",
            limit=limit,
            cursor=cursor,
            # An event is stored after the instant that it is about, but for the difference of two clocks.
            since_ns=None if since_ns is None else since_ns - MAX_AHEAD_NS,
        )

    async def _read_records(self) -> None:
        """Return once the delivery records that are stored now have been read."""
        last = (await self._bus.state(subjects.DELIVERIES)).last_sequence
        try:
            async with asyncio.timeout(_READ_WITHIN_S):
                while self._read < last:
                    await self._new_records.wait()
        except TimeoutError:
            # The last records were erased. A reader learns of it only with the next one.
            self._read = max(self._read, last)

    def _with_outcome(self, sequence: int, event: AlertEvent, done: int) -> StoredEvent:
        """Add what became of the delivery of *event*; *done* = the queue has done with the events up to this one."""
        told = self._outcomes.of(event)
        if told is not None:
            return StoredEvent(event, told.last.outcome, told)
        if parse_instant(event.fired_at) < self._outcomes.known_from_ns:
            return StoredEvent(event, "unknown", None)
        return StoredEvent(event, "none" if sequence <= done else "pending", None)

    async def open_and_follow(self) -> None:
        """Load the saved counts and follow both streams until cancelled."""
        await self._counts.load()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_events())
            tasks.create_task(self._follow_deliveries())

    async def _follow_events(self) -> None:
        async with self._follower(subjects.ALERTS, subjects.ALL_ALERTS, self._counts.state.position) as chunks:
            async for chunk in chunks:
                for message in chunk.messages:
                    self._count(message)
                    self._counts.state.position = Position(chunk.created_ns, message.sequence)

    async def _follow_deliveries(self) -> None:
        counted = self._counts.state.deliveries_position
        async with self._follower(subjects.DELIVERIES, subjects.ALL_DELIVERIES, None) as chunks:
            async for chunk in chunks:
                if chunk.missing is not None and chunk.messages:
                    self._outcomes.known_from_ns = max(self._outcomes.known_from_ns, chunk.messages[0].time_ns)
                for message in chunk.messages:
                    position = Position(chunk.created_ns, message.sequence)
                    new = (
                        counted is None or counted.created_ns != chunk.created_ns or counted.sequence < message.sequence
                    )
                    self._add_record(message, new=new)
                    if new:
                        self._counts.state.deliveries_position = position
                if chunk.messages:
                    self._read = chunk.messages[-1].sequence
                    self._new_records.set()
                    self._new_records = asyncio.Event()

    def _follower(self, stream: str, filter: str, after: Position | None) -> Follower:
        caught_up = partial(self._behind.discard, stream)
        return Follower(self._bus, stream, [filter], after, reader="api.alert_history", on_caught_up=caught_up)

    def _count(self, message: Message) -> None:
        with self._bus.set_aside.guard(subjects.ALERTS, f"message {message.sequence}"):
            event = decode_event(message.payload, message.time_ns)
            if event.status == "firing":
                self._counts.state.firings[event.alert] = self._counts.state.firings.get(event.alert, 0) + 1

    def _add_record(self, message: Message, *, new: bool) -> None:
        with self._bus.set_aside.guard(subjects.DELIVERIES, f"message {message.sequence}"):
            record = decode_delivery(message.payload)
            self._outcomes.add(record, message.time_ns)
            self._records.setdefault(record.rule, deque(maxlen=_KEEP_RECORDS)).append(record)
            if new and record.outcome == "dead":
                failed = self._counts.state.delivery_failed
                failed[record.rule] = failed.get(record.rule, 0) + 1

    async def save(self) -> None:
        """
        Save the counts if they changed and both streams have been read to the end.

        Raises:
            Unavailable: The broker cannot be reached. The counts stay in memory, and the next call saves them.
        """
        if self.caught_up:
            await self._counts.save()
