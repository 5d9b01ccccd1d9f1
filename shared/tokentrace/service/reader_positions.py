"""The position of each reader of the span log, published in the bucket ``tt_meta``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokentrace.bad_data import SetAside, reading
from tokentrace.bus import Bus, Entry, StreamState, subjects
from tokentrace.records import Natural, Position
from tokentrace.units import DAY

_READER = "reader."


def reader_key(service: str, shard: int) -> str:
    """Return the key of a reader's position in ``tt_meta``."""
    return f"{_READER}{service}.{shard}"


def encode_position(position: Position, now_ns: int) -> bytes:
    """Return the value for ``tt_meta``: (creation of the stream, sequence, time of publication), times in ns."""
    return msgspec.json.encode([position.created_ns, position.sequence, now_ns])


_positions = msgspec.json.Decoder(tuple[Natural, Natural, Natural])


def read_positions(entries: Mapping[str, Entry], set_aside: SetAside) -> dict[str, tuple[int, int, int]]:
    """Return key -> what ``encode_position`` encoded, for each reader; entries that cannot be decoded are set aside."""
    positions = {}
    for key, entry in entries.items():
        if key.startswith(_READER):
            with set_aside.guard(subjects.META, f"key {key} revision {entry.revision}"), reading("reader's position"):
                positions[key] = _positions.decode(entry.value)
    return positions


def backlog(
    state: StreamState, positions: Mapping[str, tuple[int, int, int]], now_ns: int, forget_ns: int = 7 * DAY
) -> dict[str, float]:
    """
    Return for each reader how much it still has to read, as a fraction of the stream's maximum size.

    Args:
        positions: Reader -> (creation of the stream, sequence, time of publication), times in Unix nanoseconds.
        forget_ns: A reader that has published no position for this long is ignored, nanoseconds.
    """
    if state.max_bytes <= 0:
        return {}
    full = state.bytes / state.max_bytes
    span = max(state.last_sequence - state.first_sequence + 1, 1)
    behind = {}
    for reader, (created_ns, sequence, published_ns) in positions.items():
        if published_ns < now_ns - forget_ns:
            continue
        read = sequence if created_ns == state.created_ns else 0
        unread = max(state.last_sequence - max(read, state.first_sequence - 1), 0)
        behind[reader] = full * unread / span
    return behind


async def read_backlog(bus: Bus, entries: Mapping[str, Entry]) -> tuple[StreamState, dict[str, float]]:
    """
    Return the state of the span log and the backlog of each reader.

    Args:
        entries: The entries of ``tt_meta``.

    Raises:
        Unavailable: The broker is unreachable.
    """
    state = await bus.state(subjects.SPANS)
    return state, backlog(state, read_positions(entries, bus.set_aside), bus.clock.now_ns())
