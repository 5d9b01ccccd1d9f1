"""
The order of deliveries: which events have an outcome, and which event of an instance may be delivered now.

An event may be delivered once every earlier event of its instance has an outcome. ``DeliveryOrder`` knows this from
the events, which it is given in the order of their stream, and from the delivery records of all alerters. It does no
I/O and reads no clock; ``ledger`` keeps it current.

A resolution is told even if it is late, because a receiver that knows of the firing waits for it. Only if the firing
was too old to be delivered, the resolution is not told either.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal

from tokentrace.records import AlertEvent, DeliveryRecord
from tokentrace.units import SECOND, parse_instant
from tokentrace_alerter.delivery.channel import attempts_within, idempotency_key, pause_ns

#: (Alert subject, value of the group): one instance of a rule.
Instance = tuple[str, str]
#: How the delivery of an event ended; "unwanted" = its rule does not have it delivered.
Outcome = Literal["delivered", "dead", "expired", "unwanted"]


@dataclass(slots=True)
class _Event:
    """
    An event of the queue.

    Attributes:
        begins: True = it is the first firing of its episode.
        published_ns: When the broker stored it, Unix nanoseconds.
        destination: Where it is delivered; "" = it is not delivered.
        outcome: None = it is still to be delivered.
        attempts: Number of attempts made.
        failures: Number of attempts that count towards the limit; see ``DeliveryOrder.failures``.
        again_s: When the next attempt is due, seconds of a monotonic clock.
    """

    instance: Instance
    key: str
    status: Literal["firing", "resolved"]
    starts_at: str
    begins: bool
    published_ns: int
    destination: str
    outcome: Outcome | None = None
    attempts: int = 0
    failures: int = 0
    again_s: float = 0.0


def instance_of(subject: str, event: AlertEvent) -> Instance:
    """Return the instance of *event*, which was published on *subject*."""
    return subject, "".join(event.group.values())


class DeliveryOrder:
    """
    The events that are not yet known to be done by the queue's own account, in the order of their sequences.

    Attributes:
        changed: Instances whose next event may have changed; the caller empties it.
    """

    def __init__(self) -> None:
        self._events: dict[int, _Event] = {}
        self._by_key: dict[str, list[int]] = {}
        #: Instance -> sequences of its events without an outcome, ascending.
        self._open: dict[Instance, list[int]] = {}
        #: Instance -> start of the episode whose first firing was too old to be delivered.
        self._untold: dict[Instance, str] = {}
        self._floor = 0
        self.changed: set[Instance] = set()

    def __len__(self) -> int:
        return len(self._events)

    def clear(self) -> None:
        """Forget everything, because the stream of events begins anew."""
        self.changed |= self._open.keys()
        self._events.clear()
        self._by_key.clear()
        self._open.clear()
        self._untold.clear()
        self._floor = 0

    def add(self, sequence: int, subject: str, event: AlertEvent, published_ns: int, destination: str) -> None:
        """
        Add the event with this *sequence*, unless it is known.

        Args:
            published_ns: When the broker stored it, Unix nanoseconds.
            destination: Where it is delivered; "" = it is not delivered, so no later event waits for it.
        """
        if sequence <= self._floor or sequence in self._events:
            return
        instance, key = instance_of(subject, event), idempotency_key(event)
        begins = event.status == "firing" and event.starts_at == event.fired_at
        self._events[sequence] = _Event(instance, key, event.status, event.starts_at, begins, published_ns, destination)
        self._by_key.setdefault(key, []).append(sequence)
        if destination:
            insort(self._open.setdefault(instance, []), sequence)

    def forget_up_to(self, sequence: int) -> None:
        """Forget the events up to *sequence*: the queue has removed them, so all of them are done."""
        self._floor = max(self._floor, sequence)
        for done in [number for number in self._events if number <= sequence]:
            if self._events[done].outcome is None:
                self.finish(done, "unwanted")
            event = self._events.pop(done)
            same = self._by_key[event.key]
            same.remove(done)
            if not same:
                del self._by_key[event.key]

    def is_done(self, sequence: int) -> bool:
        """Return whether the event has an outcome, or has left the queue."""
        event = self._events.get(sequence)
        return sequence <= self._floor if event is None else event.outcome is not None

    def may_go(self, sequence: int) -> bool:
        """Return whether no earlier event of the same instance is still to be delivered."""
        event = self._events.get(sequence)
        waiting = self._open.get(event.instance) if event is not None else None
        return not waiting or waiting[0] >= sequence

    def next_open(self, instance: Instance) -> int | None:
        """Return the sequence of the event of *instance* that may be delivered now; None = there is none."""
        waiting = self._open.get(instance)
        return waiting[0] if waiting else None

    def destination(self, key: str) -> str:
        """Return where the event with this ``Idempotency-Key`` is delivered; "" = nowhere, or it is not known."""
        sequences = self._by_key.get(key)
        return self._events[sequences[0]].destination if sequences else ""

    def attempts(self, sequence: int) -> int:
        """Return how many attempts at the event were made."""
        event = self._events.get(sequence)
        return 0 if event is None else event.attempts

    def failures(self, sequence: int) -> int:
        """
        Return how many attempts at the event count towards ``max_retries``.

        An attempt does not count if the receiver asked to wait. If the event before was given up, the time that this
        one has waited counts as if it had been tried meanwhile, so a receiver that is away does not make the queue
        grow.
        """
        event = self._events.get(sequence)
        return 0 if event is None else event.failures

    def again_s(self, sequence: int) -> float:
        """Return when the next attempt at the event is due, seconds of a monotonic clock; 0 = at once."""
        event = self._events.get(sequence)
        return 0.0 if event is None else event.again_s

    def is_untold(self, sequence: int) -> bool:
        """Return whether the event resolves an episode whose firing was too old to be delivered."""
        event = self._events.get(sequence)
        return event is not None and event.status == "resolved" and self._untold.get(event.instance) == event.starts_at

    def note(self, record: DeliveryRecord, now_ns: int, now_s: float) -> None:
        """
        Apply the record of an attempt by this or another alerter; a repeated record changes nothing.

        Args:
            now_ns, now_s: The time as Unix nanoseconds, and in seconds of the monotonic clock.
        """
        at_ns = parse_instant(record.at)
        for sequence in list(self._by_key.get(record.key, ())):
            event = self._events[sequence]
            if event.outcome is not None or record.attempt <= event.attempts:
                continue
            if record.outcome != "retry":
                self.finish(sequence, record.outcome, at_ns)
                continue
            event.attempts = record.attempt
            event.failures += record.retry_after_s is None
            pause = pause_ns(record.attempt, record.retry_after_s)
            event.again_s = now_s + min(max(at_ns + pause - now_ns, 0), pause) / SECOND

    def finish(self, sequence: int, outcome: Outcome, at_ns: int = 0) -> None:
        """
        Give the event its *outcome*; the next event of its instance may then be delivered.

        Args:
            at_ns: When it was given up, Unix nanoseconds; only for ``dead``.
        """
        event = self._events.get(sequence)
        if event is None or event.outcome is not None:
            return
        event.outcome = outcome
        if event.begins and outcome == "expired":
            self._untold[event.instance] = event.starts_at
        elif event.status == "resolved" or outcome in ("delivered", "dead"):
            self._untold.pop(event.instance, None)
        waiting = self._open.get(event.instance, [])
        place = bisect_left(waiting, sequence)
        if waiting[place : place + 1] != [sequence]:
            return
        del waiting[place]
        if not waiting:
            del self._open[event.instance]
        if outcome == "dead" and event.failures:
            for number in waiting:
                later = self._events[number]
                later.failures = max(later.failures, attempts_within(at_ns - later.published_ns))
        self.changed.add(event.instance)
