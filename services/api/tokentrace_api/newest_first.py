"""
Pages of what a stream holds, newest first.

A stream can be read forwards only, so a page is read in portions from its end. A cursor holds when the stream was
created, so that a cursor of a stream that has been recreated is refused instead of misread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from tokentrace.bus import Bus, Message
from tokentrace.errors import Rejected, quoted
from tokentrace.records import Position
from tokentrace.service.follow import Follower

T = TypeVar("T")
#: Number of messages that are read at a time, and in all for one page.
_STEP, _MOST_READ = 500, 10_000
#: A page ends when the messages on it are this large together, bytes.
_PAGE_BYTES = 4 * 1024 * 1024


class Page(NamedTuple, Generic[T]):
    """
    A page, newest first.

    Attributes:
        next: The cursor of the next page; "" = this is the last one.
    """

    items: list[T]
    next: str


async def read_page(
    bus: Bus,
    stream: str,
    subject: str,
    parse: Callable[[Message], T | None],
    *,
    reader: str,
    limit: int,
    cursor: str = "",
    since_ns: int | None = None,
) -> Page[T]:
    """
    Return up to *limit* messages of *stream* as *parse* returns them, newest first.

    A page may hold fewer although there are more: at most 10,000 messages are looked at for one.

    Args:
        subject: The subject of all messages of the stream.
        parse: Returns what is shown of a message; None = the message is left out.
        reader: The name of the reader in logs.
        cursor: ``Page.next`` of the page before; "" = begin with the newest message.
        since_ns: Only messages stored at this instant or later, Unix nanoseconds; None = any.

    Raises:
        Rejected: *cursor* is not the cursor of a page of this stream.
        Unavailable: The broker cannot be reached.
    """
    state = await bus.state(stream)
    last = min(_parse_cursor(cursor, state.created_ns), state.last_sequence) if cursor else state.last_sequence
    first = max(state.first_sequence, 1)
    found: list[T] = []
    size, stop = 0, max(first, last - _MOST_READ + 1)
    while state.messages and last >= stop:
        start = max(last - _STEP + 1, stop)
        after = Position(state.created_ns, start - 1)
        for message in reversed(await _read(bus, stream, subject, after, last, reader)):
            if since_ns is not None and message.time_ns < since_ns:
                return Page(found, "")
            item = parse(message)
            if item is None:
                continue
            if len(found) == limit or size > _PAGE_BYTES:
                return Page(found, _cursor(state.created_ns, message.sequence))
            found.append(item)
            size += len(message.payload)
        last = start - 1
    return Page(found, _cursor(state.created_ns, last) if state.messages and last >= first else "")


async def _read(bus: Bus, stream: str, subject: str, after: Position, last: int, reader: str) -> Sequence[Message]:
    """Return the messages after *after* up to the sequence *last*, oldest first."""
    messages: list[Message] = []
    async with Follower(bus, stream, [subject], after, reader=reader, until_caught_up=True) as chunks:
        async for chunk in chunks:
            messages += (message for message in chunk.messages if message.sequence <= last)
            if chunk.messages and chunk.messages[-1].sequence >= last:
                break
    return messages


def _cursor(created_ns: int, sequence: int) -> str:
    return f"{created_ns}-{sequence}"


def _parse_cursor(text: str, created_ns: int) -> int:
    """Return the sequence in *text*; Rejected if it is not a cursor of the stream created at *created_ns*."""
    created, _, sequence = text.partition("-")
    if created != str(created_ns) or not (sequence.isascii() and sequence.isdigit()) or len(sequence) > 18:
        raise Rejected(f"cursor: {quoted(text)} is not a cursor of an earlier answer")
    return int(sequence)
