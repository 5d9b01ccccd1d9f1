"""
What waits for a target, and what its stream discarded before it was sent.

A full stream discards its oldest messages, and one that is too old. The broker does not count them. But it tells which
sequence the stream begins with, and up to which one messages were delivered: what lies between is gone and was never
delivered. The count is kept in ``tt_meta``, with the sequence up to which it was counted, so that several processes
count nothing twice, and a restart forgets nothing.
"""

from __future__ import annotations

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, Entry, StreamState, subjects
from tokentrace.errors import Conflict
from tokentrace.records import Natural
from tokentrace.units import SECOND

#: A stream is near its limits if it is filled, or its oldest message is as old, to this part.
_NEAR = 0.5


class _Lost(msgspec.Struct, frozen=True):
    """
    The entry of a target.

    Attributes:
        created_ns: When the stream was made, Unix nanoseconds.
        up_to: The sequence up to which discarded messages are counted.
        lost: Number of discarded messages, also of earlier streams.
    """

    created_ns: int
    up_to: Natural
    lost: Natural


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(_Lost).decode


class Waiting:
    """
    Measures the stream of a target.

    Args:
        target: Its name.
        max_age_ns: How long the stream keeps a message, nanoseconds; 0 = no limit.

    Attributes:
        messages: Number of messages that wait, those under way included.
        lag_s: How long the oldest of them has waited, seconds.
        lost: Number of messages that were discarded before they were delivered.
        near_limits: True = the stream may discard messages soon.
    """

    def __init__(self, bus: Bus, target: str, max_age_ns: int) -> None:
        self._bus, self._stream, self._max_age_ns = bus, subjects.forward_stream(target), max_age_ns
        self._meta, self._key = bus.kv(subjects.META), f"forward.target.{target}"
        self.messages, self.lag_s, self.lost = 0, 0.0, 0
        self.near_limits = False

    async def measure(self) -> None:
        """
        Ask the broker; raises ``TokentraceError`` if it does not answer.

        To be called before messages are taken after a pause: the next delivery hides what was discarded before it.
        """
        # In this order: what is gone now and is not delivered afterwards was never delivered.
        state = await self._bus.state(self._stream)
        delivered = await self._bus.delivered_up_to(self._stream, subjects.FORWARDER)
        lag_ns = max(self._bus.clock.now_ns() - state.first_time_ns, 0) if state.messages else 0
        self.messages, self.lag_s = state.messages, lag_ns / SECOND
        fullness = state.bytes / state.max_bytes if state.max_bytes > 0 else 0.0
        age = lag_ns / self._max_age_ns if self._max_age_ns else 0.0
        self.near_limits = max(fullness, age) > _NEAR
        if delivered is not None:
            await self._count(state, delivered)

    async def _count(self, state: StreamState, delivered: int) -> None:
        while True:
            entry = await self._meta.get(self._key)
            known = self._read(entry)
            counted = known.up_to if known.created_ns == state.created_ns else 0
            gone = state.first_sequence - 1
            more = max(gone - max(delivered, counted), 0)
            self.lost = known.lost + more
            if not more:
                return
            data = _encode(_Lost(state.created_ns, gone, self.lost))
            try:
                if entry is None:
                    await self._meta.create(self._key, data)
                else:
                    await self._meta.update(self._key, data, entry.revision)
                return
            except Conflict:
                continue

    def _read(self, entry: Entry | None) -> _Lost:
        if entry is not None:
            which = f"key {self._key} revision {entry.revision}"
            with self._bus.set_aside.guard(subjects.META, which), reading("lost requests"):
                return _decode(entry.value)
        return _Lost(0, 0, 0)
