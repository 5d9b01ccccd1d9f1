"""The connection: kept up, told of, and cut when nats-py would wait for a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from tokentrace.errors import Rejected
from tokentrace.foreign import UNREADABLE, why

log = logging.getLogger("tokentrace.bus")


class _Client(Client):
    """A client that a message with broken headers does not end: nats-py stops reading for good at some of them."""

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except UNREADABLE as exc:
            await self._error_cb(Rejected(f"headers of a message: {why(exc)}"))
            return None
        return parsed


class Link:
    """Connects, logs what happens to the connection, and cuts a dead one that nats-py waits on."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.last_error = ""
        self._client: Client | None = None
        self.on_down: Callable[[], None] = lambda: None

    async def open(self, inbox_prefix: str) -> Client:
        client = self._client = _Client()
        await client.connect(
            self._url,
            name=self._name,
            inbox_prefix=inbox_prefix,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=0,
        )
        return client

    def cut(self) -> None:
        """Close the socket of a connection that was never made, without waiting."""
        if self._client is not None:
            abort(self._client)

    async def abandon(self) -> None:
        """Let go of a connection that was never made."""
        if self._client is None:
            return
        self.cut()
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(1):
                await self._client.close()

    async def _on_error(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self.last_error:
            log.info("nats %s: %s", self._name, text)
        self.last_error = text
        if self._client is not None and not self._client.is_connected:
            # nats-py lets go of a connection that was made and came to nothing, but does not close it.
            abort(self._client)

    async def _on_disconnect(self) -> None:
        log.info("nats %s: disconnected", self._name)
        self.on_down()

    async def _on_reconnect(self) -> None:
        self.last_error = ""
        log.info("nats %s: connected again", self._name)

    async def watch(self, client: Client) -> None:
        """A dead link with unsent bytes keeps nats-py waiting for a quarter of an hour: abort it after 5 s."""
        stuck = 0
        while True:
            await asyncio.sleep(1)
            stuck = stuck + 1 if client.is_reconnecting else 0
            if stuck == 5:
                stuck = 0
                abort(client)


def abort(client: Client) -> None:
    """Cut the socket under *client*; nats-py has no call for it."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
