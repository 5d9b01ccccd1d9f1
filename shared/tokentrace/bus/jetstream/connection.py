"""The connection to NATS: opening it, logging its changes, and cutting it when nats-py waits for a dead link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client

from tokentrace.bad_data import UNREADABLE, reason_of
from tokentrace.errors import Rejected

log = logging.getLogger("tokentrace.bus")


class _Client(Client):
    """
    A client with two differences to that of nats-py.

    It ignores malformed headers, at some of which nats-py stops reading for ever. And ``tls://`` means TLS: nats-py
    sends the password in the clear to a server that offers none.
    """

    def _connect_command(self) -> bytes:
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the URL says tls:// and the server offers no TLS")
        command: bytes = super()._connect_command()
        return command

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except UNREADABLE as exc:
            await self._error_cb(Rejected(f"headers of a message: {reason_of(exc)}"))
            return None
        return parsed


class Connection:
    """
    Opens a connection, logs its changes, and cuts it when it is dead.

    Attributes:
        last_error: The last error of nats-py since it connected, for the message of a failed start; "" = none.
        closing: True = the connection is closed on purpose, which is not logged.
        on_down: Called when the connection is lost.
    """

    def __init__(self, urls: Sequence[str], name: str) -> None:
        self._urls, self._name = urls, name
        self.last_error = ""
        self.closing = False
        self._client: Client | None = None
        self.on_down: Callable[[], None] = lambda: None

    async def open(self, inbox_prefix: str) -> Client:
        """Connect; without a server this waits until it is cancelled."""
        client = self._client = _Client()
        await client.connect(
            list(self._urls),
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
        """Cut the socket of an attempt to connect, without waiting."""
        if self._client is not None:
            abort(self._client)

    async def abandon(self) -> None:
        """Close an attempt to connect that has failed."""
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
            # nats-py does not close the socket if the server accepts the connection and then fails.
            abort(self._client)

    async def _on_disconnect(self) -> None:
        if not self.closing:
            log.info("nats %s: disconnected", self._name)
        self.on_down()

    async def _on_reconnect(self) -> None:
        self.last_error = ""
        log.info("nats %s: connected again", self._name)

    async def watch(self, client: Client) -> None:
        """Cut the socket after 5 s of reconnecting: nats-py may wait 15 minutes for unsent bytes on a dead link."""
        reconnecting_s = 0
        while True:
            await asyncio.sleep(1)
            reconnecting_s = reconnecting_s + 1 if client.is_reconnecting else 0
            if reconnecting_s == 5:
                reconnecting_s = 0
                abort(client)


def abort(client: Client) -> None:
    """Cut the socket of *client* without waiting; nats-py has no public call for this."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
