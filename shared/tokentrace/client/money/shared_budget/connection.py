"""The connection of a process to one broker, for the shared budgets there; it runs in the thread of ``link``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

from tokentrace.bus.urls import shown_urls
from tokentrace.client import lifecycle
from tokentrace.client.money.shared_budget.settings import Server
from tokentrace.errors import Unavailable

if TYPE_CHECKING:
    from tokentrace.bus.jetstream import JetStream

T = TypeVar("T")

log = logging.getLogger("tokentrace.budget")

#: A broker that was connected is away after this long, and one that never was after the longer time; seconds.
AWAY_S = 0.5
FIRST_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 2.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0


class Connection:
    """
    Stays connected until it is closed.

    Args:
        server: Where the budgets are kept.

    Attributes:
        users: How many budgets use it.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.users = 0
        self._bus: JetStream | None = None
        self._trouble = ""
        loop = asyncio.get_running_loop()
        self._was_up = False
        self._down_at: float | None = loop.time()
        self._closed = asyncio.Event()
        self._task = loop.create_task(self._stay_connected())

    @property
    def bus(self) -> JetStream | None:
        """The bus while there is a connection; None = there is none now."""
        bus = self._bus
        if bus is None or not bus.connected:
            if self._down_at is None:
                self._down_at = asyncio.get_running_loop().time()
            return None
        self._down_at, self._was_up = None, True
        return bus

    def away(self) -> str:
        """Return why the broker counts as away; "" = it does not."""
        if self.bus is not None or self._down_at is None:
            return ""
        limit = AWAY_S if self._was_up else FIRST_S
        if asyncio.get_running_loop().time() - self._down_at < limit:
            return ""
        return self._trouble or f"no connection to {shown_urls(self._server.url)}"

    async def close(self) -> None:
        """Close the connection."""
        self._closed.set()
        await asyncio.wait([self._task], timeout=3)
        self._task.cancel()

    async def _stay_connected(self) -> None:
        # Loaded with the first connection: most programs that import this package never connect.
        with lifecycle.importing:
            from tokentrace.bus import jetstream

        pause = _FIRST_PAUSE_S
        while not self._closed.is_set():
            try:
                async with jetstream.connect(
                    self._server.url,
                    name="tokentrace budget",
                    inbox_prefix=self._server.inbox_prefix,
                    wait_s=_CONNECT_TIMEOUT_S,
                    access=self._server.access,
                ) as bus:
                    self._bus, self._trouble, pause = bus, "", _FIRST_PAUSE_S
                    await self._closed.wait()
            except Unavailable as exc:
                self._trouble = str(exc)
            except Exception as exc:
                self._trouble = f"{type(exc).__name__} while connecting"
                log.error("budgets: %s", self._trouble, exc_info=exc)
            finally:
                self._bus = None
            if not self._closed.is_set():
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE_S)


async def in_time(request: Awaitable[T]) -> T:
    """Return the result of *request*; Unavailable if the broker does not answer within two seconds."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return await request
    except TimeoutError as exc:
        raise Unavailable("no answer") from exc
