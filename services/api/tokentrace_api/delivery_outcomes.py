"""What became of the delivery of each event, from the delivery records of all alerters; without I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple

from tokentrace.records import AlertEvent, DeliveryRecord

#: (Rule, instant, status, instance): what identifies an event, in the event and in the records about it.
EventKey = tuple[str, str, str, tuple[tuple[str, str], ...]]
#: How many events are remembered.
CAPACITY = 20_000


def key_of_event(event: AlertEvent) -> EventKey:
    """Return the key of *event*."""
    return event.alert, event.fired_at, event.status, tuple(sorted(event.group.items()))


def key_of_record(record: DeliveryRecord) -> EventKey:
    """Return the key of the event that *record* is about."""
    return record.rule, record.fired_at, record.status, tuple(sorted(record.group.items()))


class Told(NamedTuple):
    """
    What the records about one event say together.

    Attributes:
        last: The record of the last attempt.
        attempts: Number of attempts.
    """

    last: DeliveryRecord
    attempts: int


class Run(NamedTuple):
    """
    The outcome of the newest event that was tried, and how many of the newest events have the same.

    Attributes:
        attempts: Number of attempts for the newest event.
        error: Why the last attempt failed; "" = it did not.
        at: When it was made, RFC 3339.
    """

    outcome: Literal["delivered", "retry", "dead", "expired"]
    in_a_row: int
    attempts: int
    error: str
    at: str


def run_of(records: Sequence[DeliveryRecord]) -> Run | None:
    """Return the run of equal outcomes at the end of *records*, the attempts of one rule, oldest first; None = none."""
    outcomes = DeliveryOutcomes(len(records) or 1)
    for record in records:
        outcomes.add(record, 0)
    if not records:
        return None
    newest, *earlier = outcomes.newest_first()
    same = takewhile(lambda told: told.last.outcome == newest.last.outcome, earlier)
    last = newest.last
    return Run(last.outcome, 1 + sum(1 for _ in same), newest.attempts, last.error, last.at)


class DeliveryOutcomes:
    """
    The outcome of each event that was delivered or tried; of 20,000 events, the ones whose records came last.

    Attributes:
        known_from_ns: Of events before this instant the records may be forgotten, Unix nanoseconds; 0 = of none.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._told: dict[EventKey, tuple[Told, int]] = {}
        self.known_from_ns = 0

    def of(self, event: AlertEvent) -> Told | None:
        """Return what the records about *event* say; None = there are none."""
        told = self._told.get(key_of_event(event))
        return told[0] if told is not None else None

    def add(self, record: DeliveryRecord, stored_ns: int) -> None:
        """Add *record*, which the broker stored at *stored_ns*, Unix nanoseconds."""
        key = key_of_record(record)
        # Nothing was sent of an event that had expired.
        attempts = record.attempt - (record.outcome == "expired")
        told = Told(record, attempts)
        before = self._told.pop(key, None)
        # Two alerters may write at the same time; an outcome is never followed by another attempt.
        if before is not None and (before[0].last.outcome != "retry" or before[0].last.attempt > record.attempt):
            told = Told(before[0].last, max(before[0].attempts, attempts))
        self._told[key] = (told, stored_ns)
        if len(self._told) > self._capacity:
            oldest = next(iter(self._told))
            self.known_from_ns = max(self.known_from_ns, self._told.pop(oldest)[1])

    def newest_first(self) -> list[Told]:
        """Return the deliveries of each event, that of the last attempt first."""
        return [told for told, _ in reversed(self._told.values())]

    def forget(self, about: Callable[[DeliveryRecord], bool]) -> None:
        """Drop what was told about the events for which *about* is true of their last record."""
        self._told = {key: entry for key, entry in self._told.items() if not about(entry[0].last)}
