"""
The core of a stateful service: a machine that folds messages into its state and returns the effects that are due.

A machine does no I/O and reads no clock. The ``Runner`` around it reads the stream, passes it the time and performs the
effects. An effect is plain data with an id that is derived from its content, so performing it twice is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from tokentrace.bus import Message
from tokentrace.dedup import Digest
from tokentrace.records import Position
from tokentrace.state import Saved


class Publish(msgspec.Struct, frozen=True):
    """
    An effect: store a message on a stream.

    Attributes:
        id: The message id, by which the broker recognises a repetition.
        expect_last: The sequence that the subject's last message must have; None = any.
    """

    subject: str
    payload: bytes
    id: str
    expect_last: int | None = None
    headers: Mapping[str, str] = {}


Effect = Publish


class Machine(Protocol):
    """The state of one shard of a service."""

    @property
    def position(self) -> Position | None:
        """The position of the last message folded; None = nothing was folded."""
        ...

    @property
    def digests(self) -> Mapping[int, Sequence[Digest]]:
        """Shard -> what the machine remembered of calls, by which readers are compared."""
        ...

    def fold(self, message: Message, created_ns: int) -> None:
        """
        Fold one message into the state.

        Args:
            created_ns: When the stream was created, Unix nanoseconds; part of the position.

        Raises:
            Rejected: The message cannot be decoded; the position moves past it all the same.
        """
        ...

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """Note that the stream discarded the messages *first* to *last* before they were folded."""
        ...

    def rewound(self, created_ns: int) -> None:
        """Note that the stream was recreated or lost its end; its messages follow from the first one."""
        ...

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """Return the effects due at *now_ns*, Unix nanoseconds, that are not performed yet."""
        ...

    def performed(self, effect: Effect) -> None:
        """Note that *effect* was performed or refused for good, so that ``tick`` does not return it again."""
        ...

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """
        Capture everything that ``restore`` needs, including the position.

        Args:
            saved: Name of a part -> the revision of it that is saved already.
        """
        ...

    def decode_part(self, name: str, data: bytes) -> Any:
        """
        Return what ``restore`` takes over of one part, so that its bytes can be freed before the next part is read.

        Several threads may call it at once; it neither reads nor changes the state.

        Raises:
            Rejected, or an error of a decoder: *data* is not the part *name* of a snapshot.
        """
        ...

    def restore(self, state: bytes, parts: Mapping[str, Any]) -> None:
        """
        Replace the state by one that ``snapshot`` captured; after that every part has revision 0.

        Args:
            parts: Name of a part -> its bytes, or what ``decode_part`` returned for them.

        Raises:
            Rejected: The bytes are not a snapshot of this service, shard and version.
        """
        ...
