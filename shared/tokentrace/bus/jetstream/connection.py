"""The connection to NATS: opening it, logging its changes, and cutting it when nats-py waits for a dead link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import nats.errors
from nats.aio.client import Client

from tokentrace.bad_data import UNREADABLE, reason_of
from tokentrace.bus.access import Access, check_access, tls_context
from tokentrace.errors import Rejected, Unavailable

log = logging.getLogger("tokentrace.bus")


class _Client(Client):
    """
    A client with three differences to that of nats-py.

    It ignores malformed headers, at some of which nats-py stops reading for ever. ``tls://`` means TLS: nats-py sends
    the password in the clear to a server that offers none. And user and password in a URL are decoded, as other clients
    of NATS do, so that a password may hold any character.
    """

    #: What the caller gave, which holds for every server; None = each URL holds its own.
    given_user: tuple[str, str] | None = None

    def _connect_command(self) -> bytes:
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the URL says tls:// and the server offers no TLS")
        user, password = self.given_user or (None, None)
        if user is None and server is not None and server.uri.password is not None:
            user, password = unquote(server.uri.username or ""), unquote(server.uri.password)
        self.options["user"], self.options["password"] = user, password
        try:
            command: bytes = super()._connect_command()
        except (OSError, nats.errors.Error):
            raise
        except Exception as exc:  # nkeys, for a file that was replaced by another; nats-py would never try again
            raise nats.errors.Error(f"the credentials cannot be used: {type(exc).__name__}") from exc
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

    def __init__(self, urls: Sequence[str], name: str, access: Access = Access()) -> None:  # noqa: B008 - it is immutable
        self._urls, self._name, self._access = urls, name, access
        self.last_error = ""
        self.closing = False
        self._client: Client | None = None
        # Not the module's: an application that seeds it gets the same numbers with and without a reporter.
        self._dice = random.Random()
        self.on_down: Callable[[], None] = lambda: None

    async def open(self, inbox_prefix: str) -> Client:
        """
        Connect; without a server this waits until it is cancelled.

        Raises:
            Unavailable: A file of the access holds no key or certificate.
            ConfigError: The access cannot be used.
        """
        access = self._access
        check_access(access)
        client = self._client = _Client()
        if access.user:
            client.given_user = (access.user, access.password)
        with _naming_bad_keys(access):
            await self._connect(client, inbox_prefix)
        return client

    async def _connect(self, client: Client, inbox_prefix: str) -> None:
        access = self._access
        await client.connect(
            self._dice.sample(self._urls, len(self._urls)),
            dont_randomize=True,
            name=self._name,
            inbox_prefix=inbox_prefix,
            user=access.user or None,
            password=access.password if access.user else None,
            token=access.token or None,
            user_credentials=access.creds or None,
            nkeys_seed=access.nkey or None,
            tls=tls_context(access),
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
        if self._client is not None:
            # Clients of a server that ends do not all try the same one next.
            self._dice.shuffle(self._client._server_pool)
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


@contextlib.contextmanager
def _naming_bad_keys(access: Access) -> Iterator[None]:
    """Raise Unavailable, with the name of the file, for a seed that nkeys cannot read."""
    if not (access.creds or access.nkey):
        yield
        return
    from nkeys import NkeysError

    try:
        yield
    except (NkeysError, ValueError) as exc:
        raise Unavailable(f"the key in {access.creds or access.nkey} cannot be used: {type(exc).__name__}") from exc


def abort(client: Client) -> None:
    """Cut the socket of *client* without waiting; nats-py has no public call for this."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
