"""Counts that the api saves in a bucket, so that they outlive the messages of the streams from which they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, subjects
from tokentrace.service.retry import until_available

T = TypeVar("T", bound=msgspec.Struct)


class SavedCounts(Generic[T]):
    """
    The counts under one key of ``tt_meta``.

    Args:
        key: The key.
        empty: The counts as long as nothing is saved.
        decode: Returns the counts in an entry; it raises an error that ``bad_data.reading`` knows if it is unreadable.
        what: What the counts are, for the reason of an unreadable entry.

    Attributes:
        state: The counts, which the owner changes.
    """

    def __init__(self, bus: Bus, key: str, empty: T, decode: Callable[[bytes], T], what: str) -> None:
        self._bus, self._meta, self._key = bus, bus.kv(subjects.META), key
        self._decode, self._what = decode, what
        self.state = empty
        self._saved = b""

    async def load(self) -> None:
        """Load the counts; if the entry is unreadable, it is set aside and the owner counts what the streams hold."""
        entry = await until_available(lambda: self._meta.get(self._key))
        if entry is not None:
            which = f"key {self._key} revision {entry.revision}"
            with self._bus.set_aside.guard(subjects.META, which), reading(self._what):
                self.state, self._saved = self._decode(entry.value), entry.value

    async def save(self) -> None:
        """
        Save the counts if they changed.

        Raises:
            Unavailable: The broker cannot be reached. The counts stay in memory, and the next call saves them.
        """
        data = msgspec.json.encode(self.state)
        if data != self._saved:
            await self._meta.put(self._key, data)
            self._saved = data
