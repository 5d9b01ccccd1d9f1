"""
The contract of the bus: what a service may ask of a message broker.

Two classes implement it, and one test suite runs against both: ``memory.MemoryBus`` (in process) and
``jetstream.JetStream`` (NATS). Every call but ``follow`` and ``consume`` ends. A call raises ``Unavailable`` if the
broker cannot answer now, ``Rejected`` if the broker refuses the request for good, ``Conflict`` if a compare-and-set
lost, and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

import msgspec

from tokentrace.bad_data import SetAside
from tokentrace.bus.clock import BrokerClock
from tokentrace.records import Position
from tokentrace.units import MINUTE

__all__ = [
    "HEADROOM_BYTES",
    "MIN_STREAM_BYTES",
    "Bus",
    "Chunk",
    "Delivery",
    "Entry",
    "Handler",
    "KeyValue",
    "Message",
    "Objects",
    "Position",
    "PubAck",
    "Stream",
    "StreamState",
    "WaitPolicy",
]

#: Bytes kept free for the subject and headers when a payload is cut to the broker's limit.
HEADROOM_BYTES = 16 * 1024
#: The smallest size to which a stream is cut for lack of space, bytes.
MIN_STREAM_BYTES = 1024 * 1024


class Message(NamedTuple):
    """One message of a stream; *time_ns* is when the broker stored it, Unix nanoseconds."""

    subject: str
    payload: bytes
    sequence: int
    time_ns: int
    headers: Mapping[str, str]


class PubAck(NamedTuple):
    """The sequence of a stored message; *duplicate* = it was stored before under the same id, and not again."""

    sequence: int
    duplicate: bool


class Chunk(NamedTuple):
    """
    Messages that a follower reads together.

    Attributes:
        messages: The matching messages in stream order, without gaps and without repetitions.
        pending: Number of matching messages still to be read; 0 = caught up.
        created_ns: When the stream was created, Unix nanoseconds; part of a ``Position``.
        missing: (first, last) sequence of messages that the stream discarded before they were read, or None.
        rewound: The stream was recreated or lost its end; reading starts again at its first message.
    """

    messages: Sequence[Message]
    pending: int
    created_ns: int
    missing: tuple[int, int] | None = None
    rewound: bool = False

    def after(self, before: Position | None) -> Position:
        """Return the position of a reader that stood at *before* and has applied this chunk."""
        sequence = 0 if before is None or self.rewound else before.sequence
        if self.missing is not None:
            sequence = max(sequence, self.missing[1])
        return Position(self.created_ns, self.messages[-1].sequence if self.messages else sequence)


class Delivery(Protocol):
    """
    One message of a work queue; the broker delivers it again until it is acknowledged or terminated.

    Attributes:
        deliveries: How often the message was delivered, this delivery included.
    """

    message: Message
    deliveries: int

    async def ack(self) -> None:
        """Acknowledge the message: the broker removes it."""

    async def nak(self, delay_s: float = 0.0) -> None:
        """Ask the broker to deliver the message again after *delay_s* seconds."""

    async def term(self, reason: str) -> None:
        """Remove the message although it was not processed; the broker may show *reason*."""

    async def in_progress(self) -> None:
        """Start the acknowledgement timeout again, because processing takes longer."""


class Entry(NamedTuple):
    """A value of a key-value bucket, and the revision that ``KeyValue.update`` compares with."""

    value: bytes
    revision: int


class KeyValue(Protocol):
    """A bucket of small values with compare-and-set; its entries are the messages of the stream ``KV_<bucket>``."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry of *key*, or None if there is none."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Write *key* unconditionally and return the new revision."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write *key* and return the new revision; Conflict if the key exists."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write *key* and return the new revision; Conflict unless *revision* is the current one."""
        ...

    async def delete(self, key: str) -> None:
        """Delete *key*; deleting a key that does not exist is no error."""
        ...

    async def items(self) -> dict[str, Entry]:
        """Return all entries by key."""
        ...


class Objects(Protocol):
    """A bucket of large values. Write each name once: the contents of an overwritten object are never removed."""

    async def put(self, name: str, data: bytes) -> None:
        """Store *data* under *name*; the object exists only after the last byte is stored."""
        ...

    async def get(self, name: str) -> bytes | None:
        """Return the object after checking its digest, or None if there is none; Rejected if it is damaged."""
        ...

    async def names(self) -> list[str]:
        """Return the names of all objects, sorted; a name that cannot be decoded is set aside and left out."""
        ...

    async def delete(self, name: str) -> None:
        """Delete the object; deleting an object that does not exist is no error."""
        ...


#: Takes the payload of a request and yields the replies; each reply is sent as soon as it is yielded.
Handler = Callable[[bytes], AsyncIterator[bytes]]
#: Takes the replies so far and returns until when to wait for more, in seconds after the request; 0 = stop waiting. It
#: is called after every reply, and again when that time has come: then it may return a later one.
WaitPolicy = Callable[[list[bytes]], float]


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """
    The settings of a stream.

    Attributes:
        subjects: The subjects that the stream stores.
        work_queue: True = a message is removed once it is acknowledged; False = a message stays, and a full log
            discards its oldest message. For full work queues and buckets see *evicts*.
        max_bytes: Maximum size, bytes; -1 = no limit.
        max_age_ns: How long a message is kept, nanoseconds; 0 = no limit.
        duplicate_window_ns: How long the broker recognises a repeated message id, nanoseconds.
        per_subject: How many messages of each subject are kept; -1 = all.
        durable: False = messages are acknowledged before they are on disk; for content that can be made again.
        kind: log, or the kind of bucket that the stream holds: kv (key-value store) or objects (object store).
        evicts: What a full work queue or bucket does: True = it discards its oldest message; False = it refuses the new
            one.
    """

    name: str
    subjects: tuple[str, ...]
    work_queue: bool = False
    max_bytes: int = -1
    max_age_ns: int = 0
    duplicate_window_ns: int = 2 * MINUTE
    per_subject: int = -1
    durable: bool = True
    kind: Literal["log", "kv", "objects"] = "log"
    evicts: bool = False

    @property
    def refuses(self) -> bool:
        """True if a full stream refuses messages instead of discarding the oldest."""
        return not self.evicts and (self.work_queue or self.kind != "log")


class StreamState(NamedTuple):
    """What a stream holds now; *first_time_ns* is when its first message was stored, Unix nanoseconds; 0 = empty."""

    created_ns: int
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    max_bytes: int
    first_time_ns: int


class Bus(Protocol):
    """One connection to a broker."""

    @property
    def connected(self) -> bool:
        """True while there is a connection to the broker."""
        ...

    @property
    def problems(self) -> list[str]:
        """``["nats"]`` while disconnected, else one text for each kind of subject that the broker fails to store."""
        ...

    @property
    def clock(self) -> BrokerClock:
        """The broker's time. Whatever depends on the time asks this clock and not that of the host."""
        ...

    @property
    def set_aside(self) -> SetAside:
        """Data that was read over this connection and could not be decoded; every decoder notes it here."""
        ...

    @property
    def max_payload(self) -> int:
        """The largest message the broker accepts, bytes."""
        ...

    async def ensure(self, stream: Stream, *, resize: bool = False) -> str:
        """
        Create *stream*, or change an existing stream to these settings.

        The number of replicas is left as it is, and no stream is cut below what it holds. If the broker has too little
        space, a new stream is created smaller, and an existing one keeps its size or all its settings.

        Args:
            resize: True = a stream that holds messages may grow to ``max_bytes``; False = it can only shrink.

        Returns:
            What was done instead if there was too little space; "" if the stream is as requested or kept its size.

        Raises:
            Unavailable: The broker is unreachable, or has no space for the smallest stream.
            Rejected: The broker refuses the settings.
        """
        ...

    async def state(self, stream: str) -> StreamState:
        """Return what *stream* holds; Rejected if it does not exist. The state of the log also sets ``clock``."""
        ...

    async def position_at(self, stream: str, time_ns: int) -> Position:
        """
        Return the position of a reader that has read every message stored before *time_ns*, Unix nanoseconds.

        The position may be a little too early. It is valid only for streams that discard nothing but their oldest
        messages: in a bucket it may be too late.
        """
        ...

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        id: str | None = None,
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """
        Store a message.

        Args:
            id: A second message with this id within the duplicate window is acknowledged but not stored.
            expect_last: The sequence that the last message of *subject* must have; 0 = there must be none; None = any.

        Raises:
            Unavailable: The message was not acknowledged and may or may not have been stored.
            Conflict: The last message of *subject* has another sequence than *expect_last*.
            Rejected: The message is larger than the broker accepts, or refused for good for another reason.
        """
        ...

    def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """
        Yield the messages of *stream* that match *subjects* and come after position *after* (None = all), without end.

        Following continues after a restart of the broker and waits while the broker is unreachable. An empty chunk is
        yielded at the start if nothing is pending, so that the reader of an empty stream learns that it has caught up.

        Raises:
            Unavailable: The connection was closed for good.
        """
        ...

    def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[Delivery], None]:
        """
        Yield messages of a work queue, without end; all consumers named *durable* share them.

        Args:
            batch: How many messages to request at a time.
            ack_wait_s: Seconds after which an unacknowledged message is delivered again.

        Raises:
            Unavailable: The connection was closed for good.
        """
        ...

    async def done_up_to(self, stream: str, durable: str) -> int:
        """
        Return a sequence up to which the consumers named *durable* have acknowledged every message of *stream*.

        Later ones may be done too; 0 = there is no such consumer, or the first message is not done.
        """
        ...

    async def delivered_up_to(self, stream: str, durable: str) -> int | None:
        """Return the last sequence that was delivered to consumers named *durable*; None = there is none of them."""
        ...

    async def erase(self, stream: str, sequence: int) -> None:
        """
        Remove one message and overwrite it on disk; erasing a message that is already gone is no error.

        Raises:
            Unavailable: The broker did not answer; the message may or may not have been erased.
        """

    async def notify(self, subject: str, payload: bytes) -> None:
        """
        Send a message to all that serve *subject* now. Nothing stores it, and it is lost if there are none.

        Raises:
            Unavailable: There is no connection, so the message was not sent.
        """

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Send a request and return the first reply; Unavailable if none comes within *timeout_s* seconds."""
        ...

    async def request_many(self, subject: str, payload: bytes, wait_policy: WaitPolicy) -> list[bytes]:
        """Send a request and return all replies that arrive while *wait_policy* waits; [] if nothing serves it."""
        ...

    def serve(self, subject: str, handler: Handler, *, group: str = "") -> AbstractAsyncContextManager[None]:
        """
        Answer requests on *subject* while the context is open.

        Args:
            group: Name of a group of servers; each request goes to one of them. "" = this server gets every request.
        """
        ...

    def kv(self, bucket: str) -> KeyValue:
        """Return the key-value bucket *bucket*."""
        ...

    def objects(self, bucket: str) -> Objects:
        """Return the object store *bucket*."""
        ...
