"""
How often each rule has fired, and the outcome of its deliveries.

Both are counted from the streams of events and delivery records. The counts are saved in a bucket, so that they outlive
the messages of those streams.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container, Mapping
from functools import partial

import msgspec

from tokentrace.bus import Bus, Message, subjects
from tokentrace.records import DeliveryRecord, Position, decode_delivery, decode_event
from tokentrace.service.follow import Follower
from tokentrace_api.saved_counts import SavedCounts

_KEY = "alert_counts"
_KEEP_RECORDS = 200


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
    """Counts of firings and failed deliveries, and the last delivery records, of each rule."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._counts = SavedCounts(bus, _KEY, _Saved(), msgspec.json.Decoder(_Saved).decode, "counts of alerts")
        self._records: dict[str, deque[DeliveryRecord]] = {}
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

    def forget(self, users: Container[str]) -> None:
        """Drop the delivery records about *users*; the counts of rules stay."""
        for records in self._records.values():
            kept = [record for record in records if user_in(record.group, users) is None]
            if len(kept) < len(records):
                records.clear()
                records.extend(kept)

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
                for message in chunk.messages:
                    position = Position(chunk.created_ns, message.sequence)
                    new = (
                        counted is None or counted.created_ns != chunk.created_ns or counted.sequence < message.sequence
                    )
                    self._add_record(message, new=new)
                    if new:
                        self._counts.state.deliveries_position = position

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
