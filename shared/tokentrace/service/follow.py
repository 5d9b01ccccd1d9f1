"""
The one loop in which services read a stream.

    async with Follower(bus, subjects.ALERTS, [subjects.ALL_ALERTS], None, reader="alert history") as chunks:
        async for chunk in chunks:
            ...

``Bus.follow`` yields chunks through every restart of the broker; its generator must be closed when the loop ends. A
``Follower`` closes it, keeps the reader's position, logs messages that are missing and streams that were recreated, and
reports when the reader has caught up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

import structlog

from tokentrace.bus import Bus, Chunk
from tokentrace.records import Position

log = structlog.stdlib.get_logger(__name__)


class Follower:
    """
    Reads the messages of one stream from a position on, chunk by chunk.

    A chunk counts as applied when the loop asks for the next one. Then ``position`` moves to the end of the chunk, and
    ``caught_up`` is set if nothing was pending. If the loop is left, its last chunk does not count as applied.

    Args:
        stream, filters: The stream and the subjects to read.
        after: The position after which to start; None = start at the first message.
        reader: The name of the reader in logs.
        needs_every_message: Log messages that the stream discarded before they were read as an error, because the
            reader's state is incomplete without them. A bucket discards messages all the time.
        until_caught_up: End the loop once nothing is pending, instead of waiting for new messages.
        on_caught_up: Called whenever a chunk with nothing pending has been applied.

    Attributes:
        position: The position after the last chunk that was applied; None = nothing was applied yet.
        caught_up: Set once a chunk with nothing pending was applied; never cleared.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        filters: Sequence[str],
        after: Position | None,
        *,
        reader: str,
        needs_every_message: bool = False,
        until_caught_up: bool = False,
        on_caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.position = after
        self.caught_up = asyncio.Event()
        self._log = log.bind(reader=reader, stream=stream)
        self._chunks = bus.follow(stream, filters, after)
        self._needs_every_message = needs_every_message
        self._until_caught_up, self._on_caught_up = until_caught_up, on_caught_up
        self._current: Chunk | None = None

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._chunks.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._current is not None and self._finish(self._current):
            raise StopAsyncIteration
        chunk = self._current = await anext(self._chunks)
        if chunk.rewound:
            self._log.warning("the stream was recreated or lost its end; reading it again from its first message")
        if chunk.missing is not None and self._needs_every_message:
            self._log.error("messages %d to %d were discarded by the stream before they were read", *chunk.missing)
        return chunk

    def _finish(self, chunk: Chunk) -> bool:
        """Note that *chunk* is applied; return True if the loop ends here."""
        self._current = None
        self.position = chunk.after(self.position)
        if chunk.pending:
            return False
        self.caught_up.set()
        self._on_caught_up()
        return self._until_caught_up
