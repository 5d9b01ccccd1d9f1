"""What key-value buckets and object stores need of a JetStream connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tokentrace.bad_data import SetAside
from tokentrace.bus.contract import Message, PubAck


class StreamAccess(Protocol):
    """What buckets need of a JetStream connection."""

    @property
    def set_aside(self) -> SetAside:
        """Where unreadable data is reported."""
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
        """Store a message, as ``Bus.publish``."""
        ...

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of *subject*; None if it has none."""
        ...

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects that match *pattern* and hold messages."""
        ...

    async def purge(self, stream: str, subject: str) -> None:
        """Remove the messages of *subject*."""
        ...

    async def read(self, stream: str, subject: str, count: int) -> list[bytes]:
        """The first *count* payloads of *subject*; fewer if some are removed meanwhile."""
        ...
