"""
What a stateful service is: a pure core that takes messages in and says what is to be done.

A machine does no I/O and knows no clock. The pump around it reads the stream, hands over the time and performs the
effects; effects are plain data whose ids derive from content, so performing one twice is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tokentrace.bus import Message
from tokentrace.records import Position
from tokentrace.state import Saved


class Publish(msgspec.Struct, frozen=True):
    """
    Store a message on a stream.

    Attributes:
        id: Makes a repetition harmless.
        expect_last: Sequence that must be the subject's last; None = no matter.
    """

    subject: str
    payload: bytes
    id: str
    expect_last: int | None = None
    headers: Mapping[str, str] = {}


Effect = Publish


class Machine(Protocol):
    """One shard of a service's state."""

    @property
    def position(self) -> Position | None:
        """The last message it contains."""
        ...

    def fold(self, message: Message, created_ns: int) -> None:
        """
        Take one message in.

        Args:
            created_ns: Of the stream, for the position.

        Raises:
            Rejected: It cannot be read; it counts as taken in.
        """
        ...

    def lost(self, first: int, last: int, created_ns: int) -> None:
        """The stream no longer has the messages *first* to *last*, and this machine has not seen them."""
        ...

    def rewound(self, created_ns: int) -> None:
        """The stream was made anew or lost its end; its messages come again from the first one."""
        ...

    def tick(self, now_ns: int) -> Sequence[Effect]:
        """What is due at *now_ns* and not yet performed; called often, and after every restart again."""
        ...

    def performed(self, effect: Effect) -> None:
        """*effect* is done, or nobody can ever do it: ``tick`` need not name it again."""
        ...

    def snapshot(self, saved: Mapping[str, int]) -> Saved:
        """
        Everything that ``restore`` needs, position included.

        Args:
            saved: Part -> the revision of it that is saved already.
        """
        ...

    def restore(self, state: bytes, parts: Mapping[str, bytes]) -> None:
        """
        Become what ``snapshot`` saw; every part is of revision 0 then.

        Raises:
            Rejected: Not a snapshot of this service and version.
        """
        ...
