"""How often each rule has fired since the beginning: counted from the events, and kept when those have aged away."""

from __future__ import annotations

import contextlib
import logging

import msgspec

from tokentrace.bus import Bus, Position, subjects
from tokentrace.records import AlertEvent

log = logging.getLogger("tokentrace.api")

_KEY = "alert_counts"


class _Saved(msgspec.Struct):
    position: Position | None = None
    firings: dict[str, int] = {}
    delivery_failed: dict[str, int] = {}


class AlertCounts:
    """
    Counts by rule.

    Attributes:
        firings: Events with status firing.
        delivery_failed: Firings that could not be delivered, for good.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus, self._meta = bus, bus.kv(subjects.META)
        self._state = _Saved()
        self._saved: Position | None = None
        self.caught_up = False

    @property
    def firings(self) -> dict[str, int]:
        """Rule -> how often it fired."""
        return dict(sorted(self._state.firings.items()))

    @property
    def delivery_failed(self) -> dict[str, int]:
        """Rule -> how many of its firings could not be delivered; every rule that ever fired is there."""
        return {rule: self._state.delivery_failed.get(rule, 0) for rule in sorted(self._state.firings)}

    async def follow(self) -> None:
        """Count until cancelled."""
        entry = await self._meta.get(_KEY)
        if entry is not None:
            try:
                self._state = msgspec.json.decode(entry.value, type=_Saved)
            except msgspec.DecodeError as exc:
                log.error("%s in %s cannot be read, counting anew: %s", _KEY, subjects.META, exc)
        feed = self._bus.follow(subjects.ALERTS, [subjects.ALL_ALERTS], self._state.position)
        async with contextlib.aclosing(feed):
            async for chunk in feed:
                for message in chunk.messages:
                    self._count(message.payload)
                    self._state.position = Position(chunk.created_ns, message.sequence)
                self.caught_up = self.caught_up or chunk.pending == 0

    def _count(self, payload: bytes) -> None:
        try:
            event = msgspec.json.decode(payload, type=AlertEvent)
        except msgspec.DecodeError as exc:
            log.warning("an alert event cannot be read: %s", exc)
            return
        if event.status == "firing":
            self._state.firings[event.alert] = self._state.firings.get(event.alert, 0) + 1

    async def save(self) -> None:
        """
        Keep what was counted.

        Raises:
            Unavailable: The broker is away; nothing is lost, the events are still there.
        """
        position = self._state.position
        if position is None or position == self._saved:
            return
        await self._meta.put(_KEY, msgspec.json.encode(self._state))
        self._saved = position
