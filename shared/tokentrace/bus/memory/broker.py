"""A broker in memory: streams that several ``MemoryBus`` of one process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tokentrace.bus.contract import Handler, Message, Stream
from tokentrace.errors import Rejected, Unavailable


@dataclass
class StoredLog:
    """One stream: its messages and, if it is consumed, which of them were delivered and acknowledged."""

    spec: Stream
    created_ns: int
    messages: dict[int, Message] = field(default_factory=dict)
    #: Subject -> the sequences of its messages, in order; the values mean nothing.
    by_subject: dict[str, dict[int, None]] = field(default_factory=dict)
    last_sequence: int = 0
    #: Message id -> (sequence, when it was stored, Unix nanoseconds), oldest first.
    ids: dict[str, tuple[int, int]] = field(default_factory=dict)
    bytes: int = 0
    #: Sequence of a delivered message -> (when to deliver it again, Unix seconds; number of deliveries so far).
    pending: dict[int, tuple[float, int]] = field(default_factory=dict)
    #: Acknowledged sequences of a stream that keeps its messages.
    done: set[int] = field(default_factory=set)
    #: The last sequence that was delivered.
    delivered: int = 0

    def stores(self, subject: str) -> bool:
        """Return True if the stream stores messages on *subject*."""
        return any(matches(pattern, subject) for pattern in self.spec.subjects)

    def append(self, message: Message, id: str | None) -> None:
        """Store *message*, whose sequence is the next one, and its id if it has one."""
        self.last_sequence = message.sequence
        self.messages[message.sequence] = message
        self.by_subject.setdefault(message.subject, {})[message.sequence] = None
        self.bytes += len(message.payload)
        if id is not None:
            self.ids[id] = (message.sequence, message.time_ns)

    def remove(self, sequence: int) -> None:
        """Remove a message, if it is still there."""
        message = self.messages.pop(sequence, None)
        if message is not None:
            self.bytes -= len(message.payload)
            of_subject = self.by_subject[message.subject]
            del of_subject[sequence]
            if not of_subject:
                del self.by_subject[message.subject]
        self.pending.pop(sequence, None)
        self.done.discard(sequence)

    def forget_old(self, now_ns: int) -> None:
        """Remove the messages that are older than the stream keeps them, and the ids that no window covers."""
        if self.spec.max_age_ns:
            oldest_ns = now_ns - self.spec.max_age_ns
            while self.messages:
                first = next(iter(self.messages))
                if self.messages[first].time_ns > oldest_ns:
                    break
                self.remove(first)
        while self.ids:
            id = next(iter(self.ids))
            if self.ids[id][1] > now_ns - self.spec.duplicate_window_ns:
                break
            del self.ids[id]

    def after(self, sequence: int) -> Iterator[Message]:
        """Yield the messages after *sequence*, oldest first."""
        if sequence + len(self.messages) < self.last_sequence:
            # Many of the sequences in between are gone.
            yield from (message for number, message in self.messages.items() if number > sequence)
            return
        for number in range(sequence + 1, self.last_sequence + 1):
            message = self.messages.get(number)
            if message is not None:
                yield message

    def finish(self, sequence: int) -> None:
        """Acknowledge a message: remove it from a work queue, or note that it is not to be delivered again."""
        if self.spec.work_queue:
            self.remove(sequence)
        else:
            self.pending.pop(sequence, None)
            self.done.add(sequence)

    def last_of(self, subject: str) -> Message | None:
        """Return the last message of *subject*, or None if there is none."""
        sequences = self.by_subject.get(subject)
        return None if not sequences else self.messages[next(reversed(sequences))]


def matches(pattern: str, subject: str) -> bool:
    """Return True if *subject* matches *pattern*: ``*`` matches one token, ``>`` one or more at the end."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)


class MemoryBroker:
    """
    The streams and servers that several ``MemoryBus`` share.

    Args:
        now_ns: The broker's clock: returns Unix nanoseconds.

    Attributes:
        logs: Stream name -> stream.
        servers: (subject, group, handler) of each server.
        up: Set to False to make the broker unreachable; call ``ring`` after a change.
        changed: The event that the next ``ring`` sets; each ``ring`` replaces it by a new one.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.now_ns = now_ns
        self.logs: dict[str, StoredLog] = {}
        self.servers: list[tuple[str, str, Handler]] = []
        self.up = True
        self.changed = asyncio.Event()

    def ring(self) -> None:
        """Wake all followers and consumers, after a publish or another change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def check(self) -> None:
        """Raise Unavailable if the broker is switched off."""
        if not self.up:
            raise Unavailable("the broker is switched off")

    def log(self, name: str) -> StoredLog:
        """Return the stream *name*; Rejected if it does not exist, Unavailable if the broker is switched off."""
        self.check()
        try:
            return self.logs[name]
        except KeyError:
            raise Rejected(f"stream {name}: not found") from None

    def log_for(self, subject: str) -> StoredLog:
        """Return the stream that stores *subject*; Unavailable if there is none or the broker is switched off."""
        self.check()
        for log in self.logs.values():
            if log.stores(subject):
                return log
        raise Unavailable("no stream takes this subject yet")
