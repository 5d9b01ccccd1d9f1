"""The connection: kept up, told of, and cut when nats-py would wait for a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from tokentrace.bad_data import UNREADABLE, why
from tokentrace.errors import ConfigError, Rejected, shorten

log = logging.getLogger("tokentrace.bus")


_SCHEMES = ("nats", "tls", "ws", "wss")


def parse_urls(text: str) -> list[str]:
    """
    The servers named in *text*: one URL, or several separated by commas; without a scheme ``nats://`` is meant.

    Raises:
        ConfigError: Names the part that is not a URL, without its password.
    """
    return [_checked(url if "://" in url else f"nats://{url}") for url in _split(text)]


def without_secret(text: str) -> str:
    """*text*, a URL or several, as it may stand in a log."""
    return ",".join(_without_user(url) for url in _split(text))


def _split(text: str) -> list[str]:
    urls: list[str] = []
    for part in text.split(","):
        if urls and "@" in part and "://" not in part:
            # The rest of a password with a comma in it.
            urls[-1] += f",{part}"
        else:
            urls.append(part.strip())
    return urls


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        shown = shorten(_without_user(url))
        raise ConfigError(f"NATS URL {shown!r}: not such as nats://host:port, nor several with commas between")
    return url


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


class _Client(Client):
    """A client that a message with broken headers does not end: nats-py stops reading for good at some of them."""

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except UNREADABLE as exc:
            await self._error_cb(Rejected(f"headers of a message: {why(exc)}"))
            return None
        return parsed


class Connection:
    """Connects, logs what happens to the connection, and cuts a dead one that nats-py waits on."""

    def __init__(self, urls: Sequence[str], name: str) -> None:
        self._urls, self._name = urls, name
        self.last_error = ""
        self._client: Client | None = None
        self.on_down: Callable[[], None] = lambda: None

    async def open(self, inbox_prefix: str) -> Client:
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
