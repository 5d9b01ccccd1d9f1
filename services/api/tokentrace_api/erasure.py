"""
Erases what the broker keeps about deleted users outside of the log of spans, and overwrites it on disk.

These are events and delivery records of rules that are grouped by user, and dead letters that name the user. The log
itself cannot be rewritten: its messages age out, and until then their deletions hide the records in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping

import msgspec
import structlog

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Message, subjects
from tokentrace.errors import TokentraceError
from tokentrace.records import Tombstone, decode_batches, decode_delivery, decode_event
from tokentrace.service.follow import Follower
from tokentrace.units import MINUTE, SECOND, parse_instant
from tokentrace_api.alert_history import AlertHistory, user_in

log = structlog.stdlib.get_logger(__name__)

#: Pauses between the passes after a deletion, seconds. An alerter may still publish the resolution of an episode of the
#: user, which must be delivered before it is erased, and records about its delivery.
PASSES_S = (0.5, 10.0, 50.0, 240.0)
#: What the streams keep about a user is erased this long after the deletion, nanoseconds.
ERASED_WITHIN_NS = 6 * MINUTE
#: Events that the alerter publishes because of the deletion are delivered before the pass at this age, nanoseconds.
_DELIVERED_WITHIN_NS = 55 * SECOND


class Erasure:
    """
    Erases what names a deleted user from the streams of events, delivery records and dead letters.

    Args:
        history: Forgets the delivery records that this api shows.
    """

    def __init__(self, bus: Bus, history: AlertHistory) -> None:
        self._bus, self._history = bus, history

    async def run(self) -> None:
        """Follow the deletions in the log and erase for each, several times, until cancelled."""
        deletions = Follower(self._bus, subjects.SPANS, [subjects.ALL_TOMBSTONES], None, reader="api.erasure")
        async with asyncio.TaskGroup() as tasks, deletions as chunks:
            async for chunk in chunks:
                users = {
                    tombstone.id: tombstone.deleted_ns
                    for message in chunk.messages
                    for tombstone in self._tombstones_in(message)
                    if tombstone.target == "user"
                }
                if users:
                    tasks.create_task(self._erase_repeatedly(users))

    def _tombstones_in(self, message: Message) -> list[Tombstone]:
        with self._bus.set_aside.guard(subjects.SPANS, f"message {message.sequence}"):
            return [tombstone for batch in decode_batches(message.payload) for tombstone in batch.tombstones]
        return []

    async def _erase_repeatedly(self, users: dict[str, int]) -> None:
        for pause_s in PASSES_S:
            await asyncio.sleep(pause_s)
            try:
                await self.erase(users)
            except TokentraceError as exc:
                log.warning("what the streams keep about deleted users is not erased yet", reason=str(exc))

    async def erase(self, users: Mapping[str, int]) -> int:
        """
        Erase what names one of *users* (id -> when the user was deleted, Unix nanoseconds); return how many messages.

        A resolution that follows from the deletion is left for a minute, so that it is delivered. What is stored over
        six minutes after the deletion is about a user who came back, and stays.

        Raises:
            Unavailable: The broker did not answer; what was found before is erased.
        """
        erased = 0
        for stream, subject, find_user in (
            (subjects.ALERTS, subjects.ALL_ALERTS, self._user_of_event),
            (subjects.DELIVERIES, subjects.ALL_DELIVERIES, self._user_of_delivery),
            (subjects.REJECTED, subjects.ALL_REJECTED, self._user_of_letter),
        ):
            async with Follower(
                self._bus, stream, [subject], None, reader="api.erasure", until_caught_up=True
            ) as chunks:
                async for chunk in chunks:
                    for message in chunk.messages:
                        user = self._find(find_user, message, users)
                        if user is not None and message.time_ns <= users[user] + ERASED_WITHIN_NS:
                            await self._bus.erase(stream, message.sequence)
                            erased += 1
        self._history.forget(users)
        return erased

    @staticmethod
    def _find(
        find_user: Callable[[Message, Mapping[str, int]], str | None], message: Message, users: Mapping[str, int]
    ) -> str | None:
        """Return what *find_user* does; None for a message that cannot be read, which every reader sets aside."""
        try:
            return find_user(message, users)
        except BAD_DATA:
            return None

    def _user_of_event(self, message: Message, users: Mapping[str, int]) -> str | None:
        event = decode_event(message.payload)
        user = user_in(event.group, users)
        if user is None:
            return None
        follows = event.status == "resolved" and parse_instant(event.fired_at) >= users[user] - MINUTE
        return None if follows and self._bus.clock.now_ns() < users[user] + _DELIVERED_WITHIN_NS else user

    @staticmethod
    def _user_of_delivery(message: Message, users: Mapping[str, int]) -> str | None:
        return user_in(decode_delivery(message.payload).group, users)

    @staticmethod
    def _user_of_letter(message: Message, users: Mapping[str, int]) -> str | None:
        return _user_in_json(msgspec.json.decode(message.payload), users)


def _user_in_json(value: object, users: Container[str]) -> str | None:
    """Return the user that *value*, decoded JSON, has under a key such as ``user_id`` or ``userId`` at any depth."""
    found: str | None = None
    if isinstance(value, dict):
        for key, item in value.items():
            is_user = str(key).lower().replace("_", "").replace("-", "") in ("userid", "user")
            if is_user and isinstance(item, str | int) and str(item) in users:
                return str(item)
            found = found or _user_in_json(item, users)
    elif isinstance(value, list):
        for item in value:
            found = found or _user_in_json(item, users)
    return found
