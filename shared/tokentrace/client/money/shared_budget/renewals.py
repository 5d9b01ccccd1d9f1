"""The renewal of the leases of a process; it runs in the thread of ``link``."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any


class Renewals:
    """
    Renews leases until they are ended, or forgotten by their owner: then they expire.

    Args:
        every_s: Time between two renewals, seconds.
        renew: Called with the id of each lease.
    """

    def __init__(self, every_s: float, renew: Callable[[str], None]) -> None:
        self._every_s, self._renew = every_s, renew
        self._open: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, lease: Any) -> None:
        """Renew *lease* from now on."""
        self._open[lease.id] = lease
        if self._timer is None:
            self._begin()

    def end(self, id: str) -> None:
        """Renew the lease *id* no more."""
        self._open.pop(id, None)

    def stop(self) -> None:
        """Renew nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._renew_all)

    def _renew_all(self) -> None:
        self._timer = None
        for lease_id in list(self._open.keys()):
            self._renew(lease_id)
        if self._open:
            self._begin()
