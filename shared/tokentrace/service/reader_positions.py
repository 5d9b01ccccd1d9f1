"""How far each reader of the span log is, told in the bucket `tt_meta`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec

from tokentrace.bad_data import SetAside, reading
from tokentrace.bus import Bus, Entry, StreamState, subjects
from tokentrace.records import Natural, Position
from tokentrace.units import DAY

log = logging.getLogger(__name__)


_READER = "reader."


def reader_key(service: str, shard: int) -> str:
    """Where a reader's position stands in ``tt_meta``."""
    return f"{_READER}{service}.{shard}"


def encode_position(position: Position) -> bytes:
    """A reader's position as it stands in ``tt_meta`` under ``reader_key``."""
    return msgspec.json.encode([position.created_ns, position.sequence, time.time_ns()])


_told = msgspec.json.Decoder(tuple[Natural, Natural, Natural])


def read_positions(entries: Mapping[str, Entry], set_aside: SetAside) -> dict[str, tuple[int, int, int]]:
    """Reader -> what ``encode_position`` said, of those in ``tt_meta`` that can be read."""
    positions = {}
    for key, entry in entries.items():
        if key.startswith(_READER):
            with set_aside.guard(subjects.META, f"key {key} revision {entry.revision}"), reading("reader's position"):
                positions[key] = _told.decode(entry.value)
    return positions


def backlog(
    state: StreamState, positions: Mapping[str, tuple[int, int, int]], now_ns: int, forget_ns: int = 7 * DAY
) -> dict[str, float]:
    """
    How much of the stream each reader has still to read, as a fraction of its ceiling in bytes.

    Args:
        positions: reader -> (stream created at, sequence, when it told so).
        forget_ns: A reader that has told nothing for this long is gone.
    """
    if state.max_bytes <= 0 or state.messages == 0:
        return {}
    full = state.bytes / state.max_bytes
    span = max(state.last_sequence - state.first_sequence + 1, 1)
    behind = {}
    for reader, (created_ns, sequence, told_ns) in positions.items():
        if told_ns < now_ns - forget_ns:
            continue
        read = sequence if created_ns == state.created_ns else 0
        unread = max(state.last_sequence - max(read, state.first_sequence - 1), 0)
        behind[reader] = full * unread / span
    return behind


async def read_backlog(bus: Bus) -> tuple[StreamState, dict[str, float]]:
    """
    The span log, and how far each reader is behind in it.

    Raises:
        Unavailable: The broker is away.
    """
    state = await bus.state(subjects.SPANS)
    entries = await bus.kv(subjects.META).items()
    return state, backlog(state, read_positions(entries, bus.set_aside), time.time_ns())
