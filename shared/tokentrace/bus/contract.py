"""
The contract of the bus: what services may ask of a broker, whatever it is.

Two implementations obey it under one test suite: ``memory`` (the twin, one process) and ``jetstream`` (the real one).
Every call raises ``Unavailable`` when the broker cannot answer, ``Rejected`` when it refuses for good and ``Conflict``
when a compare-and-set lost; nothing hangs and nothing else escapes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

import msgspec

from tokentrace.bad_data import SetAside
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

#: Room left for subject and headers when a payload is cut to the broker's limit.
HEADROOM_BYTES = 16 * 1024
#: No stream is cut below this.
MIN_STREAM_BYTES = 1024 * 1024


class Message(NamedTuple):
    """One message of a stream; time_ns is when the broker stored it, Unix nanoseconds."""

    subject: str
    payload: bytes
    sequence: int
    time_ns: int
    headers: Mapping[str, str]


class PubAck(NamedTuple):
    """The broker has stored a message under *sequence*, or had it already."""

    sequence: int
    duplicate: bool


class Chunk(NamedTuple):
    """
    What a follower reads at once.

    Attributes:
        messages: In order, nothing skipped, nothing twice.
        pending: Matching messages still to come; 0 = caught up.
        created_ns: The stream's, for ``Position``.
        missing: (first, last) sequence that the stream no longer has, noticed before this chunk.
        rewound: The stream was made anew or lost its end: this chunk starts at its first message.
    """

    messages: Sequence[Message]
    pending: int
    created_ns: int
    missing: tuple[int, int] | None = None
    rewound: bool = False

    def after(self, before: Position | None) -> Position:
        """Where a reader stands that stood at *before* and has applied this."""
        sequence = 0 if before is None or self.rewound else before.sequence
        if self.missing is not None:
            sequence = max(sequence, self.missing[1])
        return Position(self.created_ns, self.messages[-1].sequence if self.messages else sequence)


class Delivery(Protocol):
    """One message of a work queue; until it is acknowledged it will be given to somebody again."""

    message: Message
    deliveries: int

    async def ack(self) -> None:
        """Done: remove it."""

    async def nak(self, delay_s: float = 0.0) -> None:
        """Not done: give it to somebody again, after *delay_s* seconds."""

    async def term(self, reason: str) -> None:
        """Never again, and remove it."""

    async def in_progress(self) -> None:
        """Still at it: start the patience anew."""


class Entry(NamedTuple):
    """A value of a key-value bucket and the revision to compare with."""

    value: bytes
    revision: int


class KeyValue(Protocol):
    """A bucket of small values with compare-and-set; as a stream it is ``KV_<bucket>``."""

    async def get(self, key: str) -> Entry | None: ...

    async def put(self, key: str, value: bytes) -> int: ...

    async def create(self, key: str, value: bytes) -> int:
        """Write *key* if it is not there; Conflict if it is."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write *key* if *revision* is still its last; Conflict if not."""
        ...

    async def delete(self, key: str) -> None: ...

    async def items(self) -> dict[str, Entry]: ...


class Objects(Protocol):
    """A bucket of large values; a name is written once, because overwriting hangs whoever reads it."""

    async def put(self, name: str, data: bytes) -> None: ...

    async def get(self, name: str) -> bytes | None:
        """The object, its digest checked; None when there is none. Rejected when it is damaged."""
        ...

    async def names(self) -> list[str]:
        """Of all objects; what is no name is set aside."""
        ...

    async def delete(self, name: str) -> None: ...


#: From a request to its answers, each of which is sent when it is there.
Handler = Callable[[bytes], AsyncIterator[bytes]]
#: From the answers so far to how long to wait for more, seconds after the request; 0 = these are enough.
WaitPolicy = Callable[[list[bytes]], float]


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a stream is to be.

    Attributes:
        subjects: What it stores.
        work_queue: A message is removed once acknowledged, and a full stream refuses; else the oldest makes room.
        max_bytes, max_age_ns: Ceilings; max_age_ns 0 = none.
        duplicate_window_ns: How long the broker remembers ids.
        per_subject: Messages kept for each subject; -1 = all.
        durable: False = acknowledged before it is on disk, for what can be made again.
        kind: A bucket is a stream with the settings its kind needs.
        evicts: Of a bucket: when it is full the oldest entry makes room, as in a log; else it refuses.
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
        """True when nothing more goes in once it is full."""
        return self.work_queue or (self.kind != "log" and not self.evicts)


class StreamState(NamedTuple):
    """What a stream holds now."""

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
        """False while the broker is away."""
        ...

    @property
    def problems(self) -> list[str]:
        """What the broker cannot do now: ``nats`` while it is away, else what it fails to store."""
        ...

    @property
    def set_aside(self) -> SetAside:
        """What was read over this connection and could not be understood; whoever decodes notes it here."""
        ...

    @property
    def max_payload(self) -> int:
        """Largest message the broker takes, bytes."""
        ...

    async def ensure(self, stream: Stream, *, resize: bool = False) -> str:
        """
        Make *stream*, or bring it to these settings, except its number of replicas; never below what it holds.

        A new stream that the broker has no room for is made smaller; one that is there and cannot be changed for want
        of room stays as it is.

        Args:
            resize: Let a stream that holds something grow to ``max_bytes`` as well; else it is only made smaller.

        Returns:
            What became of it instead for want of room; "" when it is as asked for.

        Raises:
            Unavailable: The broker is away, or has no room for the smallest stream.
        """
        ...

    async def state(self, stream: str) -> StreamState: ...

    async def position_at(self, stream: str, time_ns: int) -> Position:
        """
        Where a reader stands that has read everything stored before *time_ns*, Unix nanoseconds.

        Only of a stream that loses nothing but its beginning: of a bucket the answer may be too late.
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
            id: Within the duplicate window a second message with it is acknowledged and not stored.
            expect_last: Conflict unless this is the sequence of the subject's last message (0 = it has none).
        """
        ...

    def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """Read *stream* from behind *after*, for ever, through restarts of the broker; waits while it is away."""
        ...

    def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[Delivery], None]:
        """Take messages of a work queue that all consumers of *durable* share; given again after *patience_s*."""
        ...

    async def erase(self, stream: str, sequence: int) -> None:
        """
        Remove one message and overwrite it on disk; one that is gone already is no error.

        Raises:
            Unavailable: Perhaps not erased.
        """

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """The first answer."""
        ...

    async def request_many(self, subject: str, payload: bytes, patience: WaitPolicy) -> list[bytes]:
        """The answers of everybody who serves *subject*, as long as *patience* says."""
        ...

    def serve(self, subject: str, handler: Handler, *, group: str = "") -> AbstractAsyncContextManager[None]:
        """Answer requests while inside; one of each *group* is asked, everybody without one."""
        ...

    def kv(self, bucket: str) -> KeyValue: ...

    def objects(self, bucket: str) -> Objects: ...
